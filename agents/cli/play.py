"""`journeyman play`."""

from __future__ import annotations

import argparse
import sys

from journeyman.agents.cli.base import FAILED, OK, Commands, command, task_id


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "play", _play, "play the agent yourself")
    parser.add_argument("id", help="environment, such as journeyman/Bank-v0")
    parser.add_argument("--task", type=task_id, help="task id or number (default: a random one)")
    parser.add_argument("--split", help="where a random task is drawn from (default: its own)")


def _play(options: argparse.Namespace) -> int:
    from journeyman.agents.cli.person import play

    played = play(options.id, sys.stdin, sys.stdout, options.split, options.task)
    return OK if played else FAILED
