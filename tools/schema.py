"""JSON Schemas that others wrote, made fit for prompts and validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema

from journeyman.tools.errors import ToolDefinitionError
from journeyman.tools.types import ToolSpec

# What these hold is data, whatever it looks like.
_DATA = ("const", "default", "enum", "examples")


def read_spec(given: ToolSpec | Mapping[str, Any]) -> ToolSpec:
    """A spec whose schema is valid and holds no references.

    Args:
        given: A `ToolSpec`; or a mapping with "name", "description" and "parameters", by itself or
            under "function", as OpenAI and chat templates have it.

    Raises:
        ToolDefinitionError: No name, no object schema, or a reference that cannot be resolved.
    """
    if not isinstance(given, ToolSpec):
        function = given.get("function", given)
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise ToolDefinitionError(
                f"a tool's schema needs a name: expected text under 'name', found {name!r}"
            )
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        given = ToolSpec(name, function.get("description") or "", parameters)
    parameters = given.parameters
    if not isinstance(parameters, Mapping) or parameters.get("type") != "object":
        raise ToolDefinitionError(
            f"tool {given.name!r}: parameters must be a JSON Schema of type 'object' with "
            f"'properties', not {str(parameters)[:80]}"
        )
    try:
        jsonschema.Draft202012Validator.check_schema(dict(parameters))
        resolved = _resolve(parameters, parameters, ())
    except jsonschema.SchemaError as error:
        raise ToolDefinitionError(
            f"tool {given.name!r}: not a JSON Schema: {error.message}"
        ) from None
    except ToolDefinitionError as error:
        raise ToolDefinitionError(f"tool {given.name!r}: {error}") from None
    return ToolSpec(given.name, given.description, resolved)


def _resolve(node: Any, root: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """The schema with every local reference replaced by what it names."""
    if isinstance(node, list):
        return [_resolve(item, root, path) for item in node]
    if not isinstance(node, Mapping):
        return node
    reference = node.get("$ref")
    if isinstance(reference, str):
        if reference in path:
            raise ToolDefinitionError(
                f"the reference {reference!r} leads back to itself, which cannot be shown to a "
                f"model; spell the schema out to a fixed depth"
            )
        beside = {key: value for key, value in node.items() if key != "$ref"}
        target = _look_up(reference, root)
        if isinstance(target, Mapping):
            return _resolve({**target, **beside}, root, (*path, reference))
        return target
    return {
        key: value if key in _DATA else _resolve(value, root, path)
        for key, value in node.items()
        if key not in ("$defs", "definitions")
    }


def _look_up(reference: str, root: Mapping[str, Any]) -> Any:
    """What a JSON pointer such as `#/$defs/Point` names (RFC 6901)."""
    if not reference.startswith("#/"):
        raise ToolDefinitionError(
            f"the reference {reference!r} leads out of the schema; only local ones such as "
            f"'#/$defs/Point' are followed: put what it names under '$defs'"
        )
    found: Any = root
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or key not in found:
            raise ToolDefinitionError(f"the reference {reference!r} names nothing in the schema")
        found = found[key]
    return found
