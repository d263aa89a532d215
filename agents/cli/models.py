"""`journeyman models …` and `journeyman export`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from journeyman.agents.cli.base import FAILED, OK, Commands, columns, command, print_json


def add(commands: Commands) -> None:
    """Add the commands of the group."""
    command(commands, "list", _models_list, "list models by name")
    pull = command(commands, "pull", _models_pull, "fetch a model into the cache, print its folder")
    path = command(commands, "path", _models_path, "print what a name stands for")
    for parser in (pull, path):
        parser.add_argument("name", help="such as smollm2-135m")
    merge = command(commands, "merge", _models_merge, "write an adapter and its base as one model")
    merge.add_argument("name", metavar="DIR", help="of the adapter, such as runs/NAME/model")
    merge.add_argument("out", metavar="OUT", type=Path, help="a new folder")
    check = command(
        commands,
        "check",
        _models_check,
        "try a model's tokenizer: can a student be played with it?",
    )
    check.add_argument(
        "name", help="a folder with a tokenizer (weights are not read), a name or id"
    )
    check.add_argument("--dialect", metavar="NAME", help="as student.dialect=; else it is told")
    check.add_argument("--calls", type=int, default=500, help="random calls to try (%(default)s)")
    check.add_argument("--json", action="store_true", help="print JSON")


def add_export(commands: Commands) -> None:
    """Add the command."""
    export = command(
        commands, "export", _export, "write a model as a folder that transformers and vLLM serve"
    )
    export.add_argument("name", metavar="DIR", help="of the model; an adapter is merged")
    export.add_argument("out", metavar="OUT", type=Path, help="a new folder")
    export.add_argument(
        "--gguf", action="store_true", help="and OUT/NAME.gguf, by llama.cpp's converter"
    )


def _models_list(options: argparse.Namespace) -> int:
    from journeyman.agents.networks import catalogue

    rows = [
        (name, str(folder) if folder else f"not here; run: {catalogue.how_to_get(name)}")
        for name, folder in catalogue.available().items()
    ]
    print(columns([*rows, *catalogue.trained()]))
    return OK


def _models_merge(options: argparse.Namespace) -> int:
    from journeyman.agents.students.exporting import merge

    print(merge(options.name, options.out))
    return OK


def _export(options: argparse.Namespace) -> int:
    from journeyman.agents.students.exporting import converter, export, to_gguf

    program = converter() if options.gguf else None  # before a model is loaded
    folder = export(options.name, options.out)
    print(folder if program is None else to_gguf(folder, program))
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


def _models_check(options: argparse.Namespace) -> int:
    from journeyman.agents.networks import catalogue

    if not Path(options.name).is_dir():  # which may hold a tokenizer alone
        catalogue.check(options.name)
    from journeyman.agents.students.tokenizers import checked

    found = checked(options.name, options.dialect, options.calls)
    if options.json:
        print_json({"playable": found.playable, **dict(found.rows())})
    else:
        print(columns(found.rows()))
    return OK if found.playable else FAILED
