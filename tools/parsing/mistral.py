"""Mistral: `[TOOL_CALLS]`, then a JSON list (tokenizers v2 to v7) or name and arguments (from v11).

    [TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}, "id": "abcdefghi"}]
    [TOOL_CALLS]weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]time[ARGS]{}

In v11 `[CALL_ID]` and an id stand between name and `[ARGS]`. The newer form has no closing marker.
Each item of a list is an attempt, closed by the comma or bracket after it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from journeyman.tools.parsing.body import (
    failed,
    read_arguments,
    read_json,
    to_json,
    unclosed,
)
from journeyman.tools.parsing.form import CallFormat
from journeyman.tools.parsing.source import JSON_STRINGS, Source
from journeyman.tools.types import CallStatus, ToolCall

OPEN = "[TOOL_CALLS]"
_ARGS, _CALL_ID = "[ARGS]", "[CALL_ID]"
_STOPS = (re.escape(OPEN), "</s>")


def _scan(source: Source, start: int) -> list[ToolCall]:
    start = source.text.find(OPEN, start)
    if start < 0:
        return []
    body = start + len(OPEN)
    if source.at(body, OPEN, _ARGS, _CALL_ID) is None:
        inside = source.at(body, "[")
        if inside is not None:
            return _read_list(source, start, inside)
    return [_read_named(source, start, body)]


def _read_list(source: Source, begin: int, inside: int) -> list[ToolCall]:
    calls: list[ToolCall] = []
    mark = ","
    while mark == ",":
        # A well-formed object first: only there do strings surely end where they seem to.
        after = source.object_end(inside)
        end, mark = source.item_end(after or inside, "]", JSON_STRINGS, _STOPS)
        body, inside = source.text[inside:end], end + len(mark)
        if mark not in (",", "]"):  # the text ended, or the list did without a bracket
            if body.strip() or not calls:
                calls.append(unclosed("]", (begin, end)))
            break
        if body.strip() or not (calls or mark == ","):
            calls.append(read_json(body, (begin, inside)))
            begin = inside
    return calls


def _read_named(source: Source, start: int, body: int) -> ToolCall:
    found = source.find(body, _ARGS, _CALL_ID, "{", OPEN, "</s>")
    name_end, mark = found or (source.end, "")
    name = source.text[body:name_end].strip()
    if mark == _CALL_ID:
        found = source.find(name_end, _ARGS, OPEN, "</s>")
        name_end, mark = found or (source.end, "")
    if mark not in (_ARGS, "{"):
        return unclosed(f"name{_ARGS}{{…}}", (start, name_end), name)
    opened = name_end + (len(_ARGS) if mark == _ARGS else 0)
    end = source.object_end(opened)
    if end is None:
        brace = source.at(opened, "{")
        if brace is None:
            found = source.find(opened, OPEN, "</s>")
            end = found[0] if found else source.end
            if not source.text[opened:end].strip():
                return unclosed("{…}", (start, end), name)
        else:
            end, mark = source.item_end(brace, "}", JSON_STRINGS, _STOPS, comma=False)
            if mark != "}":
                return unclosed("}", (start, end), name)
            end += 1
    if len(name.split()) > 1:
        error = f"Between {OPEN} and {_ARGS} stands the tool's name alone."
        return failed(CallStatus.INVALID_JSON, error, (start, end))
    return read_arguments(name, source.text[opened:end], (start, end))


def _write(calls: Sequence[ToolCall]) -> str:
    return "".join(f"{OPEN}{c.name}{_ARGS}{to_json(dict(c.arguments))}" for c in calls)


MISTRAL = CallFormat("mistral", _scan, _write, last="}])>")
