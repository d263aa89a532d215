"""What judges arguments by a JSON Schema: jsonschema's validators, as a house of tools needs them.

They differ from the standard in three points. 250.0 is no integer: to a function typed `int` it is
a float that spreads through the state, whose hash then differs from the one with 250. An integer
beyond all floats is no number, as 1e999 is none to the parsers: what is computed with it overflows.
And "nullable" (OpenAPI's) accepts null, which is how transformers writes `str | None`.

Where jsonschema raises, is inexact or looks at every pair, they do not: numbers of any size are
divided as they are written, items are told apart by their hashes, and patterns are read as ECMA-262
has them (`patterns.py`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

import jsonschema
from jsonschema.protocols import Validator
from referencing import Registry

from journeyman.tools.errors import ToolDefinitionError
from journeyman.tools.fastcheck import is_integer, is_nullable, is_number
from journeyman.tools.patterns import matches

Errors = Iterable[jsonschema.ValidationError]


def _type(validator: Any, types: str | list[str], instance: Any, schema: Any) -> Errors:
    names = [types] if isinstance(types, str) else types
    for name in names:
        if is_number(instance) if name == "number" else validator.is_type(instance, name):
            return
    yield jsonschema.ValidationError(f"{instance!r} is not of type {', '.join(map(repr, names))}")


def _multiple_of(_: Any, divisor: Any, instance: Any, schema: Any) -> Errors:
    if isinstance(instance, bool) or not isinstance(instance, int | float):
        return
    try:
        whole = (_exactly(instance) / _exactly(divisor)).denominator == 1
    except (ValueError, OverflowError):  # NaN and the infinities
        whole = False
    if not whole:
        yield jsonschema.ValidationError(f"{instance!r} is not a multiple of {divisor}")


def _exactly(number: float) -> Fraction:
    """The number as it is written: 0.3 is three times 0.1, which their floats are not."""
    return Fraction(number if isinstance(number, int) else repr(number))


def _unique_items(_: Any, unique: Any, instance: Any, schema: Any) -> Errors:
    if not unique or not isinstance(instance, list):
        return
    if len(set(map(_identity, instance))) < len(instance):
        yield jsonschema.ValidationError(f"{instance!r} has non-unique elements")


def _identity(value: Any) -> Any:
    """Equal for equal values of JSON, and only for these: true is not 1, and 1.0 is."""
    if isinstance(value, bool):
        return bool, value
    if isinstance(value, list):
        return list, tuple(map(_identity, value))
    if isinstance(value, dict):
        return dict, frozenset((name, _identity(it)) for name, it in value.items())
    return value


def _pattern(_: Any, pattern: str, instance: Any, schema: Any) -> Errors:
    if isinstance(instance, str) and not matches(pattern, instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], instance: Any, schema: Any
) -> Errors:
    if isinstance(instance, dict):
        for pattern, subschema in patterns.items():
            for name, value in instance.items():
                if matches(pattern, name):
                    yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Errors:
    if not isinstance(instance, dict):
        return
    patterns, listed = schema.get("patternProperties", {}), schema.get("properties", {})
    for name, value in instance.items():
        if name in listed or any(matches(pattern, name) for pattern in patterns):
            continue
        if allowed is False:
            known = ", ".join(map(repr, (*listed, *patterns))) or "none"
            yield jsonschema.ValidationError(f"{name!r} is not expected; there are: {known}")
        else:
            yield from validator.descend(value, allowed, path=name)


def _unless_null(keyword: Callable[..., Any]) -> Callable[..., Any]:
    """The check of a keyword, which a schema that is nullable does not make of null."""

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        if instance is None and is_nullable(schema):
            return ()
        return keyword(validator, value, instance, schema)

    return check


_OWN = {
    "type": _type,
    "multipleOf": _multiple_of,
    "uniqueItems": _unique_items,
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
}


@functools.cache
def _ours(name: str) -> type[Validator]:
    theirs: Any = getattr(jsonschema, name)
    keywords = dict(theirs.VALIDATORS) | _OWN
    made: type[Validator] = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
        theirs,
        {keyword: _unless_null(check) for keyword, check in keywords.items()},
        type_checker=theirs.TYPE_CHECKER.redefine("integer", lambda _, value: is_integer(value)),
    )
    return made


_LATEST, _DRAFT_7, _DRAFT_4 = "Draft202012Validator", "Draft7Validator", "Draft4Validator"
_DRAFTS = {
    "json-schema.org/draft/2020-12/schema": _LATEST,
    "json-schema.org/draft/2019-09/schema": "Draft201909Validator",
    "json-schema.org/draft-07/schema": _DRAFT_7,
    "json-schema.org/draft-06/schema": "Draft6Validator",
    "json-schema.org/draft-04/schema": _DRAFT_4,
    "json-schema.org/schema": _LATEST,
}


def draft_of(schema: dict[str, Any], legacy: bool = False) -> type[Validator]:
    """The class that reads a schema: by its "$schema", else the newest draft that it is valid in.

    Args:
        schema: JSON Schema.
        legacy: It uses a keyword that the newest draft passes over and draft-07 does not.

    Raises:
        ToolDefinitionError: Another dialect, or not a valid schema.
    """
    named = schema.get("$schema")
    if named is None:
        names = [_DRAFT_7, _LATEST] if legacy else [_LATEST, _DRAFT_7, _DRAFT_4]
    else:
        uri = re.sub("^https?://", "", str(named)).rstrip("#/")
        if uri not in _DRAFTS:
            raise ToolDefinitionError(
                f"written in the dialect {str(named)[:80]!r}; there are: draft-04, draft-06, "
                f"draft-07, 2019-09 and 2020-12, by their '$schema'"
            )
        names = [_DRAFTS[uri]]
    problems = []
    for name in names:
        draft = _ours(name)
        try:
            # Formats are no part of it: Python's own regular expressions would be asked for.
            draft.check_schema(schema, format_checker=None)  # type: ignore[call-arg]
            return draft
        except jsonschema.SchemaError as error:
            problems.append(error.message)
    raise ToolDefinitionError(f"not a JSON Schema: {problems[0][:300]}")


def judge(schema: Mapping[str, Any], draft: type[Validator] | None = None) -> Validator:
    """A validator that never looks for a reference outside of the schema.

    Args:
        schema: A valid one.
        draft: What `draft_of` says.
    """
    return (draft or _ours(_LATEST))(schema, registry=Registry())
