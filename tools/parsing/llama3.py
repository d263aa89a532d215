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
from journeyman.tools.parsing.pythonic import read_python
from journeyman.tools.parsing.source import JSON_STRINGS, PYTHON_STRINGS, Source
from journeyman.tools.types import CallStatus, ToolCall

TAG = "<|python_tag|>"
_ENDS = (TAG, "<|eom_id|>", "<|eot_id|>")
_STOPS = (*map(re.escape, _ENDS), r";\s*(?=\{)")

_NEXT = re.compile(r"\s*(?=(?:;\s*)?\{)")
_OPENER = re.compile(rf'{re.escape(TAG)}|(?=\{{\s*"name"\s*:|\{{\s*"type"\s*:\s*"function")')
_PYTHON = re.compile(r"\s*[A-Za-z_][\w.]*\(")


def _scan(source: Source, start: int) -> list[ToolCall]:
    match = _NEXT.match(source.text, start) or _OPENER.search(source.text, start)
    if match is None:
        return []
    opener = match.end() if not match[0].strip() else match.start()
    body = source.at(opener, TAG, ";") or opener
    if source.at(body, "{") is not None:
        return [_read_object(source, opener, body)]
    if python := _PYTHON.match(source.text, body):
        end, mark = source.item_end(python.end(), ")", PYTHON_STRINGS, _STOPS, comma=False)
        if mark == ")":
            call = read_python(source.text[body : end + 1], (opener, end + 1))
            return [_without_call(call)]
        return [unclosed(")", (opener, end))]
    found = source.find(body, *_ENDS)
    span = (opener, found[0] if found else source.end)
    if source.skip_space(body) == span[1]:
        return [unclosed("a JSON object", span)]
    return [failed(CallStatus.INVALID_JSON, "The call is not a JSON object.", span)]


def _read_object(source: Source, opener: int, body: int) -> ToolCall:
    end = source.object_end(body)
    if end is None:
        brace = source.skip_space(body)
        end, mark = source.item_end(brace + 1, "}", JSON_STRINGS, _STOPS, comma=False)
        if mark != "}":
            return unclosed("}", (opener, end))
        end += 1
    return read_json(source.text[body:end], (opener, end), ("parameters", "arguments"))


def _without_call(call: ToolCall) -> ToolCall:
    """Built-in tools are called by their `call` method."""
    name = call.name.removesuffix(".call")
    return ToolCall(name, call.arguments, call.status, call.error, call.span)


def _write(calls: Sequence[ToolCall]) -> str:
    return "; ".join(to_json({"name": c.name, "parameters": dict(c.arguments)}) for c in calls)


LLAMA3_JSON = CallFormat("llama3_json", _scan, _write, last="})>")
