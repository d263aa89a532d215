"""gpt-oss harmony: a message to a function, `<|channel|>commentary to=functions.f … <|call|>`.

    <|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Oslo"}<|call|>
    <|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{}<|call|>

A header that names a recipient is an attempt, in whatever channel. `<|call|>` is a stop token that
servers cut off, so a whole object at the end of the turn is closed as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from journeyman.tools.parsing.body import failed, read_arguments, to_json, unclosed
from journeyman.tools.parsing.form import CallFormat
from journeyman.tools.parsing.scanning import marker_end, next_marker, object_end, skip_space
from journeyman.tools.parsing.within import CallPlaces, arguments_at
from journeyman.tools.types import CallStatus, ToolCall

MESSAGE, CALL = "<|message|>", "<|call|>"
_ENDS = (CALL, "<|end|>", "<|return|>", "<|start|>")
_HEADER = re.compile(
    r"(?:\A\s*(?:assistant\s*)?|<\|start\|>assistant\s*|<\|channel\|>[^<]*?\b)to=([^\s<]*)"
)
_PEOPLE = ("assistant", "user", "all")


def _scan(text: str, start: int) -> list[ToolCall]:
    header = _find_header(text, start, len(text))
    if header is None:
        return []
    start, name = header.start(), header[1].removeprefix("functions.")
    place, mark = _next_mark(text, header.end())
    if mark == CALL:
        error = f"After the tool's name comes {MESSAGE}."
        return [failed(CallStatus.INVALID_JSON, error, (start, place + len(CALL)), name)]
    if mark != MESSAGE:
        return [unclosed(CALL, (start, place), name)]
    body = place + len(MESSAGE)
    end = object_end(text, body)
    if end is not None:
        closed = marker_end(text, end, CALL)
        if closed is not None or skip_space(text, end) == len(text):
            return [read_arguments(name, text[body:end], (start, closed or end))]
    place, mark = _next_mark(text, body)
    if mark != CALL:
        return [unclosed(CALL, (start, place), name)]
    return [read_arguments(name, text[body:place], (start, place + len(CALL)))]


def _find_header(text: str, start: int, end: int) -> re.Match[str] | None:
    """The next header that names a tool as its recipient."""
    headers = _HEADER.finditer(text, start, end)
    return next((header for header in headers if header[1] not in _PEOPLE), None)


def _next_mark(text: str, start: int) -> tuple[int, str]:
    """The first marker of a message's parts and ends; "" stands for another header, or the end."""
    place, mark = next_marker(text, start, MESSAGE, *_ENDS)
    another = _find_header(text, start, place)
    return (another.start(), "") if another else (place, mark)


def _write(calls: Sequence[ToolCall]) -> str:
    return "<|start|>assistant".join(
        f"<|channel|>commentary to=functions.{c.name} <|constrain|>json{MESSAGE}"
        f"{to_json(dict(c.arguments))}{CALL}"
        for c in calls
    )


def _within(call: str) -> CallPlaces:
    header = _find_header(call, 0, len(call))
    if header is None:
        return CallPlaces()
    start, end = header.span(1)
    body, mark = next_marker(call, end, MESSAGE)
    return CallPlaces(
        (end - len(call[start:end].removeprefix("functions.")), end),
        arguments_at(call, body + len(mark)),
    )


HARMONY = CallFormat("harmony", _scan, _write, within=_within)
