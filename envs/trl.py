"""Environments for TRL's `GRPOTrainer(environment_factory=…)`; TRL itself is not needed here.

TRL offers every public method of the factory's class to the model as a tool, so `trl_environment`
makes a class that has the environment's tools and `reset` and nothing else. TRL's environments do
not see the student's final answer, and ours decide success by it too: the reward is a function
beside the class.

    trainer = trl.GRPOTrainer(
        model,
        reward_funcs=trl_reward,
        environment_factory=trl_environment("journeyman/Bank-v0"),
        train_dataset=datasets.Dataset.from_list(trl_rows("journeyman/Bank-v0", "train", 1000)),
        args=trl.GRPOConfig(…),
    )

What TRL leaves out: a task where the user speaks again cannot be played; each call counts as a turn
of `max_turns`; an episode whose environment broke cannot be masked, so `trl_reward` raises.
"""

from __future__ import annotations

import inspect
import itertools
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from journeyman.envs.errors import BrokenEpisodeError, EnvError
from journeyman.envs.registry import env_class, make
from journeyman.envs.task import Task
from journeyman.tools import Tool, ToolCall, ToolDefinitionError
from journeyman.tools.tool import STATE

_SCANNED = 100
"""Tasks looked at for each one wanted, before a split counts as having none that TRL can play."""


class TRLEnvironment:
    """One environment in the form TRL wants; subclasses add a method a tool.

    Made without arguments, used for many episodes, one at a time.
    """

    _env_id: ClassVar[str]
    _kwargs: ClassVar[Mapping[str, Any]]

    def __init__(self) -> None:
        self._env = make(self._env_id, **self._kwargs)
        weakref.finalize(self, self._env.close)
        self._broke: Exception | None = None

    def reset(self, task_id: str = "", **row: Any) -> str:
        """Start an episode on a row's task.

        Args:
            task_id: The row's task; all completions of a group must play the same.
            row: The row's other columns.

        Returns:
            What the user says, which TRL appends to the row's prompt.

        Raises:
            ValueError: The row has no task id, or the user of its task speaks more than once.
            UnknownTaskError: No such task.
        """
        if not task_id:
            raise ValueError(
                f"a row without task_id: GRPO compares completions of one task, so every row names "
                f"its own; columns here: {', '.join(row) or 'none'} (see trl_rows)"
            )
        _, info = self._env.reset(options={"task_id": task_id})
        self._broke = None
        if not _playable(self._env.task):
            raise ValueError(
                f"task {info['task_id']}: the user speaks {len(self._env.task.turns)} times, and "
                f"TRL has no user who answers"
            )
        return self._env.task.prompt

    def _call(self, call: ToolCall) -> str:
        try:
            messages, *_ = self._env.step([call])
        except EnvError:  # after the last turn: the model is told, by TRL
            raise
        except Exception as error:  # so is this, by TRL, which takes it for the tool's answer
            self._broke = error
            raise
        return messages[0].content

    def _reward(self, completion: Sequence[Mapping[str, Any]]) -> float:
        if self._broke is not None:
            raise BrokenEpisodeError(
                f"{self._env_id}, task {self._env.task.id}: {type(self._broke).__name__}: "
                f"{self._broke}; TRL cannot leave an episode out, so the run ends here"
            ) from self._broke
        last = completion[-1] if completion else {}
        if last.get("role") != "assistant" or last.get("tool_calls") or self._env.over:
            return 0.0  # cut off before an answer
        _, reward, *_ = self._env.step(str(last.get("content") or ""))
        return reward


def trl_environment(env_id: str, **kwargs: Any) -> type[TRLEnvironment]:
    """The class to pass as `environment_factory`.

    Args:
        env_id: A registered id.
        kwargs: Passed to the environment's constructor.

    Returns:
        A class with a method a tool, whose schema as TRL derives it is ours.

    Raises:
        UnknownEnvError: No such id; the message suggests the nearest.
        ToolDefinitionError: A tool that TRL would not take for the same: it has no Python
            signature, or its name means something else there. Or the tools are not the class's own.
    """
    tools = env_class(env_id).toolset
    if not tools:
        raise ToolDefinitionError(
            f"{env_id}: its tools come as JSON schemas with a benchmark's tasks, and one TRL class "
            f"needs Python functions that all tasks share"
        )
    name = "".join(re.findall(r"[A-Za-z0-9]+", env_id.rpartition("/")[2]))
    methods = {tool.name: _method(tool) for tool in tools}
    doc = f"{env_id} for TRL."
    body = {"__doc__": doc, "_env_id": env_id, "_kwargs": kwargs, **methods}
    return type(name, (TRLEnvironment,), body)


def trl_reward(
    completions: Sequence[Sequence[Mapping[str, Any]]],
    environments: Sequence[TRLEnvironment],
    **columns: Any,
) -> list[float]:
    """The reward function: 1.0 if final state and answer are right, else 0.0.

    Args:
        completions: What TRL hands over: the messages of each completion, tool results included.
        environments: The environments they were played on, as many.
        columns: Whatever else TRL hands over.

    Raises:
        BrokenEpisodeError: An environment broke.
    """
    pairs = zip(completions, environments, strict=True)
    return [environment._reward(completion) for completion, environment in pairs]


def trl_rows(env_id: str, split: str, count: int) -> list[dict[str, Any]]:
    """The first `count` tasks of a split that TRL can play, as rows of a dataset.

    Args:
        env_id: A registered id.
        split: "train", or with a level, "train/hard".
        count: Rows.

    Returns:
        Rows with "prompt" (the system message, and a user's message that `reset` fills) and
        "task_id".

    Raises:
        UnknownTaskError: No such split.
        ValueError: The split has fewer such tasks.
    """
    rows = []
    with make(env_id) as env:
        for task_id in itertools.islice(env.tasks(split), _SCANNED * count):
            messages, _ = env.reset(options={"task_id": task_id})
            if _playable(env.task):
                prompt = [messages[0].as_dict(), {"role": "user", "content": ""}]
                rows.append({"prompt": prompt, "task_id": task_id})
            if len(rows) == count:
                return rows
    raise ValueError(f"{env_id}: {split} has {len(rows)} tasks that TRL can play, not {count}")


def _playable(task: Task) -> bool:
    return len(task.turns) == 1


def _method(tool: Tool) -> Callable[..., str]:
    """A method that calls the tool, with the tool's signature and docstring."""
    if tool.name.startswith("_") or tool.name in ("reset", "get_reward"):
        raise ToolDefinitionError(f"tool {tool.name!r}: TRL takes no tool of that name")

    def call(self: TRLEnvironment, **arguments: Any) -> str:
        return self._call(ToolCall(tool.name, arguments))

    own = inspect.signature(tool.function, eval_str=True)
    visible = [p for name, p in own.parameters.items() if name != STATE]
    receiver = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    call.__name__ = call.__qualname__ = tool.name
    call.__doc__ = tool.function.__doc__
    call.__annotations__ = {p.name: p.annotation for p in visible}
    call.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[receiver, *visible], return_annotation=inspect.Signature.empty
    )
    _check_schema(tool, call)
    return call


def _check_schema(tool: Tool, method: Callable[..., str]) -> None:
    """What TRL will derive from the method is what the tool says of itself."""
    from transformers.utils.chat_template_utils import get_json_schema

    try:
        derived = get_json_schema(method.__get__(object()))
    except Exception as error:  # transformers raises several private types
        derived = {"error": str(error)}
    ours = tool.spec.as_function()
    if derived != ours:
        raise ToolDefinitionError(
            f"tool {tool.name!r}: TRL reads schemas from Python signatures and would see "
            f"{derived}, not {ours}"
        )
