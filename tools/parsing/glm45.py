r"""GLM-4.5 and later: a name, then keys and values as plain text.

    <tool_call>weather
    <arg_key>city</arg_key>
    <arg_value>Oslo</arg_value>
    </tool_call>

Nothing is quoted, so `<tool_call>` opens a call wherever it stands; any other marker may be part of
a value. A value ends at the first `</arg_value>` that another key or the end of the call follows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from journeyman.tools.parsing.body import Span, failed, unclosed, well_formed
from journeyman.tools.parsing.form import CallFormat
from journeyman.tools.parsing.scanning import marker_end, next_marker, skip_space, value_end
from journeyman.tools.parsing.tags import CLOSE, OPEN, next_attempt, unopened
from journeyman.tools.parsing.values import to_text
from journeyman.tools.parsing.within import CallPlaces, trimmed
from journeyman.tools.types import CallStatus, ToolCall

_KEY, _END_KEY = "<arg_key>", "</arg_key>"
_VALUE, _END_VALUE = "<arg_value>", "</arg_value>"
_MARKERS = re.compile(f"{OPEN}|{CLOSE}")
_NAME = re.compile(r"[^\s<>{}\[\]\"']*")


def _scan(text: str, start: int) -> list[ToolCall]:
    attempt = next_attempt(text, start, _MARKERS)
    if attempt is None:
        return []
    start, marker = attempt
    if marker[0] == CLOSE:
        return [unopened((start, marker.end()))]
    body = marker.end()
    text = text[: next_marker(text, body, OPEN)[0]]
    read = _read(text, body)
    if isinstance(read, tuple):
        name, places, end = read
        arguments = {key: text[slice(*value)] for key, (_, value) in places.items()}
        return [well_formed(name, arguments, (start, end))]
    place, mark = next_marker(text, body, CLOSE)
    if not mark:
        return [unclosed(CLOSE, (start, place))]
    return [failed(CallStatus.INVALID_JSON, read, (start, place + len(CLOSE)))]


def _read(text: str, body: int) -> tuple[str, dict[str, tuple[Span, Span]], int] | str:
    """Name, places of arguments and of their values, the end; or what is wrong with it."""
    position, _ = next_marker(text, body, _KEY, CLOSE)
    name = text[body:position].strip()
    if not _NAME.fullmatch(name):
        return f"After {OPEN} comes the tool's name alone, then {_KEY} or {CLOSE}."
    places: dict[str, tuple[Span, Span]] = {}
    while (end := marker_end(text, position, CLOSE)) is None:
        begin = marker_end(text, position, _KEY)
        key_end = text.find(_END_KEY, begin) if begin is not None else -1
        if key_end < 0:
            return f"In a call stands {_KEY}name{_END_KEY} or {CLOSE}."
        key = text[begin:key_end].strip()
        value = marker_end(text, key_end + len(_END_KEY), _VALUE)
        closed = value_end(text, value, _END_VALUE, _KEY, CLOSE) if value is not None else None
        if value is None or closed is None:
            return f"After the key {key[:80]!r} comes {_VALUE}its value{_END_VALUE}."
        begin, position = skip_space(text, position), closed + len(_END_VALUE)
        places[key] = (begin, position), (value, closed)
    return name, places, end


def _write(calls: Sequence[ToolCall]) -> str:
    return "\n".join(map(_write_call, calls))


def _write_call(call: ToolCall) -> str:
    arguments = "".join(
        f"{_KEY}{name}{_END_KEY}\n{_VALUE}{to_text(value)}{_END_VALUE}\n"
        for name, value in call.arguments.items()
    )
    return f"{OPEN}{call.name}\n{arguments}{CLOSE}"


def _within(call: str) -> CallPlaces:
    body = marker_end(call, 0, OPEN)
    read = _read(call, body) if body is not None else ""
    if body is None or isinstance(read, str):
        return CallPlaces()
    named = trimmed(call, body, next_marker(call, body, _KEY, CLOSE)[0])
    return CallPlaces(named, {key: whole for key, (whole, _) in read[1].items()})


GLM45 = CallFormat("glm45", _scan, _write, untyped=True, within=_within)
