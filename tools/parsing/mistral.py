"""Mistral: `[TOOL_CALLS]`, then a JSON list (tokenizers v2 to v7) or name and arguments (from v11).

    [TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}, "id": "abcdefghi"}]
    [TOOL_CALLS]weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]time[ARGS]{}

In v11 `[CALL_ID]` and an id stand between name and `[ARGS]`. The newer form has no closing marker.
Each item of a list is an attempt, closed by the comma or bracket after it.

Models leave out `[TOOL_CALLS]`, mostly that of the second call: the word before an `[ARGS]` begins
an attempt as well, and so does a list of objects right after a call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from journeyman.tools.parsing.body import failed, read_arguments, read_json, to_json, unclosed
from journeyman.tools.parsing.form import CallFormat
from journeyman.tools.parsing.scanning import (
    JSON_STRINGS,
    item_end,
    marker_end,
    next_marker,
    object_end,
)
from journeyman.tools.parsing.within import CallPlaces, arguments_at, in_object, trimmed
from journeyman.tools.types import CallStatus, ToolCall

OPEN = "[TOOL_CALLS]"
_ARGS, _CALL_ID, _END = "[ARGS]", "[CALL_ID]", "</s>"
_STOPS = tuple(map(re.escape, (OPEN, _ARGS, _CALL_ID, _END)))
_NOT_IN_NAMES = " \t\n\r{}[]()\"'"
_MARKERS = re.compile("|".join(_STOPS[:3]))


def _scan(text: str, start: int) -> list[ToolCall]:
    listed = marker_end(text, start, "[") if start else None
    if listed is not None and marker_end(text, listed, "{") is not None:
        return _read_list(text, listed - 1, listed)
    marker = _MARKERS.search(text, start)
    if marker is None:
        return []
    if marker[0] != OPEN:
        start = _name_before(text, start, marker.start())
        return [_read_named(text, start, start)]
    start, body = marker.span()
    inside = marker_end(text, body, "[")
    if inside is None or marker_end(text, body, OPEN, _ARGS, _CALL_ID) is not None:
        return [_read_named(text, start, body)]
    return _read_list(text, start, inside)


def _name_before(text: str, start: int, marker: int) -> int:
    """Where the name begins that stands before a marker; the marker's place if there is none."""
    before = text[start:marker].rpartition(_END)[2]
    name = before.rstrip()
    begin = 1 + max(map(name.rfind, _NOT_IN_NAMES))
    return marker - len(before) + begin if begin < len(name) else marker


def _attempt_end(text: str, start: int, place: int, mark: str) -> int:
    """Where an attempt ends that a stop cuts short: before the name, if the stop has one."""
    return _name_before(text, start, place) if mark in (_ARGS, _CALL_ID) else place


def _read_list(text: str, begin: int, inside: int) -> list[ToolCall]:
    calls: list[ToolCall] = []
    mark = ","
    while mark == ",":
        # A well-formed object first: only there do strings surely end where they seem to.
        after = object_end(text, inside) or inside
        end, mark = item_end(text, after, "]", JSON_STRINGS, _STOPS)
        if mark not in (",", "]"):  # the text ended, or the list did without a bracket
            end = _attempt_end(text, after, end, mark)
            if text[inside:end].strip() or not calls:
                calls.append(unclosed("]", (begin, end)))
            break
        body, inside = text[inside:end], end + len(mark)
        if body.strip() or not (calls or mark == ","):
            calls.append(read_json(body, (begin, inside)))
            begin = inside
    return calls


def _read_named(text: str, start: int, body: int) -> ToolCall:
    name_end, mark = next_marker(text, body, _ARGS, _CALL_ID, "{", OPEN, _END)
    name = text[body:name_end].strip()
    if mark == _CALL_ID:
        name_end, mark = next_marker(text, name_end, _ARGS, OPEN, _END)
    if mark not in (_ARGS, "{"):
        return unclosed(f"name{_ARGS}{{…}}", (start, name_end), name)
    opened = name_end + (len(_ARGS) if mark == _ARGS else 0)
    end = object_end(text, opened)
    if end is None:
        brace = marker_end(text, opened, "{")
        if brace is None:
            end, mark = next_marker(text, opened, OPEN, _ARGS, _CALL_ID, _END)
            end = _attempt_end(text, opened, end, mark)
            if not text[opened:end].strip():
                return unclosed("{…}", (start, end), name)
        else:
            end, mark = item_end(text, brace, "}", JSON_STRINGS, _STOPS, comma=False)
            if mark != "}":
                return unclosed("}", (start, _attempt_end(text, brace, end, mark)), name)
            end += 1
    if len(name.split()) > 1:
        error = f"Between {OPEN} and {_ARGS} stands the tool's name alone."
        return failed(CallStatus.INVALID_JSON, error, (start, end))
    return read_arguments(name, text[opened:end], (start, end))


def _write(calls: Sequence[ToolCall]) -> str:
    return "".join(f"{OPEN}{c.name}{_ARGS}{to_json(dict(c.arguments))}" for c in calls)


_in_object = in_object("arguments", "parameters")


def _within(call: str) -> CallPlaces:
    body = marker_end(call, 0, OPEN) or 0
    if marker_end(call, body, "[", "{") and marker_end(call, body, _ARGS, _CALL_ID) is None:
        return _in_object(call)  # an item of a list
    end, _ = next_marker(call, body, _ARGS, _CALL_ID, "{")
    brace, _ = next_marker(call, end, "{")
    return CallPlaces(trimmed(call, body, end), arguments_at(call, brace))


MISTRAL = CallFormat("mistral", _scan, _write, within=_within)
