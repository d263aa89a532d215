"""One call: look the tool up, validate the arguments, run it, turn the outcome into text.

Every failure the model can mend becomes a message in the result. Anything else a tool raises is an
infrastructure failure or a bug and passes through untouched.
"""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Mapping
from typing import Any

from journeyman.tools.errors import ToolError, ToolTimeout
from journeyman.tools.limits import DEFAULT, CallLimits, run_within, shorten
from journeyman.tools.tool import Tool
from journeyman.tools.types import CallStatus, ToolCall, ToolResult

MAX_ARGUMENT_CHARS = 100_000
"""Longest canonical call accepted; a longer one is a runaway generation, not a request."""

MAX_CHECK_S = 5.0
"""Longest check of a call's arguments, in seconds: alternatives within alternatives double it."""

_BIG = 10**18
_WRITABLE_BITS = 14_000
"""Integers of more bits have more digits than Python writes (4,300)."""
# json.dumps makes an encoder every time. NaN and the infinities are not JSON.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def execute(
    call: ToolCall,
    tools: Mapping[str, Tool],
    state: Any,
    limits: CallLimits = DEFAULT,
    waits: bool = False,
) -> tuple[Any, ToolResult]:
    """Run one call on a state.

    Args:
        call: As it came from the parser; a call with an error is answered with that error.
        tools: The environment's tools by name.
        state: Passed to stateful tools.
        limits: What a call may cost, where its tool says nothing.
        waits: A tool may wait for something outside of this process.

    Returns:
        The next state (the same object if the call failed) and the result.
    """
    call = validate(call, tools)
    if call.error is not None:
        return state, ToolResult(call, error_content(call.error))
    tool = tools[call.name]
    timeout_s = limits.timeout_s if tool.timeout_s is None else tool.timeout_s
    longest = limits.result_chars if tool.result_chars is None else tool.result_chars
    aside = waits or tool.timeout_s is not None
    started = time.perf_counter()
    try:
        after, value = run_within(timeout_s, aside, tool.run, state, _own(call.arguments))
        content = shorten(value if isinstance(value, str) else _to_json(call.name, value), longest)
    except ToolError as error:
        status = CallStatus.TIMEOUT if isinstance(error, ToolTimeout) else CallStatus.TOOL_ERROR
        said = shorten(str(error), longest)
        call, content = call.marked(status, said), error_content(said)
    except SystemExit as error:  # of a command line within it; the run is none of its business
        raise RuntimeError(
            f"tool {call.name!r} tried to end the process (status {error.code})"
        ) from error
    else:
        call, state = call.marked(CallStatus.OK), after
    return state, ToolResult(call, content, time.perf_counter() - started)


def validate(call: ToolCall, tools: Mapping[str, Tool]) -> ToolCall:
    """The call, with status and error set if no tool takes it as it is."""
    if call.error is not None:
        return call
    if call.name not in tools:
        near = difflib.get_close_matches(call.name[:80], tools, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        error = f"No tool {call.name[:80]!r}. Tools: {', '.join(tools)}.{hint}"
        return call.marked(CallStatus.UNKNOWN_TOOL, error)
    problem = _argument_problem(call, tools[call.name])
    if problem is not None:
        return call.marked(CallStatus.INVALID_ARGUMENTS, problem)
    return call


def _argument_problem(call: ToolCall, tool: Tool) -> str | None:
    if _plainly_fits(call.arguments, tool):
        return None
    spec = tool.spec
    try:
        unknown = [n for n in call.arguments if not tool.is_known(n)]
        if unknown:
            return f"{call.name} has no argument {unknown[0][:80]!r}. Use {spec.signature()}."
        missing = [n for n in spec.required if n not in call.arguments]
        if missing:
            return f"{call.name} needs {missing[0]!r}. Use {spec.signature()}."
        if len(call.canonical()) > MAX_ARGUMENT_CHARS:
            return f"The arguments are longer than {MAX_ARGUMENT_CHARS} characters."
        where, message = run_within(MAX_CHECK_S, False, _objection, call.arguments, tool)
    except RecursionError:
        return "The arguments are nested too deeply."
    except ToolTimeout:
        return f"The arguments could not be checked within {MAX_CHECK_S:g} s: make them simpler."
    except Exception as error:
        # The schema was found usable when the tool was declared, so this comes of the arguments: a
        # number too long to be written, a text that a pattern does not get through with.
        where, message = "", f"the arguments cannot be checked ({type(error).__name__}: {error})"
    if not message:
        return None
    if len(message) > 200:
        # It begins with the value and ends with what was expected: both ends are needed.
        message = f"{message[:120]} … {message[-77:]}"
    return ": ".join(part for part in (call.name, where, message) if part) + "."


def _objection(arguments: Mapping[str, Any], tool: Tool) -> tuple[str, str]:
    """Where the arguments do not fit and why; two empty texts if they do."""
    problem = next(tool.validator.iter_errors(dict(arguments)), None)
    if problem is not None:
        return ".".join(map(str, problem.absolute_path)), problem.message
    try:
        tool.convert(arguments)
    except ValueError as error:
        return "", str(error)
    return "", ""


def _plainly_fits(arguments: Mapping[str, Any], tool: Tool) -> bool:
    """True of what has no problem and shows it at a glance; False of all that must be looked at."""
    accepts, size = tool.accepts, 0
    if accepts is None or not accepts(arguments):
        return False
    properties = tool.spec.parameters.get("properties", {})
    for name, value in arguments.items():
        if name not in properties:
            return False
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, int):
            if not -_BIG < value < _BIG:
                return False
        elif not isinstance(value, float | None):
            return False
    # JSON may write a character as six, and a number of these as twenty.
    return 6 * size + 100 * len(arguments) < MAX_ARGUMENT_CHARS // 2


def _own(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments that the tool may keep and change: what was asked for, gold above all, stays."""
    for value in arguments.values():
        if isinstance(value, list | dict):
            # Valid ones are JSON, and no deeper than JSON goes; `copy.deepcopy` goes half as deep.
            return json.loads(json.dumps(dict(arguments)))  # type: ignore[no-any-return]
    return arguments


def _to_json(name: str, value: Any) -> str:
    try:
        return _encode(value)
    except (TypeError, ValueError) as error:
        if isinstance(error, ValueError) and _is_endless(value):
            raise ToolError(f"the result of {name} has too many digits to be written") from error
        raise TypeError(f"tool {name!r} returned what is not JSON: {error}") from error


def _is_endless(value: Any) -> bool:
    """True of an integer that Python does not write, and of what holds one: the student asked."""
    if isinstance(value, Mapping):
        return any(map(_is_endless, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_is_endless, value))
    return isinstance(value, int) and value.bit_length() > _WRITABLE_BITS


def error_content(message: str) -> str:
    """How a failure reads to the model."""
    return _encode({"error": message})
