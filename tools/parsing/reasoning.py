r"""Reasoning in a turn, such as `<think>\n…\n</think>`: what is only considered there is not done.

A turn goes on from its prompt, so reasoning that the prompt began ends at the first closing mark,
wherever it stands. Reasoning that the turn begins itself begins a line. A closing mark that nothing
opened ends reasoning as well, since servers may put the opening one into a prompt that nobody sees;
it must end its line, or stand before a call. Marks inside a well-formed call are its arguments'.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from journeyman.tools.parsing.body import Span, failed
from journeyman.tools.types import CallStatus, ToolCall

Reader = Callable[[str], Sequence[ToolCall]]
"""The calls of a text, with their places."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What reasoning stands between in the turns of a family."""

    open: str
    close: str
    before: tuple[str, ...] = ()
    """Texts that end it too, and are no part of it."""
    channel: bool = False
    """True of a message of its own: it opens anywhere, and its end ends other messages as well."""

    def end(self, text: str, start: int) -> int | None:
        """Where reasoning ends that stands at `start`; None if it never does."""
        places = [(text.find(mark, start), mark) for mark in (self.close, *self.before)]
        found = min(((place, mark) for place, mark in places if place >= 0), default=None)
        if found is None:
            return None
        place, mark = found
        return place + (len(mark) if mark == self.close else 0)


THINK = Marks("<think>", "</think>")
"""Qwen, GLM, Nemotron, DeepSeek and most others."""
MARKS = (
    THINK,
    Marks("[THINK]", "[/THINK]"),  # Magistral
    Marks("<seed:think>", "</seed:think>"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    Marks("◁think▷", "◁/think▷"),  # Kimi
    Marks("<|channel>thought", "<channel|>"),  # Gemma 4
)
"""Those of the families that are known."""
ANALYSIS = Marks(
    "<|channel|>analysis<|message|>", "<|end|>", ("<|start|>", "<|channel|>"), channel=True
)
"""Harmony's."""

_VISIBLE = re.compile(r"[^\n]")


def begun_in(prompt: str, marks: Sequence[Marks]) -> Marks | None:
    """The marks of the reasoning that a prompt begins: its last word opens it."""
    end = prompt.rstrip()
    return next((pair for pair in marks if end.endswith(pair.open)), None)


def read_turn(
    text: str, read: Reader, marks: Sequence[Marks] = (THINK,), begun: Marks | None = None
) -> tuple[tuple[ToolCall, ...], str]:
    """What a turn does and says outside its reasoning.

    Args:
        text: The turn.
        read: The family's call form.
        marks: What the family reasons between.
        begun: Of these, what the prompt opened.

    Returns:
        Every attempted call, and the turn with its reasoning as blanks: all else keeps its place.
        Reasoning that never ends goes to the end of the turn. Where no call came before it, the
        turn is one attempt, `CallStatus.UNCLOSED`, and says nothing.
    """
    if begun is None and not any(p.open in text or p.close in text for p in marks):
        return tuple(read(text)), text
    visible, attempt = text, None
    for start, end, pair in _reasoning(text, read, marks, begun):
        visible = visible[:start] + _VISIBLE.sub(" ", text[start:end]) + visible[end:]
        if pair is not None:
            error = (
                f"The reasoning was not closed with {pair.close}: close it, then call a tool or "
                f"answer."
            )
            attempt = failed(CallStatus.UNCLOSED, error, (start, end))
    calls = tuple(read(visible))
    return (calls, visible) if calls or attempt is None else ((attempt,), "")


def reasoning_in(
    text: str, read: Reader, marks: Sequence[Marks] = (THINK,), begun: Marks | None = None
) -> tuple[Span, ...]:
    """Where a turn reasons, its marks included; see `read_turn`."""
    if begun is None and not any(p.open in text or p.close in text for p in marks):
        return ()
    return tuple((start, end) for start, end, _ in _reasoning(text, read, marks, begun))


def _reasoning(
    text: str, read: Reader, marks: Sequence[Marks], begun: Marks | None
) -> Iterator[tuple[int, int, Marks | None]]:
    """Places of reasoning in order, with the marks of one that never ends."""
    place = inside = 0
    while True:
        if begun is not None:
            end = begun.end(text, inside)
            yield place, len(text) if end is None else end, begun if end is None else None
            if end is None:
                return
            place = end
        found = _next(text, place, read, marks)
        if found is None:
            return
        start, inside, begun = found
        if begun is None:
            yield place, inside, None
        place = inside if begun is None else start


def _next(
    text: str, place: int, read: Reader, marks: Sequence[Marks]
) -> tuple[int, int, Marks | None] | None:
    """The next mark that counts, and what it opens; None for a closing one that nothing opened."""
    pairs = {pair.open: pair for pair in marks} | {p.close: None for p in marks if not p.channel}
    anywhere = {pair.open for pair in marks if pair.channel}
    candidates = list(re.finditer("|".join(map(re.escape, pairs)), text[place:]))
    if not candidates:
        return None
    calls = [call for call in read(_VISIBLE.sub(" ", text[:place]) + text[place:]) if call.span]
    sound: list[Span] = [call.span for call in calls if call.span and call.error is None]
    for match in candidates:
        start, end = place + match.start(), place + match.end()
        if any(begin <= start < close for begin, close in sound):
            continue
        pair = pairs[match[0]]
        if pair is not None:
            line = text[max(place, text.rfind("\n", 0, start) + 1) : start]
            if match[0] in anywhere or not line.strip():
                return start, end, pair
        elif _ends_reasoning(text, place, start, end, calls):
            return start, end, None
    return None


def _ends_reasoning(text: str, place: int, start: int, end: int, calls: Sequence[ToolCall]) -> bool:
    """True of a closing mark that ends its line, or stands before a call."""
    after = text[end:].lstrip()
    follows = len(text) - len(after)
    if any(call.span and call.span[0] == follows for call in calls):
        return True
    if text[end:].partition("\n")[0].strip():
        return False
    line = text[max(place, text.rfind("\n", 0, start) + 1) : start]
    return bool(after) or not line.strip()
