"""`@tool`: what becomes of a signature, and what is said to one that cannot be a tool."""

from typing import Any, Literal

import pytest

from journeyman.tools import Tool, ToolCall, ToolDefinitionError, ToolSpec, execute, tool


@tool
def greet(
    state: dict[str, int], name: str, times: int = 1, mood: Literal["glad", "cross"] = "glad"
) -> tuple[dict[str, int], str]:
    """Greet a person.

    Args:
        name: Whom.
        times: How often.
        mood: In which mood.

    Returns:
        Not for the model.
    """
    return {**state, name: times}, f"{mood} {name}" * times


@tool
def total(numbers: list[int]) -> int:
    """Add numbers up.

    Args:
        numbers: What to add.
    """
    return sum(numbers)


def test_schema() -> None:
    assert greet.spec == ToolSpec(
        "greet",
        "Greet a person.",
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "description": "Whom."},
                "times": {"type": "integer", "description": "How often."},
                "mood": {
                    "type": "string",
                    "enum": ["glad", "cross"],
                    "description": "In which mood.",
                },
            },
            "required": ["name"],
        },
    )
    assert total.spec.parameters["properties"]["numbers"] == {
        "type": "array",
        "items": {"type": "integer"},
        "description": "What to add.",
    }


def test_injected_state_shows_nowhere() -> None:
    assert "state" not in str(greet.spec)
    assert "state" not in str(greet.spec.as_function())
    assert greet.spec.signature() == "greet(name, times?, mood?)"


def test_as_function_is_what_chat_templates_take() -> None:
    assert total.spec.as_function() == {
        "type": "function",
        "function": {
            "name": "total",
            "description": "Add numbers up.",
            "parameters": dict(total.spec.parameters),
        },
    }


def test_no_parameters() -> None:
    @tool
    def now() -> str:
        """Tell the time."""
        return "noon"

    assert now.spec.signature() == "now()"
    assert not now.stateful
    assert now.run("state", {}) == ("state", "noon")


def test_another_name() -> None:
    @tool(name="add_up")
    def inner(x: int) -> int:
        """Add.

        Args:
            x: What.
        """
        return x

    assert isinstance(inner, Tool)
    assert (inner.name, inner.spec.name) == ("add_up", "add_up")


def test_run() -> None:
    assert greet.run({}, {"name": "Ada", "times": 2}) == ({"Ada": 2}, "glad Adaglad Ada")
    state = object()
    assert total.run(state, {"numbers": [1, 2]}) == (state, 3)


def test_state_may_stand_anywhere() -> None:
    @tool
    def last(x: int, state: int) -> tuple[int, int]:
        """Add.

        Args:
            x: What.
        """
        return state + x, x

    assert last.stateful
    assert last.spec.signature() == "last(x)"
    assert last.run(1, {"x": 2}) == (3, 2)


def test_spec_and_validator_are_built_once() -> None:
    assert total.spec is total.spec
    assert total.validator is total.validator


def test_untyped_parameter() -> None:
    def look(state, place, depth: int) -> str:  # type: ignore[no-untyped-def]
        return "?"

    with pytest.raises(ToolDefinitionError, match=r"tool 'look': parameter 'place' has no type"):
        tool(look)


def test_arguments_without_a_name() -> None:
    def args(*numbers: int) -> int:
        return 0

    def kwargs(**numbers: int) -> int:
        return 0

    def positional(number: int, /) -> int:
        return 0

    with pytest.raises(ToolDefinitionError, match=r"tool 'args'.*spelled out"):
        tool(args)
    with pytest.raises(ToolDefinitionError, match=r"tool 'kwargs'.*spelled out"):
        tool(kwargs)
    with pytest.raises(ToolDefinitionError, match=r"'number' is positional-only.*drop the '/'"):
        tool(positional)


def undocumented(x: int) -> int:
    return x


def undescribed(x: int) -> int:
    """Do it."""
    return x


@pytest.mark.parametrize("function", [undocumented, undescribed])
def test_no_schema_can_be_made(function: Any) -> None:
    made = tool(function)
    with pytest.raises(ToolDefinitionError) as caught:
        _ = made.spec
    assert f"tool '{function.__name__}'" in str(caught.value)
    assert "needs a type and a line under 'Args:'" in str(caught.value)


@pytest.mark.parametrize("returned", [None, "text", {"a": 1, "b": 2}, (1, 2, 3), [1, 2]])
def test_stateful_tool_that_returns_no_pair(returned: object) -> None:
    @tool
    def broken(state: int) -> Any:
        """Do it."""
        return returned

    with pytest.raises(ToolDefinitionError, match=r"'broken'.*must return \(new state, result\)"):
        broken.run(0, {})


# Tools from a JSON Schema

SCHEMA: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "move",
        "description": "Move a point.",
        "parameters": {
            "type": "object",
            "properties": {
                "point": {"$ref": "#/$defs/Point", "description": "Which."},
                "by": {"type": "array", "items": {"$ref": "#/$defs/a~1b"}},
                "$ref": {"type": "string", "default": {"$ref": "data"}},
            },
            "required": ["point"],
            "$defs": {
                "Point": {"type": "object", "properties": {"x": {"$ref": "#/$defs/a~1b"}}},
                "a/b": {"type": "integer"},
            },
        },
    },
}


def test_a_tool_from_a_schema() -> None:
    move = Tool.from_schema(SCHEMA, lambda **given: sorted(given))
    assert (move.name, move.spec.description, move.stateful) == ("move", "Move a point.", False)
    assert move.spec.parameters == {
        "type": "object",
        "properties": {
            "point": {
                "type": "object",
                "properties": {"x": {"type": "integer"}},
                "description": "Which.",
            },
            "by": {"type": "array", "items": {"type": "integer"}},
            "$ref": {"type": "string", "default": {"$ref": "data"}},
        },
        "required": ["point"],
    }
    _, done = execute(ToolCall("move", {"point": {"x": 1}}), {"move": move}, None)
    assert done.content == '["point"]'
    _, wrong = execute(ToolCall("move", {"point": {"x": "1"}}), {"move": move}, None)
    assert "point.x" in wrong.content
    assert Tool.from_schema(move.spec, len).spec == move.spec


def test_a_stateful_tool_from_a_bare_schema() -> None:
    schema = {"name": "count", "parameters": {"type": "object", "additionalProperties": True}}
    count = Tool.from_schema(schema, lambda state, **more: (state + 1, len(more)), stateful=True)
    state, done = execute(ToolCall("count", {"a": 1, "b": 2}), {"count": count}, 5)
    assert (state, done.content) == (6, "2")
    assert Tool.from_schema({"name": "none"}, len).spec.parameters["properties"] == {}


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"type": "string"}, "of type 'object'"),
        ([], "of type 'object'"),
        ({"type": "object", "properties": {"x": {"type": 7}}}, "not a JSON Schema"),
        ({"type": "object", "properties": {"x": {"$ref": "http://x/y"}}}, "leads out of the"),
        ({"type": "object", "properties": {"x": {"$ref": "#/$defs/No"}}}, "names nothing"),
        (
            {
                "type": "object",
                "properties": {"x": {"$ref": "#/$defs/Tree"}},
                "$defs": {"Tree": {"type": "array", "anyOf": [{"$ref": "#/$defs/Tree"}]}},
            },
            "back to itself",
        ),
    ],
)
def test_a_schema_that_cannot_be_used(parameters: Any, says: str) -> None:
    with pytest.raises(ToolDefinitionError, match=f"tool 'a': .*{says}"):
        Tool.from_schema({"name": "a", "parameters": parameters or ["x"]}, len)


def test_a_schema_without_a_name() -> None:
    with pytest.raises(ToolDefinitionError, match="expected text under 'name', found None"):
        Tool.from_schema({"parameters": {}}, len)
