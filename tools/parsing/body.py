"""What a call says, once its ends are known: the last checks that all forms share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from journeyman.tools.parsing.scanning import DECODER
from journeyman.tools.types import CallStatus, ToolCall

MAX_DEPTH = 100
"""Deepest nesting of a call's values: beyond it, other code would meet Python's recursion limit."""

Span = tuple[int, int]

_NO_ARGUMENTS = ("name", "id", "type", "tool_name", "tool_call_id")
"""Keys of a call that may stand beside its arguments."""


def failed(status: CallStatus, error: str, span: Span, name: str = "") -> ToolCall:
    """An attempt that is not a call; the error is for the model."""
    return ToolCall(name, {}, status, error, span)


def unclosed(closer: str, span: Span, name: str = "") -> ToolCall:
    """An attempt that the text, or the next one, cut short."""
    return failed(CallStatus.UNCLOSED, f"The call was not closed with {closer}.", span, name)


def well_formed(name: str, arguments: Mapping[str, Any], span: Span) -> ToolCall:
    """The call, unless it has no name or its values cannot be worked with."""
    if not name:
        return failed(CallStatus.MISSING_NAME, "The call names no tool.", span)
    if deeper_than(MAX_DEPTH, arguments):
        return failed(CallStatus.INVALID_JSON, "The call is nested too deeply.", span)
    if not is_text([name, arguments]):
        error = "The call holds half a character (a lone surrogate)."
        return failed(CallStatus.INVALID_JSON, error, span)
    return ToolCall(name, arguments, span=span)


def read_json(
    body: str,
    span: Span,
    keys: Sequence[str] = ("arguments", "parameters"),
    named: str = "name",
) -> ToolCall:
    """Read `{"name": …, "arguments": {…}}`.

    Args:
        body: The text between the markers.
        span: The call's place, markers included.
        keys: Names that the arguments go by, the family's own first; the first that is there
            counts. Models write another family's too.
        named: What the name goes by.
    """
    value = _decode(body, span)
    if isinstance(value, ToolCall):
        return value
    name = value.get(named)
    if not isinstance(name, str) or not name:
        return failed(CallStatus.MISSING_NAME, f'The call has no "{named}".', span)
    key = next((key for key in keys if key in value), None)
    if key is None and (astray := [k for k in value if k not in _NO_ARGUMENTS]):
        # Unheard, the call would run without what the model gave it.
        error = f'{astray[0][:80]!r} is not read: arguments go under "{keys[0]}".'
        return failed(CallStatus.INVALID_ARGUMENTS, error, span, name)
    arguments = {} if key is None else value[key]
    if not isinstance(arguments, dict):
        error = f'"{key}" must be a JSON object.'
        return failed(CallStatus.INVALID_ARGUMENTS, error, span, name)
    return ToolCall(name, arguments, span=span)


def read_arguments(name: str, body: str, span: Span) -> ToolCall:
    """Read `{…}`, the arguments of a call whose name stands outside the JSON."""
    value = _decode(body, span, name)
    return value if isinstance(value, ToolCall) else well_formed(name, value, span)


def _decode(body: str, span: Span, name: str = "") -> dict[str, Any] | ToolCall:
    """The JSON object, or the failed call if it is none."""
    try:
        value = DECODER.decode(body)
    except ValueError as error:
        return failed(CallStatus.INVALID_JSON, f"The call is not valid JSON: {error}.", span, name)
    except RecursionError:
        return failed(CallStatus.INVALID_JSON, "The call is nested too deeply.", span, name)
    if not isinstance(value, dict):
        error_text = "The call must be a JSON object."
        return failed(CallStatus.INVALID_JSON, error_text, span, name)
    if _plain(body):
        return value
    checked = well_formed("…", value, span)
    return value if checked.error is None else checked


def _plain(body: str) -> bool:
    """True of JSON that `well_formed` has no objection to, as one glance at it shows."""
    return body.isascii() and "\\u" not in body and body.count("{") + body.count("[") <= MAX_DEPTH


def deeper_than(limit: int, value: Any) -> bool:
    """True if lists and objects lie in each other more than `limit` deep."""
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


def is_text(value: Any) -> bool:
    """False if a string could not be encoded, so that no tokenizer could take it up again."""
    try:
        to_json(value).encode()
    except UnicodeEncodeError:
        return False
    return True


to_json = json.JSONEncoder(ensure_ascii=False).encode
"""JSON as models and chat templates write it (`json.dumps` makes an encoder every time)."""
