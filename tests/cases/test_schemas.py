"""Schemas of the wild: each is honoured or its tool refused by name; no call ever raises."""

from __future__ import annotations

import datetime
import enum
import importlib
import json
import time
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Optional, TypedDict, Union
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from journeyman.tools import (
    CallStatus,
    Tool,
    ToolCall,
    ToolDefinitionError,
    ToolSpec,
    execute,
    get_parser,
    tool,
)
from journeyman.tools.schema import MAX_NODES

tools_execute = importlib.import_module("journeyman.tools.execute")
"""The module, which its function hides."""

DRAFT_4 = "http://json-schema.org/draft-04/schema#"
DRAFT_6 = "http://json-schema.org/draft-06/schema"
DRAFT_7 = "https://json-schema.org/draft-07/schema#"
TEXT, WHOLE = {"type": "string"}, {"type": "integer"}


def obj(properties: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties or {}, **more}


def echo(parameters: Any, name: str = "echo") -> Tool:
    return Tool.from_schema(ToolSpec(name, "Echo.", parameters), lambda **given: given)


def fits(parameters: Any, arguments: dict[str, Any]) -> bool:
    """Whether a call passes; one that does gives its arguments to the function, as they are."""
    _, result = execute(ToolCall("echo", arguments), {"echo": echo(parameters)}, None)
    assert result.call.status in (CallStatus.OK, CallStatus.INVALID_ARGUMENTS), result
    assert not result.ok or json.loads(result.content) == arguments
    return result.ok


A, B = obj({"x": TEXT}, required=["x"]), obj({"y": WHOLE}, required=["y"])
TREE = {"$defs": {"Tree": obj({"v": WHOLE, "kids": {"items": {"$ref": "#/$defs/Tree"}}})}}


@pytest.mark.parametrize(
    ("parameters", "good", "bad"),
    [
        # The root is more than an object of properties.
        ({"type": "object", "anyOf": [A, B]}, [{"x": "a"}, {"y": 1}], [{}, {"y": "1"}, {"z": 1}]),
        ({"oneOf": [A, B]}, [{"x": "a"}, {"y": 1}], [{"x": "a", "y": 1}]),
        ({"type": "object", "allOf": [A, B]}, [{"x": "a", "y": 1}], [{"x": "a"}]),
        ({"$ref": "#/$defs/A", "$defs": {"A": A}}, [{"x": "a"}], [{"x": 1}, {"z": 1}]),
        ({"type": "object", "$ref": "#/$defs/A", "$defs": {"A": A}}, [{"x": "a"}], [{}]),
        (
            obj(
                {"k": {"enum": ["a", "b"]}},
                **{"if": {"properties": {"k": {"const": "a"}}}, "then": B, "else": A},
            ),
            [{"k": "a", "y": 1}, {"k": "b", "x": "t"}],
            [{"k": "a", "x": "t"}, {"k": "b"}, {"k": "a", "y": 1, "z": 1}],
        ),
        ({"patternProperties": {"^n_": WHOLE}}, [{}, {"n_a": 1}], [{"n_a": "1"}, {"m_a": 1}]),
        (obj({"x": TEXT}, dependentSchemas={"x": B}), [{"x": "a", "y": 1}, {}], [{"x": "a"}]),
        (obj({"x": TEXT}, dependencies={"x": ["y"]}), [{}], [{"x": "a"}]),
        (obj({"a": {}, "b": {}}, maxProperties=1), [{"a": 1}], [{"a": 1, "b": 2}]),
        ({"properties": {"x": TEXT}}, [{"x": "a"}, {}], [{"x": 1}, {"y": 1}]),
        ({"type": ["object", "null"], "properties": {"x": TEXT}}, [{"x": "a"}], [{"x": 1}]),
        # What else may be there.
        ({}, [{}, {"a": 1}], []),
        (True, [{}, {"a": 1}], []),
        ({"type": "object"}, [{}, {"a": 1}], []),
        (obj(), [{}], [{"a": 1}]),
        (obj({"x": TEXT}, additionalProperties={}), [{"a": 1, "x": "t"}], [{"x": 1}]),
        (obj(additionalProperties=True), [{"a": 1}], []),
        (obj(additionalProperties=TEXT), [{"a": "1"}], [{"a": 1}]),
        (obj({"x": TEXT}, additionalProperties=False), [{"x": "a"}], [{"a": 1}]),
        (obj({"x": TEXT}, unevaluatedProperties=WHOLE), [{"x": "a", "b": 1}], [{"b": "1"}]),
        (obj(required=["q"]), [{"q": 1}], [{}]),
        # Names that mean something elsewhere.
        (
            obj({"definitions": TEXT, "$defs": WHOLE, "$ref": TEXT, "$schema": TEXT, "$id": TEXT}),
            [{"definitions": "a", "$defs": 1, "$ref": "#/nowhere", "$schema": "s", "$id": "i"}],
            [{"definitions": 1}, {"$defs": "a"}, {"$ref": 1}],
        ),
        (
            obj({"required": {"type": "boolean"}, "properties": {"type": "object"}, "allOf": TEXT}),
            [{"required": True, "properties": {}, "allOf": "a"}],
            [{"required": 1}, {"allOf": [1]}],
        ),
        (obj({"a": {"enum": [{"$ref": "#/x"}]}}), [{"a": {"$ref": "#/x"}}], [{"a": 1}]),
        # true and false are schemas.
        (obj({"v": True, "w": False}), [{"v": 1}, {"v": None}, {"v": [{}]}], [{"w": 1}]),
        (obj({"l": {"type": "array", "items": True}}), [{"l": [1, "a"]}], [{"l": 1}]),
        (obj({"l": {"items": False}}), [{"l": []}], [{"l": [1]}]),
        # References.
        (obj({"t": {"$ref": "#/$defs/Tree"}}, **TREE), [{"t": {"kids": [{"v": 1}]}}],
         [{"t": {"kids": [{"v": "1"}]}}, {"t": {"kids": [{"kids": [1]}]}}]),
        (obj({"v": WHOLE, "more": {"$ref": "#"}}), [{"more": {"more": {"v": 1}}}],
         [{"more": {"more": {"v": "1"}}}]),
        (obj({"p": {"$ref": "#point"}}, **{"$defs": {"P": {"$anchor": "point", **A}}}),
         [{"p": {"x": "a"}}], [{"p": {}}]),
        (obj({"p": {"$ref": "#/components/P"}}, components={"P": A}), [{"p": {"x": "a"}}],
         [{"p": {}}]),
        (obj({"p": {"$ref": "#/$defs/a%25~1b"}}, **{"$defs": {"a%/b": A}}), [{"p": {"x": "a"}}],
         [{"p": {}}]),
        (obj({"p": {"$ref": "p.json"}}, **{"$defs": {"P": {"$id": "http://a.b/p.json", **A}},
                                         "$id": "http://a.b/c.json"}),
         [{"p": {"x": "a"}}], [{"p": {}}]),
        # What stands beside a reference counts as well; not so in draft-07.
        (obj({"p": {"$ref": "#/$defs/S", "minLength": 3}}, **{"$defs": {"S": {"minLength": 1}}}),
         [{"p": "abc"}], [{"p": "ab"}]),
        (obj({"p": {"$ref": "#/$defs/S", "minLength": 1}}, **{"$defs": {"S": {"minLength": 3}}}),
         [{"p": "abc"}], [{"p": "ab"}]),
        (obj({"p": {"$ref": "#/definitions/S", "minLength": 3}},
             **{"definitions": {"S": {"minLength": 1}}, "$schema": DRAFT_7}),
         [{"p": "ab"}], [{"p": ""}]),
        (obj({"s": {"$ref": "https://json-schema.org/draft/2020-12/schema"}}),
         [{"s": {"type": "string"}}], [{"s": {"type": 7}}]),
        # Older drafts, said or not.
        (obj({"n": {"minimum": 0, "exclusiveMinimum": True}}, **{"$schema": DRAFT_4}),
         [{"n": 1}], [{"n": 0}]),
        (obj({"n": {"minimum": 0, "exclusiveMinimum": True}}), [{"n": 1}], [{"n": 0}]),
        (obj({"l": {"items": [TEXT, WHOLE], "additionalItems": False}}, **{"$schema": DRAFT_7}),
         [{"l": ["a", 1]}], [{"l": [1]}, {"l": ["a", 1, 2]}]),
        (obj({"l": {"items": [TEXT, WHOLE]}}), [{"l": ["a", 1]}], [{"l": [1]}]),
        (obj({"n": {"exclusiveMinimum": 0}}, **{"$schema": DRAFT_6}), [{"n": 1}], [{"n": 0}]),
        (obj({"x": TEXT, "y": {}}, dependencies={"x": ["y"]}, **{"$schema": DRAFT_7}),
         [{"x": "a", "y": 1}], [{"x": "a"}]),
        # Patterns are ECMA-262's.
        (obj({"s": {"pattern": r"^\p{L}+$"}}), [{"s": "Zoë"}], [{"s": "7"}, {"s": "Zoë\n"}]),
        (obj({"s": {"pattern": r"^(?<y>\d)-\k<y>$"}}), [{"s": "1-1"}], [{"s": "1-2"}]),
        ({"properties": {1: WHOLE}}, [{"1": 1}], [{"1": "1"}]),
        (obj({"s": {"pattern": r"^\d+$"}}), [{"s": "12"}], [{"s": "१२"}, {"s": "12\n"}]),
        (obj({"s": {"pattern": r"^[^\d\]]$"}}), [{"s": "a"}], [{"s": "1"}, {"s": "]"}]),
        (obj({"s": {"pattern": r"^\w\cJ\u{41}[^]$"}}), [{"s": "a\nA\n"}], [{"s": "é\nA\n"}]),
        (obj({"o": {"patternProperties": {r"^\p{Lu}": WHOLE}, "additionalProperties": False}}),
         [{"o": {"Éa": 1}}], [{"o": {"éa": 1}}, {"o": {"Éa": "1"}}]),
        # Numbers of any size, as they are written.
        (obj({"n": {"type": "number", "multipleOf": 0.01}}), [{"n": 5}, {"n": 0.29}, {"n": 1e308}],
         [{"n": 0.005}, {"n": 10**400}, {"n": float("inf")}, {"n": float("nan")}]),
        (obj({"n": {"multipleOf": 0.1}}), [{"n": 0.3}, {"n": 10**400}], [{"n": 0.35}]),
        (obj({"n": {"type": "integer", "multipleOf": 3}}), [{"n": 3 * 10**400}], [{"n": 10**400}]),
        (obj({"n": {"maximum": 1e3}}), [{"n": 1}], [{"n": 10**400}]),
        (obj({"n": {"type": "integer", "maximum": 1}}), [{"n": -(10**400)}], [{"n": 10**400}]),
        (obj({"n": {"type": "number"}}), [{"n": 10**300}], [{"n": 10**400}]),
        (obj({"n": {"enum": [1, 2]}}), [{"n": 1}], [{"n": True}]),
        (obj({"l": {"uniqueItems": True}}), [{"l": [1, True]}], [{"l": [[1], [1]]}]),
    ],
)  # fmt: skip
def test_it_is_honoured(parameters: Any, good: list[Any], bad: list[Any]) -> None:
    for arguments in good:
        assert fits(parameters, arguments), arguments
    for arguments in bad:
        assert not fits(parameters, arguments), arguments
    # What a model is shown says the same.
    shown = echo(parameters).spec.parameters
    assert shown["type"] == "object"
    for arguments in good:
        assert fits(shown, arguments), (shown, arguments)
    assert "$defs" in shown or echo(shown).spec.parameters == shown


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (False, "of type 'object'.* not False"),
        ([], "of type 'object'"),
        (None, "of type 'object'"),
        ({"type": "string"}, "of type 'object'"),
        ({"$ref": "#/$defs/S", "$defs": {"S": TEXT}}, "of type 'object'"),
        (obj({"x": {"type": "text"}}), "not a JSON Schema: 'text'"),
        (obj({"x": "string"}), "not a JSON Schema: 'string'"),
        (obj({"x": {"$ref": "https://example.com/y"}}), "'https://example.com/y' leads out"),
        (obj({"x": {"$ref": "#/$defs/No"}}), "'#/\\$defs/No' names nothing"),
        (obj({"x": {"$ref": "#/required/0"}}, required=["x"]), "names no schema"),
        (obj({"x": {"$dynamicRef": "#no"}}), "'#no' names nothing"),
        (obj({"x": {"pattern": "("}}), r"pattern '\(' cannot be used: missing \)"),
        ({"patternProperties": {"[": {}}}, r"pattern '\[' cannot be used"),
        ({"patternProperties": {r"\p{L}": {}}, "unevaluatedProperties": False}, "cannot be used"),
        (obj(**{"$schema": "http://json-schema.org/draft-03/schema#"}), "draft-03.*draft-04"),
        (obj(**{"$schema": "https://example.com/own"}), "dialect 'https://example.com/own'"),
        (obj({"x": {"$schema": DRAFT_7}}, **{"$schema": DRAFT_4}), "mixes dialects"),
        ({"$ref": "#"}, "leads back to itself without"),
        (obj({"x": {"allOf": [{"$ref": "#/properties/x"}]}}), "leads back to itself without"),
    ],
)
def test_it_is_refused_by_name(parameters: Any, says: str) -> None:
    with pytest.raises(ToolDefinitionError, match=f"tool 'echo': .*{says}"):
        echo(parameters)


def test_a_schema_nested_without_end() -> None:
    deep: dict[str, Any] = TEXT
    for _ in range(100_000):
        deep = {"items": deep}
    with pytest.raises(ToolDefinitionError, match=r"tool 'echo': .*nested too deeply"):
        echo(obj({"x": deep}))


def test_each_tool_is_refused_by_itself() -> None:
    offered = [
        ToolSpec("good", "", obj({"x": TEXT})),
        ToolSpec("text", "", TEXT),
        ToolSpec("tree", "", obj({"t": {"$ref": "#/$defs/Tree"}}, **TREE)),
        ToolSpec("old", "", obj(**{"$schema": DRAFT_4})),
        ToolSpec("letters", "", obj({"s": {"pattern": r"\p{L}"}})),
        ToolSpec("away", "", obj({"x": {"$ref": "http://a.b/c"}})),
        ToolSpec("any", "", {}),
    ]
    made, refused = [], []
    for spec in offered:
        try:
            made.append(Tool.from_schema(spec, len).name)
        except ToolDefinitionError as error:
            refused.append(str(error))
    assert made == ["good", "tree", "old", "letters", "any"]
    assert [it.partition(":")[0] for it in refused] == ["tool 'text'", "tool 'away'"]
    assert "the reference 'http://a.b/c'" in refused[1]


def test_a_tree_is_shown_with_its_name() -> None:
    shown = echo(obj({"t": {"$ref": "#/$defs/Tree"}}, **TREE)).spec.parameters
    tree = obj({"v": WHOLE, "kids": {"items": {"$ref": "#/$defs/Tree"}}})
    assert shown == obj({"t": tree}, **{"$defs": {"Tree": tree}})


def test_two_trees_of_one_name() -> None:
    def tree(where: str, value: Any) -> dict[str, Any]:
        return obj({"v": value, "kids": {"items": {"$ref": where}}})

    parameters = obj(
        {"a": {"$ref": "#/$defs/Tree"}, "b": {"$ref": "#/definitions/Tree"}},
        **{"$defs": {"Tree": tree("#/$defs/Tree", WHOLE)}},
        definitions={"Tree": tree("#/definitions/Tree", TEXT)},
    )
    shown = echo(parameters).spec.parameters
    assert fits(shown, {"a": {"kids": [{"v": 1}]}, "b": {"kids": [{"v": "t"}]}})
    assert not fits(shown, {"a": {"kids": [{"v": "t"}]}})
    assert not fits(shown, {"b": {"kids": [{"kids": [{"v": 1}]}]}})


def test_references_are_not_spelt_out_without_bound() -> None:
    twice = {f"d{i}": {"prefixItems": [{"$ref": f"#/$defs/d{i - 1}"}] * 2} for i in range(1, 40)}
    parameters = obj({"x": {"$ref": "#/$defs/d39"}}, **{"$defs": {"d0": TEXT, **twice}})
    shown = echo(parameters).spec.parameters
    assert len(json.dumps(shown)) < 10 * MAX_NODES
    assert fits(parameters, {"x": [[["a"]]]}) == fits(shown, {"x": [[["a"]]]})


def test_arguments_of_alternatives_have_names_and_types() -> None:
    spec = echo({"anyOf": [A, B]}).spec
    assert spec.signature() == "echo(x?, y?)"
    assert echo({"allOf": [A, obj({"z": {}})]}).spec.signature() == "echo(x, z?)"
    # A form that writes all values as text has their types from there.
    form = get_parser("qwen3_coder")
    (call,) = form(form.render(ToolCall("echo", {"y": 7})), [spec])
    assert call.arguments == {"y": 7}


@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        (obj({"s": {"pattern": "^(a+)+$"}}), {"s": "a" * 5000 + "b"}),
        (obj({"n": {"maximum": 5}}), {"n": 10**5000}),
        (obj({"t": {"$ref": "#"}}), {"t": [[]] * 3}),
        (obj({"o": {"additionalProperties": {"pattern": "^(a|aa)+$"}}}), {"o": {"a": "a" * 9000}}),
        (obj({"x": {}}, patternProperties={"^(a+)+$": {}}), {"a" * 5000 + "b": 1}),
    ],
    ids=["pattern", "digits", "tree", "nested", "name"],
)
def test_no_argument_makes_a_check_fail(parameters: Any, arguments: dict[str, Any]) -> None:
    tools = {"echo": echo(parameters)}
    _, result = execute(ToolCall("echo", arguments), tools, None)
    assert result.call.status in (CallStatus.OK, CallStatus.INVALID_ARGUMENTS)
    assert len(result.content) < 20_000


def test_many_items_are_told_apart_at_once() -> None:
    def passes(*items: Any) -> bool:
        given = [{"n": [number]} for number in range(5000)] + list(items)
        return set_of.validator.is_valid({"l": given})

    set_of = echo(obj({"l": {"uniqueItems": True}}))
    started = time.perf_counter()
    assert passes(True, 1, "1", None, [1], {"n": [True]}, {})
    assert time.perf_counter() - started < 3  # a look at every pair takes minutes
    for twice in ([{"n": [7.0]}], [1, 1.0], [[{}], [{}]]):
        assert not passes(*twice)


# The collector's callbacks (hypothesis has one) may get the first interruption, and lose it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_check_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools_execute, "MAX_CHECK_S", 0.3)
    either = [obj({"t": {"$ref": "#"}}), obj({"t": {"$ref": "#"}, "u": {}})]
    value: dict[str, Any] = {"t": 1}
    for _ in range(40):  # each doubles the work
        value = {"t": value}
    tools = {"echo": echo({"type": "object", "anyOf": either})}
    _, result = execute(ToolCall("echo", value), tools, None)
    assert result.call.status is CallStatus.INVALID_ARGUMENTS
    assert "could not be checked within 0.3 s" in result.content


def test_a_deep_argument_of_a_recursive_schema() -> None:
    value: dict[str, Any] = {}
    for _ in range(300):
        value = {"t": value}
    _, result = execute(ToolCall("echo", value), {"echo": echo(obj({"t": {"$ref": "#"}}))}, None)
    assert result.ok or "nested too deeply" in result.content


keywords = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["string", "integer", "number", "array", "object", "boolean"]),
        "multipleOf": st.sampled_from([0.1, 3, 1e-300, 1e300, 10**320]),
        "minimum": st.integers() | st.floats(allow_nan=False, allow_infinity=False),
        "pattern": st.sampled_from(["^a", r"\p{L}$", r"^(a+)+$", "[^]"]),
        "enum": st.lists(st.integers() | st.text(max_size=2) | st.none(), min_size=1, max_size=3),
        "uniqueItems": st.booleans(),
        "nullable": st.booleans(),
        "$ref": st.sampled_from(["#", "#/properties/a", "#/$defs/D"]),
    },
)
schemas = st.recursive(
    st.booleans() | keywords,
    lambda inner: st.one_of(
        st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner),
        st.builds(lambda one, two: {"allOf": [one, two]}, inner, inner),
        st.builds(lambda it: {"not": it}, inner),
        st.builds(lambda it: {"items": it, "contains": it}, inner),
        st.builds(lambda it: {"properties": {"a": it, "$defs": it}}, inner),
        st.builds(lambda it: {"patternProperties": {r"^\w$": it}}, inner),
        st.builds(lambda it: {"additionalProperties": it, "propertyNames": it}, inner),
        st.builds(lambda one, two: {"if": one, "then": two}, inner, inner),
    ),
    max_leaves=6,
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    | st.sampled_from([10**400, -(10**400), 1e308, 5e-324]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["a", "b", "$defs", "ab"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(deadline=None, derandomize=True, database=None, max_examples=120)
@given(schemas, schemas, st.dictionaries(st.sampled_from(["a", "b"]), values, max_size=2))
@example({"$ref": "#"}, True, {"a": {"a": {"a": 1}}})
@example({"multipleOf": 0.1}, True, {"a": 10**400})
def test_declared_or_refused_and_never_raised(a: Any, d: Any, arguments: dict[str, Any]) -> None:
    parameters = obj({"a": a, "b": {"$ref": "#/$defs/D", "title": "b"}}, **{"$defs": {"D": d}})
    try:
        made = echo(parameters)
    except ToolDefinitionError as error:
        assert str(error).startswith("tool 'echo': ")
        return
    judged = {"echo": Tool.from_schema(made.spec, lambda **given: "done")}
    noted = replace(made, function=lambda **given: "done")
    _, result = execute(ToolCall("echo", arguments), {"echo": noted}, None)
    assert result.call.status in (CallStatus.OK, CallStatus.INVALID_ARGUMENTS)
    # What is shown judges as what was written does.
    assert execute(ToolCall("echo", arguments), judged, None)[1].ok == result.ok
    # The short way agrees with the validator wherever it says anything.
    if made.accepts is not None and all(map(_plain, arguments.values())):
        assert made.accepts(arguments) == made.validator.is_valid(arguments)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int)


# Annotations


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1


class Odd(enum.Enum):
    PAIR = (1, 2)


@dataclass
class Point:
    x: int
    y: int = 3


@dataclass
class Node:
    v: int
    kids: list[Node] = field(default_factory=list)


class Pair(NamedTuple):
    x: int
    y: str = "a"


class Form(TypedDict):
    a: int
    b: NotRequired[datetime.date]


class Model(BaseModel):
    day: datetime.date


class Opaque:
    """No form in JSON."""


def taking(hint: Any) -> Tool:
    """A tool that keeps what it is given as its state."""

    def take(state: Any, x: Any) -> tuple[Any, str]:
        """Take it.

        Args:
            x: What.
        """
        return x, "taken"

    take.__annotations__ = {"x": hint}
    return tool(take)


DAY = datetime.date(2026, 2, 28)
FIRST = {"x": [1]}


@pytest.mark.parametrize(
    ("hint", "schema", "given_value", "value", "wrong"),
    [
        (Colour, {"enum": ["red", "blue"], "type": "string"}, "red", Colour.RED, ["green", 1]),
        (Size, {"enum": [1], "type": "integer"}, 1, Size.SMALL, [2, "1", True]),
        (datetime.date, {"type": "string", "format": "date"}, "2026-02-28", DAY,
         ["2026-02-30", 5, "x"]),
        (Optional[datetime.date], {}, None, None, ["x", 1]),  # noqa: UP045 - as people write it
        (datetime.datetime, {"format": "date-time"}, "2026-02-28T01:02:03",
         datetime.datetime(2026, 2, 28, 1, 2, 3), ["x"]),
        (datetime.time, {"format": "time"}, "10:30", datetime.time(10, 30), ["25:00"]),
        (datetime.timedelta, {"format": "duration"}, "PT1H", datetime.timedelta(hours=1), ["x"]),
        (UUID, {"format": "uuid"}, f"{'0' * 31}1", UUID(int=1), ["1"]),
        (Decimal, {}, "0.10", Decimal("0.10"), ["ten", []]),
        (Path, {"type": "string", "format": "path"}, "a/b", Path("a/b"), [1]),
        (bytes, {"type": "string"}, "Zoë", "Zoë".encode(), [1, {}]),
        (Point, {"type": "object", "required": ["x"]}, {"x": 1}, Point(1),
         [{}, {"x": 1, "z": 1}, {"x": "1"}, [1]]),
        (Node, {"type": "object"}, {"v": 1, "kids": [{"v": 2}]}, Node(1, [Node(2)]),
         [{"v": 1, "kids": [{"v": "2"}]}]),
        (Form, {"type": "object", "required": ["a"]}, {"a": 1, "b": "2026-02-28"},
         {"a": 1, "b": DAY}, [{}, {"a": 1, "c": 1}, {"a": 1, "b": "x"}]),
        (list[Form], {"type": "array"}, [{"a": 1}], [{"a": 1}], [[{}], {}]),
        (Form | None, {}, None, None, [1]),
        (Model, {"type": "object"}, {"day": "2026-02-28"}, Model(day=DAY), [{}, {"day": "x"}]),
        (Pair, {"type": "array"}, [1], Pair(1), [[], ["1"], [1, "a", 2], {}]),
        (list, {"type": "array"}, [1, "a"], [1, "a"], [{}, "a"]),
        (dict, {"type": "object"}, {"a": 1}, {"a": 1}, [[], "a"]),
        (tuple, {"type": "array"}, [1, "a"], (1, "a"), [{}, 1]),
        (tuple[int, ...], {"type": "array", "items": WHOLE}, [1, 2], (1, 2), [["a"]]),
        (tuple[int, str], {"type": "array", "prefixItems": [WHOLE, TEXT]}, [1, "a"], (1, "a"),
         [[1], [1, "a", 2], ["a", 1]]),
        (abc.Mapping[str, int], {"type": "object", "additionalProperties": WHOLE}, {"a": 1},
         {"a": 1}, [{"a": "1"}, []]),
        (dict[int, str], {"type": "object"}, {"1": "a"}, {1: "a"}, [{"x": "a"}]),
        (abc.Sequence[int], {"type": "array", "items": WHOLE}, [1], [1], [["a"], 1]),
        (abc.Iterable[datetime.date], {"type": "array"}, ["2026-02-28"], [DAY], [["x"]]),
        (set, {"type": "array", "uniqueItems": True}, [1, 2], {1, 2}, [[1, 1], {}]),
        (set[int], {"type": "array", "items": WHOLE}, [1], {1}, [["a"]]),
        (frozenset[str], {"type": "array"}, ["a"], frozenset("a"), [[1]]),
        (Union[int, datetime.date], {}, "2026-02-28", DAY, ["x", 1.5]),  # noqa: UP007
        (Annotated[int, Field(ge=0)], {"type": "integer", "minimum": 0}, 3, 3, [-1, "3"]),
        (Annotated[str, Field(pattern=r"^\d+$")], {"pattern": r"^\d+$"}, "3", "3", ["a", "3\n"]),
        (Annotated[int, "how many"], {"type": "integer"}, 3, 3, ["3"]),
        (float, {"type": "number"}, 1, 1, [10**400, "1"]),
    ],
)  # fmt: skip
def test_an_annotation_is_honoured(
    hint: Any, schema: dict[str, Any], given_value: Any, value: Any, wrong: list[Any]
) -> None:
    made = taking(hint)
    (shown,) = made.spec.parameters["properties"].values()
    assert {key: shown.get(key) for key in schema} == schema
    assert shown["description"] == "What."
    call = ToolCall("take", {"x": given_value})
    state, result = execute(call, {"take": made}, "before")
    assert result.ok, result.content
    assert (state, type(state)) == (value, type(value))
    assert result.call.arguments == {"x": given_value}  # as the model wrote them
    for other in wrong:
        state, result = execute(ToolCall("take", {"x": other}), {"take": made}, "before")
        assert (state, result.call.status) == ("before", CallStatus.INVALID_ARGUMENTS), other
        assert result.content.startswith('{"error": "take: x')


def test_what_a_conversion_objects_to_is_told() -> None:
    call = ToolCall("take", {"x": "2026-02-30"})
    _, result = execute(call, {"take": taking(datetime.date)}, None)
    assert result.call.error is not None
    assert result.call.error.startswith("take: x: Input should be a valid date")


@pytest.mark.parametrize(
    "hint",
    [
        Opaque,
        Odd,
        Literal[b"x"],
        Literal[Colour.RED],
        Callable,
        Callable[[int], str],
        type,
        range,
        pytest.param(object(), id="an object"),
        "Nowhere",
    ],
    ids=str,
)
def test_an_annotation_is_refused_by_name(hint: Any) -> None:
    with pytest.raises(ToolDefinitionError, match=r"tool 'take': .*"):
        _ = taking(hint).spec


@pytest.mark.parametrize("hint", [Opaque, list[Opaque], Odd, dict[str, Opaque] | None], ids=str)
def test_it_is_refused_where_it_is_declared(hint: Any) -> None:
    with pytest.raises(ToolDefinitionError, match=r"tool 'take': the type .* has no form in JSON"):
        taking(hint)
