"""The checker passes what is right and names what is wrong."""

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest

from journeyman.envs import Split, Task, UserTurn, env_class, refused, register
from journeyman.envs.checker import CHECKS, CheckResult, answers_alone, check
from journeyman.envs.errors import UnknownEnvError
from journeyman.envs.types import SPLITS
from journeyman.tools import ToolCall, ToolResult, tool

from .conftest import BUILTIN, SumEnv


def run(cls: type[SumEnv], **kwargs: Any) -> dict[str, CheckResult]:
    register("acme/Checked-v0", cls)
    return {r.name: r for r in check("acme/Checked-v0", episodes=15, **kwargs)}


def failures(cls: type[SumEnv]) -> set[str]:
    return {r.name for r in run(cls).values() if not r.passed}


@pytest.mark.parametrize("env_id", BUILTIN)
def test_builtin_environments_pass(env_id: str) -> None:
    levels = len(env_class(env_id).levels)
    results = check(env_id, episodes=(episodes := 10 // levels))
    count = 3 * levels * episodes
    assert [r.name for r in results] == list(CHECKS)
    assert [r for r in results if not r.passed] == []
    details = {r.name: r.detail for r in results}
    assert details["gold"].startswith(f"{count}/{count} ")
    wins, attempts = map(int, details["no_op"].partition(" ")[0].split("/"))
    assert (wins, attempts >= count) == (0, True)  # words of rules are tried besides
    assert details["near_misses"].startswith("0/")


@pytest.mark.usefixtures("scratch_registry")
@pytest.mark.parametrize("seed", range(3))
def test_a_good_environment_passes_with_any_seed(seed: int) -> None:
    assert [r for r in run(SumEnv, seed=seed, max_turns=7).values() if not r.passed] == []


def test_results_are_the_same_every_time() -> None:
    assert check(BUILTIN[0], episodes=3, seed=4) == check(BUILTIN[0], episodes=3, seed=4)


def test_unknown_id() -> None:
    with pytest.raises(UnknownEnvError, match="did you mean"):
        check("journeyman/Bnk-v0")


@pytest.mark.usefixtures("scratch_registry")
def test_state_that_a_snapshot_misses() -> None:
    class Forgetful(SumEnv):
        def begin(self, task: Task) -> Any:
            self.count = 0
            return super().begin(task)

        def _execute(self, call: ToolCall) -> ToolResult:
            self.count = getattr(self, "count", 0) + 1
            result = super()._execute(call)
            return ToolResult(result.call, f"{result.content} (call {self.count})")

    results = run(Forgetful)
    assert {r.name for r in results.values() if not r.passed} == {"prefixes"}
    detail = results["prefixes"].detail
    assert "after restore: turn 0" in detail
    assert "gave observation" in detail
    assert "(call " in detail


@pytest.mark.usefixtures("scratch_registry")
def test_a_restore_that_does_not_reach_the_branch_point() -> None:
    class Stuck(SumEnv):
        def restore(self, snapshot: Any) -> None:
            self._over = False

    results = run(Stuck)
    assert not results["prefixes"].passed
    assert "restore gave hash" in results["prefixes"].detail


@pytest.mark.usefixtures("scratch_registry")
def test_chance_from_elsewhere_than_the_seed() -> None:
    numbers = itertools.count()

    class Lucky(SumEnv):
        def _execute(self, call: ToolCall) -> ToolResult:
            result = super()._execute(call)
            return ToolResult(result.call, f"{result.content} ({next(numbers)})")

    assert failures(Lucky) == {"seeds"}


@pytest.mark.usefixtures("scratch_registry")
def test_tasks_from_elsewhere_than_the_seed() -> None:
    numbers = itertools.count()

    class Moving(SumEnv):
        @classmethod
        def generate(cls, rng: random.Random, split: Split, level: str) -> Task:
            return super().generate(random.Random(next(numbers)), split, level)

    results = run(Moving)
    assert {r.name for r in results.values() if not r.passed} == {"tasks"}
    assert "is another task when it is loaded again" in results["tasks"].detail


@pytest.mark.usefixtures("scratch_registry")
def test_a_reset_that_draws_a_task_from_elsewhere_than_the_seed() -> None:
    numbers = itertools.count()

    class Wandering(SumEnv):
        def begin(self, task: Task) -> Any:
            return super().begin(self.load_task(f"train/{next(numbers)}"))

    results = run(Wandering)
    assert {r.name for r in results.values() if not r.passed} == {"seeds"}
    assert "reset(seed=0) gave" in results["seeds"].detail
    assert results["gymnasium"].skipped


@pytest.mark.usefixtures("scratch_registry")
def test_gold_that_does_not_solve() -> None:
    class Unsolved(SumEnv):
        def solved(self) -> bool:
            return False

    results = run(Unsolved)
    assert {r.name for r in results.values() if not r.passed} == {"gold"}
    assert "task train/0 (sum): the gold program got reward 0.0" in results["gold"].detail
    assert '{"arguments": {"number": ' in results["gold"].detail


@pytest.mark.usefixtures("scratch_registry")
def test_gold_that_is_too_long() -> None:
    results = run(SumEnv, max_turns=2)
    assert not results["gold"].passed
    assert results["gold"].detail == (
        "task train/0: 2 gold turns reach the turn limit (45 of 45 tasks)"
    )


@pytest.mark.usefixtures("scratch_registry")
def test_tasks_that_nothing_solves() -> None:
    class Easy(SumEnv):
        def solved(self) -> bool:
            return True

    results = run(Easy)
    assert {r.name for r in results.values() if not r.passed} == {"no_op"}
    assert results["near_misses"].skipped
    assert results["near_misses"].detail == "left out until 'no_op' passes"
    assert "'Answer: done' at once got 1.0" in results["no_op"].detail


@pytest.mark.usefixtures("scratch_registry")
def test_a_rule_whose_own_word_wins_without_a_call() -> None:
    class Ruled(SumEnv):
        @classmethod
        def generate(cls, rng: random.Random, split: Split, level: str) -> Task:
            """A number is to be found out that decides whether the rule holds; it does."""
            task = super().generate(rng, split, level)
            look = (refused(ToolCall("add", {"number": 404})),)
            policy = "Never add what is odd: leave it, and answer: odd\nBe quick."
            return replace(task, gold=look, answer="odd", policy=policy)

    results = run(Ruled)
    assert {r.name for r in results.values() if not r.passed} == {"no_op"}
    assert results["no_op"].detail == "task train/0 (sum): 'Answer: odd' at once got 1.0"


def test_what_is_said_alone() -> None:
    gold = (ToolCall("add", {"number": 1}),)
    task = Task("", "", "Add 1.", (), gold, "1", (UserTurn("Say 7.", (), "7"),), "answer: no")
    assert list(answers_alone(task)) == [
        ["Answer: done", "Answer: 7"],
        ["Answer: no", "Answer: 7"],
    ]
    assert list(answers_alone(replace(task, gold=()))) == [["Answer: done", "Answer: done"]]


@pytest.mark.usefixtures("scratch_registry")
def test_splits_that_overlap() -> None:
    class Small(SumEnv):
        @classmethod
        def generate(cls, rng: random.Random, split: Split, level: str) -> Task:
            return super().generate(random.Random(rng.randrange(5)), "train", level)

    results = run(Small)
    assert {r.name for r in results.values() if not r.passed} == {"splits"}
    assert "task validation/" in results["splits"].detail
    assert "is also task train/" in results["splits"].detail


@pytest.mark.usefixtures("scratch_registry")
def test_an_exception_fails_the_check_and_the_others_go_on() -> None:
    class Broken(SumEnv):
        def snapshot(self) -> Any:
            raise OSError("disk on fire")

    results = run(Broken)
    assert list(results) == list(CHECKS)
    assert results["prefixes"].detail.startswith(
        "raised OSError: disk on fire (test_checker.py, line "
    )
    assert results["gold"].passed and not results["gold"].skipped
    assert [r.name for r in results.values() if not r.passed] == ["prefixes"]
    assert [r.name for r in results.values() if r.skipped] == ["hashes", "near_misses"]


@pytest.mark.usefixtures("scratch_registry")
def test_what_gymnasium_warns_of_fails() -> None:
    class Unready(SumEnv):
        metadata = {"render_modes": ["ansi"]}  # noqa: RUF012 - Gymnasium's protocol

    results = run(Unready)
    assert {r.name for r in results.values() if not r.passed} == {"gymnasium"}
    assert "render fps" in results["gymnasium"].detail


@pytest.mark.usefixtures("scratch_registry")
def test_tools_without_arguments() -> None:
    @tool
    def tick(state: int) -> tuple[int, int]:
        """Count."""
        return state + 1, state + 1

    class Clock(SumEnv):
        toolset = (tick,)

        @classmethod
        def generate(cls, rng: random.Random, split: Split, level: str) -> Task:
            start = rng.randrange(3, 10**9) * 3 + SPLITS.index(split)
            return Task("", "tick", f"At {start}.", start, (ToolCall("tick"),), str(start + 1))

    assert failures(Clock) == set()


@pytest.mark.usefixtures("scratch_registry")
def test_an_episode_that_ends_at_another_turn() -> None:
    lengths = itertools.cycle((9, 1))

    class Hasty(SumEnv):
        def begin(self, task: Task) -> Any:
            self.max_turns = next(lengths)
            return super().begin(task)

    results = run(Hasty)
    (found,) = (r for r in results.values() if not r.passed)
    assert "ends" in found.detail
