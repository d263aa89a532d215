"""Conversations as text: what an episode says to a student of another family, and how it is retold.

An episode is tokens of the one who played it. A `Dialogue` is the same without them, so that any
dialect can tell it: prompt, turns and replies become one token stream, piece by piece, as if its
student had played it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError

from journeyman.agents.errors import DialectError
from journeyman.agents.rollouts.demonstrations import Demonstration
from journeyman.agents.students.dialect import Dialect
from journeyman.envs import Episode, Message, Step
from journeyman.tools import UNREAD, ToolCall, ToolSpec


@dataclass(frozen=True, slots=True)
class Utterance:
    """An assistant's turn in parts, without the form that its writer gave them."""

    content: str
    """What it says outside reasoning and calls."""
    calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    learn: bool = True
    """False leaves its tokens without loss: what was said before."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation and the tools that could be called in it."""

    messages: tuple[Message | Utterance, ...]
    """In order; turns are never two in a row, and none is the first."""
    tools: tuple[ToolSpec, ...] = ()


class UnsayableError(ValueError):
    """An episode that text cannot say; the message is the reason, for a count of reasons."""


def dialogue_of(episode: Episode, dialect: Dialect, tools: Sequence[ToolSpec]) -> Dialogue:
    """What was said in an episode.

    Args:
        episode: Played by anybody.
        dialect: Whose student played it.
        tools: Those of its environment.

    Raises:
        UnsayableError: A call has no name or no arguments, or a turn was cut off.
    """
    messages: list[Message | Utterance] = [*episode.opening]
    for i, step in enumerate(episode.steps):
        messages.append(_utterance(step, dialect, tools, episode.tokens[: step.span[0]]))
        if i + 1 < len(episode.steps):  # what nobody answered is nothing to learn from
            messages += step.reply
    return Dialogue(tuple(messages), tuple(tools))


def _utterance(
    step: Step, dialect: Dialect, tools: Sequence[ToolSpec], prompt: Sequence[int]
) -> Utterance:
    if step.truncated:
        raise UnsayableError("a turn was cut off")
    calls = tuple(result.call for result in step.results)
    if any(call.status in UNREAD for call in calls):
        raise UnsayableError("a call could not be read")
    visible = dialect.read(step.text, tools, prompt).answer
    reasoning, after = _considered(step.text, visible, dialect)
    content = visible[after:]
    if after:
        content = content.lstrip("\n")
    if calls:
        content = "".join(_outside(visible, after, calls)).strip()
    return Utterance(content, calls, reasoning)


def _considered(text: str, visible: str, dialect: Dialect) -> tuple[str, int]:
    """The reasoning that a turn begins with, without its marks, and where it ends."""
    places = [i for i, (one, other) in enumerate(zip(text, visible, strict=True)) if one != other]
    if not places or visible[: places[0]].strip():
        return "", 0
    start = places[0]
    end = next((i for i in range(start, len(visible)) if not visible[i].isspace()), len(visible))
    end = max(i for i in places if i < end) + 1
    return dialect.unmarked(text[start:end]), end


def _outside(text: str, start: int, calls: Sequence[ToolCall]) -> Iterator[str]:
    """What stands between calls and around them."""
    for begin, end in sorted(call.span for call in calls if call.span is not None):
        yield text[start:begin]
        start = end
    yield text[start:]


def retell(dialogue: Dialogue, dialect: Dialect) -> Demonstration:
    """A conversation as tokens of a student, as if it had played it.

    Args:
        dialogue: What was said; messages after the last turn are left out.
        dialect: How the student reads and writes.

    Raises:
        DialectError: The student cannot be shown it, or could not say a turn of it.
    """
    tokens: list[int] = []
    mask: list[bool] = []
    heard: list[Message] = []
    for number, it in enumerate(dialogue.messages, 1):
        if isinstance(it, Message):
            heard.append(it)
            continue
        try:
            tokens += (
                dialect.reply(heard) if tokens else dialect.opening(heard, dialogue.tools or None)
            )
            turn = dialect.turn(dialect.say(it.content, it.calls, it.reasoning, tokens))
        except (DialectError, TemplateError) as error:
            raise DialectError(f"message {number} of its conversation: {error}") from error
        mask += [False] * (len(tokens) - len(mask))
        tokens += turn
        mask += [it.learn] * len(turn)
        heard = []
    return Demonstration(tuple(tokens), tuple(mask))
