"""Pythonic lists: `[weather(city="Oslo"), time(zone=1)]`, as Llama 3.2, Llama 4, LFM2 write them.

Bare, or between `<|python_start|>` and `<|python_end|>` (Llama 4) or `<|tool_call_start|>` and
`<|tool_call_end|>` (LFM2). Without a marker, a bracket before a name and a parenthesis opens a
list. Each item is an attempt, closed by the comma or bracket after it.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from journeyman.tools.parsing.body import Span, failed, unclosed, well_formed
from journeyman.tools.parsing.form import CallFormat
from journeyman.tools.parsing.scanning import PYTHON_STRINGS, item_end, marker_end, next_marker
from journeyman.tools.parsing.within import CallPlaces, trimmed
from journeyman.tools.types import CallStatus, ToolCall

_OPEN = ("<|python_start|>", "<|tool_call_start|>")
_CLOSE = ("<|python_end|>", "<|tool_call_end|>")
_STOPS = tuple(map(re.escape, (*_OPEN, *_CLOSE)))
_OPENER = re.compile("|".join((*_STOPS[: len(_OPEN)], r"(?=\[\s*[A-Za-z_][\w.\-]*\s*\()")))


def _scan(text: str, start: int) -> list[ToolCall]:
    match = _OPENER.search(text, start)
    if match is None:
        return []
    inside = marker_end(text, match.end(), "[")
    if inside is None:
        return [_no_list(text, match.start(), match.end())]
    calls: list[ToolCall] = []
    begin, mark = match.start(), ","
    while mark == ",":
        end, mark = item_end(text, inside, "]", PYTHON_STRINGS, _STOPS)
        body, inside = text[inside:end], end + len(mark)
        if mark == "]" and match[0]:
            inside = marker_end(text, inside, *_CLOSE) or inside
        if mark not in (",", "]"):  # the text ended, or the list did without a bracket
            if body.strip() or not calls:
                calls.append(unclosed("]", (begin, end)))
            break
        if body.strip() or not (calls or mark == ","):
            calls.append(read_python(body, (begin, inside)))
            begin = inside
    return calls


def _no_list(text: str, opener: int, start: int) -> ToolCall:
    place, mark = next_marker(text, start, *_CLOSE, *_OPEN)
    if mark not in _CLOSE:
        return unclosed(_CLOSE[0], (opener, place))
    error = "The call is not in a list: write [name(argument=value)]."
    return failed(CallStatus.INVALID_JSON, error, (opener, place + len(mark)))


_NAME = re.compile(r"\s*([A-Za-z_][\w.\-]*)\s*\(")
_ARGUMENT = re.compile(r"\s*([^\s=,()\[\]{}\"']+)\s*=(?!=)")


def read_python(body: str, span: Span) -> ToolCall:
    """Read `name(argument=value, …)`.

    Arguments are taken one by one, not as a Python call: a tool's argument may be called `from`.
    """
    match = _NAME.match(body)
    if match is None:
        error = "The call names no tool: write name(argument=value)."
        return failed(CallStatus.MISSING_NAME, error, span)
    name = match[1]
    arguments: dict[str, Any] = {}
    places = list(_given(body, match.end()))
    for start, stop, _ in places:
        given = body[start:stop]
        if not given.strip():
            continue
        argument = _ARGUMENT.match(given)
        if argument is None or argument[1] in arguments:
            error = "Name every argument once: write name(argument=value)."
            return failed(CallStatus.INVALID_ARGUMENTS, error, span, name)
        try:
            arguments[argument[1]] = _literal(given[argument.end() :].strip())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            error = f"The value of {argument[1][:80]!r} is not a Python literal that JSON has."
            return failed(CallStatus.INVALID_JSON, error, span, name)
    _, end, mark = places[-1]
    if mark != ")" or body[end + 1 :].strip():
        error = f"The call of {name[:80]!r} does not end with its closing parenthesis."
        return failed(CallStatus.INVALID_JSON, error, span, name)
    return well_formed(name, arguments, span)


def _given(body: str, start: int) -> Iterator[tuple[int, int, str]]:
    """Start and end of each argument after a parenthesis, and the mark that ends it."""
    mark = ","
    while mark == ",":
        end, mark = item_end(body, start, ")", PYTHON_STRINGS)
        yield start, end, mark
        start = end + 1


_BEGIN = re.compile(r"[A-Za-z_][\w.\-]*(?=\s*\()")


def in_python(call: str) -> CallPlaces:
    """Where the parts of `name(argument=value, …)` stand, whatever is before it."""
    name = _BEGIN.search(call)
    if name is None:
        return CallPlaces()
    arguments = {}
    for start, end, _ in _given(call, call.index("(", name.end()) + 1):
        if argument := _ARGUMENT.match(call, start, end):
            arguments[argument[1]] = trimmed(call, start, end)
    return CallPlaces(name.span(), arguments)


# Python warns of an escape it does not know, and keeps the backslash: keep it at once.
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_KNOWN = "\n\\'\"abfnrtvxuUN0123"


def _literal(text: str) -> Any:
    if text[:1] not in ("r", "R"):
        text = _ESCAPE.sub(lambda m: m[0] if m[1] in _KNOWN else "\\" + m[0], text)
    return _value(ast.parse(text, mode="eval").body)


_JSON_NAMES = {"true": True, "false": False, "null": None}


def _value(node: ast.expr) -> Any:
    """A literal as JSON has it; models mix JSON's names into Python."""
    match node:
        case ast.Constant(value=float() as value) if math.isinf(value):
            raise ValueError("too large a number")
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Name(id=("true" | "false" | "null") as name):
            return _JSON_NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float()) as operand):
            return -_value(operand)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
    raise ValueError(f"{type(node).__name__} is not a literal")


def _key(node: ast.expr | None) -> str:
    match node:
        case ast.Constant(value=str() as key):
            return key
    raise ValueError("the keys of an object are strings")


def _write(calls: Sequence[ToolCall]) -> str:
    return f"[{', '.join(map(_write_call, calls))}]"


def _write_call(call: ToolCall) -> str:
    given = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    return f"{call.name}({given})"


PYTHONIC = CallFormat("pythonic", _scan, _write, within=in_python)
