"""Levels, splits that end, rules of a task, and users who have more than one thing to say."""

import random
from dataclasses import replace
from typing import Any

import pytest

from journeyman.agents.students.scripted import no_op, oracle
from journeyman.envs import Level, Split, Task, UserTurn
from journeyman.envs.errors import UnknownTaskError
from journeyman.envs.types import LEVELS
from journeyman.tools import ToolCall

from .conftest import SumEnv


class LevelEnv(SumEnv):
    """More to add at higher levels, a second user turn at the highest; seven tasks a level."""

    levels = LEVELS

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw numbers."""
        task = replace(super().generate(rng, split, level), kind=level, policy="Be exact.")
        if level != "hard":
            return task
        more = (ToolCall("add", {"number": 7}),)
        total = str(int(task.answer or 0) + 7)
        return replace(task, then=(UserTurn("Add 7.", more, total), UserTurn("Thanks.", (), None)))

    @classmethod
    def task_count(cls, split: Split, level: Level) -> int:
        """Seven."""
        return 7


def test_levels_go_into_the_id() -> None:
    env = LevelEnv()
    for where, level in (("test", "easy"), ("test/easy", "easy"), ("test/hard", "hard")):
        _, info = env.reset(options={"task_id": f"{where}/3"})
        assert (info["task_id"], info["kind"]) == (
            "test/3" if level == "easy" else "test/hard/3",
            level,
        )
        env.reset(seed=1, options={"split": where})
        assert env.task.kind == level
    assert list(env.tasks("test/medium")) == [f"test/medium/{i}" for i in range(7)]
    with LevelEnv(split="train/hard") as hard:
        assert hard.reset(seed=0)[1]["kind"] == "hard"


def test_a_split_that_ends() -> None:
    env = LevelEnv()
    assert {env.reset(seed=i)[1]["task_id"] for i in range(60)} == set(env.tasks("train"))
    with pytest.raises(UnknownTaskError, match=r"no task 'test/hard/7': test/hard has 7 tasks"):
        env.load_task("test/hard/7")


@pytest.mark.parametrize("where", ["test/tough", "test/", "dev", "dev/hard"])
def test_unknown_split_or_level(where: str) -> None:
    level = where.partition("/")[2]
    wrong = f"no level '{level}' in LevelEnv; there are: easy, medium, hard"
    with pytest.raises(UnknownTaskError, match="no split 'dev'" if "dev" in where else wrong):
        LevelEnv(split=where)
    with pytest.raises(UnknownTaskError, match="no level 'hard' in SumEnv; there are: easy"):
        SumEnv(split="train/hard")


def test_the_rules_of_a_task_go_below_the_system_message() -> None:
    (system, user), _ = LevelEnv().reset(options={"task_id": "test/0"})
    assert system.content == f"{LevelEnv.system}\nBe exact."
    assert user.role == "user"


def play(env: LevelEnv, texts: list[Any]) -> list[tuple[Any, ...]]:
    return [env.step(text) for text in texts]


def test_the_user_goes_on_after_an_answer() -> None:
    env = LevelEnv()
    env.reset(options={"task_id": "test/hard/0"})
    first, second, last = env.task.turns
    assert env.user_turn == first
    steps = play(env, [list(first.gold), f"Answer: {first.answer}"])
    assert [m.content for m in steps[-1][0]] == ["Add 7."]
    assert steps[-1][0][0].role == "user"
    assert steps[-1][1:4] == (0.0, False, False)
    assert env.oracle() == list(second.gold)
    branch, before = env.snapshot(), env.state_hash()
    steps = play(env, [env.oracle(), f"Answer: {second.answer}", "You are welcome."])
    assert steps[-1][1:4] == (1.0, True, False)
    assert steps[-1][4]["success"]
    assert env.user_turn == last
    env.restore(branch)
    assert env.state_hash() == before
    steps = play(env, [env.oracle(), "Answer: 1", "Bye."])
    assert steps[-1][1:4] == (0.0, True, False)


def test_an_early_answer_is_remembered() -> None:
    env = LevelEnv()
    hashes = set()
    for said in ("right", "wrong"):
        env.reset(options={"task_id": "test/hard/0"})
        first, second, _ = env.task.turns
        answer = first.answer if said == "right" else "1"
        play(env, [list(first.gold), f"Answer: {answer}"])
        hashes.add(env.state_hash())
        steps = play(env, [list(second.gold), f"Answer: {second.answer}", "Bye."])
        assert steps[-1][1] == float(said == "right")
    assert len(hashes) == 2


def test_scripts_play_all_turns() -> None:
    env = LevelEnv()
    for task_id in ("test/hard/1", "test/1"):
        for script, reward in ((oracle, 1.0), (no_op, 0.0)):
            env.reset(options={"task_id": task_id})
            said = [t if isinstance(t, str) else [t] for t in script(env)]
            steps = play(env, said)
            assert steps[-1][1:3] == (reward, True)
