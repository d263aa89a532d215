"""Schemas of functions are those that transformers derives."""

from typing import Annotated, Any, Literal

import pytest
from transformers.utils.chat_template_utils import get_json_schema

from journeyman.tools.signature import describe

HINTS: list[Any] = [
    *(int, float, str, bool, Any, None, object, list, dict, tuple, bytes),
    *(list[int], list[list[int]], list[Any], dict[str, int], dict[str, list[int | None]]),
    *(tuple[int, str], int | None, int | str, int | str | None),
    *(list[int] | str, list[int] | None, int | Any, Annotated[int, "note"]),
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


@pytest.mark.parametrize("hint", [tuple[int], tuple[int, ...], set[int], Literal[b"x"]], ids=str)
def test_types_without_a_form_in_json(hint: Any) -> None:
    with pytest.raises(ValueError, match="has no form in JSON"):
        describe(function(hint))
