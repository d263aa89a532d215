"""`journeyman cluster`: a Ray cluster of this machine, for a try of `rollouts=ray`."""

from __future__ import annotations

import argparse

from journeyman.agents.cli.base import FAILED, OK, Commands, command


def add(commands: Commands) -> None:
    """Add `up`, `down` and `status`."""
    starting = command(commands, "up", _up, "start a Ray cluster of this machine, on loopback")
    starting.add_argument(
        "--local",
        type=_workers,
        required=True,
        metavar="N",
        help="workers that there is room for, at one CPU each (on a cluster: its own `ray start`)",
    )
    starting.add_argument(
        "--port", type=_port, help="of its address (default: one that is free)", metavar="PORT"
    )
    command(commands, "down", _down, "stop the cluster that `up` started, by pid, and no other")
    command(commands, "status", _status, "the cluster that is up; exit status 1 if none is")


def _workers(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1024 <= int(text) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (1024 to 65535)")
    return int(text)


def _up(options: argparse.Namespace) -> int:
    from journeyman.agents.rollouts.workers.own_cluster import state_file, up

    found = up(options.local, options.port)
    print(
        f"up: {found.address}, room for {found.workers} workers (pid {found.pid}, written down in "
        f"{state_file()})\nruns with rollouts=ray use it; journeyman cluster down stops it"
    )
    return OK


def _down(options: argparse.Namespace) -> int:
    from journeyman.agents.rollouts.workers.own_cluster import down

    found = down()
    print(f"down: {found.address} (pid {found.pid})")
    return OK


def _status(options: argparse.Namespace) -> int:
    from journeyman.agents.rollouts.workers.own_cluster import standing

    found = standing()
    if found is None:
        print("down: journeyman cluster up --local 2 starts one")
        return FAILED
    if not found.alive:
        print(f"gone: pid {found.pid} has died; journeyman cluster down clears it away")
        return FAILED
    print(f"up: {found.address}, room for {found.workers} workers (pid {found.pid})")
    return OK
