"""`journeyman teacher …`."""

from __future__ import annotations

import argparse

from journeyman.agents.cli.base import Commands, command
from journeyman.agents.cli.serving import become_vllm, serving_options


def add(commands: Commands) -> None:
    """Add the commands of the group."""
    serve = command(
        commands, "serve", _teacher_serve, "serve a model by vLLM, for teacher=served, until Ctrl-C"
    )
    serving_options(serve)
    serve.add_argument(
        "--top-k", type=int, default=16, help="most that teacher.top_k may be (%(default)s)"
    )


def _teacher_serve(options: argparse.Namespace) -> int:
    from journeyman.agents.networks.catalogue import resolve
    from journeyman.agents.teachers.served import SPARE

    most = f"--max-logprobs={options.top_k + SPARE}"
    return become_vllm(options, resolve(options.model), most)
