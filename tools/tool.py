"""`@tool`: a typed, documented function becomes a tool; so does a function with a JSON Schema.

A parameter named `state` is injected by the environment and never shows in the schema. A tool with
state is pure: it takes the state and returns `(new_state, result)`.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import jsonschema
from jsonschema.protocols import Validator

from journeyman.tools.errors import ToolDefinitionError
from journeyman.tools.fastcheck import Check, compile_check, is_nullable
from journeyman.tools.live import ToolServer
from journeyman.tools.schema import read_spec
from journeyman.tools.signature import describe
from journeyman.tools.types import ToolSpec

STATE = "state"
"""Name of the parameter that the environment injects."""


def _unless_null(keyword: Callable[..., Any]) -> Callable[..., Any]:
    """The check of a keyword, which a schema that is nullable does not make of null."""

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        if instance is None and is_nullable(schema):
            return ()
        return keyword(validator, value, instance, schema)

    return check


# To JSON Schema 250.0 is an integer; to a function typed `int` it is a float that spreads through
# the state, whose hash then differs from the one with 250. And it knows no "nullable", which is how
# transformers writes `str | None`.
_Validator: type[Validator] = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator,
    {n: _unless_null(check) for n, check in jsonschema.Draft202012Validator.VALIDATORS.items()},
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


@dataclass(frozen=True)
class Tool:
    """A callable with a schema.

    `run(state, arguments) -> (state, result)` is the one way to call it; a stateless tool gets its
    state back untouched.
    """

    function: Callable[..., Any]
    name: str
    stateful: bool
    given: ToolSpec | None = None
    """The schema, if it is not to be derived from the function."""
    live: ToolServer | None = None
    """The server that it lives in, if that may have a state; an environment opens its own session
    of it (see `live.py`), and `function` is for calls outside of environments."""

    @classmethod
    def from_schema(
        cls,
        schema: ToolSpec | Mapping[str, Any],
        function: Callable[..., Any],
        *,
        stateful: bool = False,
        live: ToolServer | None = None,
    ) -> Tool:
        """A tool whose JSON Schema is given.

        Args:
            schema: A `ToolSpec`; or a mapping with "name", "description" and "parameters", by
                itself or under "function". Local references (`#/$defs/…`) are replaced by what they
                name.
            function: Called with the validated arguments as keywords.
            stateful: True if it takes `state` too, and returns `(new_state, result)`.
            live: The server that the tool lives in.

        Raises:
            ToolDefinitionError: The schema is none, has no name, or refers to something outside.
        """
        spec = read_spec(schema)
        return cls(function, spec.name, stateful, spec, live)

    def bound(self, function: Callable[..., Any]) -> Tool:
        """The same tool with another function; what was made of its schema is shared."""
        other = copy.copy(self)
        object.__setattr__(other, "function", function)
        return other

    @cached_property
    def spec(self) -> ToolSpec:
        """The schema: the given one, or that of the signature and the Google-style docstring.

        Raises:
            ToolDefinitionError: A parameter has no type or no description.
        """
        if self.given is not None:
            return self.given
        try:
            description, parameters = describe(self.function, hidden=(STATE,))
        except Exception as error:  # a type hint may be any expression
            raise ToolDefinitionError(
                f"tool {self.name!r}: {str(error).strip()} Every parameter needs a type and a line "
                f"under 'Args:' in a Google-style docstring."
            ) from error
        return ToolSpec(self.name, description, parameters)

    @cached_property
    def validator(self) -> Validator:
        """Checks arguments against the schema; built once, since that costs more than a call."""
        return _Validator(dict(self.spec.parameters))

    @cached_property
    def accepts(self) -> Check | None:
        """True of arguments that `validator` has no objection to; None if only it can tell."""
        return compile_check(self.spec.parameters)

    def run(self, state: Any, arguments: Mapping[str, Any]) -> tuple[Any, Any]:
        """Call the function; returns the next state and a JSON-serialisable result.

        Raises:
            ToolDefinitionError: A stateful function returned something else than a pair.
        """
        if not self.stateful:
            return state, self.function(**arguments)
        returned = self.function(**{STATE: state}, **arguments)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ToolDefinitionError(
                f"tool {self.name!r} takes the state, so it must return (new state, result), "
                f"not {type(returned).__name__}."
            )
        return returned


@overload
def tool(function: Callable[..., Any]) -> Tool: ...
@overload
def tool(*, name: str | None = None) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None, *, name: str | None = None
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a function; usable as `@tool` or `@tool(name="…")`.

    Raises:
        ToolDefinitionError: The function takes *args, **kwargs or positional-only parameters,
            or a parameter has no type.
    """
    if function is None:
        return functools.partial(_make_tool, name=name)
    return _make_tool(function, name=name)


def _make_tool(function: Callable[..., Any], name: str | None = None) -> Tool:
    name = name or function.__name__
    parameters = inspect.signature(function).parameters
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ToolDefinitionError(
                f"tool {name!r}: parameter {parameter} has no fixed name; a JSON schema needs "
                f"every argument spelled out."
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ToolDefinitionError(
                f"tool {name!r}: parameter {parameter.name!r} is positional-only, but a model "
                f"names its arguments; drop the '/'."
            )
        if parameter.annotation is parameter.empty and parameter.name != STATE:
            raise ToolDefinitionError(
                f"tool {name!r}: parameter {parameter.name!r} has no type; write e.g. "
                f"{parameter.name}: str."
            )
    return Tool(function, name, STATE in parameters)
