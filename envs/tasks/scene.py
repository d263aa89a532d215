"""What the task generators share: a world under construction, and a plan that plays its own gold.

A generator writes a task the way a clerk would do it: it says what the user says, makes the calls,
looks at what came back, and uses that in the next call. `Plan` runs each call as it is written
down, so that no gold program holds an id that a tool did not give.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from immutables import Map

from journeyman.envs.task import Task, UserTurn, refused
from journeyman.envs.tasks.entities import Entities
from journeyman.envs.types import Level, Split
from journeyman.tools import CallStatus, Tool, ToolCall, execute

Value = TypeVar("Value")
AnyScene = TypeVar("AnyScene", bound="Scene")
Kinds = Mapping[Level, Sequence[Callable[[AnyScene], Task]]]
"""The generators of a domain by level; each is drawn as often as the others of its level."""


class Scene:
    """A world under construction; a domain's subclass adds its records and `state()`."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        """Draw from `rng`, values of `split` only."""
        self.rng = rng
        self.draw = Entities(rng, split)

    def toss(self) -> bool:
        """True or False, as likely as not."""
        return self.rng.random() < 0.5

    def ask(self, *wordings: str, **values: object) -> str:
        """One of the wordings, its blanks filled in."""
        return self.rng.choice(wordings).format(**values)

    def table(self, records: dict[str, Value]) -> Map[str, Value]:
        """The records in an order that does not tell which of them the task speaks of."""
        items = list(records.items())
        self.rng.shuffle(items)
        return Map(items)


class Plan:
    """A task as it is written: what the user says, and the calls that solve it, run at once."""

    def __init__(self, scene: Scene, tools: Iterable[Tool], state: Any) -> None:
        """Start with the state that the episode starts with; the scene chooses the wordings."""
        self._scene = scene
        self._tools = {t.name: t for t in tools}
        self._start = self._state = state
        self._turns: list[UserTurn] = []
        self._prompt = ""
        self._gold: list[ToolCall] = []

    def user(self, *wordings: str, **values: object) -> None:
        """Begin a user turn: one of the wordings, its blanks filled in."""
        self.user_says(self._scene.ask(*wordings, **values))

    def user_says(self, prompt: str) -> None:
        """Begin a user turn with just these words, drawn before the state or not at all."""
        self._prompt = prompt

    def call(self, name: str, /, **arguments: Any) -> Any:
        """Write a call down and run it.

        Returns:
            Its result as the student will see it, read from JSON.

        Raises:
            AssertionError: The tool refused: the generator is wrong.
        """
        return self._run(ToolCall(name, arguments), CallStatus.OK)

    def refused(self, name: str, /, **arguments: Any) -> str:
        """Write a call down that the tool turns down, so that the student has to recover.

        Returns:
            The error.

        Raises:
            AssertionError: The tool took it: the generator is wrong.
        """
        return str(self._run(ToolCall(name, arguments), CallStatus.TOOL_ERROR)["error"])

    def attempt(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """Write a call down of which only the tool knows whether it goes through.

        Returns:
            Its result, or `{"error": message}` if the tool turned it down.

        Raises:
            AssertionError: The call does not get as far as the tool: the generator is wrong.
        """
        call = ToolCall(name, arguments)
        said: dict[str, Any] = self._run(call, CallStatus.OK, CallStatus.TOOL_ERROR)
        return said

    def write(self, call: ToolCall) -> None:
        """Write a call down that cannot be run here and does not change what decides success."""
        self._gold.append(call)

    def answer(self, value: object) -> None:
        """End a user turn that asks for a value, or to which a rule says what to answer."""
        self._turns.append(UserTurn(self._prompt, tuple(self._gold), str(value)))
        self._gold = []

    def done(self, remark: object = "done") -> None:
        """End a user turn that asks for no value; a demonstration says the remark all the same."""
        self._turns.append(UserTurn(self._prompt, tuple(self._gold), None, str(remark)))
        self._gold = []

    def task(self, kind: str, policy: str = "") -> Task:
        """The finished task, its id still empty."""
        first, *then = self._turns
        return Task(
            "",
            kind,
            first.prompt,
            self._start,
            first.gold,
            first.answer,
            tuple(then),
            policy,
            first.remark,
        )

    def _run(self, call: ToolCall, *expected: CallStatus) -> Any:
        self._state, result = execute(call, self._tools, self._state)
        self._gold.append(call if result.ok else refused(call))
        if result.call.status not in expected:
            raise AssertionError(
                f"{call.name}({call.arguments}): expected {' or '.join(expected)}, "
                f"not {result.call.status}: {result.content}"
            )
        return json.loads(result.content)


def rules(scene: Scene, rule: str, *others: str) -> str:
    """A policy: the rule that matters among others, in any order."""
    lines = [rule, *others]
    scene.rng.shuffle(lines)
    return "Rules:\n" + "\n".join(f"- {line}" for line in lines)
