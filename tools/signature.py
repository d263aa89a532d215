"""What a typed, documented function says of itself, in the form that chat templates and TRL read.

For plain types it is what `transformers.utils.get_json_schema` makes of the function: the tests
compare the two. transformers itself brings torch along, and whoever only lists tools would wait
seconds for it; it takes every type that it does not know for an object, and forgets what the items
of `list[int] | str` are. Types that are not plain are asked of `annotations.py`.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Container, Mapping
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


Converters = Mapping[str, Callable[[Any], Any]]
"""What makes of a value of JSON what a type hint says, by parameter; each raises a ValueError that
says what was expected."""


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
    parameters = _parameters(function, hidden)
    for name in parameters:
        if name not in notes:
            raise ValueError(f"the docstring has no description for the argument {name!r}.")
    types, definitions, _ = _read_hints(parameters)
    properties = {name: types[name] | _note(notes[name]) for name in parameters}
    required = [name for name, it in parameters.items() if it.default is it.empty]
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    schema |= {"required": required} if required else {}
    return description, schema | ({"$defs": definitions} if definitions else {})


def converters(function: Callable[..., Any], hidden: Container[str] = ()) -> Converters:
    """What a function's arguments need; those that are taken as JSON has them need nothing.

    Raises:
        ValueError: A type has no form in JSON.
    """
    return _read_hints(_parameters(function, hidden))[2]


def _parameters(
    function: Callable[..., Any], hidden: Container[str]
) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function, eval_str=True).parameters
    return {name: it for name, it in parameters.items() if name not in hidden}


def _read_hints(
    parameters: Mapping[str, inspect.Parameter],
) -> tuple[dict[str, dict[str, Any]], Mapping[str, Any], Converters]:
    """Type hints as JSON Schema, the definitions that these refer to, and converters."""
    plain: dict[str, dict[str, Any]] = {}
    others: dict[str, Any] = {}
    for name, parameter in parameters.items():
        try:
            plain[name] = _schema(parameter.annotation)
        except _NotPlain:
            others[name] = parameter.annotation
    if not others:
        return plain, {}, {}
    # pydantic takes its time to import, and most tools have no need of it.
    from journeyman.tools.annotations import read_hints

    found = read_hints(others)
    return plain | dict(found.schemas), found.definitions, found.converters


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


class _NotPlain(Exception):
    """A type hint that says more than a type of JSON."""


def _schema(hint: Any) -> dict[str, Any]:
    """A plain type hint as JSON Schema.

    Raises:
        _NotPlain: It is none.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if hint is object or hint is dict:
        return {"type": "object"}
    if hint is list:
        return {"type": "array"}
    if hint is None or (isinstance(hint, type) and hint in _NAMES):
        return {"type": _NAMES[NoneType if hint is None else hint]}
    if origin is Annotated and all(isinstance(note, str) for note in hint.__metadata__):
        return _schema(args[0])
    if origin in (Union, UnionType):
        return _union([_schema(a) for a in args if a is not NoneType], NoneType in args)
    if origin is Literal and all(type(a) in _NAMES for a in args):
        kinds = list(dict.fromkeys(_NAMES[type(a)] for a in args))
        return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": list(args)}
    if origin is list:
        return {"type": "array"} | ({"items": _schema(args[0])} if args else {})
    if origin is dict and args[:1] in ((), (str,)):
        return {"type": "object"} | ({"additionalProperties": _schema(args[1])} if args else {})
    raise _NotPlain


def _union(kinds: list[dict[str, Any]], nullable: bool) -> dict[str, Any]:
    if len(kinds) == 1:
        schema = kinds[0]
    elif all(kind.keys() == {"type"} and isinstance(kind["type"], str) for kind in kinds):
        schema = {"type": sorted(kind["type"] for kind in kinds)}
    else:
        schema = {"anyOf": kinds}
    return schema | ({"nullable": True} if nullable else {})
