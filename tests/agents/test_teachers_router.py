"""Several teachers in one: who judges what, and what a mixture finds probable."""

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from journeyman.agents.errors import SettingError, VocabularyMismatchError
from journeyman.agents.learning.losses import Loss, SampledReverseKL, TopKReverseKL
from journeyman.agents.learning.trainers import distill
from journeyman.agents.teachers import Detail, Signal, Teacher
from journeyman.agents.teachers.local import LocalTeacher
from journeyman.agents.teachers.privileged import SelfTeacher
from journeyman.agents.teachers.router import Mixture, Router
from journeyman.agents.teachers.signal import silent
from journeyman.envs import Episode, env_class

from .test_trainers import babbler, changed, distillation, make_parts, steps, weights
from .tiny import episode, gpt2, llama, tokenizer

BANK, ORDERS, CALENDAR = (f"journeyman/{it}-v0" for it in ("Bank", "Orders", "Calendar"))


class Says(Teacher):
    """The same number at every place, as any part would that has states of its own."""

    gives = Detail.SAMPLED

    def __init__(self, number: float) -> None:
        self.number = number
        self.seen: list[Episode] = []
        self.moved = 0

    def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
        self.seen += rows
        return [Signal(torch.tensor(r.mask) * self.number) for r in rows]

    def advance(self) -> None:
        self.moved += 1

    def state_dict(self) -> dict[str, Any]:
        return {"moved": self.moved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moved = state["moved"]


def rows_of(*env_ids: str) -> list[Episode]:
    rng = random.Random(3)
    return [episode(rng, env_id=env_id) for env_id in env_ids]


def said(signals: Sequence[Signal]) -> list[float]:
    return [float(signal.logprobs.min()) for signal in signals]


def test_each_row_goes_to_its_own_and_keeps_its_place() -> None:
    parts = {"a": Says(-1.0), "b": Says(-2.0), "c": Says(-3.0)}
    router = Router(parts, {"a": ["journeyman/Ba*"], "b": ["tool:find_ord*"], "c": ["*"]})
    rows = rows_of(CALENDAR, BANK, ORDERS, BANK, CALENDAR)
    assert said(router.annotate(rows, Detail.SAMPLED)) == [-3, -1, -2, -1, -3]
    assert parts["a"].seen == [rows[1], rows[3]]


def test_the_kind_of_a_task_decides_too() -> None:
    rows = rows_of(*[BANK] * 12)
    kinds = [env_class(BANK).load_task(row.task_id).kind for row in rows]
    assert len(set(kinds)) > 1
    router = Router({"a": Says(-1.0), "b": Says(-2.0)}, {"a": [f"kind:{kinds[0]}"], "b": ["*"]})
    expected = [-1.0 if kind == kinds[0] else -2.0 for kind in kinds]
    assert said(router.annotate(rows, Detail.SAMPLED)) == expected


def test_parts_follow_and_keep_their_own() -> None:
    parts = {"a": Says(-1.0), "b": Says(-2.0)}
    router = Router(parts, {"a": [BANK], "b": ["*"]})
    router.advance()
    parts["a"].advance()
    assert router.state_dict() == {"a": {"moved": 2}, "b": {"moved": 1}}
    router.load_state_dict({"a": {"moved": 5}, "b": {"moved": 7}})
    assert (parts["a"].moved, parts["b"].moved) == (5, 7)
    with pytest.raises(ValueError, match=r"not here: \['x'\]"):
        router.load_state_dict({"x": {}})


def test_each_part_checks_the_student() -> None:
    vocabulary = len(tokenizer())
    narrow = LocalTeacher(gpt2(vocabulary - 1), tokenizer())
    wide = LocalTeacher(gpt2(vocabulary), tokenizer())
    student = make_parts(babbler()).student
    Router({"a": wide}, {"a": ["*"]}).check(student)
    with pytest.raises(VocabularyMismatchError):
        Router({"a": wide, "b": narrow}, {"a": [BANK], "b": ["*"]}).check(student)


def test_lists_are_cut_to_one_length_and_lose_no_mass() -> None:
    rows = rows_of(BANK, ORDERS)
    parts = {
        "a": LocalTeacher(llama(40), tokenizer(), top_k=9),
        "b": LocalTeacher(llama(40, seed=1), tokenizer(), top_k=4),
    }
    router = Router(parts, {"a": [BANK], "b": ["*"]}, top_k=4)
    for signal, part, row in zip(
        router.annotate(rows, Detail.TOP_K), parts.values(), rows, strict=True
    ):
        (own,) = part.annotate([row], Detail.TOP_K)
        assert signal.top is not None and own.top is not None
        assert torch.equal(signal.top.ids, own.top.ids[:, :4])
        whole = signal.top.logprobs.exp().sum(1) + signal.top.tail.exp()
        torch.testing.assert_close(whole, torch.ones_like(whole))
    with pytest.raises(SettingError, match=r"top_k=5: teacher.parts.b names 4 tokens"):
        Router(parts, {"a": [BANK], "b": ["*"]}, top_k=5).annotate(rows, Detail.TOP_K)


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ({}, r"^routes is empty"),
        ({"a": ["*"], "x": ["*"]}, r"^routes.x: no such teacher; there are: a, b$"),
        ({"a": ["*"]}, r"^parts.b has no route: add routes.b=\['\*'\]$"),
        ({"a": "*", "b": ["*"]}, r"^routes.a='\*': expected a list of patterns$"),
        ({"a": [], "b": ["*"]}, r"^routes.a=\[\]: expected a list"),
    ],
)
def test_routes_that_lead_nowhere(routes: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Router({"a": Says(-1.0), "b": Says(-2.0)}, routes)


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ({"a": ["journeyman/Bank-*"]}, r"none takes every task of journeyman/Orders-v0"),
        ({"a": ["journeyman/Bank-*", "kind:*"]}, r"none takes every task of journeyman/Orders-v0"),
        ({"a": ["journeyman/Banc-*", "*"]}, r"routes.a: 'journeyman/Banc-\*' takes no environment"),
        ({"a": ["tool:transfr", "*"]}, r"routes.a: 'tool:transfr' takes no environment .* tools$"),
    ],
)
def test_environments_without_a_teacher(routes: Any, message: str) -> None:
    router = Router({"a": Says(-1.0)}, routes)
    with pytest.raises(SettingError, match=message):
        router.check_environments([BANK, ORDERS])


def test_several_must_be_teachers() -> None:
    with pytest.raises(SettingError, match=r"^parts is empty: name at least one teacher"):
        Router({}, {"a": ["*"]})
    with pytest.raises(SettingError, match=r"^parts.a: expected a teacher, not NoneType"):
        Mixture({"a": None}, {"a": 1})  # type: ignore[dict-item]


# Mixtures


def test_a_mixture_is_the_mean_of_probabilities() -> None:
    models, rows = (llama(40), llama(40, seed=1)), rows_of(BANK, ORDERS, BANK)
    parts = {str(i): LocalTeacher(it, tokenizer()) for i, it in enumerate(models)}
    mixture = Mixture(parts, {"0": 3, "1": 1}, top_k=6)
    assert mixture.gives is Detail.TOP_K
    for detail in (Detail.SAMPLED, Detail.TOP_K):
        for row, signal in zip(rows, mixture.annotate(rows, detail), strict=True):
            places = [i for i, chosen in enumerate(row.mask) if chosen]
            with torch.no_grad():
                both = [it(torch.tensor([row.tokens])).logits[0].double() for it in models]
            one, other = (it[[i - 1 for i in places]].softmax(-1) for it in both)
            mean = 0.75 * one + 0.25 * other
            own = mean.gather(1, torch.tensor(row.tokens)[places][:, None])[:, 0].log()
            torch.testing.assert_close(signal.logprobs[places].double(), own, atol=1e-4, rtol=0)
            assert signal.spoken is None
            if detail is Detail.TOP_K:
                best = mean.topk(6)
                assert signal.top is not None
                assert torch.equal(signal.top.ids, best.indices)
                found = signal.top.logprobs.double()
                torch.testing.assert_close(found, best.values.log(), atol=1e-4, rtol=0)
                rest = (1 - best.values.sum(1)).log()
                torch.testing.assert_close(signal.top.tail.double(), rest, atol=1e-4, rtol=0)


def test_a_mixture_is_over_the_tokens_that_all_parts_tell_of() -> None:
    wide, narrow = llama(40), llama(37, seed=1)
    (row,) = rows_of(BANK)
    row = replace(row, tokens=tuple(min(t, 36) for t in row.tokens))
    parts = {"a": LocalTeacher(wide, tokenizer()), "b": LocalTeacher(narrow, tokenizer())}
    (signal,) = Mixture(parts, {"a": 1, "b": 1}, top_k=5).annotate([row], Detail.TOP_K)
    places = [i - 1 for i, chosen in enumerate(row.mask) if chosen]
    with torch.no_grad():
        one, other = (
            it(torch.tensor([row.tokens])).logits[0, places, :37].double().softmax(-1)
            for it in (wide, narrow)
        )
    best = (0.5 * one + 0.5 * other).topk(5)
    assert signal.top is not None and torch.equal(signal.top.ids, best.indices)
    found = signal.top.logprobs.double().exp()
    torch.testing.assert_close(found, best.values, atol=1e-4, rtol=0)


class Hesitant(Says):
    """Speaks at every other token alone."""

    def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
        told = super().annotate(rows, detail)
        spoken = [torch.arange(len(row.tokens)) % 2 == 0 for row in rows]
        return [silent(*it) for it in zip(rows, told, spoken, strict=True)]


def test_who_is_silent_has_no_say() -> None:
    (row,) = rows_of(BANK)
    chosen = torch.tensor(row.mask)
    even = torch.arange(len(row.tokens)) % 2 == 0
    parts = {"a": Says(math.log(0.5)), "b": Hesitant(math.log(0.1))}
    (signal,) = Mixture(parts, {"a": 1, "b": 1}).annotate([row], Detail.SAMPLED)
    assert signal.spoken is None
    expected = torch.where(even, math.log(0.3), math.log(0.5)) * chosen
    torch.testing.assert_close(signal.logprobs, expected)
    (signal,) = Mixture({"b": Hesitant(-1.0)}, {"b": 1}).annotate([row], Detail.SAMPLED)
    assert signal.spoken is not None and torch.equal(signal.spoken, even)
    own = torch.tensor(row.logprobs)
    torch.testing.assert_close(signal.logprobs, torch.where(even, -1.0 * chosen, own))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": 1}, r"^weights={'a': 1}: expected a number for each of a, b$"),
        ({"a": 1, "b": 0}, r"^weights.b=0: expected a number above 0$"),
        ({"a": 1, "b": True}, r"^weights.b=True: "),
        ({"a": math.inf, "b": 1}, r"^weights.a=inf: "),
    ],
)
def test_weights_out_of_their_range(given: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Mixture({"a": Says(-1.0), "b": Says(-2.0)}, given)


def test_spans_are_not_mixed() -> None:
    class Spans(Says):
        gives = Detail.SPANS

    parts = {"a": Says(-1.0), "b": Spans(-1.0)}
    with pytest.raises(SettingError, match=r"^parts.b: Spans tells of spans alone, .* loss=span$"):
        Mixture(parts, {"a": 1, "b": 1})


def test_what_a_mixture_cannot_give_is_refused() -> None:
    assert Mixture({"a": Says(-1.0)}, {"a": 1}).gives is Detail.SAMPLED
    parts = make_parts(babbler())
    mixture = Mixture({"a": parts.teacher}, {"a": 1})  # type: ignore[dict-item]
    with pytest.raises(SettingError, match=r"the loss needs full of the teacher, and Mixture give"):
        distill.build(replace(parts, teacher=mixture), distillation(Path("unused")))


@pytest.mark.parametrize("loss", [TopKReverseKL(), SampledReverseKL()])
@pytest.mark.parametrize("kind", ["router", "mixture"])
def test_two_steps(kind: str, loss: Loss, tmp_path: Path) -> None:
    parts = make_parts(babbler(), loss=loss)
    several = {"a": copy.copy(parts.teacher), "b": SelfTeacher("outcome", "average")}
    teacher: Teacher = (
        Router(several, {"a": ["kind:lookup"], "b": ["*"]})  # type: ignore[arg-type]
        if kind == "router"
        else Mixture(several, {"a": 1, "b": 0.5})  # type: ignore[arg-type]
    )
    teacher.check(parts.student)
    teacher.check_environments([BANK])
    before = weights(parts.student.model)
    trainer = distill.build(replace(parts, teacher=teacher), distillation(tmp_path))
    trainer.train()
    assert changed(parts.student.model, before) == before.keys()
    assert all(record["grad_norm"] > 0 for record in steps(trainer))
