"""The gold program as a teacher: where it speaks, what it says, where it is silent."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from journeyman.agents.errors import SettingError
from journeyman.agents.learning.losses import (
    JSD,
    Loss,
    Predictions,
    SampledReverseKL,
    TeacherView,
    TopKReverseKL,
)
from journeyman.agents.learning.trainers import distill
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.scripted import Script, ScriptedPlayer, oracle
from journeyman.agents.teachers import Detail, Signal
from journeyman.agents.teachers.oracle import OracleTeacher
from journeyman.envs import Episode, ToolEnv, answer_text, make
from journeyman.tools import CallStatus, ToolCall

from .test_trainers import ENV, babbler, changed, distillation, make_parts, steps, weights
from .tiny import chat

DIALECT = chat()
TASK = TaskRef(ENV, "train/0")
EPSILON = 0.1


def play(script: Script) -> Episode:
    (row,) = rollout(ScriptedPlayer(DIALECT, script), [TASK])
    return row


def judged(row: Episode, detail: Detail = Detail.SAMPLED, top_k: int = 4) -> Signal:
    teacher = OracleTeacher(EPSILON, top_k)
    teacher.check(make_parts(babbler()).student)
    (signal,) = teacher.annotate([row], detail)
    assert signal.spoken is not None
    return signal


def width() -> int:
    return len(DIALECT.tokenizer)


def spoken(row: Episode, signal: Signal) -> list[int]:
    """Places of each turn at which it speaks."""
    assert signal.spoken is not None
    assert not (signal.spoken & ~torch.tensor(row.mask)).any()
    return [int(signal.spoken[slice(*step.span)].sum()) for step in row.steps]


def lengths(row: Episode) -> list[int]:
    return [end - start for start, end in (step.span for step in row.steps)]


def altered(call: ToolCall) -> ToolCall:
    """The call with another last argument: it agrees up to there."""
    name, value = list(call.arguments.items())[-1]
    return replace(call, arguments={**call.arguments, name: f"{value}x"})


def test_who_does_as_gold_is_confirmed_to_the_last_token() -> None:
    row = play(oracle)
    signal = judged(row)
    assert spoken(row, signal) == lengths(row)
    told = signal.logprobs[torch.tensor(row.mask)]
    torch.testing.assert_close(told, torch.full_like(told, math.log(1 - EPSILON)))


def test_a_slip_is_taught_to_its_first_token_and_gold_goes_on_after_it() -> None:
    def slips(env: ToolEnv) -> Iterator[ToolCall | str]:
        first = env.oracle()[0]
        yield altered(first)  # nobody of that name: the state stays as it was
        yield from oracle(env)

    row = play(slips)
    signal = judged(row, Detail.TOP_K)
    start, end = row.steps[0].span
    gold = DIALECT.turn(DIALECT.write_call(play(oracle).calls[0].call))
    first = next(
        i for i, (a, b) in enumerate(zip(row.tokens[start:end], gold, strict=False)) if a != b
    )
    assert spoken(row, signal) == [first + 1, *lengths(row)[1:]]
    others = math.log(EPSILON / (width() - 1))
    assert signal.logprobs[start + first] == pytest.approx(others, abs=1e-5)
    assert signal.logprobs[start + first - 1] == pytest.approx(math.log(1 - EPSILON), abs=1e-6)
    assert signal.top is not None
    place = sum(row.mask[: start + first])
    assert signal.top.ids[place, 0] == gold[first]
    assert len(set(signal.top.ids[place].tolist())) == 4
    told = signal.top.logprobs[place].tolist()
    assert told == pytest.approx([math.log(1 - EPSILON), *[others] * 3], abs=1e-5)
    whole = signal.top.logprobs.double().exp().sum(1) + signal.top.tail.double().exp()
    torch.testing.assert_close(whole, torch.ones_like(whole), atol=1e-6, rtol=0)


def test_a_harmless_detour_does_not_lead_off() -> None:
    def detours(env: ToolEnv) -> Iterator[ToolCall | str]:
        gold = env.oracle()
        yield gold[0]
        yield gold[0]  # looked up again
        yield from gold[1:]
        yield answer_text(env.user_turn)

    row = play(detours)
    whole, told = lengths(row), spoken(row, judged(row))
    assert 0 < told[1] < whole[1]
    assert [told[0], *told[2:]] == [whole[0], *whole[2:]]


def test_it_follows_longer_than_the_environment_lasts_by_itself() -> None:
    def dawdles(env: ToolEnv) -> Iterator[ToolCall | str]:
        gold = env.oracle()
        yield from [gold[0]] * 25  # of them 24 change nothing
        yield from gold[1:]
        yield answer_text(env.user_turn)

    (row,) = rollout(ScriptedPlayer(DIALECT, dawdles), [TASK], env_kwargs={"max_turns": 40})
    assert row.success and len(row.steps) > make(ENV).max_turns
    whole, told = lengths(row), spoken(row, judged(row))
    assert told[25:] == whole[25:]


def test_after_a_change_that_gold_does_not_make_it_is_silent() -> None:
    def freezes(env: ToolEnv) -> Iterator[ToolCall | str]:
        yield from env.oracle()[:1]
        accounts = env.task.state.accounts
        active = min(name for name, account in accounts.items() if account.status == "active")
        yield ToolCall("freeze", {"account": active})
        yield from env.oracle()[1:]
        yield answer_text(env.user_turn)

    row = play(freezes)
    assert row.calls[1].call.status is CallStatus.OK
    signal = judged(row)
    told = spoken(row, signal)
    assert told[0] == lengths(row)[0]
    assert told[2:] == [0] * (len(told) - 2)
    assert signal.spoken is not None
    quiet = ~signal.spoken
    assert torch.equal(signal.logprobs[quiet], torch.tensor(row.logprobs)[quiet])


def test_an_answer_too_early_is_taught_and_then_nothing() -> None:
    def gives_up(env: ToolEnv) -> Iterator[ToolCall | str]:
        yield "Answer: no idea"

    row = play(gives_up)
    assert spoken(row, judged(row)) == [1]  # a call begins with another token


class Thousand(SampledReverseKL):
    """1 where the teacher speaks, 1000 where it is silent."""

    def __call__(self, student: Predictions, teacher: TeacherView | None, batch: Any) -> Tensor:
        assert teacher is not None and teacher.spoken is not None
        values = torch.where(teacher.spoken, 1.0, 1000.0)
        return values + 0 * super().__call__(student, teacher, batch)


def test_figures_are_of_what_it_says(tmp_path: Path) -> None:
    parts = make_parts(babbler(), loss=Thousand())
    teacher = OracleTeacher()
    teacher.check(parts.student)
    trainer = distill.build(replace(parts, teacher=teacher), distillation(tmp_path))
    trainer.train()
    for record in steps(trainer):
        assert 0 < record["loss"] < 1  # of all chosen tokens
        told = {value for name, value in record.items() if name.startswith("divergence/")}
        assert told == {1.0}


@pytest.mark.parametrize("loss", [TopKReverseKL(), SampledReverseKL()])
def test_two_steps(loss: Loss, tmp_path: Path) -> None:
    parts = make_parts(babbler(), loss=loss)
    teacher = OracleTeacher()
    teacher.check(parts.student)
    before = weights(parts.student.model)
    trainer = distill.build(replace(parts, teacher=teacher), distillation(tmp_path))
    trainer.train()
    assert changed(parts.student.model, before) == before.keys()
    assert all(record["grad_norm"] > 0 for record in steps(trainer))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epsilon": 0}, r"^epsilon=0: expected above 0 and at most 0.5$"),
        ({"epsilon": 0.6}, r"^epsilon=0.6: "),
        ({"epsilon": True}, r"^epsilon=True: "),
        ({"top_k": 0}, r"^top_k=0: expected a whole number, 1 or more$"),
    ],
)
def test_misuse(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        OracleTeacher(**setting)


def test_what_it_cannot_do_is_refused() -> None:
    parts = replace(make_parts(babbler(), loss=JSD(0.0)), teacher=OracleTeacher())
    with pytest.raises(SettingError, match=r"needs full of the teacher, and OracleTeacher gives"):
        distill.build(parts, distillation(Path("unused")))
    with pytest.raises(SettingError, match=r"tools of journeyman/Python-v0 run code"):
        OracleTeacher().check_environments([ENV, "journeyman/Python-v0"])
    with pytest.raises(ValueError, match=r"call check\(student\)"):
        OracleTeacher().annotate([play(oracle)], Detail.SAMPLED)
