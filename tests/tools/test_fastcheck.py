"""The fast check says what jsonschema says, wherever it says anything."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from journeyman.tools import Tool, ToolCall, get_parser, tool
from journeyman.tools.apis import bank, calendar, orders
from journeyman.tools.execute import MAX_ARGUMENT_CHARS, validate
from journeyman.tools.fastcheck import compile_check
from journeyman.tools.validators import judge

names = st.sampled_from(["a", "b", "c"])
notes = st.fixed_dictionaries(
    {}, optional={"description": st.just("x"), "nullable": st.booleans() | st.just("x")}
)
leaves = st.one_of(
    st.booleans(),
    st.sampled_from(["string", "integer", "number", "boolean", "null"]).map(lambda t: {"type": t}),
    st.lists(names, min_size=1).map(lambda words: {"type": "string", "enum": words}),
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.fixed_dictionaries(
        {"type": st.just("object")},
        optional={
            "properties": st.dictionaries(names, inner),
            "required": st.lists(names),
            "nullable": st.booleans(),
        },
    )
    arrays = st.fixed_dictionaries(
        {"type": st.just("array")}, optional={"items": inner, "nullable": st.booleans()}
    )
    return objects | arrays


schemas = st.recursive(
    st.builds(lambda leaf, note: leaf if isinstance(leaf, bool) else leaf | note, leaves, notes),
    nested,
    max_leaves=5,
)
values = st.recursive(
    st.one_of(names, st.integers(), st.just(10**400), st.floats(), st.booleans(), st.none()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner),
    max_leaves=5,
)


@settings(deadline=None)  # the machine may be busy
@given(schemas, values)
@example({"type": "integer"}, True)
@example({"type": "number"}, 10**400)
@example({"type": "integer"}, 10**400)
@example({"type": "object", "properties": {"a": True, "b": False}}, {"a": 1, "b": 1})
@example({"type": "array", "items": False}, [1])
@example(True, None)
@example({"type": "integer"}, 250.0)
@example({"type": "number"}, False)
@example({"type": "string", "nullable": True}, None)
@example({"type": "string", "enum": ["a"], "nullable": True}, None)
@example({"type": "string", "nullable": False}, None)
@example({"type": "array", "items": {"type": "string", "nullable": True}}, [None])
@example({"type": "object", "required": ["a"]}, {"a": None})
def test_it_agrees_with_jsonschema(schema: Any, value: Any) -> None:
    check = compile_check(schema)
    assert check is not None
    assert check(value) == judge(schema).is_valid(value)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"a": {"type": "string"}}, "$defs": {}},
        {"type": "object", "properties": {}, "anyOf": []},
        {"type": "object", "patternProperties": {}},
        {"type": "object", "properties": {"a": {"$dynamicRef": "#a"}}},
        {"type": ["string", "null"]},
        {"type": "string", "pattern": "x"},
        {"type": "integer", "minimum": 0},
        {"type": "integer", "enum": [1]},
        {"enum": ["a"]},
        {"anyOf": [{"type": "string"}]},
        {"type": "object", "additionalProperties": False},
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"type": "array", "items": {"const": 1}},
        {"type": "array", "minItems": 1},
    ],
)
def test_it_is_silent_on_what_it_does_not_know(schema: dict[str, Any]) -> None:
    assert compile_check(schema) is None


@pytest.mark.parametrize(
    "t", [*bank.TOOLS, *orders.TOOLS, *calendar.TOOLS], ids=lambda t: str(t.name)
)
def test_the_built_in_tools_have_plain_schemas(t: Tool) -> None:
    assert t.accepts is not None


@tool
def note(text: str, size: int = 0, parts: list[str] | None = None) -> str:
    """Note.

    Args:
        text: What.
        size: How much.
        parts: More.
    """
    return text


@pytest.mark.parametrize(
    ("schema", "accepted"),
    [
        ({"type": "string", "nullable": True}, True),
        ({"type": "string"}, False),
        ({"enum": ["a"], "nullable": True}, True),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}], "nullable": True}, True),
        ({"anyOf": [{"type": "string", "nullable": True}, {"type": "integer"}]}, True),
        ({"type": "string", "minLength": 1, "nullable": False}, False),
    ],
)
def test_nullable_accepts_null(schema: dict[str, Any], accepted: bool) -> None:
    assert judge(schema).is_valid(None) == accepted
    assert compile_check(schema) is None or compile_check(schema)(None) == accepted  # type: ignore[misc]


def test_an_optional_argument_may_be_null() -> None:
    for found in ({"text": "x", "parts": None}, {"text": "x", "parts": ["a"]}, {"text": "x"}):
        call = ToolCall("note", found)
        assert validate(call, {"note": note}) is call
    assert validate(ToolCall("note", {"text": None}), {"note": note}).error is not None
    form = get_parser("qwen3_coder")
    written = form.render(ToolCall("note", {"text": "null", "parts": None}))
    (call,) = form(written, [note.spec])
    assert call.arguments == {"text": "null", "parts": None}
    assert validate(call, {"note": note}) is call


class _Slow(Tool):
    """Asks jsonschema every time."""

    accepts = None  # type: ignore[assignment]


arguments = st.dictionaries(
    st.sampled_from(["text", "size", "other"]),
    st.one_of(
        st.sampled_from(["x", "x" * (MAX_ARGUMENT_CHARS // 2), "\x00" * (MAX_ARGUMENT_CHARS // 6)]),
        st.integers(),
        st.just(10**4000),
        st.floats(),
        st.none(),
        st.lists(names),
    ),
)


@settings(deadline=None)
@given(arguments)
@example({"text": "x", "size": 10**30})
@example({"text": "\x00" * (MAX_ARGUMENT_CHARS // 6)})
def test_a_call_is_judged_the_same_either_way(found: dict[str, Any]) -> None:
    call = ToolCall("note", found)
    slow = _Slow(note.function, note.name, note.stateful)
    assert validate(call, {"note": note}) == validate(call, {"note": slow})
