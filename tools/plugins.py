"""Tools of other packages: the entry-point group `journeyman.tools`.

An entry point names a module (or any object) with `TOOLS`, a tuple of `Tool`s; the built-in domains
are found the same way. An environment then says `toolset = plugin_tools("acme")`.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from types import MappingProxyType

from journeyman.tools.doors import load_group
from journeyman.tools.errors import UnknownToolsError
from journeyman.tools.tool import Tool

ENTRY_POINTS = "journeyman.tools"


@functools.cache
def load_plugins() -> Mapping[str, tuple[Tool, ...]]:
    """The tools of every entry point of the group, by its name; imported once.

    A broken plugin must not take the others down: it is reported as a warning and left out.
    """
    loaded = load_group(ENTRY_POINTS, _objection)
    return MappingProxyType({name: tuple(it.TOOLS) for name, it in loaded.items()})


def plugin_tools(name: str) -> tuple[Tool, ...]:
    """The tools of one plugin.

    Raises:
        UnknownToolsError: No such plugin; the message suggests the nearest.
    """
    plugins = load_plugins()
    if name not in plugins:
        near = difflib.get_close_matches(name, plugins, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(plugins)}"
        raise UnknownToolsError(f"no tools {name!r}; {hint}")
    return plugins[name]


def _objection(loaded: object) -> str | None:
    tools = getattr(loaded, "TOOLS", None)
    if isinstance(tools, (tuple, list)) and all(isinstance(tool, Tool) for tool in tools):
        return None
    return f"expected a module with TOOLS, a tuple of Tool, not {tools!r}"
