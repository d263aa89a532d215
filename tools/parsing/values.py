"""Values of forms that write every argument as plain text: a tool's schema tells their types.

Without a schema they stay text, since "007" may be a code as well as a number.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from journeyman.tools.fastcheck import is_nullable
from journeyman.tools.parsing.body import MAX_DEPTH, deeper_than, is_text
from journeyman.tools.parsing.scanning import DECODER
from journeyman.tools.types import ToolCall, ToolSpec

_INTEGER = re.compile(r"-?\d+", re.ASCII)


def typed(call: ToolCall, tools: Sequence[ToolSpec]) -> ToolCall:
    """The call with its text values as the tool's schema types them; what does not fit stays."""
    spec = next((tool for tool in tools if tool.name == call.name), None)
    if spec is None:
        return call
    properties = spec.properties
    arguments = {
        name: from_text(value, properties[name]) if name in properties else value
        for name, value in call.arguments.items()
    }
    return replace(call, arguments=arguments)


def from_text(text: str, schema: Any) -> Any:
    """A value of the first type of the schema that the text fits, else the text itself.

    Args:
        text: As the model wrote it.
        schema: JSON Schema of the value: "type" (also a list), "anyOf", "oneOf", "enum", "const"
            and "nullable" are looked at.
    """
    types = _types(schema)
    # `null` comes first: nobody who may pass nothing means the word.
    for kind in sorted(types, key=lambda kind: kind != "null"):
        if kind == "string":
            return text
        found, value = _read(text.strip(), kind)
        if found:
            return value
    return text


def to_text(value: Any) -> str:
    """The text that `from_text` reads back: strings as they are, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _types(schema: Any) -> list[str]:
    if not isinstance(schema, Mapping):
        return []
    declared = schema.get("type", [])
    types = [declared] if isinstance(declared, str) else list(declared)
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        types += _types(choice)
    if not types:
        values = [schema["const"]] if "const" in schema else schema.get("enum", ())
        types = [_type_of(value) for value in values]
    if is_nullable(schema):
        types.append("null")
    return types


def _type_of(value: Any) -> str:
    kinds: dict[type, str] = {
        str: "string",
        bool: "boolean",
        int: "integer",
        float: "number",
        list: "array",
        dict: "object",
    }
    return kinds.get(type(value), "null")


def _read(text: str, kind: str) -> tuple[bool, Any]:
    """Whether the text is a value of that type, and which."""
    try:
        if kind == "null":
            return text in ("null", "None"), None
        if kind == "boolean":
            return text in ("true", "True", "false", "False"), text in ("true", "True")
        if kind in ("integer", "number") and _INTEGER.fullmatch(text):
            return True, int(text)
        if kind == "number":
            number = float(text)
            return math.isfinite(number), number
        if kind in ("object", "array"):
            value = DECODER.decode(text)
            fits = isinstance(value, dict if kind == "object" else list)
            return fits and not deeper_than(MAX_DEPTH - 1, value) and is_text(value), value
    except (ValueError, RecursionError):
        pass
    return False, None
