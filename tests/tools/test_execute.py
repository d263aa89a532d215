"""One call: every status is reached, every message says what to do, a failure changes nothing."""

import json
import math
import re
from types import MappingProxyType
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from journeyman.tools import (
    CallStatus,
    Tool,
    ToolCall,
    ToolError,
    ToolTimeout,
    execute,
    parse_hermes,
    tool,
    validate,
)
from journeyman.tools.execute import MAX_ARGUMENT_CHARS
from journeyman.tools.types import ToolResult, ToolSpec


@tool
def deposit(
    state: int, amount: int, note: str = "", kind: Literal["cash", "card"] = "cash"
) -> tuple[int, dict[str, Any]]:
    """Put money in.

    Args:
        amount: How much.
        note: Anything.
        kind: What sort of money.
    """
    if amount < 0:
        raise ToolError("amount must not be below zero")
    if amount == 7:
        raise ToolTimeout("the bank did not answer in 5 s, try again")
    if amount == 13:
        raise ConnectionError("the bank is gone")
    return state + amount, {"balance": state + amount, "note": note}


@tool
def motto() -> str:
    """Say the motto."""
    return 'text, "as it is" ü'


@tool
def broken() -> object:
    """Return what is not JSON."""
    return {1, 2}


@tool
def weigh(weights: list[float]) -> float:
    """Add weights up.

    Args:
        weights: What to add.
    """
    return sum(weights)


TOOLS = {t.name: t for t in (deposit, motto, broken, weigh)}


def run(name: str, **arguments: Any) -> tuple[int, ToolResult]:
    return execute(ToolCall(name, arguments), TOOLS, 100)


def message(result: ToolResult) -> str:
    body = json.loads(result.content)
    assert list(body) == ["error"]
    assert result.call.error == body["error"]
    assert not result.ok
    return str(body["error"])


def test_ok() -> None:
    state, result = run("deposit", amount=5, note="für Zoë")
    assert state == 105
    assert result.ok
    assert result.call.status is CallStatus.OK
    assert result.call.error is None
    assert json.loads(result.content) == {"balance": 105, "note": "für Zoë"}
    assert "Zoë" in result.content  # not escaped: a model reads it
    assert result.latency_s >= 0


def test_text_comes_as_it_is() -> None:
    assert run("motto")[1].content == 'text, "as it is" ü'


def test_parser_errors_are_answered() -> None:
    texts = ("<tool_call>", "<tool_call>?</tool_call>", "<tool_call>{}</tool_call>")
    for text in texts:
        (call,) = parse_hermes(text)
        state, result = execute(call, TOOLS, 100)
        assert state == 100
        assert result.call is call
        assert message(result) == call.error


@pytest.mark.parametrize(
    ("name", "arguments", "status", "says"),
    [
        (
            "deposit",
            {"amount": -1},
            CallStatus.TOOL_ERROR,
            r"^amount must not be below zero$",
        ),
        ("deposit", {"amount": 7}, CallStatus.TIMEOUT, r"^the bank did not answer"),
        (
            "depositt",
            {},
            CallStatus.UNKNOWN_TOOL,
            r"^No tool 'depositt'\. Tools: deposit, motto, broken, weigh\. Did you mean deposit\?$",
        ),
        ("xyz", {}, CallStatus.UNKNOWN_TOOL, r"Tools: deposit, motto, broken, weigh\.$"),
        (
            "deposit",
            {},
            CallStatus.INVALID_ARGUMENTS,
            r"^deposit needs 'amount'\. Use deposit\(amount, note\?, kind\?\)\.$",
        ),
        (
            "deposit",
            {"amount": 1, "sum": 2},
            CallStatus.INVALID_ARGUMENTS,
            r"^deposit has no argument 'sum'\. Use deposit\(amount, note\?, kind\?\)\.$",
        ),
        (
            "deposit",
            {"amount": 1, "state": 5},
            CallStatus.INVALID_ARGUMENTS,
            r"has no argument 'state'",
        ),
        (
            "deposit",
            {"amount": "5"},
            CallStatus.INVALID_ARGUMENTS,
            r"^deposit: amount: '5' is not of type 'integer'\.$",
        ),
        ("deposit", {"amount": True}, CallStatus.INVALID_ARGUMENTS, r"not of type 'integer'"),
        ("deposit", {"amount": None}, CallStatus.INVALID_ARGUMENTS, r"not of type 'integer'"),
        ("deposit", {"amount": 5.0}, CallStatus.INVALID_ARGUMENTS, r"5.0 is not of type 'integer'"),
        (
            "deposit",
            {"amount": 1, "kind": "gold"},
            CallStatus.INVALID_ARGUMENTS,
            r"^deposit: kind: 'gold' is not one of \['cash', 'card'\]\.$",
        ),
        (
            "weigh",
            {"weights": [1, 2.5, "x"]},
            CallStatus.INVALID_ARGUMENTS,
            r"^weigh: weights\.2: 'x' is not of type 'number'\.$",
        ),
    ],
)
def test_failures(name: str, arguments: dict[str, Any], status: CallStatus, says: str) -> None:
    state, result = run(name, **arguments)
    assert state == 100
    assert result.call.status is status
    assert re.search(says, message(result))


def test_every_status_is_reached_somewhere() -> None:
    texts = (
        '<tool_call>{"name": "motto"}</tool_call>',
        "<tool_call>?</tool_call>",
        "<tool_call>",
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": "m"}</tool_call>',
        '<tool_call>{"name": "deposit"}</tool_call>',
        '<tool_call>{"name": "deposit", "arguments": {"amount": -1}}</tool_call>',
        '<tool_call>{"name": "deposit", "arguments": {"amount": 7}}</tool_call>',
    )
    calls = [call for text in texts for call in parse_hermes(text)]
    reached = {call.status for call in calls}
    reached |= {execute(call, TOOLS, 100)[1].call.status for call in calls}
    assert reached == set(CallStatus)


def test_a_tool_without_room_for_nonsense() -> None:
    state, result = run("deposit", amount=1, note="x" * 1_000_000)
    assert state == 100
    assert result.call.status is CallStatus.INVALID_ARGUMENTS
    assert message(result) == f"The arguments are longer than {MAX_ARGUMENT_CHARS} characters."


@pytest.mark.parametrize("name", ["n" * 1_000_000, "deposit" * 100_000])
def test_a_long_name_is_not_echoed(name: str) -> None:
    assert len(message(run(name)[1])) < 300


def test_a_long_argument_name_is_not_echoed() -> None:
    assert len(message(run("motto", **{"x" * 1_000_000: 1})[1])) < 300


def test_a_long_value_does_not_hide_what_was_expected() -> None:
    text = message(run("deposit", amount="z" * 5000)[1])
    assert text.startswith("deposit: amount: 'zzz")
    assert text.endswith("zzz' is not of type 'integer'.")
    assert len(text) < 300


def test_depth_beyond_the_recursion_limit() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    state, result = run("deposit", amount=1, note=value)
    assert state == 100
    assert message(result) == "The arguments are nested too deeply."


def test_infrastructure_failures_pass_through() -> None:
    with pytest.raises(ConnectionError, match="the bank is gone"):
        run("deposit", amount=13)


def test_a_result_that_is_not_json_names_the_tool() -> None:
    with pytest.raises(TypeError, match=r"tool 'broken' returned what is not JSON: .*set"):
        run("broken")
    boundless = Tool(lambda: {"x": math.inf}, "boundless", False, ToolSpec("boundless", "", {}))
    with pytest.raises(
        TypeError, match=r"tool 'boundless' returned what is not JSON: Out of range"
    ):
        execute(ToolCall("boundless"), {"boundless": boundless}, None)


def test_a_number_that_cannot_be_written_is_the_students() -> None:
    @tool
    def grow(state: int, digits: int) -> tuple[int, dict[str, list[int]]]:
        """Grow.

        Args:
            digits: How many.
        """
        return 10**digits, {"now": [10**digits]}

    state, result = execute(ToolCall("grow", {"digits": 4299}), {"grow": grow}, 0)
    assert result.ok and state == 10**4299
    state, result = execute(ToolCall("grow", {"digits": 4300}), {"grow": grow}, 0)
    assert result.call.status is CallStatus.TOOL_ERROR and state == 0
    assert message(result) == "the result of grow has too many digits to be written"


def test_a_tool_cannot_change_what_was_asked_for() -> None:
    @tool
    def fill(state: int, bags: list[dict[str, list[int]]]) -> tuple[int, int]:
        """Fill bags.

        Args:
            bags: What is in them.
        """
        bags[0]["in"].append(0)
        return state, len(bags[0]["in"])

    call = ToolCall("fill", {"bags": [{"in": [7]}]})
    for _ in range(2):  # as gold calls are made again and again
        assert execute(call, {"fill": fill}, 0)[1].content == "2"
    assert call.arguments == {"bags": [{"in": [7]}]}


def test_validate_leaves_a_good_call_alone() -> None:
    call = ToolCall("deposit", MappingProxyType({"amount": 1}))
    assert validate(call, TOOLS) is call


def test_validate_keeps_the_first_error() -> None:
    call = ToolCall("nothing", {}, CallStatus.UNCLOSED, "cut", (0, 3))
    assert validate(call, TOOLS) is call


def test_spans_survive() -> None:
    call = ToolCall("motto", span=(3, 9), token_span=(1, 2))
    _, result = execute(call, TOOLS, 0)
    assert (result.call.span, result.call.token_span) == ((3, 9), (1, 2))


def test_equal_calls_have_equal_canonical_forms() -> None:
    one = ToolCall("a", {"x": 1, "y": {"b": "ü", "a": 2}})
    other = ToolCall("a", {"y": {"a": 2, "b": "ü"}, "x": 1}, CallStatus.OK, span=(0, 1))
    assert one.canonical() == other.canonical() != ToolCall("a", {"x": 2}).canonical()


def test_latency_does_not_decide_equality() -> None:
    call = ToolCall("a")
    assert ToolResult(call, "x", 0.1) == ToolResult(call, "x", 0.2)


@settings(deadline=None, derandomize=True, database=None, max_examples=300)
@given(
    st.sampled_from([*TOOLS, "no", ""]),
    st.dictionaries(
        st.sampled_from(["amount", "note", "kind", "weights", "state", ""]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
    ),
)
def test_anything_a_model_writes_is_answered(name: str, arguments: dict[str, Any]) -> None:
    if (name == "broken" and not arguments) or arguments.get("amount") == 13:
        return  # these two tools fail on purpose
    state, result = execute(ToolCall(name, arguments), TOOLS, 100)
    assert result.call.status is not CallStatus.PARSED
    assert result.ok or state == 100
    assert result.ok == (result.call.error is None)
    assert result.content
