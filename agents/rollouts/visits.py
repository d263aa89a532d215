"""Conversations that another program leads: it plays the environment, and asks for each turn.

A `Visit` is the record of one: the same unbroken token stream that `rollout` makes of an
environment of ours. Each turn stands behind the tokens that were there before it; nothing is
tokenised twice. What became of the calls is read from what the program told next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from journeyman.agents.students.player import Turn
from journeyman.envs import Episode, Message, Step, StopReason
from journeyman.tools import CallStatus, Tool, ToolCall, ToolResult, ToolSpec
from journeyman.tools.errors import ToolDefinitionError
from journeyman.tools.execute import validate


@dataclass(frozen=True)
class Verdict:
    """What the program, or whoever runs it, says of an episode."""

    success: bool
    reward: float
    error: str | None = None
    """What broke, where that was no fault of the student's."""


class Visit:
    """One token stream of a conversation, as far as it has come."""

    def __init__(self, opening: Sequence[Message], tools: Sequence[ToolSpec], seed: int) -> None:
        """Nothing is written yet.

        Args:
            opening: What was said before the first turn that is written here.
            tools: What there is to call.
            seed: Of the student's dice.
        """
        self.opening = tuple(opening)
        self.tools = tuple(tools)
        self.seed = seed
        self.tokens: list[int] = []
        self.steps: list[Step] = []
        self.full: str | None = None
        """How the student said that there is no room for another turn."""
        self._logprobs: list[float] = []
        self._mask: list[bool] = []
        self._checks, self._names = _checks(tools), {tool.name for tool in tools}

    def goes_on_as(self, prompt: Sequence[int]) -> bool:
        """True if what a turn was written behind begins with all that stands here."""
        return list(prompt[: len(self.tokens)]) == self.tokens

    def add(
        self,
        prompt: Sequence[int],
        turn: Turn,
        step: Step,
        said: Sequence[Message] = (),
        results: Sequence[str] = (),
    ) -> None:
        """Write a turn down.

        Args:
            prompt: All tokens before it.
            turn: Its own.
            step: The same, read; its results are not known yet.
            said: What was said to the turn before this one.
            results: Of it what answers each call of that turn.

        Raises:
            ValueError: The prompt does not begin with the tokens that are here.
        """
        if not self.goes_on_as(prompt):
            raise ValueError(f"a prompt of {len(prompt)} tokens that does not go on from here")
        if self.steps:
            self.steps[-1] = self._answered(self.steps[-1], said, results)
        new = len(prompt) - len(self.tokens)
        forced = int(turn.truncated and step.parts.get("stop", ()) != ())
        chosen = len(turn.tokens) - forced
        self.tokens = [*prompt, *turn.tokens]
        self._logprobs += [0.0] * new + list(turn.logprobs)
        self._mask += [False] * new + [True] * chosen + [False] * forced
        self.steps.append(step)

    def _answered(self, step: Step, said: Sequence[Message], results: Sequence[str]) -> Step:
        pairs = zip(step.results, results, strict=True)
        found = tuple(self._result(it.call, told) for it, told in pairs)
        return replace(step, results=found, reply=tuple(said))

    def _result(self, call: ToolCall, content: str) -> ToolResult:
        """A call with the status that it has in an environment of ours."""
        if call.name in self._checks or call.name not in self._names:
            call = validate(call, self._checks)
        if call.error is None:
            refusal = _refusal(content)
            status = CallStatus.OK if refusal is None else CallStatus.TOOL_ERROR
            call = call.marked(status, refusal)
        return ToolResult(call, content)

    def episode(self, env_id: str, task_id: str, verdict: Verdict | None) -> Episode:
        """What it has come to.

        Args:
            env_id: The environment that was played.
            task_id: The task.
            verdict: None if nobody judged it: no success then, and no reward.
        """
        broken = verdict is not None and verdict.error is not None
        last = self.steps[-1]
        if broken:
            stop = StopReason.INFRA_ERROR
        elif self.full is not None:
            stop = StopReason.CONTEXT_FULL
        else:  # calls that nobody has answered: the program has had enough
            stop = StopReason.MAX_TURNS if last.results else StopReason.ANSWERED
        return Episode(
            env_id=env_id,
            task_id=task_id,
            tokens=tuple(self.tokens),
            logprobs=tuple(self._logprobs),
            mask=tuple(self._mask),
            steps=tuple(self.steps),
            stop=stop,
            reward=0.0 if verdict is None else verdict.reward,
            success=verdict is not None and verdict.success,
            error=verdict.error if verdict is not None and broken else self.full,
            opening=self.opening,
            tools=self.tools,
            seed=self.seed,
        )


def pending(calls: Sequence[ToolCall]) -> tuple[ToolResult, ...]:
    """Results of calls that nobody has answered yet."""
    return tuple(ToolResult(call, "") for call in calls)


def _checks(tools: Sequence[ToolSpec]) -> Mapping[str, Tool]:
    """The tools by name, to see whether arguments fit; without those whose schema is not ours."""
    found = {}
    for spec in tools:
        try:
            found[spec.name] = Tool.from_schema(spec, _elsewhere)
        except ToolDefinitionError:
            continue
    return found


def _elsewhere(**arguments: Any) -> None:
    """Stands for a tool that runs at the visitor's; only its schema is asked here."""
    raise AssertionError(f"a visitor's tool was called here, with {arguments}")


def _refusal(content: str) -> str | None:
    """What a tool says that refused: `{"error": …}` and no more, as our own tools write it."""
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or set(told) != {"error"}:
        return None
    return str(told["error"])
