"""`journeyman models …`."""

from __future__ import annotations

import argparse
import sys

from journeyman.agents.cli.base import OK, Commands, columns, command


def add(commands: Commands) -> None:
    """Add the commands of the group."""
    command(commands, "list", _models_list, "list models by name")
    pull = command(commands, "pull", _models_pull, "fetch a model into the cache, print its folder")
    path = command(commands, "path", _models_path, "print what a name stands for")
    for parser in (pull, path):
        parser.add_argument("name", help="such as smollm2-135m")


def _models_list(options: argparse.Namespace) -> int:
    from journeyman.agents.networks import catalogue

    rows = (
        (name, str(folder) if folder else f"not here; run: {catalogue.how_to_get(name)}")
        for name, folder in catalogue.available().items()
    )
    print(columns(rows))
    return OK


def _models_pull(options: argparse.Namespace) -> int:
    from journeyman.agents.networks import catalogue

    # Stages go to stderr: `$(journeyman models pull NAME)` is the folder.
    print(catalogue.pull(options.name, lambda line: print(line, file=sys.stderr, flush=True)))
    return OK


def _models_path(options: argparse.Namespace) -> int:
    from journeyman.agents.networks import catalogue

    print(catalogue.resolve(options.name))
    return OK
