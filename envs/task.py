"""What an episode is about: a task, what its user says, and when an answer is the right one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from journeyman.envs.errors import InvalidTaskError
from journeyman.tools import CallStatus, ToolCall

ANSWER = "Answer:"


def refused(call: ToolCall) -> ToolCall:
    """The gold call, declared to be one that its tool refuses: the student is meant to try it.

    `journeyman envs check` has every gold call accepted but those.
    """
    return call.marked(CallStatus.TOOL_ERROR)


@dataclass(frozen=True, slots=True)
class UserTurn:
    """One thing the user says, and what it takes."""

    prompt: str
    gold: tuple[ToolCall, ...]
    """Calls that solve it, one a turn; none if no call is called for. One that its tool is to turn
    down is `refused(call)`."""
    answer: str | None
    """The value that `prompt` asks for, or a rule; None if no value is asked for: then what is said
    does not matter, only what was done."""
    remark: str = "done"
    """What a demonstration says where no value is asked for; nobody is judged by it."""

    def __post_init__(self) -> None:
        """Check the types of the fields.

        Raises:
            InvalidTaskError: One is of another type.
        """
        _check_fields(self, "prompt", "remark")


@dataclass(frozen=True, slots=True)
class Task:
    """One problem with its solution."""

    id: str
    """"<split>/<number>", or "<split>/<level>/<number>" above the first level; with the environment
    id it names the task for good."""
    kind: str
    """The generator's name for this shape of task; evaluation breaks results down by it."""
    prompt: str
    """What the user says first."""
    state: Any
    """Initial state."""
    gold: tuple[ToolCall, ...]
    """Calls that solve it."""
    answer: str | None
    """The value that is asked for; None if only what was done matters."""
    then: tuple[UserTurn, ...] = ()
    """What the user says next, each after the student's answer to the one before."""
    policy: str = ""
    """Rules for the student that go below the system message."""
    remark: str = "done"
    """What a demonstration says where no value is asked for; nobody is judged by it."""

    def __post_init__(self) -> None:
        """Check the types of the fields.

        Raises:
            InvalidTaskError: One is of another type.
        """
        _check_fields(self, "id", "kind", "prompt", "policy", "remark")
        if not _holds(self.then, UserTurn):
            raise InvalidTaskError(f"then={self.then!r:.80}: expected a tuple of UserTurn")

    @property
    def turns(self) -> tuple[UserTurn, ...]:
        """All that the user says; `prompt`, `gold`, `answer`, `remark` are the first of them."""
        return (UserTurn(self.prompt, self.gold, self.answer, self.remark), *self.then)


def _check_fields(turn: Any, *texts: str) -> None:
    """What a generator is likely to get wrong shows where it is written, not when it is played."""
    for name in texts:
        if not isinstance(value := getattr(turn, name), str):
            raise InvalidTaskError(f"{name}={value!r:.80}: expected a str")
    if turn.answer is not None and not isinstance(turn.answer, str):
        raise InvalidTaskError(
            f"answer={turn.answer!r:.80}: expected a str or None, since answers are compared as "
            f"text; write answer=str(…)"
        )
    if not _holds(turn.gold, ToolCall):
        hint = "; write (call,)" if isinstance(turn.gold, ToolCall) else ""
        raise InvalidTaskError(f"gold={turn.gold!r:.80}: expected a tuple of ToolCall{hint}")


def _holds(items: Any, kind: type) -> bool:
    return isinstance(items, tuple | list) and all(isinstance(item, kind) for item in items)


_MARKER = re.compile(r"(?<![^\W_])answer[*_`]*:", re.IGNORECASE)


def extract_answer(text: str) -> str:
    """What follows the last "Answer:", in any case and type; the whole text if there is none."""
    return _MARKER.split(text)[-1].strip()


def answer_text(turn: UserTurn) -> str:
    """The assistant's turn that reports what a user turn asks for, or that it is done."""
    return f"{ANSWER} {turn.remark if turn.answer is None else turn.answer}"


def matches(answer: str, gold: str) -> bool:
    """True if an answer is the gold answer.

    Typography does not decide: what `normalise` overlooks; Markdown around the answer; and where a
    whole number is asked for, commas between thousands and zeros after the point.
    """
    wanted = normalise(gold)
    # A file's name may begin or end with underscores that are no Markdown: they go last.
    stripped = (normalise(normalise(answer).strip(marks)) for marks in ("", "*`", "*_`"))
    return wanted in {one for text in stripped for one in (text, _whole_number(text))}


def mentions(answer: str, gold: str) -> bool:
    """True if the gold answer stands in an answer as whole words: said, but not as it was asked.

    No verdict hangs on it: "17 or 18" mentions both.
    """
    wanted, text = normalise(gold), " ".join(answer.split()).casefold()
    if not wanted:
        return False
    if any(_whole_number(found[0]) == wanted for found in _NUMBER.finditer(text)):
        return True
    # "17" is no word of "17.5", "1,017" or "-17".
    word = rf"(?<![\w-])(?<!\d[.,]){re.escape(wanted)}(?![\w-]|[.,]\d)"
    return re.search(word, text) is not None


_NUMBER = re.compile(r"(?<![\w.,-])-?\d[\d,]*(?:\.\d+)?(?!\w|[.,-]\w|-)", re.ASCII)
_WHOLE = re.compile(r"(-?\d{1,3}(?:,\d{3})+|-?\d+)(?:\.0+)?", re.ASCII)


def _whole_number(text: str) -> str:
    """A whole number as gold has it; other text as it is."""
    match = _WHOLE.fullmatch(text)
    return match[1].replace(",", "") if match else text


_QUOTES = "\"' "


def normalise(answer: str) -> str:
    """Case, outer quotes and a final full stop do not decide an answer."""
    text = " ".join(answer.split()).strip(_QUOTES)
    return text.rstrip(".").strip(_QUOTES).casefold()


def solution(task: Task) -> list[str]:
    """A task's gold calls and answers, a line each."""
    lines = []
    for turn in task.turns:
        for call in turn.gold:
            lines.append(f"{call.name} {json.dumps(dict(call.arguments), ensure_ascii=False)}")
        lines.append(answer_text(turn))
    return lines
