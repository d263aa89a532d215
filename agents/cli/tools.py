"""`journeyman tools …`."""

from __future__ import annotations

import argparse

from journeyman.agents.cli.base import OK, Commands, command, first_line, print_json


def add(commands: Commands) -> None:
    """Add the commands of the group."""
    listing = command(commands, "list", _tools_list, "list tools by environment")
    listing.add_argument("id", nargs="?", help="one environment (or plugin) only")
    listing.add_argument(
        "--plugins", action="store_true", help="by plugin (entry points `journeyman.tools`) instead"
    )
    listing.add_argument("--json", action="store_true", help="schemas, for programs")


def _tools_list(options: argparse.Namespace) -> int:
    from journeyman.envs import env_class, env_ids
    from journeyman.tools import load_plugins, plugin_tools

    if options.plugins:
        names = list(load_plugins()) if options.id is None else [options.id]
        toolsets = {name: plugin_tools(name) for name in names}
    else:
        names = env_ids() if options.id is None else [options.id]
        toolsets = {env_id: env_class(env_id).toolset for env_id in names}
    specs = {name: [tool.spec for tool in toolset] for name, toolset in toolsets.items()}
    if options.json:
        print_json({name: [s.as_function() for s in specs[name]] for name in names})
        return OK
    for name in names:
        print(name)
        for spec in specs[name]:
            print(f"  {spec.signature()}: {first_line(spec.description)}")
    return OK
