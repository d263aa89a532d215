"""The vocabulary of a tool call: what a tool looks like, what a model asked for, what came back.

One `ToolCall` lives from the parser (`parsing/`) through validation and execution (`execute.py`)
into the episode; each stage returns a copy with a later status. A dict exists only on disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class CallStatus(StrEnum):
    """How far a call got. Everything but `OK` and `PARSED` is a failure the model can react to."""

    PARSED = "parsed"
    """Well-formed text; not yet checked against any tool."""
    OK = "ok"
    """Executed; the content is the tool's result."""
    INVALID_JSON = "invalid_json"
    """A call was opened and closed, but its body is not what the form asks for: mostly JSON."""
    UNCLOSED = "unclosed"
    """A call was opened and the text ended before it was closed."""
    MISSING_NAME = "missing_name"
    """A call that names no tool: in JSON, an object without a string under "name"."""
    UNKNOWN_TOOL = "unknown_tool"
    """No tool of that name in this environment."""
    INVALID_ARGUMENTS = "invalid_arguments"
    """The arguments do not fit the tool's schema."""
    TOOL_ERROR = "tool_error"
    """The tool ran and refused (`ToolError`): wrong id, forbidden act, no funds."""
    TIMEOUT = "timeout"
    """The tool did not answer in time."""


UNREAD = frozenset({CallStatus.INVALID_JSON, CallStatus.UNCLOSED, CallStatus.MISSING_NAME})
"""Statuses of calls that could not be read: they lack a name or arguments, and reached no tool."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """What a model may know of a tool."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema of the arguments: an object schema with "properties" and "required"."""

    def as_function(self) -> dict[str, Any]:
        """The form chat templates take: `{"type": "function", "function": {...}}`."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": dict(self.parameters),
            },
        }

    @property
    def properties(self) -> Mapping[str, Any]:
        """The schemas of all arguments that have a name, those of alternatives (anyOf, …) too."""
        return _properties(self.parameters)

    @property
    def required(self) -> tuple[str, ...]:
        """The arguments that every call must have."""
        return tuple(dict.fromkeys(_required(self.parameters)))

    def signature(self) -> str:
        """One line, such as `transfer(source, target, amount)`; optional arguments end in `?`."""
        required = self.required
        named = dict.fromkeys((*self.properties, *required))
        names = (n if n in required else f"{n}?" for n in named)
        return f"{self.name}({', '.join(names)})"


def laid_on(schema: Any) -> Iterator[Mapping[str, Any]]:
    """A schema, and all within it that are laid on the same value: of allOf, anyOf and the like."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    for keyword in ("allOf", "anyOf", "oneOf", "if", "then", "else", "dependentSchemas"):
        found = schema.get(keyword)
        if isinstance(found, list):
            parts: Iterable[Any] = found
        else:
            parts = found.values() if keyword == "dependentSchemas" and found else (found,)
        for part in parts:
            yield from laid_on(part)


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    first: Mapping[str, Any] = schema.get("properties", {})
    parts = list(laid_on(schema))
    if len(parts) == 1:
        return first
    found: dict[str, list[Any]] = {name: [it] for name, it in first.items()}
    for part in parts[1:]:
        for name, it in part.get("properties", {}).items():
            if it not in found.setdefault(name, []):
                found[name].append(it)
    return {n: them[0] if len(them) == 1 else {"anyOf": them} for n, them in found.items()}


def _required(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        yield from schema.get("required", ())
        for part in schema.get("allOf", ()):
            yield from _required(part)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One attempted call, malformed ones included."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    status: CallStatus = CallStatus.PARSED
    error: str | None = None
    """What is wrong with the call, in words a model can act on; None while nothing is."""
    span: tuple[int, int] | None = None
    """Half-open character range in the assistant's text, markers included."""
    token_span: tuple[int, int] | None = None
    """Half-open token range in the turn, when the caller parsed token ids."""

    def marked(self, status: CallStatus, error: str | None = None) -> ToolCall:
        """The same call a stage later."""
        # Not dataclasses.replace, which costs as much as all else that is done to a good call.
        return ToolCall(self.name, self.arguments, status, error, self.span, self.token_span)

    def canonical(self) -> str:
        """Name and arguments as JSON with sorted keys: equal calls have equal canonical forms."""
        return json.dumps(
            {"name": self.name, "arguments": dict(self.arguments)},
            sort_keys=True,
            ensure_ascii=False,
        )


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came of one call."""

    call: ToolCall
    """The call with its final status."""
    content: str
    """The text the model sees: the result as JSON, or `{"error": ...}`."""
    latency_s: float = field(default=0.0, compare=False)
    """Wall-clock seconds spent in the tool."""

    @property
    def ok(self) -> bool:
        """True if the tool ran and did not refuse."""
        return self.call.status is CallStatus.OK
