"""`journeyman teacher …`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys

from journeyman.agents.cli.base import Commands, command


def add(commands: Commands) -> None:
    """Add the commands of the group."""
    serve = command(
        commands, "serve", _teacher_serve, "serve a model by vLLM, for teacher=served, until Ctrl-C"
    )
    serve.add_argument("model", help="a folder, a name of `journeyman models list`, or a hub id")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="port to listen at (%(default)s)")
    serve.add_argument(
        "--top-k", type=int, default=16, help="most that teacher.top_k may be (%(default)s)"
    )
    serve.add_argument(
        "--engine",
        type=shlex.split,
        default=[],
        metavar="OPTIONS",
        help="vLLM's own in one word, such as --engine='--dtype bfloat16 --max-model-len 8192'",
    )


def _teacher_serve(options: argparse.Namespace) -> int:
    from journeyman.agents.errors import MissingExtraError
    from journeyman.agents.networks.catalogue import resolve
    from journeyman.agents.teachers.served import SPARE

    folder = resolve(options.model)
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError(
            "a teacher is served by vLLM: pip install 'journeyman[vllm]' (on a machine without a "
            "GPU see docs/vllm.md)"
        )
    command_line = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",  # `vllm serve` fails in the CPU wheel
        f"--model={folder}",
        f"--served-model-name={options.model}",
        f"--host={options.host}",
        f"--port={options.port}",
        f"--max-logprobs={options.top_k + SPARE}",
        *options.engine,
    ]
    # In its place: signals reach the server itself, and nothing is left when it ends.
    os.execv(sys.executable, command_line)
