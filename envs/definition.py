"""What is wrong with an environment as it is written, seen without playing it.

`ToolEnv` asks when it is made and the registry when it looks a class up, so that a mistake is named
before any task is drawn; `journeyman envs check` lists them all.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from journeyman.envs.errors import InvalidEnvError
from journeyman.envs.types import LEVELS
from journeyman.tools import Tool

_OF_THE_CLASS = ("generate", "outcome", "task_count", "tasks", "load_task")
"""What is asked of the class: a task is loaded where no environment is at hand."""


def require(cls: Any) -> None:
    """Refuse a class that cannot work as it is written.

    Args:
        cls: A subclass of `ToolEnv`.

    Raises:
        InvalidEnvError: The message says what to write.
    """
    found = _all_mistakes(cls)
    if found:
        raise InvalidEnvError("; ".join(found))


@functools.lru_cache(maxsize=256)
def _all_mistakes(cls: Any) -> tuple[str, ...]:
    """Looked for once a class: environments are made by the thousand."""
    return tuple(mistakes(cls))


def mistakes(cls: Any) -> Iterator[str]:
    """What is wrong with a class, one sentence a mistake.

    Args:
        cls: A subclass of `ToolEnv`.
    """
    name = cls.__name__
    yield from _mistakes_of_tools(name, getattr(cls, "toolset", None))
    if not _draws(cls):
        yield f"{name} has no generate(cls, rng, split, level), which draws a task"
    for method in _OF_THE_CLASS:
        written = inspect.getattr_static(cls, method)
        if not isinstance(written, classmethod | staticmethod):
            yield f"{name}.{method} is no class method: write @classmethod above it"
    levels = cls.levels
    if not isinstance(levels, tuple | list) or not levels or not set(levels) <= set(LEVELS):
        some = "('easy',)" if levels not in LEVELS else f"({levels!r},)"
        known = ", ".join(LEVELS)
        yield f"{name}.levels is {levels!r}: expected a tuple of some of {known}; write {some}"
    if not isinstance(cls.harmless, Mapping):
        yield (
            f"{name}.harmless is {cls.harmless!r:.80}: expected a mapping from what is forgiven to "
            f"the reason"
        )
    if not isinstance(cls.system, str):
        yield f"{name}.system is {cls.system!r:.80}: expected a str"


def _mistakes_of_tools(name: str, toolset: object) -> Iterator[str]:
    if toolset is None:
        yield f"{name} has no tools: write toolset = (…,)"
        return
    if isinstance(toolset, Tool):
        yield f"{name}.toolset is a single tool: write ({toolset.name},)"
        return
    if not isinstance(toolset, tuple | list):
        yield f"{name}.toolset is {toolset!r:.80}: expected a tuple of tools"
        return
    for item in toolset:
        if inspect.isroutine(item):
            yield f"{name}.toolset holds the function {item.__name__}: write @tool above it"
        elif not isinstance(item, Tool):
            yield f"{name}.toolset holds {item!r:.80}: expected a tool, a function under @tool"


def _draws(cls: Any) -> bool:
    """True if the class draws tasks, or has another way to load them."""
    line = cls.__mro__
    writer = next(i for i, c in enumerate(line) if "generate" in vars(c))
    if not getattr(vars(line[writer])["generate"], "__isabstractmethod__", False):
        return True
    return any(way in vars(c) for c in line[:writer] for way in ("load_task", "_task_at"))


def tool_mistakes(cls: Any) -> Iterator[str]:
    """What is wrong with the tools that all tasks of a class share, one sentence a mistake.

    Apart from `mistakes`, since reading a docstring costs more than a listing should.
    """
    seen: set[str] = set()
    for tool in cls.toolset:
        if tool.name in seen:
            yield f"{cls.__name__} has two tools of one name: {tool.name}"
            continue
        seen.add(tool.name)
        yield from _mistakes_of_tool(tool)


def _mistakes_of_tool(tool: Tool) -> Iterator[str]:
    if inspect.iscoroutinefunction(tool.function):
        yield f"tool {tool.name!r} is async: write def, tools that wait run in threads"
        return
    try:
        spec = tool.spec
    except TypeError as error:
        yield str(error)
        return
    if not spec.description.strip():
        yield f"tool {tool.name!r} has no description: a model reads the docstring's first line"
    for parameter, schema in spec.parameters.get("properties", {}).items():
        if schema is True or (isinstance(schema, Mapping) and not _says_something(schema)):
            yield (
                f"tool {tool.name!r}: the schema of {parameter!r} takes anything; give it a type, "
                f"an enum or a const"
            )


def _says_something(schema: Mapping[str, Any]) -> bool:
    return bool(set(schema) - {"title", "description", "default", "examples", "$comment"})
