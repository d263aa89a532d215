"""A turn asked for by chat completions: `POST /v1/chat/completions`.

What another form of server must say is a `WireForm`: where it is asked, what it is sent, and how
its answer is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from journeyman.agents.students.answers import Answer
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.wording import as_messages, as_text
from journeyman.envs import Message
from journeyman.tools import ToolSpec


class Known(NamedTuple):
    """What is sent back of a turn as its server gave it."""

    ids: tuple[str, ...] = ()
    """Of its calls."""
    items: tuple[Mapping[str, Any], ...] = ()
    """All of it, where a server wants it whole."""


USAGE = ("prompt_tokens", "prompt_tokens_details", "completion_tokens")
"""Names in a `usage`: see `counts_in`."""
Recall = Callable[[Sequence[Message]], Known]
"""Of the last turn of a conversation; nothing where that is not known."""


class StrangeAnswerError(ValueError):
    """An answer without a turn; the message says what is there."""


class WireForm(Protocol):
    """How a server is asked for a turn."""

    path: str
    """Below the server's address."""

    def fields(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What a request says beside the conversation, by this form's names.

        Args:
            asked: `temperature`, `max_tokens` and `seed`, those that are set.
        """

    def body(
        self, said: Sequence[Message], tools: Sequence[ToolSpec], dialect: Dialect, recall: Recall
    ) -> dict[str, Any]:
        """The conversation as a request has it; its turns are in the words of `dialect`."""

    def read(self, answered: Mapping[str, Any], dialect: Dialect) -> tuple[Answer, str]:
        """The turn in an answer, and what is said in it outside of fields for calls.

        Raises:
            StrangeAnswerError: There is none.
        """


class ChatForm:
    """Chat completions with tools."""

    path = "chat/completions"

    def fields(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """See `WireForm.fields`."""
        return dict(asked)

    def body(
        self, said: Sequence[Message], tools: Sequence[ToolSpec], dialect: Dialect, recall: Recall
    ) -> dict[str, Any]:
        """See `WireForm.body`."""
        messages = as_messages(said, dialect, lambda turns: recall(turns).ids)
        functions = [tool.as_function() for tool in tools]
        return {"messages": messages, **({"tools": functions} if tools else {})}

    def read(self, answered: Mapping[str, Any], dialect: Dialect) -> tuple[Answer, str]:
        """See `WireForm.read`."""
        choices = answered.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise StrangeAnswerError("no message")
        if choice.get("finish_reason") == "error":  # of a gateway, in the middle of a turn
            raise StrangeAnswerError("a turn that broke")
        cut = choice.get("finish_reason") == "length"
        text, ids = as_text(message, cut, dialect)
        counts = counts_in(answered.get("usage"), USAGE)
        content = message.get("content")
        return Answer(text, cut, tuple(ids), *counts), content if isinstance(content, str) else ""


def counts_in(used: Any, names: tuple[str, str, str]) -> tuple[int | None, int | None, int | None]:
    """Tokens read, of these cached, and written, as a server says it; None where it does not.

    Args:
        used: Its `usage`.
        names: Of the first, of the details of the first, and of the last.
    """
    used = used if isinstance(used, dict) else {}
    details = used.get(names[1])
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return count(used.get(names[0])), count(cached), count(used.get(names[2]))


def count(value: Any) -> int | None:
    """How many, as a server says it; None where that is no number."""
    return value if type(value) is int and value >= 0 else None
