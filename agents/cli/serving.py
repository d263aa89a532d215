"""What `journeyman teacher serve` and `journeyman student serve` share: vLLM's server."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping

from journeyman.agents.cli.base import Parser


def serving_options(parser: Parser) -> None:
    """Add what any server is told."""
    parser.add_argument("model", help="a folder, a name of `journeyman models list`, or a hub id")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at (%(default)s)")
    parser.add_argument(
        "--engine",
        type=shlex.split,
        default=[],
        metavar="OPTIONS",
        help="vLLM's own in one word, such as --engine='--dtype bfloat16 --max-model-len 8192'",
    )


def become_vllm(
    options: argparse.Namespace,
    model: str,
    *more: str,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Be vLLM's server of a model from here on, in this process's place.

    Args:
        options: See `serving_options`.
        model: What is loaded: a folder, or a hub id.
        more: Of its options.
        environment: Variables that it is to have beside this process's.

    Raises:
        MissingExtraError: vLLM is not installed.
    """
    from journeyman.agents.errors import MissingExtraError

    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError(
            "models are served by vLLM: pip install 'journeyman[vllm]' (on a machine without a "
            "GPU see docs/vllm.md)"
        )
    command_line = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",  # `vllm serve` fails in the CPU wheel
        f"--model={model}",
        f"--served-model-name={options.model}",
        f"--host={options.host}",
        f"--port={options.port}",
        *more,
        *options.engine,
    ]
    # In its place: signals reach the server itself, and nothing is left when it ends.
    os.execve(sys.executable, command_line, {**os.environ, **(environment or {})})
