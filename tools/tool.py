"""`@tool`: a typed, documented function becomes a tool; so does a function with a JSON Schema.

A parameter named `state` is injected by the environment and never shows in the schema. A tool with
state is pure: it takes the state and returns `(new_state, result)`.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

from jsonschema.protocols import Validator

from journeyman.tools.errors import ToolDefinitionError
from journeyman.tools.fastcheck import Check, compile_check
from journeyman.tools.limits import DEFAULT, CallLimits
from journeyman.tools.live import ToolServer
from journeyman.tools.schema import Parameters, known_names, read_parameters, read_spec
from journeyman.tools.signature import Converters, converters, describe
from journeyman.tools.types import ToolSpec
from journeyman.tools.validators import judge

STATE = "state"
"""Name of the parameter that the environment injects."""


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
    timeout_s: float | None = field(default=None, kw_only=True)
    """Longest wait for a call, in seconds; None leaves it to the environment, infinity to the tool
    itself. See `limits.py`."""
    result_chars: int | None = field(default=None, kw_only=True)
    """Longest result; None leaves it to the environment."""
    parameters: Parameters | None = field(default=None, kw_only=True, repr=False)
    """What judges arguments, if it was read with the schema given."""

    @classmethod
    def from_schema(
        cls,
        schema: ToolSpec | Mapping[str, Any],
        function: Callable[..., Any],
        *,
        stateful: bool = False,
        live: ToolServer | None = None,
        timeout_s: float | None = None,
        result_chars: int | None = None,
    ) -> Tool:
        """A tool whose JSON Schema is given.

        Args:
            schema: A `ToolSpec`; or a mapping with "name", "description" and "parameters", by
                itself or under "function". Any draft from draft-04 on; local references
                (`#/$defs/…`) are shown as what they name.
            function: Called with the validated arguments as keywords.
            stateful: True if it takes `state` too, and returns `(new_state, result)`.
            live: The server that the tool lives in.
            timeout_s: Longest wait for a call, in seconds.
            result_chars: Longest result.

        Raises:
            ToolDefinitionError: The schema is none, has no name, or says something that cannot be
                honoured.
        """
        spec, parameters = read_spec(schema)
        _check_limits(spec.name, timeout_s, result_chars)
        return cls(
            function,
            spec.name,
            stateful,
            spec,
            live,
            timeout_s=timeout_s,
            result_chars=result_chars,
            parameters=parameters,
        )

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
        description, parameters = self._described
        return ToolSpec(self.name, description, self._read.shown if self._read else parameters)

    @cached_property
    def _described(self) -> tuple[str, dict[str, Any]]:
        try:
            return describe(self.function, hidden=(STATE,))
        except Exception as error:  # a type hint may be any expression
            raise ToolDefinitionError(
                f"tool {self.name!r}: {str(error).strip()} Every parameter needs a type and a line "
                f"under 'Args:' in a Google-style docstring."
            ) from error

    @cached_property
    def converters(self) -> Converters:
        """What makes of an argument what the function's type hint says; mostly there are none."""
        return {} if self.given is not None else converters(self.function, hidden=(STATE,))

    @cached_property
    def _read(self) -> Parameters | None:
        """What judges arguments; None where the spec is all there is to read."""
        if not self.converters:
            return self.parameters
        try:
            return read_parameters(self._described[1])
        except ToolDefinitionError as error:
            raise ToolDefinitionError(f"tool {self.name!r}: {error}") from None

    @cached_property
    def validator(self) -> Validator:
        """Checks arguments against the schema; built once, since that costs more than a call."""
        return self._read.validator if self._read else judge(dict(self.spec.parameters))

    @cached_property
    def accepts(self) -> Check | None:
        """True of arguments that `validator` has no objection to; None if only it can tell."""
        return None if self.converters else compile_check(self.spec.parameters)

    @cached_property
    def is_known(self) -> Callable[[str], bool]:
        """True of the names that arguments may have: a misspelt one must not pass unheard."""
        return known_names(self.spec)

    def convert(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments as the function's type hints say.

        Raises:
            ValueError: One has no such value, such as a date that is on no calendar.
        """
        made = dict(arguments)
        for name, convert in self.converters.items():
            if name in made:
                try:
                    made[name] = convert(made[name])
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
        return made

    def run(self, state: Any, arguments: Mapping[str, Any]) -> tuple[Any, Any]:
        """Call the function; returns the next state and a JSON-serialisable result.

        Raises:
            ToolDefinitionError: A stateful function returned something else than a pair.
        """
        if self.converters:
            arguments = self.convert(arguments)
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
def tool(
    *, name: str | None = None, timeout_s: float | None = None, result_chars: int | None = None
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    timeout_s: float | None = None,
    result_chars: int | None = None,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a function; usable as `@tool` or `@tool(name="…")`.

    Args:
        function: With type hints and a Google-style docstring.
        name: The tool's, if it is not the function's.
        timeout_s: Longest wait for a call, in seconds; None leaves it to the environment, infinity
            to the tool itself.
        result_chars: Longest result; None leaves it to the environment.

    Raises:
        ToolDefinitionError: The function takes *args, **kwargs or positional-only parameters, or
            a parameter has no type or one without a form in JSON, or a limit is none.
    """
    make = functools.partial(_make_tool, name=name, timeout_s=timeout_s, result_chars=result_chars)
    return make if function is None else make(function)


def _make_tool(
    function: Callable[..., Any],
    name: str | None,
    timeout_s: float | None,
    result_chars: int | None,
) -> Tool:
    name = name or function.__name__
    _check_limits(name, timeout_s, result_chars)
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
    try:
        converters(function, hidden=(STATE,))
    except ValueError as error:
        raise ToolDefinitionError(f"tool {name!r}: {error}") from error
    except Exception:  # a hint that names what is defined further down: `spec` looks again
        pass
    return Tool(function, name, STATE in parameters, timeout_s=timeout_s, result_chars=result_chars)


def _check_limits(name: str, timeout_s: float | None, result_chars: int | None) -> None:
    try:
        CallLimits(
            DEFAULT.timeout_s if timeout_s is None else timeout_s,
            DEFAULT.result_chars if result_chars is None else result_chars,
        )
    except ValueError as error:
        raise ToolDefinitionError(f"tool {name!r}: {error}") from None
