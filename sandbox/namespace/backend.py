"""The default backend: bubblewrap, seccomp and rlimits around a supervised interpreter."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from journeyman.sandbox import seccomp, spawn
from journeyman.sandbox.base import Limits
from journeyman.sandbox.container import Worker, worker_config
from journeyman.sandbox.errors import IsolationUnavailable, SandboxDied, SandboxError
from journeyman.sandbox.namespace import bwrap, cgroup
from journeyman.sandbox.namespace.interpreter import (
    find_interpreter,
    package_directories,
    unseen_packages,
    view_of,
)
from journeyman.sandbox.namespace.network import Settings
from journeyman.sandbox.namespace.view import MountView
from journeyman.sandbox.session import WorkerSession
from journeyman.sandbox.worker import worker_source

# Belongs to nobody: between the ranges that systemd, containers and distributions give away.
UNUSED_UID = 61000
_INFO_S = 10.0
_KILL_S = 10.0
_REAP_S = 1.0
_MEND_BWRAP = (
    "apt-get install bubblewrap (0.8 or later), and allow unprivileged user namespaces "
    "(sysctl user.max_user_namespaces; on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0; "
    "in a container, a seccomp profile that lets it unshare and mount)"
)


class NamespaceBackend:
    """Contains each session in Linux namespaces of its own; fails closed where it cannot."""

    name = "namespace"
    lacks: Mapping[str, str] = MappingProxyType({})

    def __init__(self, bwrap: str | None = None, uid: int = UNUSED_UID) -> None:
        """Picks the program and the user.

        Args:
            bwrap: Path of bubblewrap; looked up if not given.
            uid: Who runs the sandbox if the caller is root: bubblewrap would map root to the
                host's root, for whom /proc/sys is writable. Ordinary callers run it themselves.
        """
        if uid <= 0:
            raise ValueError(f"uid={uid}: the sandbox never runs as the host's root")
        self._bwrap = bwrap
        self._uid = uid

    def describe(self) -> dict[str, str]:
        """What isolates this machine's sessions."""
        uid = self._uid if os.geteuid() == 0 else None
        group = cgroup.make(Limits())
        group.remove()
        return {
            "user": f"uid {uid} (unprivileged)" if uid else f"uid {os.geteuid()} (the caller)",
            "interpreter": find_interpreter(uid).executable,
            "namespaces": "user pid net mnt ipc uts",
            "seccomp": f"{len(seccomp.program()) // 8} and {len(seccomp.branch_program()) // 8} "
            "instructions",
            "cgroup": "none: rlimits and sampling alone"
            if group.version == "none"
            else f"{group.version} (memory, pids)",
        }

    def session(self, limits: Limits, packages: tuple[str, ...] = ()) -> WorkerSession:
        """Starts a session and verifies its walls.

        Raises:
            IsolationUnavailable: Something is missing, or a wall does not stand.
        """
        if sys.platform != "linux":
            raise IsolationUnavailable(f"{sys.platform} has no namespaces", "run on Linux")
        program = self._bwrap or shutil.which("bwrap")
        if program is None or not os.access(program, os.X_OK):
            raise IsolationUnavailable("bubblewrap (bwrap) is not installed", _MEND_BWRAP)
        uid = self._uid if os.geteuid() == 0 else None
        directories = package_directories(uid) if packages else {}
        config = worker_config(
            limits,
            contained=True,
            area=bwrap.WORKDIR,
            filters=[seccomp.branch_program().hex()],
            packages=list(packages),
            extra_path=list(directories.values()),
            python=list(sys.version_info[:2]),
        )
        worker, pid = _start(program, limits, uid, directories)
        worker = _grouped(worker, pid, limits)
        network = Settings(pid)
        try:
            session, hello = WorkerSession.start(worker, limits, config)
        except SandboxDied as error:
            raise IsolationUnavailable(str(error), _MEND_BWRAP) from error
        except SandboxError as error:
            unseen = ", ".join(unseen_packages(uid)) if packages else ""
            if not unseen:
                raise
            raise SandboxError(
                f"{error}. Uid {uid}, which runs the sandbox, can neither read {unseen} nor be "
                f"shown it: install the packages where all users can read them"
            ) from error
        finally:
            network.finish()
        try:
            verify(pid, hello)
        except BaseException:
            session.close()
            raise
        return session


def _grouped(worker: Worker, pid: int, limits: Limits) -> Worker:
    """Puts the supervisor, which has not yet forked, into a control group if there can be one."""
    group = cgroup.make(limits)
    try:
        group.add(pid)
    except OSError:  # a group that takes no processes is as good as none
        group.remove()
        return worker

    def kill() -> None:
        worker.kill()
        group.remove()

    return dataclasses.replace(worker, kill=kill, oom_kills=group.oom_kills)


def _start(
    program: str, limits: Limits, uid: int | None, packages: Mapping[str, str]
) -> tuple[Worker, int]:
    """Starts bubblewrap; returns the worker and the host's id of its process 1."""
    interpreter = find_interpreter(uid)
    view = view_of((*interpreter.mounts, *packages), uid)
    source = worker_source()
    with contextlib.ExitStack() as stack:
        source_fd = stack.enter_context(spawn.memory_file("worker", source))
        seccomp_fd = stack.enter_context(spawn.memory_file("seccomp", seccomp.program()))
        ours, theirs = socket.socketpair()
        stack.callback(theirs.close)
        info_read, info_write = os.pipe()
        info = stack.enter_context(os.fdopen(info_read, "rb"))
        given = (source_fd, seccomp_fd, info_write, theirs.fileno())
        command = bwrap.arguments(
            program,
            interpreter,
            limits,
            packages=packages,
            source_fd=source_fd,
            seccomp_fd=seccomp_fd,
            info_fd=info_write,
            control_fd=theirs.fileno(),
        )
        try:
            process = _popen(command, given, uid, view)
            for stream in (process.stdout, process.stderr):
                if stream is not None and uid is not None:  # or it could not open /dev/stdout
                    os.fchown(stream.fileno(), uid, uid)
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(info_write)
        return _worker(process, ours, info.fileno())


def _popen(
    command: list[str], given: tuple[int, ...], uid: int | None, view: MountView | None
) -> subprocess.Popen[bytes]:
    # Root leaves its user and groups before bubblewrap is so much as executed.
    identity: dict[str, Any] = {}
    if uid is not None:
        identity = {"user": uid, "group": uid, "extra_groups": []}
    try:
        return spawn.popen(
            command,
            view,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=given,
            env={},  # or /proc would show the host's secrets to those inside
            cwd="/",
            start_new_session=True,  # Ctrl-C at the terminal is the host's to handle
            umask=0o077,
            **identity,
        )
    except OSError as error:
        raise IsolationUnavailable(
            f"bubblewrap cannot be started ({error})", _MEND_BWRAP
        ) from error


def _worker(
    process: subprocess.Popen[bytes], control: socket.socket, info_fd: int
) -> tuple[Worker, int]:
    pid = _first_process(info_fd)
    handle = None
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
    # While bubblewrap lives, the id cannot have passed on to another process.
    if pid is None or handle is None or _parent(pid) != process.pid:
        control.close()
        process.kill()
        _, complaint = process.communicate()
        if handle is not None:
            os.close(handle)
        said = complaint.decode("utf-8", "replace").strip()
        raise IsolationUnavailable(f"bubblewrap failed ({said})", _MEND_BWRAP)
    return Worker.of(process, control, _killer(process, handle)), pid


def _first_process(info_fd: int) -> int | None:
    """Reads the pid that bubblewrap reports; None if it died before."""
    poll = select.poll()
    poll.register(info_fd, select.POLLIN)
    text = b""
    while poll.poll(_INFO_S * 1000):
        part = os.read(info_fd, 4096)
        text += part
        with contextlib.suppress(ValueError, KeyError):
            return int(json.loads(text)["child-pid"])
        if not part:
            return None
    return None


def _parent(pid: int) -> int | None:
    fields = _status(pid).get("PPid", "")
    return int(fields) if fields else None


def _status(pid: int) -> dict[str, str]:
    try:
        with open(f"/proc/{pid}/status") as file:
            lines = [line.partition(":") for line in file]
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in lines}


def _killer(process: subprocess.Popen[bytes], handle: int) -> Callable[[], None]:
    """Ends the namespace: its process 1 is gone only when all the others are."""
    handles = [handle]

    def kill() -> None:
        if not handles:
            return
        pidfd = handles.pop()
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(_KILL_S * 1000):
                raise SandboxDied("a process of the session cannot be killed (stuck in the kernel)")
        finally:
            os.close(pidfd)
            _reap(process)

    return kill


def _reap(process: subprocess.Popen[bytes]) -> None:
    # It is left to end by itself, which it does with its child: killed at once, it would leave
    # that child's zombie to the host's init, and a container may have none that cares.
    try:
        process.wait(_REAP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def verify(pid: int, hello: dict[str, Any]) -> None:
    """Checks from outside that the walls which bubblewrap was told to build stand.

    Args:
        pid: The supervisor, seen from the host.
        hello: What it said before it ran any foreign code.

    Raises:
        IsolationUnavailable: One of them does not.
    """
    wrong = [name for name, holds in _walls(pid, hello) if not holds]
    if wrong:
        raise IsolationUnavailable(
            f"bubblewrap ran, but without: {', '.join(wrong)}", "use bubblewrap 0.8 or later"
        )


def _walls(pid: int, hello: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    status = _status(pid)
    yield "a user other than root", "0" not in status.get("Uid", "0").split()
    yield "no_new_privs", status.get("NoNewPrivs") == "1"
    yield "a seccomp filter", status.get("Seccomp") == "2"
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        yield f"dropped capabilities (Cap{kind})", status.get(f"Cap{kind}", "?").strip("0") == ""
    yield "process 1 as supervisor", hello.get("pid") == 1
    yield "a read-only root", hello.get("root_read_only") is True
    for kind in ("user", "pid", "net", "mnt", "ipc", "uts"):
        theirs = hello.get("namespaces", {}).get(kind)
        yield f"a {kind} namespace", theirs not in (None, os.readlink(f"/proc/self/ns/{kind}"))
