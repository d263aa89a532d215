"""BFCL's single-turn tasks: which calls are made is all that counts; nothing runs.

The benchmark takes the calls of one message. Here they are collected until the student answers, so
calls made one a turn count like calls side by side; a call too many fails either way. The verdict
is that of the benchmark's `ast_checker`.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

from journeyman.envs.benchmark import BenchmarkEnv, BenchmarkTool, benchmark_module
from journeyman.envs.bfcl.data import Record, entries, ground_truth, tool_spec
from journeyman.envs.core import Observation, Snapshot
from journeyman.envs.shortfall import Difference
from journeyman.envs.task import Task
from journeyman.tools import Tool, ToolCall, ToolResult, execute


@dataclass(frozen=True, slots=True)
class Calls:
    """State of an episode: what was called so far."""

    made: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    malformed: bool = False
    """Some call could not be read."""


class BFCLSingleTurn(BenchmarkEnv):
    """A category of BFCL's single-turn tasks; reward 1.0 if the calls are among the accepted."""

    system = (
        "Use the tools: make the call or calls that the question asks for, all you need and no "
        "other. If none of the tools can be used, or a parameter is missing, say so without a "
        "call. End with a message without a call."
    )
    category: ClassVar[str]

    @classmethod
    def size(cls) -> int:
        """As many tasks as the category's file has lines."""
        return len(entries(cls.category))

    @classmethod
    def load(cls, number: int) -> Task:
        """The task; its gold calls take the first of the accepted values of each argument."""
        entry = entries(cls.category)[number]
        said = entry["question"][0]
        prompt = "\n\n".join(m["content"] for m in said if m["role"] != "system")
        policy = "\n\n".join(m["content"] for m in said if m["role"] == "system")
        state = {"id": entry["id"]}
        return Task("", cls.category, prompt, state, cls._gold(entry), None, policy=policy)

    @classmethod
    def _gold(cls, entry: Record) -> tuple[ToolCall, ...]:
        if cls.category.endswith("irrelevance"):
            return ()
        if cls.category.endswith("relevance"):  # any call will do
            return (ToolCall(entry["function"][0]["name"], {}),)
        functions = {function["name"]: function for function in entry["function"]}
        language = _SOURCE.get(cls.category, "")
        return tuple(
            ToolCall(name, _gold_arguments(functions[name], accepted, language))
            for call in ground_truth(cls.category)[entry["id"]]
            for name, accepted in call.items()
        )

    def open_state(self, task: Task) -> Calls:
        """No call yet."""
        return Calls()

    def begin(self, task: Task) -> tuple[Observation, dict[str, Any]]:
        """Start an episode with the tools of the task."""
        opening = super().begin(task)
        self._tools = self._toolset(task)
        return opening

    def restore(self, snapshot: Snapshot) -> None:
        """Go back (or across) to a branch point of any env of this class."""
        super().restore(snapshot)
        self._tools = self._toolset(snapshot.task)

    def solved(self) -> bool:
        """The benchmark's checker accepts the calls."""
        calls: Calls = self._state
        if self.category.endswith("relevance"):  # irrelevance ends so too
            return bool(calls.made) != self.category.endswith("irrelevance")
        return not calls.malformed and bool(calls.made) and bool(self._checked()["valid"])

    def difference(self) -> tuple[Difference, ...]:
        """What the benchmark's checker objects to."""
        if self.category.endswith("relevance") or not self._state.made:
            return ()
        objections = self._checked().get("error") or ()
        return tuple(Difference.of("checker", str(it), "no objection") for it in objections)

    def _checked(self) -> dict[str, Any]:
        """What the benchmark's checker says of the calls."""
        calls: Calls = self._state
        entry = self._entry(self.task)
        checked: dict[str, Any] = _ast_checker().ast_checker(
            entry["function"],
            [{name: dict(arguments)} for name, arguments in calls.made],
            ground_truth(self.category)[entry["id"]],
            _language(self.category),
            self.category,
            _ANYONE,
        )
        return checked

    def _execute(self, call: ToolCall) -> ToolResult:
        if call.error is None:
            made = (*self._state.made, (call.name, dict(call.arguments)))
            self._state = replace(self._state, made=made)
        else:
            self._state = replace(self._state, malformed=True)
        _, result = execute(call, self._tools, None)
        return result

    @classmethod
    def _entry(cls, task: Task) -> Record:
        return entries(cls.category)[int(task.id.rpartition("/")[2])]

    @classmethod
    def _toolset(cls, task: Task) -> dict[str, Tool]:
        language = _SOURCE.get(cls.category, "")
        specs = (tool_spec(document, language) for document in cls._entry(task)["function"])
        return {spec.name: BenchmarkTool(_noted, spec.name, False, spec) for spec in specs}


_SOURCE = {"simple_java": "Java", "simple_javascript": "JavaScript"}
_ANYONE = "journeyman"


def _noted(state: None, arguments: dict[str, Any]) -> dict[str, str]:
    """The benchmark has no code behind these functions."""
    return {"status": "noted"}


def _gold_arguments(
    function: Mapping[str, Any], accepted: Mapping[str, list[Any]], language: str
) -> dict[str, Any]:
    """The first accepted value of every argument that must be given."""
    parameters = function["parameters"]
    chosen = {}
    for name, values in accepted.items():
        given = [value for value in values if value != ""]
        required = name in parameters.get("required", ())
        if "" in values and not (required and given):
            continue  # may be left out
        value = _first(given[0]) if given else []
        chosen[name] = _source(value, parameters["properties"].get(name, {}), language)
    return chosen


def _first(accepted: Any) -> Any:
    """A value out of nested lists of accepted values: those are the entries of an object."""
    if isinstance(accepted, list):
        return [_first(item) for item in accepted]
    if not isinstance(accepted, Mapping):
        return accepted
    chosen = {}
    for name, values in accepted.items():
        if isinstance(values, list) and "" not in values:
            chosen[name] = _first(values[0]) if values else []
        elif not isinstance(values, list):
            chosen[name] = values
    return chosen


def _source(value: Any, schema: Mapping[str, Any], language: str) -> Any:
    """The value as source text of a language, where arguments are given so."""
    if not language or isinstance(value, str):
        return value
    if language == "Java" and isinstance(value, list):
        items = schema.get("items", {})
        if schema["type"] == "Array":  # the checker would keep the quotes of strings
            inner = ", ".join(_source(v, items, "Java") for v in value)
            return f"new Object[]{{{inner}}}"
        inner = ", ".join(_source(v, items, "Java") for v in map(_quote, value))
        return f"new ArrayList<Object>(Arrays.asList({inner}))" if value else "new ArrayList<>()"
    if language == "Java" and isinstance(value, dict):
        puts = " ".join(f"put({_quote(k)}, {_quote(v)});" for k, v in value.items())
        return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
    suffix = {"float": "f", "long": "L"} if language == "Java" else {"Bigint": "n"}
    return json.dumps(value) + suffix.get(schema.get("type", ""), "")


def _quote(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, str) else value


def _language(category: str) -> Any:
    language = benchmark_module("bfcl_eval.constants.enums").Language
    return language(_SOURCE.get(category, "Python").lower())


@functools.cache
def _ast_checker() -> ModuleType:
    """The benchmark's checker, imported without the table of models that it looks names up in.

    That table imports the software of every provider of models. What the checker reads of it is
    whether a model cannot write dots in names; ours can.
    """
    table = "bfcl_eval.constants.model_config"
    stub = ModuleType(table)
    stub.MODEL_CONFIG_MAPPING = {_ANYONE: SimpleNamespace(underscore_to_dot=False)}  # type: ignore[attr-defined]
    known = sys.modules.get(table)
    sys.modules[table] = stub
    try:
        return benchmark_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
    finally:
        if known is None:
            del sys.modules[table]
        else:
            sys.modules[table] = known
