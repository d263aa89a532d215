"""Schemas of functions are those that transformers derives, where it knows the type."""

from typing import Annotated, Any, Literal

import pytest
from transformers.utils.chat_template_utils import get_json_schema

from journeyman.tools.signature import converters, describe

HINTS: list[Any] = [
    *(int, float, str, bool, Any, None, object, dict),
    *(list[int], list[list[int]], list[Any], dict[str, int], dict[str, list[int | None]]),
    *(tuple[int, str], int | None, int | str, int | str | None),
    *(list[int] | None, int | Any, Annotated[int, "note"]),
    *(Literal["a", "b"], Literal["a", 1], Literal[1, None], Literal["a"] | None),
]


def function(hint: Any) -> Any:
    def given(first: Any, second: int = 1) -> None:
        """Do it.

        More of
        it.

        Args:
            first: What, over
                two lines (choices: ["x", " y"])
            second: The other.

        Raises:
            ValueError: Never.
        """

    given.__annotations__ = {"first": hint, "second": int}
    return given


@pytest.mark.parametrize("hint", HINTS, ids=str)
def test_as_transformers(hint: Any) -> None:
    theirs = get_json_schema(function(hint))["function"]
    assert describe(function(hint)) == (theirs["description"], theirs["parameters"])


@pytest.mark.parametrize("hint", [Literal[b"x"], range, type, memoryview], ids=str)
def test_types_without_a_form_in_json(hint: Any) -> None:
    with pytest.raises(ValueError, match="has no form in JSON"):
        describe(function(hint))


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (list, {"type": "array"}),
        (
            list[int] | str,
            {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "string"}]},
        ),
        (
            Literal["a"] | int,
            {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "integer"}]},
        ),
        (tuple, {"type": "array", "items": {}}),
        (bytes, {"type": "string", "format": "binary"}),
        (tuple[int], {"type": "array", "prefixItems": [{"type": "integer"}]}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (set[int], {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}),
    ],
    ids=str,
)
def test_types_that_transformers_takes_for_objects(hint: Any, schema: dict[str, Any]) -> None:
    _, parameters = describe(function(hint))
    found = parameters["properties"]["first"]
    assert {key: value for key, value in found.items() if key in schema} == schema
    assert found["description"] == "What, over two lines"


def test_plain_arguments_are_not_converted() -> None:
    for hint in HINTS:
        plain = hint not in (tuple[int, str],)
        assert bool(converters(function(hint))) != plain
