"""Faults on purpose: tools that time out, limit, break, change their schema or answer from a cache.

A `FaultPlan` says which call meets which fault, by seed and number of the call alone; `inject` runs
a call under a plan. Neither keeps anything: what has happened so far is a `FaultState`, a value.
No fault changes the state, so whoever tries again, and heeds what the error says, gets there.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from journeyman.tools.execute import error_content, validate
from journeyman.tools.tool import Tool
from journeyman.tools.types import CallStatus, ToolCall, ToolResult

Run = Callable[[Any, ToolCall], tuple[Any, ToolResult]]
"""Runs a call on a state; returns the next state (the same object if nothing changed)."""


class Fault(StrEnum):
    """What may happen to a call."""

    TIMEOUT = "timeout"
    """No answer in time; nothing was done."""
    RATE_LIMIT = "rate_limit"
    """Too many calls; nothing was done."""
    TRANSIENT = "transient"
    """The service fails; nothing was done."""
    SCHEMA_DRIFT = "schema_drift"
    """From now on one of the tool's arguments has another name, which the error tells."""
    STALE_READ = "stale_read"
    """A read is answered from before the last change, and marked as stale."""


_ERRORS = {
    Fault.TIMEOUT: "{name} did not answer in time; nothing was done. Try again.",
    Fault.RATE_LIMIT: "Too many calls of {name}; nothing was done. Try again.",
    Fault.TRANSIENT: "{name} is not available just now; nothing was done. Try again.",
}


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Which call meets which fault: a pure function of the seed and the call's number."""

    rates: Mapping[Fault, float] = field(
        default_factory=lambda: dict.fromkeys(Fault, 0.05)  # a call in four meets one
    )
    """Probability of each kind, by call; together at most 1."""
    seed: int | str = 0
    in_a_row: int = 2
    """Most calls in a row that meet one."""

    def __post_init__(self) -> None:
        """Check the rates.

        Raises:
            ValueError: A rate is no probability, or they add up to more than 1; or `in_a_row` is
                below 1.
        """
        for kind, rate in self.rates.items():
            Fault(kind)
            if not 0 <= rate <= 1:
                raise ValueError(f"rate of {kind}: {rate!r} is not between 0 and 1")
        if sum(self.rates.values()) > 1 + 1e-9:
            raise ValueError(f"the rates add up to {sum(self.rates.values()):g}: at most 1")
        if self.in_a_row < 1:
            raise ValueError(f"in_a_row={self.in_a_row!r}: expected at least 1")

    def at(self, number: int) -> Fault | None:
        """The fault that the call of that number meets, counted from 0."""
        before = range(max(number - self.in_a_row, 0), number)
        if len(before) == self.in_a_row and all(self._drawn(n) for n in before):
            return None
        return self._drawn(number)

    def _drawn(self, number: int) -> Fault | None:
        dice = random.Random(f"{self.seed}/{number}").random()
        for kind in Fault:  # in the order of the class, not of the mapping
            dice -= self.rates.get(kind, 0.0)
            if dice < 0:
                return kind
        return None


@dataclass(frozen=True, slots=True)
class Renamed:
    """An argument that goes by another name."""

    tool: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class FaultState:
    """What has happened so far."""

    calls: int = 0
    """Calls that reached a tool, faulty ones too."""
    renamed: tuple[Renamed, ...] = ()
    before: Any = None
    """The tools' state before the last change; None without a change, or a plan for stale reads."""

    def adapt(self, call: ToolCall) -> ToolCall:
        """The call as the schemas want it now: what somebody writes who heeds the errors."""
        return self._rename(call, lambda r: (r.old, r.new))

    def restore(self, call: ToolCall) -> ToolCall:
        """The call as the schemas wanted it first."""
        return self._rename(call, lambda r: (r.new, r.old))

    def outdated(self, call: ToolCall) -> Renamed | None:
        """The renaming that the call ignores, if any."""
        ignored = (r for r in self.renamed if r.tool == call.name and r.old in call.arguments)
        return next(ignored, None)

    def _rename(self, call: ToolCall, ends: Callable[[Renamed], tuple[str, str]]) -> ToolCall:
        names = dict(ends(r) for r in self.renamed if r.tool == call.name)
        if not names.keys() & call.arguments.keys():
            return call
        arguments = {names.get(name, name): value for name, value in call.arguments.items()}
        return replace(call, arguments=arguments)


def inject(
    plan: FaultPlan,
    seen: FaultState,
    call: ToolCall,
    tools: Mapping[str, Tool],
    state: Any,
    run: Run,
) -> tuple[FaultState, Any, ToolResult]:
    """Run a call under a plan.

    Args:
        plan: Which call meets which fault.
        seen: What has happened so far.
        call: As it came from the parser. One that no tool takes meets no fault and does not count.
        tools: The tools by name.
        state: What the tools work on.
        run: Runs a call without faults, such as `execute` with its tools given.

    Returns:
        What has happened now, the next state and the result.
    """
    if (renamed := seen.outdated(call)) is not None:
        return seen, state, _drifted(call, renamed)
    plain = seen.restore(call)
    if validate(plain, tools).error is not None:
        state, result = run(state, plain)
        return seen, state, _as_written(result, call)
    fault = plan.at(seen.calls)
    seen = replace(seen, calls=seen.calls + 1)
    if fault in _ERRORS:
        status = CallStatus.TIMEOUT if fault is Fault.TIMEOUT else CallStatus.TOOL_ERROR
        error = _ERRORS[fault].format(name=call.name)
        return seen, state, _failed(call, status, error)
    if fault is Fault.SCHEMA_DRIFT:
        renamed = _pick(plan, seen, plain, tools[call.name])
        if renamed is not None:
            return replace(seen, renamed=(*seen.renamed, renamed)), state, _drifted(call, renamed)
    if fault is Fault.STALE_READ and seen.before is not None:
        after, result = run(seen.before, plain)
        if after is seen.before:
            stale = f'{{"stale": true, "result": {_as_json(result)}}}' if result.ok else None
            return seen, state, replace(_as_written(result, call), content=stale or result.content)
    after, result = run(state, plain)
    if after is not state and plan.rates.get(Fault.STALE_READ):
        seen = replace(seen, before=state)
    return seen, after, _as_written(result, call)


def _pick(plan: FaultPlan, seen: FaultState, call: ToolCall, tool: Tool) -> Renamed | None:
    """An argument of the call to rename; None if it has none, or the tool changed already."""
    if not call.arguments or any(r.tool == call.name for r in seen.renamed):
        return None
    dice = random.Random(f"{plan.seed}/{seen.calls}/{call.name}")
    old = dice.choice(sorted(call.arguments))
    new = f"{old}_v2"
    while new in tool.spec.properties:
        new += "_v2"
    return Renamed(call.name, old, new)


def _drifted(call: ToolCall, renamed: Renamed) -> ToolResult:
    error = f"{call.name} has changed: its argument {renamed.old!r} is now called {renamed.new!r}."
    return _failed(call, CallStatus.INVALID_ARGUMENTS, error)


def _failed(call: ToolCall, status: CallStatus, error: str) -> ToolResult:
    return ToolResult(replace(call, status=status, error=error), error_content(error))


def _as_written(result: ToolResult, call: ToolCall) -> ToolResult:
    """The result of the call that the model wrote, whatever names were run."""
    return replace(result, call=replace(call, status=result.call.status, error=result.call.error))


def _as_json(result: ToolResult) -> str:
    try:
        json.loads(result.content)
    except ValueError:
        return json.dumps(result.content, ensure_ascii=False)
    return result.content
