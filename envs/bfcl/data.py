"""BFCL's files: tasks, gold calls, descriptions of functions."""

from __future__ import annotations

import ast
import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from journeyman.envs.benchmark import benchmark_module
from journeyman.tools import ToolCall, ToolSpec

Record = dict[str, Any]
"""One line of a file."""

_PREFIX = "BFCL_v4"


@functools.cache
def records(name: str) -> list[Record]:
    """A file of JSON lines below the package's data folder; nobody may change what it returns."""
    path = Path(benchmark_module("bfcl_eval").__path__[0]) / "data" / name
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def entries(category: str) -> list[Record]:
    """The tasks of a category, in the benchmark's order."""
    return records(f"{_PREFIX}_{category}.json")


@functools.cache
def ground_truth(category: str) -> dict[str, Any]:
    """Gold by task id: call strings a user turn, or the accepted values of single-turn calls."""
    answers = records(f"possible_answer/{_PREFIX}_{category}.json")
    return {answer["id"]: answer["ground_truth"] for answer in answers}


@functools.cache
def api_class(name: str) -> Any:
    """The class behind a set of functions, such as "TradingBot"."""
    config = benchmark_module("bfcl_eval.constants.executable_backend_config")
    return getattr(benchmark_module(config.CLASS_FILE_PATH_MAPPING[name]), name)


@functools.cache
def api_functions(name: str) -> dict[str, ToolSpec]:
    """The described functions of a class; each is a method of the same name."""
    config = benchmark_module("bfcl_eval.constants.executable_backend_config")
    documents = records(f"multi_turn_func_doc/{config.MULTI_TURN_FUNC_DOC_FILE_MAPPING[name]}")
    return {document["name"]: tool_spec(document) for document in documents}


def gold_call(text: str, api: Sequence[str]) -> ToolCall:
    """A call string such as "sort('a.txt')" as a structured call.

    Args:
        text: One call with literal arguments.
        api: The classes that may have the method; it names the positional arguments.
    """
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    name = call.func.id
    owner = next(owner for owner in api if name in api_functions(owner))
    names = list(inspect.signature(getattr(api_class(owner), name)).parameters)[1:]  # self
    values = [(names[i], value) for i, value in enumerate(call.args)]
    values += [(keyword.arg or "", keyword.value) for keyword in call.keywords]
    return ToolCall(name, {argument: ast.literal_eval(value) for argument, value in values})


_TYPES = {
    "dict": "object",
    "float": "number",
    "double": "number",
    "long": "integer",
    "tuple": "array",
    "list": "array",
    "bool": "boolean",
    "String": "string",
}
"""BFCL's names of types that JSON Schema spells otherwise; "any" is no constraint."""


def tool_spec(document: Mapping[str, Any], language: str = "") -> ToolSpec:
    """A function's description as JSON Schema.

    Args:
        document: BFCL's form, whose types are those of Python, Java or JavaScript.
        language: "Java" or "JavaScript": the arguments are literals of that language, as strings.
    """
    parameters = document["parameters"]
    described = {
        name: _literal(schema, language) if language else _schema(schema)
        for name, schema in parameters["properties"].items()
    }
    schema = {
        "type": "object",
        "properties": described,
        "required": list(parameters.get("required", ())),
    }
    return ToolSpec(document["name"], document["description"], schema)


def _literal(schema: Mapping[str, Any], language: str) -> dict[str, Any]:
    note = f"A {language} {schema['type']}, written as a string of {language} source."
    return {"type": "string", "description": f"{schema.get('description', '')} {note}".strip()}


def _schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in schema.items() if key not in ("type", "optional")}
    if "items" in schema:
        kept["items"] = _schema(schema["items"])
    if "properties" in schema:
        kept["properties"] = {n: _schema(s) for n, s in schema["properties"].items()}
    kind = schema.get("type", "any")
    return kept if kind == "any" else {"type": _TYPES.get(kind, kind), **kept}
