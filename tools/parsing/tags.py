"""What the families share that write `<tool_call>…</tool_call>`: where the next attempt begins.

Models leave the opening marker out at times. What stands before a closing marker that nothing
opened is an attempt too, unless it is only what an earlier call left behind.
"""

from __future__ import annotations

import re

from journeyman.tools.parsing.body import Span, failed
from journeyman.tools.types import CallStatus, ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_LEFT_BEHIND = re.compile(r"(?:\s|</\w+>)*")


def next_attempt(
    text: str, start: int, markers: re.Pattern[str]
) -> tuple[int, re.Match[str]] | None:
    """Where the next attempt begins, and the first of the markers that belongs to it.

    Args:
        text: The turn.
        start: Where the last attempt ended.
        markers: What opens an attempt, and `CLOSE`.

    Returns:
        None if no marker is left. The marker is `CLOSE` if nothing opened the attempt.
    """
    while match := markers.search(text, start):
        if match[0] != CLOSE:
            return match.start(), match
        begin = _LEFT_BEHIND.match(text, start, match.start())
        if begin is not None and begin.end() < match.start():
            return begin.end(), match
        start = match.end()
    return None


def unopened(span: Span) -> ToolCall:
    """An attempt that has a closing marker only."""
    return failed(CallStatus.INVALID_JSON, f"The call was not opened with {OPEN}.", span)
