"""`journeyman student …`."""

from __future__ import annotations

import argparse

from journeyman.agents.cli.base import Commands, command, count
from journeyman.agents.cli.serving import become_vllm, serving_options


def add(commands: Commands) -> None:
    """Add the commands of the group."""
    serve = command(
        commands,
        "serve",
        _student_serve,
        "serve a model by vLLM, for student=vllm_server, until Ctrl-C; whoever reaches the port "
        "may replace its weights",
    )
    serving_options(serve)
    serve.add_argument(
        "--lora-rank",
        type=count,
        default=0,
        metavar="N",
        help="take adapters of up to this rank instead of whole weights (0: whole weights)",
    )


def _student_serve(options: argparse.Namespace) -> int:
    from journeyman.agents.networks.catalogue import resolve, whole
    from journeyman.agents.students.vllm_doors import ENVIRONMENT, WORKER
    from journeyman.agents.students.weights import lora_rank, rank_at

    folder = resolve(options.model)
    rank = options.lora_rank or rank_at(folder) or 0
    more = [f"--worker-extension-cls={WORKER}", "--generation-config=vllm"]
    if rank:
        more += ["--enable-lora", f"--max-lora-rank={lora_rank(rank)}"]
    return become_vllm(options, resolve(whole(options.model)), *more, environment=ENVIRONMENT)
