"""`journeyman tools …`."""

from __future__ import annotations

import argparse

from journeyman.agents.cli.base import OK, Commands, command, first_line, print_json


def add(commands: Commands) -> None:
    """Add the commands of the group."""
    listing = command(commands, "list", _tools_list, "list tools by environment")
    listing.add_argument("id", nargs="?", help="one environment only")
    listing.add_argument("--json", action="store_true", help="schemas, for programs")


def _tools_list(options: argparse.Namespace) -> int:
    from journeyman.envs import env_class, env_ids

    ids = env_ids() if options.id is None else [options.id]
    specs = {env_id: [tool.spec for tool in env_class(env_id).toolset] for env_id in ids}
    if options.json:
        print_json({env_id: [s.as_function() for s in specs[env_id]] for env_id in ids})
        return OK
    for env_id in ids:
        print(env_id)
        for spec in specs[env_id]:
            print(f"  {spec.signature()}: {first_line(spec.description)}")
    return OK
