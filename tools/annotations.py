"""Type hints beyond the plain ones (`signature.py`): their JSON Schema and the values they ask for.

pydantic does both, as it does for the MCP SDK and FastMCP: a date comes as a `date`, an array as
the set or NamedTuple that the hint says. What has no form in JSON is refused when the tool is
declared.
"""

from __future__ import annotations

import enum
import functools
import json
import operator
import typing
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

import pydantic
import typing_extensions
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

Convert = Callable[[Any], Any]
"""From a value of JSON to what a hint says; raises a ValueError that says what was expected."""


class Hints(NamedTuple):
    """What some type hints ask for, by the name of what has them."""

    schemas: Mapping[str, Any]
    definitions: Mapping[str, Any]
    """What the schemas refer to under "$defs"."""
    converters: Mapping[str, Convert]


def read_hints(hints: Mapping[str, Any]) -> Hints:
    """The JSON Schemas of type hints, and what makes the values that they say.

    Raises:
        ValueError: A hint has no form in JSON.
    """
    adapters = {name: _adapter(hint) for name, hint in hints.items()}
    found, root = pydantic.TypeAdapter.json_schemas(
        [(name, "validation", adapter) for name, adapter in adapters.items()],
        schema_generator=_Generator,
    )
    return Hints(
        {name: schema for (name, _), schema in found.items()},
        root.get("$defs", {}),
        {name: functools.partial(_convert, adapter) for name, adapter in adapters.items()},
    )


def _convert(adapter: pydantic.TypeAdapter[Any], value: Any) -> Any:
    try:
        made = adapter.validate_json(json.dumps(value))
        return list(made) if isinstance(made, Iterator) else made  # pydantic's Iterable is lazy
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from error


def _adapter(hint: Any) -> pydantic.TypeAdapter[Any]:
    try:
        adapter = pydantic.TypeAdapter(_newer(hint))
        adapter.json_schema(schema_generator=_Generator)
    except (PydanticUserError, NameError, TypeError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the type {hint} has no form in JSON ({reason}).") from error
    return adapter


def _newer(hint: Any) -> Any:
    """The hint with TypedDicts that pydantic takes: before Python 3.12, typing's are not."""
    if typing.is_typeddict(hint):
        fields = typing.get_type_hints(hint, include_extras=True)
        newer_fields = {name: _newer(field) for name, field in fields.items()}
        return typing_extensions.TypedDict(  # type: ignore[operator]
            hint.__name__, newer_fields, total=hint.__total__
        )
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[(_newer(args[0]), *hint.__metadata__)]
    newer = tuple(_newer(it) for it in args)
    if newer == args:
        return hint
    if origin in (Union, UnionType):
        return functools.reduce(operator.or_, newer)
    return origin[newer]


class _Generator(GenerateJsonSchema):
    """Without a title for every field; and no field that is misspelt passes."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def tuple_schema(self, schema: Any) -> JsonSchemaValue:
        found = super().tuple_schema(schema)
        if "prefixItems" in found and "items" not in found:
            # Shown as transformers shows them: the length is judged where the tuple is made.
            found = {k: v for k, v in found.items() if k not in ("minItems", "maxItems")}
        return found

    def dataclass_schema(self, schema: Any) -> JsonSchemaValue:
        return _closed(super().dataclass_schema(schema))

    def typed_dict_schema(self, schema: Any) -> JsonSchemaValue:
        return _closed(super().typed_dict_schema(schema))

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        return _closed(super().model_schema(schema))

    def enum_schema(self, schema: Any) -> JsonSchemaValue:
        _only_json(member.value for member in schema["members"])
        return super().enum_schema(schema)

    def literal_schema(self, schema: Any) -> JsonSchemaValue:
        _only_json(iter(schema["expected"]))
        return super().literal_schema(schema)


def _closed(schema: JsonSchemaValue) -> JsonSchemaValue:
    return schema | {"additionalProperties": schema.get("additionalProperties", False)}


def _only_json(values: Iterator[Any]) -> None:
    for value in values:
        if isinstance(value, enum.Enum) or not isinstance(value, str | int | float | None):
            raise ValueError(f"{value!r} is no value of JSON")
