"""A backend that isolates NOTHING, to step through code with a debugger or on a strange system."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType

from journeyman.sandbox import spawn
from journeyman.sandbox.base import Limits
from journeyman.sandbox.container import Worker, worker_config
from journeyman.sandbox.errors import UnsafeSandboxWarning
from journeyman.sandbox.session import WorkerSession
from journeyman.sandbox.worker import ENVIRONMENT, OPTIONS, worker_source


class UnsafeLocalBackend:
    """Runs code as the caller, with the caller's files, network and processes in reach."""

    name = "unsafe_local"
    lacks: Mapping[str, str] = MappingProxyType({})

    def describe(self) -> dict[str, str]:
        """What isolates this machine's sessions."""
        return {"isolation": "none at all"}

    def session(self, limits: Limits, packages: tuple[str, ...] = ()) -> WorkerSession:
        """Starts a session and warns: time, output and rlimits are all that is limited."""
        warnings.warn(
            "unsafe_local isolates nothing: the code can do whatever you can",
            UnsafeSandboxWarning,
            stacklevel=3,
        )
        directory = tempfile.mkdtemp(prefix="sandbox-")
        config = worker_config(
            limits,
            contained=False,
            area=directory,
            filters=[],
            packages=list(packages),
            extra_path=[path for path in sys.path if path] if packages else [],
            python=list(sys.version_info[:2]),
        )
        session, _ = WorkerSession.start(_start(directory), limits, config)
        return session


def _start(directory: str) -> Worker:
    ours, theirs = socket.socketpair()
    with theirs, spawn.memory_file("worker", worker_source()) as source:
        script, link = f"/dev/fd/{source}", str(theirs.fileno())
        process = spawn.popen(
            [sys.executable, *OPTIONS, script, link],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(source, theirs.fileno()),
            env={"HOME": directory, "PATH": os.defpath, "LANG": "C.UTF-8", **ENVIRONMENT},
            cwd=directory,
            start_new_session=True,
        )
    return Worker.of(process, ours, _killer(process, directory))


def _killer(process: subprocess.Popen[bytes], directory: str) -> Callable[[], None]:
    def kill() -> None:
        # While its leader is not reaped, the group's id cannot pass on to anyone else.
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)

    return kill
