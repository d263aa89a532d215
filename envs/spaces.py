"""Gymnasium spaces for conversations: new messages as observations, assistant turns as actions."""

from __future__ import annotations

from typing import Any

import gymnasium

from journeyman.envs.types import AssistantTurn, Message
from journeyman.tools import ToolCall

_WORDS = (
    "Answer: done",
    "<tool_call>",
    '{"name": "lookup", "arguments": {}}',
    "</tool_call>",
    "ok",
)


class MessagesSpace(gymnasium.Space[tuple[Message, ...]]):
    """All tuples of messages."""

    def sample(
        self, mask: Any | None = None, probability: Any | None = None
    ) -> tuple[Message, ...]:
        """A random short exchange."""
        count = int(self.np_random.integers(3))
        return tuple(Message("tool", str(self.np_random.integers(100))) for _ in range(count))

    def contains(self, x: Any) -> bool:
        """True for a tuple of `Message`."""
        return isinstance(x, tuple) and all(isinstance(m, Message) for m in x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MessagesSpace)

    def __repr__(self) -> str:
        return "MessagesSpace()"


class ActionSpace(gymnasium.Space[Any]):
    """All assistant turns: any text, a list of calls, or a turn as a dialect read it."""

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """Random text, well-formed calls among it."""
        count = int(self.np_random.integers(1, 5))
        return "\n".join(_WORDS[int(i)] for i in self.np_random.integers(len(_WORDS), size=count))

    def contains(self, x: Any) -> bool:
        """True for text, an `AssistantTurn`, or a list of `ToolCall`."""
        return isinstance(x, (str, AssistantTurn)) or (
            isinstance(x, (list, tuple)) and all(isinstance(c, ToolCall) for c in x)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActionSpace)

    def __repr__(self) -> str:
        return "ActionSpace()"
