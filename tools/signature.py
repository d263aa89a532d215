"""What a typed, documented function says of itself, in the form that chat templates and TRL read.

It is what `transformers.utils.get_json_schema` makes of the function: the tests compare the two.
transformers itself brings torch along, and whoever only lists tools would wait seconds for it.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Container
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_NAMES: dict[Any, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    NoneType: "null",
}
_SECTION = re.compile(r"\s*(Args|Returns|Raises):\s*")
_ARGUMENT = re.compile(r"\s*(\w+):\s*(.*)")
_CHOICES = re.compile(r"\s*\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def describe(
    function: Callable[..., Any], hidden: Container[str] = ()
) -> tuple[str, dict[str, Any]]:
    """A function's description and the JSON Schema of its parameters.

    Args:
        function: With type hints and a Google-style docstring.
        hidden: Parameters that are left out.

    Raises:
        ValueError: A parameter has no description, or a type without a form in JSON.
    """
    description, notes = _read(inspect.getdoc(function) or "")
    if not description:
        raise ValueError("it has no docstring.")
    properties, required = {}, []
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if name in hidden:
            continue
        if name not in notes:
            raise ValueError(f"the docstring has no description for the argument {name!r}.")
        properties[name] = _schema(parameter.annotation) | _note(notes[name])
        if parameter.default is parameter.empty:
            required.append(name)
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    return description, schema | ({"required": required} if required else {})


def _read(docstring: str) -> tuple[str, dict[str, str]]:
    """What stands before the sections, and the notes under "Args:" by name."""
    text: list[str] = []
    notes: dict[str, list[str]] = {}
    section, name = "", ""
    for line in docstring.splitlines():
        if heading := _SECTION.fullmatch(line):
            section = heading[1]
        elif not section:
            text.append(line)
        elif section == "Args" and (start := _ARGUMENT.fullmatch(line)):
            name = start[1]
            notes[name] = [start[2]]
        elif section == "Args" and name and line.strip():
            notes[name].append(line)
    joined = {n: " ".join(part.strip() for part in lines if part) for n, lines in notes.items()}
    return "\n".join(text).strip(), joined


def _note(text: str) -> dict[str, Any]:
    """A description; with "(choices: [...])" at its end, also what may be chosen."""
    choices = _CHOICES.search(text)
    if choices is None:
        return {"description": text}
    values = [v.strip() if isinstance(v, str) else v for v in json.loads(choices[1])]
    return {"enum": values, "description": text[: choices.start()]}


def _schema(hint: Any) -> dict[str, Any]:
    """A type hint as JSON Schema."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if origin is None:
        return {"type": _NAMES.get(NoneType if hint is None else hint, "object")}
    if origin is Annotated:
        return _schema(args[0])
    if origin in (Union, UnionType):
        return _union([_schema(a) for a in args if a is not NoneType], NoneType in args)
    if origin is Literal and all(type(a) in _NAMES for a in args):
        kinds = list(dict.fromkeys(_NAMES[type(a)] for a in args))
        return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": list(args)}
    if origin is list:
        return {"type": "array"} | ({"items": _schema(args[0])} if args else {})
    if origin is tuple and len(args) != 1 and ... not in args:
        return {"type": "array"} | ({"prefixItems": [_schema(a) for a in args]} if args else {})
    if origin is dict:
        return {"type": "object"} | ({"additionalProperties": _schema(args[1])} if args else {})
    raise ValueError(f"the type {hint} has no form in JSON; use list[…] where the length varies.")


def _union(kinds: list[dict[str, Any]], nullable: bool) -> dict[str, Any]:
    if len(kinds) == 1:
        schema = kinds[0]
    elif all(isinstance(kind.get("type"), str) for kind in kinds):
        schema = {"type": sorted(kind["type"] for kind in kinds)}
    else:
        schema = {"anyOf": kinds}
    return schema | ({"nullable": True} if nullable else {})
