"""Ray clusters: one of this machine, started and stopped by pid; and where one is that is up."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import logging
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from journeyman.agents.errors import CommandError, CrewError, MissingExtraError
from journeyman.agents.rollouts.workers.head import QUIET

STARTING = 120.0
"""Seconds that a cluster of this machine may take to start; a quiet one takes five."""
STOPPING = 20.0
"""Seconds that it may take to stop by itself."""
_LONGEST = 40
"""Characters of the folder for temporary files, below which Ray's sockets have names that fit."""


def check_ray() -> None:
    """See that Ray is installed, without importing it.

    Raises:
        MissingExtraError: It is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("rollouts=ray needs Ray: pip install 'journeyman[ray]'")


def join(address: str, token: str | None = None) -> Any:
    """Ray, as a driver of a cluster; it tells nobody that it is used.

    Args:
        address: Such as "10.0.0.7:6379", "ray://…", or "auto".
        token: Of a cluster of this machine, see `LocalCluster`; None leaves it to Ray itself.

    Raises:
        CrewError: Nobody answers there, or this process is a driver of another cluster.
        MissingExtraError: Ray is not installed.
    """
    check_ray()
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if token is not None:
        os.environ |= _authentication(token)
    ray = importlib.import_module("ray")
    constants: Any = importlib.import_module("ray._private.ray_constants")
    worker: Any = importlib.import_module("ray._private.worker")
    worker.print_to_stdstream = lambda *_, **__: None  # deaths, at length: the crew tells of them
    host = address.rpartition("://")[2].rpartition(":")[0]
    constants.ENABLE_RAY_CLUSTER = host not in ("127.0.0.1", "localhost")  # see `head.LOOPBACK`
    try:
        ray.init(
            address=address,
            namespace="journeyman",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise CrewError(
            f"rollouts.address={address}: no Ray cluster answers there ({str(error)[:200]}); on "
            f"this machine journeyman cluster up --local 2 starts one, and null takes it"
        ) from error
    return ray


def _authentication(token: str) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


@functools.cache
def own_token() -> str:
    """Of the clusters that this process starts: Ray reads it once."""
    return os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)


@dataclass(frozen=True)
class ClusterState:
    """A cluster of this machine that stays up, as its state file has it."""

    address: str
    token: str
    """Without it nobody else on this machine can have code run there."""
    workers: int
    """That there is room for, at one CPU each."""
    folder: str
    """Of its temporary files."""
    pid: int
    """Of the process that ends it."""
    started: dict[str, int]
    """Its processes, by pid -> when they started, which tells them from later ones of that pid."""

    @property
    def alive(self) -> bool:
        """True if the process that holds it is the one that was started."""
        return _start_of(self.pid) == self.started[str(self.pid)]


def state_file() -> Path:
    """Where a cluster that is up is written down: in the user's XDG state."""
    home = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    return home / "journeyman" / "cluster.json"


def standing() -> ClusterState | None:
    """The cluster that was started here and not stopped; it may have died."""
    try:
        return ClusterState(**json.loads(state_file().read_text()))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise CommandError(f"{state_file()} holds no cluster ({error}): delete it") from error


def up(workers: int, port: int | None = None) -> ClusterState:
    """Start a cluster of this machine that stays up, and write down where.

    Raises:
        CommandError: One is up already, or the port is taken.
        CrewError: It does not start.
    """
    check_ray()
    known = standing()
    if known is not None and known.alive:
        raise CommandError(
            f"a cluster is up already: {known.address}, {known.workers} workers (pid {known.pid}); "
            f"use it, or stop it: journeyman cluster down"
        )
    if known is not None:
        down()  # what a killed one left
    if port is not None:
        _check_port(port)
    return written(LocalCluster(workers, port=port, attached=False), workers)


def written(head: LocalCluster, workers: int) -> ClusterState:
    """Write down where a cluster is, for `standing`; if that cannot be, it is stopped."""
    pids = [head.pid, *descendants(head.pid)]
    started = {str(pid): at for pid in pids if (at := _start_of(pid)) is not None}
    found = ClusterState(head.address, own_token(), workers, head.folder, head.pid, started)
    file = state_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o600)
        file.write_text(json.dumps(asdict(found), indent=1) + "\n")
    except OSError:
        head.stop()
        raise
    return found


def down() -> ClusterState:
    """Stop the cluster that `up` started: its own processes, by pid, and no others.

    Raises:
        CommandError: None is up.
    """
    known = standing()
    if known is None:
        raise CommandError("no cluster is up: journeyman cluster up --local 2 starts one")
    ours = dict(known.started)
    if known.alive:
        ours |= {str(pid): at for pid in descendants(known.pid) if (at := _start_of(pid))}
        os.kill(known.pid, signal.SIGTERM)
        _wait_for({str(known.pid): ours[str(known.pid)]})
    for pid, at in ours.items():
        if _start_of(int(pid)) == at:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    _wait_for(ours)
    shutil.rmtree(known.folder, ignore_errors=True)
    state_file().unlink(missing_ok=True)
    return known


class LocalCluster:
    """The process that holds a cluster of this machine, whose drivers must know `own_token`."""

    def __init__(
        self,
        cpus: float,
        gpus: float | None = None,
        port: int | None = None,
        attached: bool = True,
    ) -> None:
        """Start it.

        Args:
            cpus: That workers may share; more than there are is allowed.
            gpus: The same; None is what there are.
            port: Of the cluster's address; None takes one that is free.
            attached: It ends with this process, however that ends.

        Raises:
            CrewError: It does not start.
        """
        base = tempfile.gettempdir()
        self.folder = tempfile.mkdtemp(prefix="jr-", dir=base if len(base) < _LONGEST else "/tmp")
        asked = {"cpus": cpus, "gpus": gpus, "port": port, "folder": self.folder}
        log = Path(self.folder) / "head.log"
        command = [sys.executable, "-m", "journeyman.agents.rollouts.workers.head"]
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [*command, json.dumps(asked | {"attached": attached})],
                stdin=subprocess.PIPE if attached else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | _authentication(own_token()),
                start_new_session=True,  # Ctrl-C is for the driver, which stops it in order
            )
        self.pid = self._process.pid
        line = self._first_line()
        if line is None:
            told = [it for it in log.read_text(errors="replace").splitlines() if it.strip()]
            self.stop()
            why = told[-1].strip() if told else f"no answer in {STARTING:g} s"
            raise CrewError(f"a Ray cluster of this machine does not start: {why[:300]}")
        self.address = str(json.loads(line)["address"])

    def _first_line(self) -> bytes | None:
        assert self._process.stdout is not None
        with self._process.stdout as out:
            ready, _, _ = select.select([out], [], [], STARTING)
            line = out.readline() if ready else b""
        return line or None

    def stop(self) -> None:
        """End the cluster, and wait until it has."""
        ours = {str(pid): at for pid in descendants(self.pid) if (at := _start_of(pid)) is not None}
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid, at in ours.items():
            if _start_of(int(pid)) == at:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        _wait_for(ours)
        shutil.rmtree(self.folder, ignore_errors=True)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise CommandError(
                f"port {port}: {error.strerror}; leave --port out for one that is free"
            ) from error


def _start_of(pid: int) -> int | None:
    """When a process started, in the kernel's ticks; None if it is gone."""
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else int(fields[19])


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # a name may hold anything


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that these have."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        if (fields := _stat(int(path.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(path.name))

    def below(parent: int) -> Iterator[int]:
        for child in children.get(parent, ()):
            yield child
            yield from below(child)

    return list(below(pid))


def _wait_for(ours: dict[str, int]) -> None:
    """Wait until processes are gone."""
    end = time.monotonic() + STOPPING
    while time.monotonic() < end:
        if all(_start_of(int(pid)) != at for pid, at in ours.items()):
            return
        time.sleep(0.05)
