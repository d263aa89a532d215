"""Llama 3.x: `{"name": …, "parameters": {…}}`, with or without `<|python_tag|>` before it.

The form has no closing marker and needs no opening one. An attempt is what follows the tag; a JSON
object that begins the turn, or follows a call (`;` may stand between); and anywhere else an object
whose first key is "name", or "type" with the value "function". Llama's built-in tools are called in
Python's way: `<|python_tag|>brave_search.call(query="…")`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from journeyman.tools.parsing.body import failed, read_json, to_json, unclosed
from journeyman.tools.parsing.form import CallFormat
from journeyman.tools.parsing.pythonic import in_python, read_python
from journeyman.tools.parsing.scanning import (
    JSON_STRINGS,
    PYTHON_STRINGS,
    item_end,
    marker_end,
    next_marker,
    object_end,
    skip_space,
)
from journeyman.tools.parsing.within import CallPlaces, in_object
from journeyman.tools.types import CallStatus, ToolCall

TAG = "<|python_tag|>"
_ENDS = (TAG, "<|eom_id|>", "<|eot_id|>")
_STOPS = (*map(re.escape, _ENDS), r";\s*(?=\{)")

_NEXT = re.compile(r"\s*(?=(?:;\s*)?\{)")
_OPENER = re.compile(rf'{re.escape(TAG)}|(?=\{{\s*"name"\s*:|\{{\s*"type"\s*:\s*"function")')
_PYTHON = re.compile(r"\s*[A-Za-z_][\w.]*\(")


def _scan(text: str, start: int) -> list[ToolCall]:
    match = _NEXT.match(text, start) or _OPENER.search(text, start)
    if match is None:
        return []
    opener = match.end() if not match[0].strip() else match.start()
    body = marker_end(text, opener, TAG, ";") or opener
    if marker_end(text, body, "{") is not None:
        return [_read_object(text, opener, body)]
    if python := _PYTHON.match(text, body):
        end, mark = item_end(text, python.end(), ")", PYTHON_STRINGS, _STOPS, comma=False)
        if mark == ")":
            call = read_python(text[body : end + 1], (opener, end + 1))
            return [_without_call(call)]
        return [unclosed(")", (opener, end))]
    end, _ = next_marker(text, body, *_ENDS)
    if skip_space(text, body) == end:
        return [unclosed("a JSON object", (opener, end))]
    return [failed(CallStatus.INVALID_JSON, "The call is not a JSON object.", (opener, end))]


def _read_object(text: str, opener: int, body: int) -> ToolCall:
    end = object_end(text, body)
    if end is None:
        brace = skip_space(text, body)
        end, mark = item_end(text, brace + 1, "}", JSON_STRINGS, _STOPS, comma=False)
        if mark != "}":
            return unclosed("}", (opener, end))
        end += 1
    return read_json(text[body:end], (opener, end), ("parameters", "arguments"))


def _without_call(call: ToolCall) -> ToolCall:
    """Built-in tools are called by their `call` method."""
    name = call.name.removesuffix(".call")
    return ToolCall(name, call.arguments, call.status, call.error, call.span)


def _write(calls: Sequence[ToolCall]) -> str:
    return "; ".join(to_json({"name": c.name, "parameters": dict(c.arguments)}) for c in calls)


_in_object = in_object("parameters", "arguments")


def _within(call: str) -> CallPlaces:
    body = marker_end(call, 0, TAG, ";") or 0
    if marker_end(call, body, "{") is not None:
        return _in_object(call)
    found = in_python(call)
    if found.name is None:
        return found
    start, end = found.name
    return CallPlaces((start, start + len(call[start:end].removesuffix(".call"))), found.arguments)


LLAMA3_JSON = CallFormat("llama3_json", _scan, _write, within=_within)
