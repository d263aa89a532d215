r"""Cohere's Command, Granite 3, Phi-4-mini: a marker, then calls in one JSON list.

    <|START_ACTION|>[{"tool_call_id": "0", "tool_name": "weather", "parameters": {}}]<|END_ACTION|>
    <|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo"}}]

Granite closes the list with no marker, Phi with `<|/tool_call|>`. Each item is an attempt, closed
by the comma or bracket after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from journeyman.tools.parsing.body import failed, read_json, to_json, unclosed
from journeyman.tools.parsing.form import CallFormat
from journeyman.tools.parsing.scanning import (
    JSON_STRINGS,
    item_end,
    marker_end,
    next_marker,
    object_end,
)
from journeyman.tools.parsing.within import in_object
from journeyman.tools.types import CallStatus, ToolCall


@dataclass(frozen=True)
class _Listed:
    """What a family writes around its list, and in an item of it."""

    opens: str
    closes: str
    write_one: Callable[[int, ToolCall], dict[str, Any]]
    keys: tuple[str, ...] = ("arguments", "parameters")
    named: str = "name"
    closed: bool = True
    """The closing marker is written, not only read."""
    layout: tuple[str, str, str] = ("[", ", ", "]")
    """Before, between and after the items."""

    @property
    def _stops(self) -> tuple[str, ...]:
        return re.escape(self.opens), re.escape(self.closes)

    def scan(self, text: str, start: int) -> list[ToolCall]:
        begin, mark = next_marker(text, start, self.opens)
        if not mark:
            return []
        body = begin + len(mark)
        inside = marker_end(text, body, "[")
        if inside is None:
            return [self._no_list(text, begin, body)]
        calls: list[ToolCall] = []
        mark = ","
        while mark == ",":
            # A well-formed object first: only there do strings surely end where they seem to.
            after = object_end(text, inside) or inside
            end, mark = item_end(text, after, "]", JSON_STRINGS, self._stops)
            if mark not in (",", "]"):  # the text ended, or the list did without a bracket
                if text[inside:end].strip() or not calls:
                    calls.append(unclosed("]", (begin, end)))
                break
            said, inside = text[inside:end], end + len(mark)
            if mark == "]":
                inside = marker_end(text, inside, self.closes) or inside
            if said.strip() or not (calls or mark == ","):
                calls.append(read_json(said, (begin, inside), self.keys, self.named))
                begin = inside
        return calls

    def _no_list(self, text: str, begin: int, body: int) -> ToolCall:
        place, mark = next_marker(text, body, self.closes, self.opens)
        if mark != self.closes:
            return unclosed("a JSON list", (begin, place))
        error = f"After {self.opens} comes a JSON list of calls."
        return failed(CallStatus.INVALID_JSON, error, (begin, place + len(mark)))

    def write(self, calls: Sequence[ToolCall]) -> str:
        if not calls:
            return ""
        first, between, last = self.layout
        items = between.join(to_json(self.write_one(i, call)) for i, call in enumerate(calls))
        return f"{self.opens}{first}{items}{last}{self.closes if self.closed else ''}"

    def form(self, name: str) -> CallFormat:
        within = in_object(*self.keys, named=self.named)
        return CallFormat(name, self.scan, self.write, within=within)


def _plain(number: int, call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": dict(call.arguments)}


def _numbered(number: int, call: ToolCall) -> dict[str, Any]:
    arguments = dict(call.arguments)
    return {"tool_call_id": str(number), "tool_name": call.name, "parameters": arguments}


COHERE = _Listed(
    *("<|START_ACTION|>", "<|END_ACTION|>", _numbered, ("parameters", "arguments"), "tool_name"),
    layout=("[\n    ", ",\n    ", "\n]"),
).form("cohere")
GRANITE = _Listed("<|tool_call|>", "<|/tool_call|>", _plain, closed=False).form("granite")
PHI4 = _Listed("<|tool_call|>", "<|/tool_call|>", _plain).form("phi4_mini")
