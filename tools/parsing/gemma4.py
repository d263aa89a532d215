r"""Gemma 4: `<|tool_call>call:weather{city:<|"|>Oslo<|"|>,days:3}<tool_call|>`.

Text stands between `<|"|>` marks and has no escapes, so that mark alone ends it: a text that holds
one is written as a JSON string, which is read as well. Lists and objects are JSON's but for that;
keys are bare.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from journeyman.tools.parsing.body import (
    MAX_DEPTH,
    Span,
    failed,
    to_json,
    unclosed,
    well_formed,
)
from journeyman.tools.parsing.form import CallFormat
from journeyman.tools.parsing.scanning import DECODER, next_marker, skip_space
from journeyman.tools.parsing.within import CallPlaces
from journeyman.tools.types import CallStatus, ToolCall

OPEN, CLOSE, QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
_NAME = re.compile(r"\s*call:([^\s{}<>:]*)\s*\{")
_BARE = re.compile(r"[\w.\-]+")
_KEY = re.compile(r"([^:{}\[\]\"<>|]+?)\s*(?=:)")


class _MalformedError(Exception):
    """What is wrong with a value, for the model."""


def _scan(text: str, start: int) -> list[ToolCall]:
    begin, mark = next_marker(text, start, OPEN)
    if not mark:
        return []
    body = begin + len(mark)
    error, name = f"After {OPEN} comes call:name{{…}}.", ""
    if named := _NAME.match(text, body):
        name = named[1]
        try:
            arguments, _, end = _members(text, named.end(), 0)
            end = skip_space(text, end)
            if text.startswith(CLOSE, end):
                return [well_formed(name, arguments, (begin, end + len(CLOSE)))]
            error = f"After the arguments comes {CLOSE}."
        except _MalformedError as wrong:
            error = str(wrong)
    place, mark = next_marker(text, body, CLOSE, OPEN)
    if mark != CLOSE:
        return [unclosed(CLOSE, (begin, place), name)]
    return [failed(CallStatus.INVALID_JSON, error, (begin, place + len(mark)), name)]


def _members(text: str, place: int, depth: int) -> tuple[dict[str, Any], dict[str, Span], int]:
    """The members of an object whose brace was just read, where each stands, and the end."""
    found: dict[str, Any] = {}
    places: dict[str, Span] = {}
    place = skip_space(text, place)
    while not text.startswith("}", place):
        begin = place
        key, place = _key(text, place)
        place = skip_space(text, place)
        if not text.startswith(":", place):  # after a key between marks
            raise _MalformedError(f"After the key {key[:80]!r} comes a colon.")
        found[key], place = _value(text, skip_space(text, place + 1), depth)
        places[key] = (begin, place)
        place = _next(text, place, "}")
    return found, places, place + 1


def _next(text: str, place: int, closer: str) -> int:
    """Where the next item begins, or the bracket stands that ends them."""
    place = skip_space(text, place)
    if text.startswith(",", place):
        return skip_space(text, place + 1)
    if not text.startswith(closer, place):
        raise _MalformedError(f"After a value comes a comma or {closer}.")
    return place


def _key(text: str, place: int) -> tuple[str, int]:
    if text.startswith((QUOTE, '"'), place):
        key, place = _value(text, place, 0)
        return str(key), place
    bare = _KEY.match(text, place)
    if bare is None:
        raise _MalformedError("An argument has no name: write key:value.")
    return bare[1], bare.end()


def _value(text: str, place: int, depth: int) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise _MalformedError("The call is nested too deeply.")
    if text.startswith(QUOTE, place):
        begin = place + len(QUOTE)
        end = text.find(QUOTE, begin)
        if end < 0:
            raise _MalformedError(f"A text is not closed with {QUOTE}.")
        return text[begin:end], end + len(QUOTE)
    if text.startswith("{", place):
        members, _, place = _members(text, place + 1, depth + 1)
        return members, place
    if text.startswith("[", place):
        items: list[Any] = []
        place = skip_space(text, place + 1)
        while not text.startswith("]", place):
            item, place = _value(text, place, depth + 1)
            items.append(item)
            place = _next(text, place, "]")
        return items, place + 1
    try:
        return DECODER.raw_decode(text, place)
    except (ValueError, RecursionError):
        raise _MalformedError(f"Text stands between {QUOTE} marks, all else as in JSON.") from None


def _write(calls: Sequence[ToolCall]) -> str:
    return "".join(f"{OPEN}call:{c.name}{_written(dict(c.arguments))}{CLOSE}" for c in calls)


def _written(value: Any) -> str:
    # The family's template sorts the keys.
    if isinstance(value, str):
        return to_json(value) if QUOTE in value else f"{QUOTE}{value}{QUOTE}"
    if isinstance(value, Mapping):
        given = (f"{_written_key(key)}:{_written(value[key])}" for key in sorted(value))
        return f"{{{','.join(given)}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    return to_json(value)


def _written_key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _written(key)


def _within(call: str) -> CallPlaces:
    named = _NAME.match(call, len(OPEN))
    if named is None or not call.startswith(OPEN):
        return CallPlaces()
    try:
        return CallPlaces(named.span(1), _members(call, named.end(), 0)[1])
    except _MalformedError:
        return CallPlaces(named.span(1))


GEMMA4 = CallFormat("gemma4", _scan, _write, within=_within)
