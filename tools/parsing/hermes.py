r"""Hermes and Qwen: `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`."""

from __future__ import annotations

from collections.abc import Sequence

from journeyman.tools.parsing.body import read_json, to_json, unclosed
from journeyman.tools.parsing.form import CallFormat
from journeyman.tools.parsing.source import Source
from journeyman.tools.types import ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def _scan(source: Source, start: int) -> list[ToolCall]:
    """A second opening marker ends an unclosed call; markers in JSON strings are text."""
    start = source.text.find(OPEN, start)
    if start < 0:
        return []
    body = start + len(OPEN)
    end = source.object_end(body)
    closed = source.at(end, CLOSE) if end is not None else None
    if closed is None:
        found = source.find(body, CLOSE, OPEN)
        if found is None or found[1] == OPEN:
            return [unclosed(CLOSE, (start, found[0] if found else source.end))]
        closed = found[0] + len(CLOSE)
    return [read_json(source.text[body : closed - len(CLOSE)], (start, closed))]


def _write(calls: Sequence[ToolCall]) -> str:
    bodies = (to_json({"name": c.name, "arguments": dict(c.arguments)}) for c in calls)
    return "\n".join(f"{OPEN}\n{body}\n{CLOSE}" for body in bodies)


HERMES = CallFormat("hermes", _scan, _write, last=">")
