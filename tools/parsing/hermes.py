r"""Hermes and Qwen: `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`.

JSON without a marker is an answer, whatever its keys: servers of these models read it so too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from journeyman.tools.parsing.body import read_json, to_json, unclosed
from journeyman.tools.parsing.form import CallFormat
from journeyman.tools.parsing.scanning import marker_end, next_marker, object_end
from journeyman.tools.parsing.tags import CLOSE, OPEN, next_attempt, unopened
from journeyman.tools.parsing.within import in_object
from journeyman.tools.types import ToolCall

_MARKERS = re.compile(f"{OPEN}|{CLOSE}")
_OBJECT = re.compile(r'\{\s*["}]')


def _scan(text: str, start: int) -> list[ToolCall]:
    """A second opening marker ends an unclosed call; markers in JSON strings are text."""
    attempt = next_attempt(text, start, _MARKERS)
    if attempt is None:
        return []
    start, marker = attempt
    if marker[0] == CLOSE:
        return [_read_unopened(text, start, marker)]
    body = marker.end()
    end = object_end(text, body)
    closed = marker_end(text, end, CLOSE) if end is not None else None
    if closed is None:
        place, mark = next_marker(text, body, CLOSE, OPEN)
        if mark != CLOSE:
            return [unclosed(CLOSE, (start, place))]
        closed = place + len(CLOSE)
    return [read_json(text[body : closed - len(CLOSE)], (start, closed))]


def _read_unopened(text: str, start: int, marker: re.Match[str]) -> ToolCall:
    """The object before a closing marker; the marker may stand in a string of it.

    One that is not whole is not searched for another inside it: that would be its arguments.
    """
    place: int | None = start
    while place is not None and (brace := _OBJECT.search(text, place, marker.start())):
        place = object_end(text, brace.start())
        closed = marker_end(text, place, CLOSE) if place is not None else None
        if closed is not None:
            span = (brace.start(), closed)
            return read_json(text[span[0] : closed - len(CLOSE)], span)
    return unopened((start, marker.end()))


def _write(calls: Sequence[ToolCall]) -> str:
    bodies = (to_json({"name": c.name, "arguments": dict(c.arguments)}) for c in calls)
    return "\n".join(f"{OPEN}\n{body}\n{CLOSE}" for body in bodies)


HERMES = CallFormat("hermes", _scan, _write, within=in_object("arguments", "parameters"))
