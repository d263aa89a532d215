r"""DeepSeek V3 and V3.1, Kimi K2: JSON arguments after a name, between markers, in a section.

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather
    ```json
    {"city": "Oslo"}
    ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

V3.1 and Kimi have the name before the separator, and no fence; in Kimi's calls it is
`functions.weather:0`, numbered from 0. Each call is an attempt, and so is a section without one;
models forget the section's markers, so those are no condition.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from journeyman.tools.parsing.body import Span, failed, read_arguments, to_json, unclosed
from journeyman.tools.parsing.form import CallFormat
from journeyman.tools.parsing.scanning import marker_end, next_marker, object_end
from journeyman.tools.parsing.within import CallPlaces, arguments_at, trimmed
from journeyman.tools.types import CallStatus, ToolCall

_FENCE, _END_FENCE = "```json", "```"
_LINE = re.compile(r"[^\n{`]*")
_NAMED = re.compile(r"\s*(?:functions\.)?(.*?)(?::\d+)?\s*", re.DOTALL)


@dataclass(frozen=True)
class _Sections:
    """What a family writes around the parts of its calls."""

    opens: str
    call: str
    between: str
    end: str
    closes: str
    written: str
    """Name, number and arguments of a call, as `str.format` takes them, between its markers."""
    joint: str = ""
    """Between two calls."""

    def scan(self, text: str, start: int) -> list[ToolCall]:
        begin, mark = next_marker(text, start, self.opens, self.call)
        if not mark:
            return []
        body = begin + len(mark)
        if mark == self.opens:
            called = marker_end(text, body, self.call)
            if called is None:
                return [self._no_call(text, begin, body)]
            body = called
        calls: list[ToolCall] = []
        while True:
            call, end, whole = self._read(text, begin, body)
            again = marker_end(text, end, self.call) if whole else None
            if again is None:
                closed = marker_end(text, end, self.closes) if whole else None
                calls.append(_ending(call, closed or end))
                return calls
            calls.append(call)
            begin, body = end, again

    def _no_call(self, text: str, begin: int, body: int) -> ToolCall:
        place, mark = next_marker(text, body, self.closes, self.opens, self.call)
        if mark != self.closes:
            return unclosed(self.closes, (begin, place))
        error = f"After {self.opens} comes {self.call}."
        return failed(CallStatus.INVALID_JSON, error, (begin, place + len(mark)))

    def _read(self, text: str, begin: int, body: int) -> tuple[ToolCall, int, bool]:
        """The call whose marker ends at `body`, its end, and whether it was closed."""
        stops = (self.end, self.call, self.opens, self.closes)
        place, mark = next_marker(text, body, self.between, *stops)
        if mark != self.between:
            end = place + len(mark) if mark == self.end else place
            if mark == self.end:
                error = f"After the tool's name comes {self.between}."
                return failed(CallStatus.INVALID_JSON, error, (begin, end)), end, True
            return unclosed(self.end, (begin, end)), end, False
        named, given = self._parts(text, body, place)
        name = self._name(text, named)
        whole = object_end(text, given)
        if whole is not None:
            closed = marker_end(text, marker_end(text, whole, _END_FENCE) or whole, self.end)
            if closed is not None:
                return read_arguments(name, text[given:whole], (begin, closed)), closed, True
        place, mark = next_marker(text, given, *stops)
        if mark != self.end:
            return unclosed(self.end, (begin, place), name), place, False
        span = (begin, place + len(mark))
        said = text[given:place].rstrip().removesuffix(_END_FENCE)
        return read_arguments(name, said, span), span[1], True

    def _parts(self, text: str, body: int, place: int) -> tuple[Span, int]:
        """Where the name stands, before or after the separator, and where the arguments begin."""
        after = place + len(self.between)
        named = (body, place)
        if text[body:place].strip() in ("", "function"):
            line = _LINE.match(text, after)
            assert line is not None  # it may be empty
            named, after = line.span(), line.end()
        return named, marker_end(text, after, _FENCE) or after

    def _name(self, text: str, named: Span) -> str:
        found = _NAMED.fullmatch(text, *named)
        return found[1] if found else ""

    def write(self, calls: Sequence[ToolCall]) -> str:
        bodies = (
            self.written.format(name=call.name, number=i, arguments=to_json(dict(call.arguments)))
            for i, call in enumerate(calls)
        )
        written = self.joint.join(f"{self.call}{body}{self.end}" for body in bodies)
        return f"{self.opens}{written}{self.closes}" if calls else ""

    def within(self, call: str) -> CallPlaces:
        body = call.find(self.call)
        place, mark = next_marker(call, max(body, 0), self.between)
        if body < 0 or not mark:
            return CallPlaces()
        named, given = self._parts(call, body + len(self.call), place)
        start, end = trimmed(call, *named)
        found = _NAMED.fullmatch(call, start, end)
        return CallPlaces(found.span(1) if found else None, arguments_at(call, given))

    def form(self, name: str) -> CallFormat:
        return CallFormat(name, self.scan, self.write, within=self.within)


def _ending(call: ToolCall, end: int) -> ToolCall:
    """The last call of a section, which ends with it."""
    start = call.span[0] if call.span else 0
    return ToolCall(call.name, call.arguments, call.status, call.error, (start, end))


_DEEPSEEK = (
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
    *("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
)
DEEPSEEK_V3 = _Sections(
    *_DEEPSEEK, "function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```", "\n"
).form("deepseek_v3")
DEEPSEEK_V31 = _Sections(*_DEEPSEEK, "{name}<｜tool▁sep｜>{arguments}").form("deepseek_v31")
KIMI_K2 = _Sections(
    *("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>"),
    *("<|tool_call_end|>", "<|tool_calls_section_end|>"),
    "functions.{name}:{number}<|tool_call_argument_begin|>{arguments}",
).form("kimi_k2")
