"""τ²-bench's domains: their environments, tools and tasks, loaded once a process."""

from __future__ import annotations

import copy
import functools
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from journeyman.envs.benchmark import BenchmarkTool, benchmark_module
from journeyman.envs.tau2.records import fork
from journeyman.tools import Tool, ToolError, ToolSpec


def tau2(name: str) -> ModuleType:
    """A module of the package, imported without network and without its log on stderr.

    Raises:
        MissingBenchmarkError: It is not installed.
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    benchmark_module("loguru").logger.disable("tau2")
    return benchmark_module(f"tau2.{name}")


class Tau2World:
    """One episode's environment: the benchmark's objects on databases of its own."""

    def __init__(self, template: Any, database: Any, user_database: Any) -> None:
        """Fork the databases; the template is shared and only read."""
        self.environment = copy.copy(template)
        self.environment.tools = _on(template.tools, database)
        self.environment.user_tools = _on(template.user_tools, user_database)

    @property
    def databases(self) -> tuple[Any, Any]:
        """The agent's database and the user's (None where users have no tools)."""
        user_tools = self.environment.user_tools
        return self.environment.tools.db, None if user_tools is None else user_tools.db

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool as the agent; returns its result in the benchmark's text form.

        Raises:
            ToolError: The tool raised.
        """
        try:
            result = self.make_tool_call(name, arguments, "assistant")
            self.environment.sync_tools()
        except Exception as error:  # the benchmark shows it to the model, whatever it is
            raise ToolError(f"Error: {error}") from error
        return str(self.environment.to_json_str(result))

    def make_tool_call(self, name: str, arguments: Mapping[str, Any], requestor: str) -> Any:
        """Call a tool as the agent or the user; returns what it returns and raises what it raises.

        A tool may keep what it is given and change it later, so it gets a copy.
        """
        _BILL_IDS.count = len(getattr(self.environment.tools.db, "bills", ()))
        own = copy.deepcopy(dict(arguments))
        return self.environment.make_tool_call(name, requestor=requestor, **own)


def _on(toolkit: Any, database: Any) -> Any:
    if toolkit is None:
        return None
    own = copy.copy(toolkit)
    own.db = fork(database)
    return own


class Domain:
    """What all tasks of a domain share."""

    def __init__(self, name: str, solo: bool) -> None:
        """Load the databases and the tasks.

        Args:
            name: "airline", "retail" or "telecom".
            solo: The agent has the user's tools too, in the benchmark's own solo mode.
        """
        module = tau2(f"domains.{name}.environment")
        if name == "telecom":
            tau2("domains.telecom.tools").uuid = _BILL_IDS  # type: ignore[attr-defined]
        self.template = module.get_environment(solo_mode=solo)
        self.origin = self._databases()
        self.tasks = _read_tasks(name)

    def _databases(self) -> tuple[Any, Any]:
        user_tools = self.template.user_tools
        return self.template.tools.db, None if user_tools is None else user_tools.db

    def world(self, databases: tuple[Any, Any] | None = None) -> Tau2World:
        """A world that goes on from databases that nobody will change, by default the first."""
        return Tau2World(self.template, *(databases or self.origin))

    @functools.cached_property
    def toolset(self) -> dict[str, Tool]:
        """The agent's tools, and the user's in solo mode."""
        tools = self.template.get_tools()
        if self.template.solo_mode:
            tools += self.template.get_user_tools()
        functions = [tool.openai_schema["function"] for tool in tools]
        specs = [ToolSpec(f["name"], f["description"], f["parameters"]) for f in functions]
        return {
            spec.name: BenchmarkTool(functools.partial(_call, spec.name), spec.name, True, spec)
            for spec in specs
        }


def _call(name: str, world: Tau2World, arguments: dict[str, Any]) -> str:
    return world.call(name, arguments)


def _read_tasks(name: str) -> list[Any]:
    """The tasks of the benchmark's base split, validated (the whole file takes seconds)."""
    folder = Path(tau2("utils").DATA_DIR) / "tau2" / "domains" / name
    base = set(json.loads((folder / "split_tasks.json").read_text())["base"])
    listed = json.loads((folder / "tasks.json").read_text())
    model = tau2("data_model.tasks").Task
    return [model.model_validate(task) for task in listed if task["id"] in base]


def _bill_uuid() -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_OID, str(_BILL_IDS.count))


# Stands for the module `uuid` in the telecom tools: ids of new bills follow from their number, so
# that equal actions lead to equal states.
_BILL_IDS = SimpleNamespace(uuid4=_bill_uuid, count=0)
