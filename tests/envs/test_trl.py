"""The classes that TRL takes as environment factories; the trainer itself is in tests/agents."""

import inspect
import random
from dataclasses import replace
from typing import Any

import pytest
from transformers.utils.chat_template_utils import get_json_schema

from journeyman.envs import Split, Task, env_class, register
from journeyman.envs.core import ToolEnv
from journeyman.envs.errors import BrokenEpisodeError, UnknownEnvError, UnknownTaskError
from journeyman.envs.task import UserTurn
from journeyman.envs.trl import trl_environment, trl_reward, trl_rows
from journeyman.tools import Tool, ToolDefinitionError, ToolSpec, tool

from .conftest import OFFICE, SumEnv


@pytest.mark.parametrize("env_id", OFFICE)
def test_only_tools_are_public_and_schemas_are_ours(env_id: str) -> None:
    instance = trl_environment(env_id)()
    public = {
        name: getattr(instance, name)  # as TRL looks for them
        for name, _ in inspect.getmembers(type(instance), predicate=inspect.isfunction)
        if not name.startswith("_")
    }
    del public["reset"]
    specs = {t.name: t.spec for t in env_class(env_id).toolset}
    assert {n: get_json_schema(m) for n, m in public.items()} == {
        n: spec.as_function() for n, spec in specs.items()
    }


def play(instance: Any, task_id: str, answer: str | None) -> float:
    """What TRL would make of the gold program and an answer."""
    task = env_class(instance._env_id).load_task(task_id)
    assert instance.reset(task_id=task_id, prompt=[]) == task.prompt
    completion: list[dict[str, Any]] = []
    for call in task.gold:
        completion += [
            {"role": "assistant", "tool_calls": [{}]},
            {"role": "tool", "content": getattr(instance, call.name)(**call.arguments)},
        ]
    if answer is not None:
        content = answer.format(answer=task.answer)
        completion.append({"role": "assistant", "content": content})
    (reward,) = trl_reward([completion], [instance], task_id=[task_id])
    return reward


@pytest.mark.parametrize("env_id", OFFICE)
def test_rewards(env_id: str) -> None:
    """Right, wrong, cut off, and a malformed call that TRL takes for an answer."""
    instance = trl_environment(env_id, max_turns=20)()
    for row in trl_rows(env_id, "test", 5):
        task_id = row["task_id"]
        assert play(instance, task_id, "Answer: {answer}") == 1.0
        asked = env_class(env_id).load_task(task_id).answer is not None
        assert play(instance, task_id, "Answer: no") == (0.0 if asked else 1.0)
        assert play(instance, task_id, None) == 0.0
        assert play(instance, task_id, "<tool_call>oops") == 0.0


@pytest.mark.usefixtures("scratch_registry")
def test_after_the_last_turn_nothing_counts() -> None:
    register("acme/Sum-v0", SumEnv)
    assert play(trl_environment("acme/Sum-v0", max_turns=2)(), "test/0", "Answer: {answer}") == 0.0
    assert play(trl_environment("acme/Sum-v0", max_turns=3)(), "test/0", "Answer: {answer}") == 1.0


@pytest.mark.usefixtures("scratch_registry")
def test_a_broken_episode_has_no_reward() -> None:
    register("acme/Sum-v0", SumEnv)
    instance: Any = trl_environment("acme/Sum-v0")()
    instance.reset(task_id="test/0")
    assert "no such number" in instance.add(number=404)
    with pytest.raises(ConnectionError):
        instance.add(number=500)
    end = [{"role": "assistant", "content": "Answer: 1"}]
    with pytest.raises(
        BrokenEpisodeError, match=r"task test/0: ConnectionError: the adder is gone"
    ):
        trl_reward([end], [instance])
    instance.reset(task_id="test/0")
    assert trl_reward([end], [instance]) == [0.0]


def test_rows() -> None:
    (first, *_), again = (
        trl_rows("journeyman/Bank-v0", "validation", 3),
        trl_rows("journeyman/Bank-v0", "validation", 1),
    )
    assert [first] == again
    assert first["task_id"] == "validation/0"
    assert [m["role"] for m in first["prompt"]] == ["system", "user"]
    assert first["prompt"][1]["content"] == ""


def going_on(task: Task) -> Task:
    return replace(task, then=(UserTurn("And?", (), "no"),))


class TalkativeEnv(SumEnv):
    """About every second task goes on."""

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: str) -> Task:
        task = super().generate(rng, split, level)
        return going_on(task) if rng.random() < 0.5 else task


class AlwaysTalkativeEnv(SumEnv):
    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: str) -> Task:
        return going_on(super().generate(rng, split, level))


@pytest.mark.usefixtures("scratch_registry")
def test_tasks_where_the_user_speaks_again_are_left_out() -> None:
    register("acme/Talk-v0", TalkativeEnv)
    rows = trl_rows("acme/Talk-v0", "train", 4)
    assert [row["task_id"] for row in rows] != [f"train/{i}" for i in range(4)]
    assert all(len(TalkativeEnv.load_task(row["task_id"]).turns) == 1 for row in rows)
    register("acme/Talk-v1", AlwaysTalkativeEnv)
    with pytest.raises(ValueError, match="train has 0 tasks that TRL can play, not 2"):
        trl_rows("acme/Talk-v1", "train", 2)
    with pytest.raises(ValueError, match="task train/0: the user speaks 2 times"):
        trl_environment("acme/Talk-v1")().reset(task_id="train/0")


def test_mistakes() -> None:
    with pytest.raises(UnknownEnvError, match="did you mean 'journeyman/Bank-v0'"):
        trl_environment("journeyman/Bnak-v0")
    with pytest.raises(UnknownTaskError, match="no split 'dev'"):
        trl_rows("journeyman/Bank-v0", "dev", 1)
    with pytest.raises(ValueError, match=r"a row without task_id.*columns here: prompt"):
        trl_environment("journeyman/Bank-v0")().reset(prompt=[])


@tool(name="reset")
def restart(state: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """Go all the way back."""
    return (), "done"


class Schemaed(Tool):
    """Says of itself what its signature does not."""

    spec = ToolSpec("reset_all", "Go back.", {"type": "object", "properties": {}})


@pytest.mark.parametrize("name", ["BFCL-multi_turn_base", "BFCL-parallel", "Tau2-airline"])
def test_tools_that_come_with_tasks_are_refused(name: str) -> None:
    with pytest.raises(
        ToolDefinitionError, match=f"{name}-v0: its tools come as JSON schemas with"
    ):
        trl_environment(f"journeyman/{name}-v0")


@pytest.mark.usefixtures("scratch_registry")
@pytest.mark.parametrize(
    ("one", "message"),
    [
        (restart, "'reset': TRL takes no tool"),
        (replace(restart, name="_go"), "TRL takes no tool"),
        (Schemaed(restart.function, "reset_all", True), "TRL reads schemas from Python sign"),
    ],
)
def test_tools_that_trl_would_not_take(one: Tool, message: str) -> None:
    env: type[ToolEnv] = type("OddEnv", (SumEnv,), {"toolset": (one,)})
    register("acme/Odd-v0", env)
    with pytest.raises(ToolDefinitionError, match=message):
        trl_environment("acme/Odd-v0")
