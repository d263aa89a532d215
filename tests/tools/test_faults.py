"""Faults by plan: pure, counted, and never the end of a task."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from journeyman.tools import CallStatus, Tool, ToolCall, ToolResult, execute, tool
from journeyman.tools.faults import Fault, FaultPlan, FaultState, inject


@tool
def put(state: tuple[int, ...], number: int) -> tuple[tuple[int, ...], dict[str, int]]:
    """Put a number down.

    Args:
        number: Which.
    """
    return (*state, number), {"size": len(state) + 1}


@tool
def look(state: tuple[int, ...], place: int = -1) -> tuple[tuple[int, ...], dict[str, int]]:
    """Look at a number.

    Args:
        place: Where.
    """
    return state, {"number": state[place] if state else 0}


@tool
def say(state: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """Say how many there are."""
    return state, f"{len(state)} numbers"


TOOLS: dict[str, Tool] = {t.name: t for t in (put, look, say)}
PUT = ToolCall("put", {"number": 7}, span=(3, 9))


def run(state: Any, call: ToolCall) -> tuple[Any, ToolResult]:
    return execute(call, TOOLS, state)


def under(fault: Fault | None, call: ToolCall, seen: FaultState, state: Any) -> Any:
    plan = FaultPlan({} if fault is None else {fault: 1.0}, in_a_row=10)
    return inject(plan, seen, call, TOOLS, state, run)


@settings(deadline=None, derandomize=True, database=None)
@given(st.integers(), st.integers(0, 300), st.integers(1, 4))
def test_a_plan_is_pure_and_ends(seed: int, number: int, in_a_row: int) -> None:
    plan = FaultPlan(dict.fromkeys(Fault, 0.19), seed, in_a_row)
    again = FaultPlan(dict(reversed(plan.rates.items())), seed, in_a_row)
    following = [plan.at(n) for n in range(number, number + in_a_row + 1)]
    assert following == [again.at(n) for n in range(number, number + in_a_row + 1)]
    assert None in following


def test_faults_come_at_their_rates() -> None:
    plan = FaultPlan({Fault.TIMEOUT: 0.2, Fault.TRANSIENT: 0.1}, seed=1, in_a_row=50)
    drawn = [plan.at(n) for n in range(4000)]
    assert drawn.count(Fault.TIMEOUT) / 4000 == pytest.approx(0.2, abs=0.02)
    assert drawn.count(Fault.TRANSIENT) / 4000 == pytest.approx(0.1, abs=0.02)
    assert drawn.count(Fault.STALE_READ) == 0
    assert drawn != [FaultPlan(plan.rates, seed=2, in_a_row=50).at(n) for n in range(4000)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rates": {Fault.TIMEOUT: 1.5}}, "rate of timeout: 1.5 is not between"),
        ({"rates": {Fault.TIMEOUT: 0.6, Fault.TRANSIENT: 0.6}}, "add up to 1.2"),
        ({"rates": {"flood": 0.1}}, "'flood' is not a valid Fault"),
        ({"in_a_row": 0}, "in_a_row=0: expected at least 1"),
    ],
)
def test_a_bad_plan(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        FaultPlan(**given)


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        (Fault.TIMEOUT, CallStatus.TIMEOUT, "did not answer in time"),
        (Fault.RATE_LIMIT, CallStatus.TOOL_ERROR, "Too many calls of put"),
        (Fault.TRANSIENT, CallStatus.TOOL_ERROR, "not available"),
    ],
)
def test_what_passes(fault: Fault, status: CallStatus, says: str) -> None:
    seen, state, result = under(fault, PUT, FaultState(), (1,))
    assert (state, seen) == ((1,), FaultState(calls=1))
    assert (result.call.status, result.call.span) == (status, PUT.span)
    assert says in result.content and "Try again" in result.content
    _, state, result = under(None, PUT, seen, state)
    assert (state, result.ok) == ((1, 7), True)


def test_a_schema_drifts_once_and_for_all() -> None:
    seen, state, result = under(Fault.SCHEMA_DRIFT, PUT, FaultState(), ())
    assert result.call.status is CallStatus.INVALID_ARGUMENTS
    assert "argument 'number' is now called 'number_v2'" in result.content
    again, state, result = under(None, PUT, seen, state)  # the old name is gone for good
    assert (again, state) == (seen, ()) and "number_v2" in result.content
    adapted = seen.adapt(PUT)
    assert adapted.arguments == {"number_v2": 7}
    seen, state, result = under(Fault.SCHEMA_DRIFT, adapted, seen, state)  # it drifts no further
    assert (state, result.content) == ((7,), '{"size": 1}')
    assert result.call.arguments == adapted.arguments  # as the model wrote it
    _, _, result = under(None, ToolCall("look", {"place": 0}), seen, state)
    assert result.content == '{"number": 7}'


def test_nothing_to_drift() -> None:
    seen, _, result = under(Fault.SCHEMA_DRIFT, ToolCall("look"), FaultState(), (4,))
    assert result.ok and seen.renamed == ()
    odd = Tool.from_schema(
        {
            "name": "odd",
            "parameters": {"type": "object", "properties": {"a": {}, "a_v2": {}}},
        },
        lambda **given: len(given),
    )
    tools = {"odd": odd}
    plan = FaultPlan({Fault.SCHEMA_DRIFT: 1.0})
    seen, _, _ = inject(plan, FaultState(), ToolCall("odd", {"a": 1}), tools, (), run)
    assert seen.renamed[0].new == "a_v2_v2"  # not a name that there is


def test_a_stale_read() -> None:
    seen, state, _ = under(Fault.STALE_READ, PUT, FaultState(), (1,))  # nothing older: not stale
    assert (state, seen.before) == ((1, 7), (1,))
    seen, state, result = under(Fault.STALE_READ, ToolCall("look"), seen, state)
    assert (state, result.content) == ((1, 7), '{"stale": true, "result": {"number": 1}}')
    seen, _, result = under(Fault.STALE_READ, ToolCall("say"), seen, state)
    assert result.content == '{"stale": true, "result": "1 numbers"}'
    seen, state, result = under(Fault.STALE_READ, PUT, seen, state)  # a change is no read
    assert (state, result.content, seen.before) == ((1, 7, 7), '{"size": 3}', (1, 7))
    assert seen.calls == 4


@pytest.mark.parametrize(
    "call",
    [ToolCall("fly"), ToolCall("put", {"x": 1}), ToolCall("", {}, CallStatus.UNCLOSED, "not …")],
)
def test_a_call_that_no_tool_takes_does_not_count(call: ToolCall) -> None:
    seen, state, result = under(Fault.TIMEOUT, call, FaultState(), (1,))
    assert (seen, state) == (FaultState(), (1,))
    assert result == run((1,), call)[1]
