"""Parts of a run that go together, and parts that do not: what the config and the doors say."""

import random
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from torch import nn
from trl import DistillationConfig

from journeyman.agents.credit import Uniform
from journeyman.agents.errors import SettingError, VocabularyMismatchError
from journeyman.agents.learning.losses import JSD, Loss, SampledReverseKL, TopKReverseKL
from journeyman.agents.learning.losses.functions import top_k_reverse_kl
from journeyman.agents.learning.trainers import distill
from journeyman.agents.learning.trainers.parts import Parts
from journeyman.agents.networks.heads import Head
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.runs import application
from journeyman.agents.runs.config import EvalConfig, check_node, read
from journeyman.agents.students.dialect import dialects
from journeyman.agents.students.hf import HFPlayer
from journeyman.agents.students.player import Sampling
from journeyman.agents.teachers import Annotations, Detail
from journeyman.agents.teachers.local import LocalTeacher
from journeyman.tools import doors

from .tiny import chat, episode, llama, tokenizer

SIZE = len(tokenizer())


def student(vocabulary: int = SIZE) -> HFPlayer:
    return HFPlayer(llama(vocabulary), chat(), Sampling(max_tokens=6))


def padded(model: Any, rows: int) -> Any:
    """The same model with rows in its head that no token has, and that would be its favourites."""
    old = model.get_output_embeddings().weight
    model.resize_token_embeddings(len(old) + rows, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[-rows:] = 9 * old[:1]
    return model


@pytest.mark.parametrize("detail", [Detail.SAMPLED, Detail.TOP_K, Detail.FULL])
def test_a_teacher_that_is_wider_by_padding_says_the_same(detail: Detail) -> None:
    plain = LocalTeacher(llama(SIZE, width=48, seed=3), tokenizer(), top_k=8)
    wide = LocalTeacher(padded(llama(SIZE, width=48, seed=3), 64), tokenizer(), top_k=8)
    for teacher in (plain, wide):
        teacher.check(student())
    rows = [episode(random.Random(i), SIZE) for i in range(3)]
    for ours, theirs in zip(
        Annotations(wide, detail).of(rows), Annotations(plain, detail).of(rows), strict=True
    ):
        torch.testing.assert_close(ours.logprobs, theirs.logprobs)
        if ours.top is not None and theirs.top is not None:
            assert torch.equal(ours.top.ids, theirs.top.ids)
            torch.testing.assert_close(ours.top.tail, theirs.top.tail)
        if ours.full is not None and theirs.full is not None:
            states = ours.full.states
            torch.testing.assert_close(
                ours.full.head.logits(states), theirs.full.head.logits(states)
            )


def test_a_teacher_with_fewer_rows_than_tokens_is_refused() -> None:
    broken = LocalTeacher(llama(SIZE - 1), tokenizer())
    with pytest.raises(VocabularyMismatchError, match=rf"have {SIZE - 1} rows .* {SIZE} tokens"):
        broken.check(student(SIZE + 64))


def test_a_head_elsewhere_is_a_copy_made_once() -> None:
    head = Head(nn.Linear(4, 7), scale=0.5, cap=3.0)
    assert head.on(torch.device("cpu")) is head
    moved = head.on(torch.device("meta"))
    assert moved.projection.weight.is_meta and moved.projection.bias.is_meta
    assert (moved.scale, moved.cap) == (0.5, 3.0)
    assert head.on(torch.device("meta")) is moved
    assert not head.projection.weight.is_meta


@pytest.mark.parametrize(("loss", "refused"), [(SampledReverseKL(), True), (JSD(), False)])
def test_a_loss_on_the_students_own_tokens_lets_no_teacher_play(
    loss: Loss, refused: bool, tmp_path: Path
) -> None:
    parts = Parts(
        student(),
        LocalTeacher(llama(SIZE, seed=5), tokenizer()),
        loss,
        Uniform(),
        lambda count: [TaskRef("journeyman/Bank-v0", f"train/{i}") for i in range(count)],
        {},
    )
    args = DistillationConfig(
        output_dir=str(tmp_path), max_steps=1, use_cpu=True, bf16=False, report_to="none"
    )
    if refused:
        with pytest.raises(SettingError, match=r"lmbda=0\.5: SampledReverseKL learns from"):
            distill.build(parts, args, lmbda=0.5)
    else:
        assert distill.build(parts, args, lmbda=0.5)


def test_what_is_impossible_gives_no_nan() -> None:
    """To the student, to the teacher, to both; gradients too."""
    nothing = -torch.inf
    ours = torch.tensor([[0.0, nothing], [nothing, -0.7]], requires_grad=True)
    theirs = torch.tensor([[nothing, -0.1], [nothing, nothing]])
    found = top_k_reverse_kl(ours, theirs, torch.tensor([nothing, -0.1]))
    assert found.isfinite().all()
    (slope,) = torch.autograd.grad(found.sum(), ours)
    assert slope.isfinite().all()
    assert TopKReverseKL.needs is Detail.TOP_K


class Typed:
    """A part with settings of every kind."""

    def __init__(
        self,
        needed: int,
        function: Callable[[int], float] = float,
        share: float = 0.5,
        sure: bool = False,
        maybe: int | None = None,
        word: str = "",
        loose=1,
    ) -> None: ...


def node(**settings: Any) -> Any:
    return OmegaConf.create({"_target_": f"{__name__}.Typed", **settings})


@pytest.mark.parametrize(
    "settings",
    [{"share": 1}, {"share": 0.1}, {"sure": True}, {"maybe": None}, {"loose": 0.5}, {"word": 7}],
)
def test_settings_that_fit(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Typed.__module__])
    check_node(node(needed=3, **settings), "part")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"needed": 1.5}, "part.needed=1.5: expected a whole number"),
        ({"needed": None}, "part.needed=None: expected a whole number"),
        ({"needed": True}, "part.needed=True: expected a whole number"),
        ({"share": "much"}, "part.share=much: expected a number"),
        ({"sure": "no"}, "part.sure=no: expected true or false"),
        ({"maybe": 0.5}, "part.maybe=0.5: expected a whole number"),
        ({"needed": "???"}, "part.needed is not set: write part.needed=…"),
    ],
)
def test_settings_that_do_not(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Typed.__module__])
    with pytest.raises(SettingError) as refused:
        check_node(node(**{"needed": 3, **settings}), "part")
    assert str(refused.value) == message


def composed(**changes: Any) -> Any:
    config = {
        "name": "mine",
        "seed": 0,
        "run_dir": "runs/mine",
        "threads": None,
        "env": {"ids": ["acme/A-v0"], "kwargs": {}},
        "student": {"_target_": "builtins.dict"},
        "evaluation": {
            **{"tasks": 1, "split": "test", "attempts": 1, "temperature": 0.0},
            **{"batch_size": 1, "breakdown": False},
        },
    }
    return OmegaConf.create(config | changes)


def test_a_config_is_read_with_its_interpolations() -> None:
    kwargs = {"max_turns": "${seed}"}
    found = read(EvalConfig, composed(seed=7, env={"ids": ["acme/A-v0"], "kwargs": kwargs}))
    assert found.env.kwargs == {"max_turns": 7}
    assert found.sandbox is None and found.evaluation.search is None
    assert read(EvalConfig, composed(name=20261126)).name == "20261126"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeed": 1}, "no setting seeed: did you mean 'seed'?"),
        ({"name": None}, "name=None: expected text"),
        ({"student": {"model": "x"}}, "expected a part with a _target_"),
        ({"env": 3}, "env=3: expected settings below env"),
        ({"threads": 0}, "threads=0: expected a whole number, 1 or more"),
        ({"env": {"ids": "acme/A-v0", "kwargs": {}}}, "env.ids=acme/A-v0: expected a list"),
    ],
)
def test_a_config_that_is_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as refused:
        read(EvalConfig, composed(**changes))
    assert message in str(refused.value)


class AcmeOne:
    """A part from outside."""

    def __init__(self, width: float, name: str = "one") -> None: ...


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """Entry points of the door for losses, and nothing in the others."""
    points: list[EntryPoint] = []

    def entry_points(group: str) -> list[EntryPoint]:
        return [point for point in points if point.group == group]

    monkeypatch.setattr(doors, "entry_points", entry_points)
    monkeypatch.setitem(sys.modules, "acme_parts", sys.modules[AcmeOne.__module__])
    for cached in (doors.load_group, dialects):
        cached.cache_clear()
    yield points
    for cached in (doors.load_group, dialects):
        cached.cache_clear()


def offer(points: list[EntryPoint], name: str, value: str, group: str = "losses") -> None:
    points.append(EntryPoint(name, value, f"journeyman.{group}"))


def options() -> list[str]:
    # the group is not there at all before something has been offered in it
    stored = ConfigStore.instance().repo.get("loss", {})
    return [name.removesuffix(".yaml") for name in stored]


def test_what_must_be_given_is_an_open_setting(offered: list[EntryPoint]) -> None:
    offer(offered, "acme_one", "acme_parts:AcmeOne")
    application.offer_options()
    stored = ConfigStore.instance().load("loss/acme_one.yaml").node
    assert stored._get_node("width")._value() == "???"
    assert stored.name == "one"


def test_a_plugin_takes_no_built_in_option(offered: list[EntryPoint]) -> None:
    offer(offered, "jsd", "acme_parts:AcmeOne")
    with pytest.warns(UserWarning, match="loss=jsd of journeyman.losses is left out"):
        application.offer_options()
    assert "jsd" not in options()


@pytest.mark.parametrize("value", ["acme_parts:SIZE", "acme_parts:missing", "acme_parts:partial"])
def test_a_broken_plugin_takes_no_run_down(value: str, offered: list[EntryPoint]) -> None:
    offer(offered, "acme_broken", value)
    with pytest.warns(UserWarning, match="'acme_broken' .* failed to load"):
        application.offer_options()
    assert "acme_broken" not in options()


def test_two_packages_of_one_name_are_both_left_out(offered: list[EntryPoint]) -> None:
    offer(offered, "acme_twice", "acme_parts:AcmeOne")
    offer(offered, "acme_twice", "acme_parts:Typed")
    with pytest.warns(UserWarning, match="two packages offer that name"):
        application.offer_options()
    assert "acme_twice" not in options()


def test_a_dialect_is_known_by_its_own_name(offered: list[EntryPoint]) -> None:
    offer(offered, "other", "journeyman.agents.students.dialect.families:GLM45", "dialects")
    with pytest.warns(UserWarning, match="dialect 'other' is left out: its class is named 'glm45'"):
        assert "other" not in dialects()
