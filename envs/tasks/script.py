"""Writing a task by playing it: what the solver does is run as it is written down.

So a generator reads like the talk it makes, may branch on what the tools say, and takes answers
from their results; gold calls that do not do what the generator believes cannot come about.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from journeyman.envs.core import Task, UserTurn
from journeyman.tools import Tool, ToolCall, execute


class Script:
    """A task in the making: user turns, each with its calls and its answer."""

    def __init__(self, state: Any, tools: Sequence[Tool]) -> None:
        """Begin with what the tools find: a value, as in `Task.state`."""
        self._tools = {t.name: t for t in tools}
        self._opening = self._state = state
        self._turns: list[UserTurn] = []
        self._prompt = ""
        self._calls: list[ToolCall] = []

    def user(self, prompt: str) -> None:
        """Let the user speak."""
        self._prompt, self._calls = prompt, []

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Let the solver call a tool.

        Returns:
            What the tool says; `{"error": message}` if it refuses.
        """
        call = ToolCall(tool, arguments)
        self._state, result = execute(call, self._tools, self._state)
        self._calls.append(call)
        said: dict[str, Any] = json.loads(result.content)
        return said

    def answer(self, answer: str | int | None) -> None:
        """Let the solver answer the user; None if what it says does not matter."""
        text = None if answer is None else str(answer)
        self._turns.append(UserTurn(self._prompt, tuple(self._calls), text))

    def task(self, kind: str, policy: str = "") -> Task:
        """The task; its id is filled in by the environment."""
        first, *then = self._turns
        return Task(
            "", kind, first.prompt, self._opening, first.gold, first.answer, tuple(then), policy
        )
