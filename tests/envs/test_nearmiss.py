"""What is nearly the gold program: played, failed, or excused with a reason."""

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest

from journeyman.envs import Level, Split, Task, UserTurn, make, register
from journeyman.envs.checker import CheckResult, check
from journeyman.envs.nearmiss import NearMiss, Values, near_misses
from journeyman.envs.types import LEVELS
from journeyman.tools import ToolCall, ToolError, tool

from .conftest import BUILTIN, SumEnv, add


def misses(cls: type[SumEnv], seed: int = 0) -> list[NearMiss]:
    with cls() as env:
        task = env.load_task("train/0")
        donors = [*env.load_task("train/1").gold, *task.gold]
        return list(near_misses(env, task, donors, random.Random(seed)))


def checked(cls: type[SumEnv]) -> dict[str, CheckResult]:
    register("acme/Near-v0", cls)
    return {r.name: r for r in check("acme/Near-v0", episodes=8)}


def test_every_call_is_dropped_and_changed_one_is_added_and_the_answer_is_another() -> None:
    played = misses(SumEnv)
    assert [m.edit for m in played] == [
        "dropped", "changed", "dropped", "changed", "answer", "added",
    ]  # fmt: skip
    assert not any(m.success or m.harmless for m in played)
    first, second = SumEnv.load_task("train/0").gold
    assert played[0].what == first
    assert isinstance(played[1].what, ToolCall)
    assert played[1].what.arguments != first.arguments
    assert str(played[2]) == f"task train/0 (sum) with dropped {second.canonical()}"
    assert played == misses(SumEnv)


@tool
def look(state: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Tell the sum."""
    return state, sum(state)


@tool
def refuse(state: tuple[int, ...], number: int) -> tuple[tuple[int, ...], int]:
    """Never works.

    Args:
        number: Any.
    """
    raise ToolError("never")


def test_what_changes_nothing_is_harmless() -> None:
    class Looking(SumEnv):
        toolset = (add, look, refuse)

        @classmethod
        def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
            task = super().generate(rng, split, level)
            gold = (ToolCall("look"), ToolCall("refuse", {"number": 3}), *task.gold)
            return replace(task, gold=gold)

    excused = [(m.edit, m.harmless) for m in misses(Looking) if m.success]
    assert excused == [
        ("dropped", "a call that only reads"),
        ("dropped", "a call that is refused"),
        ("changed", "a call that is refused"),
    ]


@tool
def put(state: int, number: int) -> tuple[int, int]:
    """Replace the number.

    Args:
        number: The new one.
    """
    return number, state


def test_what_a_later_call_makes_up_for_is_harmless() -> None:
    class Putting(SumEnv):
        toolset = (put,)

        @classmethod
        def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
            gold = (ToolCall("put", {"number": 21}), ToolCall("put", {"number": 34}))
            return Task("", "put", "Put 21, then 34.", 10, gold, None)

    played = misses(Putting)
    assert [m.success for m in played[:4]] == [True, True, False, False]
    added = [misses(Putting, seed)[4] for seed in range(9)]  # at the start, between, at the end
    assert {m.success for m in added} == {True, False}
    excuses = {m.harmless for m in [*played[:4], *added] if m.success}
    assert excuses == {"another call makes up for it"}


class AnswerOnly(SumEnv):
    """Does not look at what was done."""

    def solved(self) -> bool:
        return self.answered()


@pytest.mark.usefixtures("scratch_registry")
def test_success_that_is_decided_too_loosely() -> None:
    results = checked(AnswerOnly)
    assert [r.name for r in results.values() if not r.passed] == ["near_misses"]
    (call, _) = AnswerOnly.load_task("train/0").gold
    assert results["near_misses"].detail == (
        f"task train/0 (sum) with dropped {call.canonical()} succeeds all the same"
    )


@pytest.mark.usefixtures("scratch_registry")
def test_a_class_that_forgives_too_many_calls() -> None:
    class Lenient(SumEnv):
        def solved(self) -> bool:
            gold = {call.arguments["number"] for call in self.task.gold}
            return self.answered() and gold <= set(self._state)

    assert "with added {" in checked(Lenient)["near_misses"].detail


@pytest.mark.usefixtures("scratch_registry")
def test_a_class_that_does_not_hear_the_answer() -> None:
    class Deaf(SumEnv):
        def answered(self) -> bool:
            return True

    assert "with answer '" in checked(Deaf)["near_misses"].detail


@pytest.mark.usefixtures("scratch_registry")
@pytest.mark.parametrize("key", ["sum", "add"])
def test_a_reason_that_the_class_gives(key: str) -> None:
    class Excused(AnswerOnly):
        harmless = {key: "the answer alone decides"}  # noqa: RUF012

    result = checked(Excused)["near_misses"]
    assert result.passed
    assert result.detail == (
        "0/24 near-misses succeeded, and 120 harmless ones; added: the answer alone decides (24); "
        "changed: the answer alone decides (48); dropped: the answer alone decides (48)"
    )


@pytest.mark.usefixtures("scratch_registry")
def test_a_reason_for_one_edit_excuses_no_other() -> None:
    class Excused(AnswerOnly):
        harmless = {"dropped": "the answer alone decides"}  # noqa: RUF012

    assert "with changed {" in checked(Excused)["near_misses"].detail


@pytest.mark.usefixtures("scratch_registry")
def test_an_excused_no_op() -> None:
    class Idle(SumEnv):
        harmless = {"no_op": "some users want nothing", "sum": "so too"}  # noqa: RUF012

        def solved(self) -> bool:
            return self.task.id.endswith("/3") or super().solved()

    result = checked(Idle)["no_op"]
    assert (result.passed, result.detail) == (
        True,
        "3/24 empty attempts succeeded; harmless: some users want nothing",
    )


@pytest.mark.usefixtures("scratch_registry")
def test_every_level_is_checked() -> None:
    class Uneven(SumEnv):
        levels = LEVELS[:2]

        @classmethod
        def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
            task = super().generate(rng, split, level)
            return replace(task, answer="?") if level == "medium" else task

        def solved(self) -> bool:
            return super().solved() and self.task.answer != "?"

        @classmethod
        def task_count(cls, split: Split, level: Level) -> int | None:
            return 0 if (split, level) == ("train", "medium") else None

    results = checked(Uneven)
    assert "task validation/medium/0 (sum): the gold program got" in results["gold"].detail
    assert results["no_op"].detail == "0/40 empty attempts succeeded"


@pytest.mark.usefixtures("scratch_registry")
def test_every_user_turn_is_spoiled() -> None:
    class Talking(SumEnv):
        @classmethod
        def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
            task = super().generate(rng, split, level)
            more = UserTurn("Add 7.", (ToolCall("add", {"number": 7}),), "7")
            return replace(task, then=(more, UserTurn("Thanks.", (), None)))

    edits = [m.edit for m in misses(Talking)]
    assert (edits.count("dropped"), edits.count("answer"), edits.count("added")) == (3, 2, 1)


@pytest.mark.parametrize("env_id", BUILTIN)
def test_a_call_too_many_is_nearly_always_found(env_id: str) -> None:
    with make(env_id) as env:
        tasks = [env.load_task(i) for i in itertools.islice(env.tasks("test"), 30)]
        donors = [call for task in tasks for call in task.gold]
        added = [
            m
            for task in tasks
            for m in near_misses(env, task, donors, random.Random(0))
            if m.edit == "added"
        ]
    assert len(added) >= 27


def values(state: Any) -> Values:
    return Values(Task("", "", "", state, (), None), SumEnv())


def test_other_values_look_like_the_first() -> None:
    found = values(({"A1234": ("Ada Holm", 250, True), "A4321": ("Ben Silva", 17)}, "x" * 200))
    rng = random.Random(0)
    for value, other in {"A1234": "A4321", "Ada Holm": "Ben Silva", 300: 250, 17: 18}.items():
        assert found.other(value, rng) == other
    assert {found.like("A9", rng) for _ in range(20)} == {"A1234", "A4321"}
    assert found.like("x" * 200, rng) == "x" * 200


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (True, False),
        (1.5, 2.5),
        (None, "other"),
        ("sum(x[:3])", "sum(x[:4])"),
        ("a", "ax"),
        ("total", "to"),
        ([1, 2], [1]),
        ([], [None]),
        ({"a": 1}, {"a": 2}),
        ({}, {"key": "other"}),
    ],
)
def test_made_up_values(value: Any, other: Any) -> None:
    assert values(()).other(value, random.Random(0)) == other


def test_a_line_less() -> None:
    assert values(()).other("a\nb\nc", random.Random(0)) in {"a\nb", "a\nc", "b\nc"}


def test_a_choice_becomes_another_choice() -> None:
    from typing import Literal

    @tool
    def paint(state: int, colour: Literal["red", "blue"]) -> tuple[int, str]:
        """Paint.

        Args:
            colour: Which.
        """
        return state + 1, colour

    class Painting(SumEnv):
        toolset = (paint,)

    found = Values(Task("", "", "", ("green",), (), None), Painting())
    changed = found.change(ToolCall("paint", {"colour": "red"}), random.Random(0))
    assert changed.arguments == {"colour": "blue"}
