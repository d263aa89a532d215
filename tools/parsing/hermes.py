r"""Hermes and Qwen: `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from journeyman.tools.parsing.body import read_json, to_json, unclosed
from journeyman.tools.parsing.form import CallFormat
from journeyman.tools.parsing.source import Source
from journeyman.tools.parsing.tags import CLOSE, OPEN, next_attempt, unopened
from journeyman.tools.types import ToolCall

_MARKERS = re.compile(f"{OPEN}|{CLOSE}")
_OBJECT = re.compile(r'\{\s*["}]')


def _scan(source: Source, start: int) -> list[ToolCall]:
    """A second opening marker ends an unclosed call; markers in JSON strings are text."""
    attempt = next_attempt(source.text, start, _MARKERS)
    if attempt is None:
        return []
    start, marker = attempt
    if marker[0] == CLOSE:
        return [_read_unopened(source, start, marker)]
    body = marker.end()
    end = source.object_end(body)
    closed = source.at(end, CLOSE) if end is not None else None
    if closed is None:
        found = source.find(body, CLOSE, OPEN)
        if found is None or found[1] == OPEN:
            return [unclosed(CLOSE, (start, found[0] if found else source.end))]
        closed = found[0] + len(CLOSE)
    return [read_json(source.text[body : closed - len(CLOSE)], (start, closed))]


def _read_unopened(source: Source, start: int, marker: re.Match[str]) -> ToolCall:
    """The object before a closing marker; the marker may stand in a string of it.

    One that is not whole is not searched for another inside it: that would be its arguments.
    """
    place: int | None = start
    while place is not None and (brace := _OBJECT.search(source.text, place, marker.start())):
        place = source.object_end(brace.start())
        closed = source.at(place, CLOSE) if place is not None else None
        if closed is not None:
            span = (brace.start(), closed)
            return read_json(source.text[span[0] : closed - len(CLOSE)], span)
    return unopened((start, marker.end()))


def _write(calls: Sequence[ToolCall]) -> str:
    bodies = (to_json({"name": c.name, "arguments": dict(c.arguments)}) for c in calls)
    return "\n".join(f"{OPEN}\n{body}\n{CLOSE}" for body in bodies)


HERMES = CallFormat("hermes", _scan, _write, last=">")
