"""`journeyman tools …`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from journeyman.agents.cli.base import OK, Commands, command, first_line, print_json
from journeyman.agents.cli.envs import tools_of

if TYPE_CHECKING:
    from journeyman.tools import ToolSpec


def add(commands: Commands) -> None:
    """Add the commands of the group."""
    listing = command(commands, "list", _tools_list, "list tools by environment")
    listing.add_argument("id", nargs="?", help="one environment (or plugin) only")
    listing.add_argument(
        "--plugins", action="store_true", help="by plugin (entry points `journeyman.tools`) instead"
    )
    listing.add_argument("--json", action="store_true", help="schemas, for programs")


def _tools_list(options: argparse.Namespace) -> int:
    from journeyman.envs import env_ids
    from journeyman.tools import load_plugins, plugin_tools

    listed: dict[str, tuple[str, list[ToolSpec] | None]]
    """Heading and tools by name; None where they come with tasks."""
    if options.plugins:
        names = list(load_plugins()) if options.id is None else [options.id]
        listed = {name: (name, [tool.spec for tool in plugin_tools(name)]) for name in names}
    elif options.id is not None:
        listed = {options.id: _of_one(options.id)}
    else:
        listed = {env_id: _of_class(env_id) for env_id in env_ids()}
    if options.json:
        print_json({n: s and [spec.as_function() for spec in s] for n, (_, s) in listed.items()})
        return OK
    for heading, specs in listed.values():
        print(heading)
        for spec in specs or ():
            print(f"  {spec.signature()}: {first_line(spec.description)}")
    return OK


def _of_class(env_id: str) -> tuple[str, list[ToolSpec] | None]:
    from journeyman.envs import env_class

    specs = [tool.spec for tool in env_class(env_id).toolset]
    # A benchmark's come with its tasks, and it may not be installed.
    return (env_id, specs) if specs else (f"{env_id}: name it alone to see its tools", None)


def _of_one(env_id: str) -> tuple[str, list[ToolSpec]]:
    from journeyman.envs import make

    with make(env_id) as env:
        heading, specs = tools_of(env)
    return (env_id if heading == "Tools" else f"{env_id}: {heading}"), specs
