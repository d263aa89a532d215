"""Sessions in Docker containers: for machines where an engine is allowed and bubblewrap is not.

One long-lived container per session. Its process 1 is the supervisor (`journeyman.sandbox.worker`),
spoken to over the attached stream, so a call costs no request to the engine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import struct
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from journeyman.sandbox import image, seccomp
from journeyman.sandbox.base import Limits
from journeyman.sandbox.container import Worker, worker_config
from journeyman.sandbox.errors import IsolationUnavailable, SandboxDied
from journeyman.sandbox.namespace.interpreter import package_directories
from journeyman.sandbox.session import WorkerSession
from journeyman.sandbox.worker import ENVIRONMENT, OPTIONS, worker_source
from journeyman.sandbox.worker.relay import Relay

if TYPE_CHECKING:
    import docker

LABEL = "journeyman.sandbox"
_AREA = "/tmp"
# Reads as many bytes of source as it is told, and becomes it.
_BOOT = (
    "import sys, os; n = int(sys.argv.pop(1)); s = b''\n"
    "while len(s) < n: s += os.read(0, n - len(s))\n"
    "exec(compile(s, '/run/worker.py', 'exec'), {**globals(), '__file__': '/run/worker.py'})"
)
_MEND = (
    "start a Docker engine that this user may talk to (apt-get install docker.io; dockerd), "
    "and pip install docker"
)
# Beside what the running branch may hold: the supervisor and page tables; an idle branch.
_OVERHEAD_MB, _BRANCH_MB = 64, 2
# Nobody else's: the kernel counts processes by user, and containers share users with the host.
_UIDS = range(1 << 20, 1 << 30)


class DockerBackend:
    """Contains each session in a container without network, capabilities or a writable root."""

    name = "docker"

    def __init__(self, image: str | None = None, cpus: float = 1.0) -> None:
        """Starts nothing yet.

        Args:
            image: One with Python 3.9 or later; made if not given (`journeyman.sandbox.image`).
            cpus: Processors a session may keep busy.
        """
        if not cpus > 0:
            raise ValueError(f"cpus={cpus}: expected a positive number of processors")
        self._image = image
        self._cpus = cpus
        self._client: docker.DockerClient | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[DockerBackend], tuple[str | None, float]]:
        """What is pickled leaves the client behind."""
        return DockerBackend, (self._image, self._cpus)

    @property
    def lacks(self) -> dict[str, str]:
        """Checks of `journeyman.sandbox.conformance` that do not apply, and why."""
        return {
            "a user namespace is the session's own": "the engine maps users only if it was set up "
            "so (userns-remap); an unused uid without capabilities stands in"
        }

    def describe(self) -> dict[str, str]:
        """What isolates this machine's sessions."""
        client = self._connected()
        info = client.info()
        return {
            "engine": f"{info['ServerVersion']}, {info['Driver']}, {info['DefaultRuntime']}",
            "image": self._image or image.ensure(client),
            "user": "a random unused uid for each container",
            "namespaces": "pid net mnt ipc uts",
            "seccomp": ", ".join(info.get("SecurityOptions") or ["none"]) + ", and our filters",
            "cgroup": f"v{info.get('CgroupVersion', '1')} (memory, pids, cpu)",
        }

    def session(self, limits: Limits, packages: tuple[str, ...] = ()) -> WorkerSession:
        """Starts a container and verifies its walls.

        Raises:
            IsolationUnavailable: There is no engine, no image, or a wall does not stand.
        """
        client = self._connected()
        config = worker_config(
            limits,
            contained=True,
            area=_AREA,
            filters=[seccomp.program().hex(), seccomp.branch_program().hex()],
            packages=list(packages),
            extra_path=list(package_directories(None).values()) if packages else [],
            python=list(sys.version_info[:2]),
        )
        worker = self._start(client, limits, bool(packages))
        try:
            session, hello = WorkerSession.start(worker, limits, config)
        except SandboxDied as error:
            raise IsolationUnavailable(str(error), _MEND) from error
        try:
            _verify(hello)
        except BaseException:
            session.close()
            raise
        return session

    def _connected(self) -> docker.DockerClient:
        with self._lock:
            if self._client is None:
                try:
                    import docker
                except ImportError as error:
                    raise IsolationUnavailable("docker-py is not installed", _MEND) from error
                try:
                    client = docker.from_env()
                except docker.errors.DockerException as error:
                    raise IsolationUnavailable(
                        f"no Docker engine answers ({error})", _MEND
                    ) from error
                weakref.finalize(self, client.close)
                reap(client)
                self._client = client
            return self._client

    def _start(self, client: docker.DockerClient, limits: Limits, packages: bool) -> Worker:
        import docker

        source = worker_source()
        try:
            container = client.containers.create(
                self._image or image.ensure(client),
                ["python3", *OPTIONS, "-c", _BOOT, str(len(source)), "relay"],
                **_walls(limits, self._cpus, packages),
            )
        except docker.errors.DockerException as error:
            raise IsolationUnavailable(f"no container can be made ({error})", _MEND) from error
        with contextlib.ExitStack() as undo:
            undo.callback(_remove, container)
            try:
                attached = container.attach_socket(
                    params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
                )
                link = attached._sock
                link.settimeout(None)
                container.start()
                link.sendall(source)
            except docker.errors.DockerException as error:
                raise IsolationUnavailable(f"no container starts ({error})", _MEND) from error
            worker = _worker(container, attached, link)
            undo.pop_all()
        return worker


def _walls(limits: Limits, cpus: float, packages: bool) -> dict[str, Any]:
    """How a container is made."""
    uid = secrets.choice(_UIDS)
    idle = _BRANCH_MB * (limits.branches - 1)
    files = limits.workdir_mb + limits.branch_files_mb
    memory = (limits.memory_mb + files + _OVERHEAD_MB + idle) << 20
    size, inodes = limits.workdir_mb << 20, limits.workdir_inodes + 1
    options = f"size={size},nr_inodes={inodes},mode=0700,uid={uid},gid={uid},nosuid,nodev,exec"
    directories = package_directories(None) if packages else {}
    return {
        "entrypoint": [],
        "stdin_open": True,
        "auto_remove": True,
        "labels": {LABEL: _owner(os.getpid())},
        "user": f"{uid}:{uid}",
        "network_mode": "none",
        "sysctls": {"net.ipv4.tcp_max_tw_buckets": "0"},  # closed connections keep no port
        "ipc_mode": "none",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "pids_limit": limits.pids + limits.branches + 2,
        "mem_limit": memory,
        "memswap_limit": memory,
        "nano_cpus": int(cpus * 1e9),
        "tmpfs": {_AREA: options},
        "volumes": {path: {"bind": name, "mode": "ro"} for path, name in directories.items()},
        "working_dir": _AREA,
        "hostname": "sandbox",
        "environment": {
            "HOME": _AREA,
            "TMPDIR": _AREA,
            "LANG": "C.UTF-8",
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            **ENVIRONMENT,
        },
        "log_config": {"type": "none"},
    }


def _worker(container: Any, attached: Any, link: socket.socket) -> Worker:
    control, ours = socket.socketpair()
    pipes = [os.pipe() for _ in range(2)]
    stream = _Stream(link, ours, {1: pipes[0][1], 2: pipes[1][1]})
    stream.thread.start()

    def kill() -> None:
        if stream.ended:
            return
        try:
            _remove(container)
        finally:  # the engine may have refused: without its stream the worker ends by itself
            stream.ended = True
            for end in (link, control):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)  # which ends the thread
            stream.thread.join()
            attached.close()
            link.close()

    return Worker(control, os.fdopen(pipes[0][0], "rb"), os.fdopen(pipes[1][0], "rb"), kill)


class _Stream:
    """The host's end of the attached stream, taken apart by a thread of its own.

    The engine frames what it passes on, by stream; within standard output the worker frames what
    is control and what is output (`Relay`). Standard error is what Python says if it cannot start.
    """

    ENGINE = struct.Struct(">BxxxI")

    def __init__(self, link: socket.socket, control: socket.socket, pipes: dict[int, int]) -> None:
        self.link = link
        self.control = control
        self.pipes = pipes
        self.ended = False
        self.thread = threading.Thread(target=self._run, name="sandbox-docker", daemon=True)
        self._from_engine = bytearray()
        self._from_worker = bytearray()

    def _run(self) -> None:
        poll = select.poll()
        for end in (self.link, self.control):
            poll.register(end, select.POLLIN)
        try:
            while True:
                events = dict(poll.poll())
                if self.control.fileno() in events:
                    data = self.control.recv(1 << 16)
                    if not data:
                        return
                    self.link.sendall(data)
                if self.link.fileno() in events:
                    data = self.link.recv(1 << 16)
                    if not data:
                        return
                    self._take(data)
        except OSError:  # the other end, or the reader of a pipe, is gone
            pass
        finally:
            self.control.close()
            for fd in self.pipes.values():
                os.close(fd)

    def _take(self, data: bytes) -> None:
        self._from_engine += data
        for kind, part in _frames(self._from_engine, self.ENGINE):
            if kind == 1:
                self._from_worker += part
            else:
                self._write(self.pipes[2], part)
        for kind, part in _frames(self._from_worker, Relay.HEADER):
            if kind == Relay.CONTROL:
                self.control.sendall(part)
            elif kind in self.pipes:
                self._write(self.pipes[kind], part)

    def _write(self, fd: int, data: bytes) -> None:
        """Writes to a pipe that may be full, and stay so if the session ends meanwhile."""
        view, poll = memoryview(data), select.poll()
        poll.register(fd, select.POLLOUT)
        while view and not self.ended:
            if poll.poll(100):
                view = view[os.write(fd, view[: select.PIPE_BUF]) :]


def _frames(buffer: bytearray, header: struct.Struct) -> Iterator[tuple[int, bytes]]:
    """Takes the frames that are whole off a buffer."""
    while len(buffer) >= header.size:
        kind, length = header.unpack_from(buffer)
        end = header.size + length
        if len(buffer) < end:
            return
        part = bytes(buffer[header.size : end])
        del buffer[:end]
        yield kind, part


def _verify(hello: dict[str, Any]) -> None:
    """Checks, by the word of the supervisor before it runs foreign code, that the walls stand."""
    status = hello.get("status", {})
    walls = {
        "a user other than root": "0" not in status.get("Uid", "0").split(),
        "no_new_privs": status.get("NoNewPrivs") == "1",
        "process 1 as supervisor": hello.get("pid") == 1,
        "a read-only root": hello.get("root_read_only") is True,
    }
    for kind in ("CapPrm", "CapEff", "CapBnd"):
        walls[f"dropped capabilities ({kind})"] = status.get(kind, "?").strip("0") == ""
    for kind in ("pid", "net", "mnt", "ipc", "uts"):
        theirs = hello.get("namespaces", {}).get(kind)
        walls[f"a {kind} namespace"] = theirs not in (None, os.readlink(f"/proc/self/ns/{kind}"))
    wrong = [name for name, holds in walls.items() if not holds]
    if wrong:
        raise IsolationUnavailable(
            f"the container runs, but without: {', '.join(wrong)}", "use another engine or runtime"
        )


def _owner(pid: int) -> str:
    """What tells a process of this machine from any other that ever had its number."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{boot} {pid} {started}"


def reap(client: docker.DockerClient) -> list[str]:
    """Removes containers whose caller is gone, and returns their ids.

    As a rule there are none: a container ends with the stream it is attached to.
    """
    removed = []
    boot = _owner(os.getpid()).split()[0]
    for container in client.containers.list(
        all=True, filters={"label": LABEL}, ignore_removed=True
    ):
        owner = container.labels[LABEL]
        if owner.split()[0] == boot:
            with contextlib.suppress(OSError):
                if _owner(int(owner.split()[1])) == owner:
                    continue
            _remove(container)
            removed.append(str(container.id))
    return removed


def _remove(container: Any) -> None:
    import docker

    try:
        container.remove(force=True)
    except docker.errors.NotFound:
        pass
    except docker.errors.APIError as error:
        if error.status_code != 409:  # its removal is under way
            raise
