r"""Model text to calls: every attempted call comes out, malformed ones too.

A parser never raises and never drops an attempt: a body that is not JSON, a call that was never
closed, an object without a name each become a `ToolCall` with a status, an error message and a
span.
The Hermes/Qwen form is `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`.
"""

from __future__ import annotations

import itertools
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from journeyman.tools.types import CallStatus, ToolCall

Parser = Callable[[str], list[ToolCall]]
"""Text of one assistant turn -> its attempted calls in order."""

OPEN, CLOSE = "<tool_call>", "</tool_call>"

MAX_DEPTH = 100
"""Deepest nesting of a call's JSON: beyond it, other code would meet Python's recursion limit."""

_START = re.compile(r"[ \t\n\r]*(?={)")
_END = re.compile(r"[ \t\n\r]*" + CLOSE)


def parse_hermes(text: str) -> list[ToolCall]:
    """Parse the Hermes/Qwen form. A second opening marker ends an unclosed call.

    Markers inside the strings of a well-formed call are text, not markers.
    """
    calls = []
    start = text.find(OPEN)
    close = -1  # the first closing marker after `body`, looked for only once it is passed
    while start >= 0:
        body = start + len(OPEN)
        end = _well_formed_end(text, body)
        if end is None:
            if close < body:
                close = _find(text, CLOSE, body)
            reopen = _find(text, OPEN, body)
            if close > reopen or close == len(text):
                error = f"The call was not closed with {CLOSE}."
                calls.append(ToolCall("", {}, CallStatus.UNCLOSED, error, (start, reopen)))
                start = text.find(OPEN, reopen)
                continue
            end = close + len(CLOSE)
        calls.append(_read_call(text[body : end - len(CLOSE)], (start, end)))
        start = text.find(OPEN, end)
    return calls


def _find(text: str, marker: str, start: int) -> int:
    position = text.find(marker, start)
    return position if position >= 0 else len(text)


def _well_formed_end(text: str, body: int) -> int | None:
    """Where the call ends whose body starts there, if that is JSON up to a closing marker."""
    match = _START.match(text, body)
    if match is None:
        return None
    try:
        _, end = _DECODER.raw_decode(text, match.end())
    except (ValueError, RecursionError):
        return None
    closing = _END.match(text, end)
    return closing.end() if closing else None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _read_call(body: str, span: tuple[int, int]) -> ToolCall:
    def bad(
        status: CallStatus, error: str, name: str = "", arguments: Mapping[str, Any] | None = None
    ) -> ToolCall:
        return ToolCall(name, arguments or {}, status, error, span)

    try:
        value = _DECODER.decode(body)
    except ValueError as error:
        return bad(CallStatus.INVALID_JSON, f"The call is not valid JSON: {error}.")
    except RecursionError:
        return bad(CallStatus.INVALID_JSON, "The call is nested too deeply.")
    if not isinstance(value, dict):
        return bad(CallStatus.INVALID_JSON, "The call must be a JSON object.")
    if _deeper_than(MAX_DEPTH, value):
        return bad(CallStatus.INVALID_JSON, "The call is nested too deeply.")
    if not _is_text(value):
        return bad(CallStatus.INVALID_JSON, "The call holds half a character (a lone surrogate).")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return bad(CallStatus.MISSING_NAME, 'The call has no "name".')
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        return bad(CallStatus.INVALID_ARGUMENTS, '"arguments" must be a JSON object.', name)
    return ToolCall(name, arguments, span=span)


def _deeper_than(limit: int, value: Any) -> bool:
    layer = [value]
    for _ in range(limit):
        layer = [
            child
            for parent in layer
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not layer:
            return False
    return True


def _is_text(value: Any) -> bool:
    """False if a string could not be encoded, so that no tokenizer could take it up again."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def render_hermes(call: ToolCall) -> str:
    """The text that `parse_hermes` reads back."""
    body = json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
    return f"{OPEN}\n{body}\n{CLOSE}"


PARSERS: dict[str, Parser] = {"hermes": parse_hermes}
"""Parsers by the name that configs use (`student.parser=hermes`)."""


def get_parser(name: str) -> Parser:
    """The parser of that name.

    Raises:
        KeyError: No such parser; the message lists the names there are.
    """
    try:
        return PARSERS[name]
    except KeyError:
        raise KeyError(f"no parser {name!r}; there are: {', '.join(sorted(PARSERS))}") from None


def token_ends(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """Character position after each token: `ends[i] = len(decode(ids[:i + 1]))`.

    A token that ends inside a multi-byte character counts the replacement character away: its end
    is that of the last whole character, so ends never decrease.
    """
    pieces = [decode([i]) for i in ids]
    # The usual case, and linear; a tokenizer may also drop spaces or split a character.
    if "".join(pieces) == decode(ids):
        return list(itertools.accumulate(map(len, pieces)))
    ends: list[int] = []
    for i in range(len(ids)):
        text = decode(ids[: i + 1]).rstrip("\ufffd")
        ends.append(max(len(text), ends[-1] if ends else 0))
    return ends


def locate(calls: Sequence[ToolCall], ends: Sequence[int]) -> list[ToolCall]:
    """Add token spans: the smallest token range that covers each call's characters.

    Args:
        calls: Calls with character spans.
        ends: `token_ends` of the same text.
    """
    located = []
    for call in calls:
        if call.span is None:
            located.append(call)
            continue
        start, end = call.span
        first = bisect_right(ends, start)  # the first token that reaches beyond `start`
        last = bisect_left(ends, end)  # the first token that reaches `end`
        located.append(replace(call, token_span=(first, min(last + 1, len(ends)))))
    return located
