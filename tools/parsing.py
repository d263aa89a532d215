r"""Model text to calls: every attempted call comes out, malformed ones too.

A parser never raises and never drops an attempt: a body that is not JSON, a call that was never
closed, an object without a name each become a `ToolCall` with a status, an error message and a span.
The Hermes/Qwen form is `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from journeyman.tools.types import CallStatus, ToolCall

Parser = Callable[[str], list[ToolCall]]
"""Text of one assistant turn -> its attempted calls in order."""

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def parse_hermes(text: str) -> list[ToolCall]:
    """Parse the Hermes/Qwen form. A second opening marker ends an unclosed call."""
    calls = []
    start = text.find(OPEN)
    while start >= 0:
        body_start = start + len(OPEN)
        close = text.find(CLOSE, body_start)
        reopen = text.find(OPEN, body_start)
        closed = close >= 0 and (reopen < 0 or close < reopen)
        if not closed and close >= 0:
            # The markers may stand inside a JSON string: trust the JSON before the markers.
            closed = _is_json(text[body_start:close])
        body_end = close if closed else (reopen if reopen >= 0 else len(text))
        end = close + len(CLOSE) if closed else body_end
        if closed and not _is_json(text[body_start:body_end]):
            # A closing marker inside a JSON string would cut the call short: try the later ones.
            later = _json_end(text, body_start, close + len(CLOSE))
            if later is not None:
                body_end, end = later, later + len(CLOSE)
        calls.append(_read_call(text[body_start:body_end], (start, end), closed))
        start = text.find(OPEN, end)
    return calls


def _json_end(text: str, start: int, position: int) -> int | None:
    """The first later closing marker at which `text[start:marker]` is JSON, if any."""
    for _ in range(8):  # bounds the work on adversarial text
        position = text.find(CLOSE, position)
        if position < 0:
            return None
        if _is_json(text[start:position]):
            return position
        position += len(CLOSE)
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_call(body: str, span: tuple[int, int], closed: bool) -> ToolCall:
    def bad(
        status: CallStatus, error: str, name: str = "", arguments: Mapping[str, Any] | None = None
    ) -> ToolCall:
        return ToolCall(name, arguments or {}, status, error, span)

    if not closed:
        return bad(CallStatus.UNCLOSED, f"The call was not closed with {CLOSE}.")
    try:
        value = json.loads(body)
    except ValueError as error:
        return bad(CallStatus.INVALID_JSON, f"The call is not valid JSON: {error}.")
    except RecursionError:
        return bad(CallStatus.INVALID_JSON, "The call is nested too deeply.")
    if not isinstance(value, dict):
        return bad(CallStatus.INVALID_JSON, "The call must be a JSON object.")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return bad(CallStatus.MISSING_NAME, 'The call has no "name".')
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        return bad(CallStatus.INVALID_ARGUMENTS, '"arguments" must be a JSON object.', name)
    return ToolCall(name, arguments, span=span)


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

    A token that ends inside a multi-byte character counts the replacement character away: its end is
    that of the last whole character, so ends never decrease.
    """
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
