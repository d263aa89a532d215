"""The host's line to one started worker: what all branches of a session share."""

from __future__ import annotations

import errno
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Self

from journeyman.sandbox.base import KilledReason, Limits
from journeyman.sandbox.errors import SandboxDied, SandboxError
from journeyman.sandbox.worker.frames import HEADER, MAX_FRAME, encode

# Printing too much is a mistake, and only cut; printing this many times more is a flood.
FLOOD = 64
# A pipe holds 1 MiB at most (/proc/sys/fs/pipe-max-size): 256 pages, of which one read takes no
# more than one if whoever wrote made packets of them (O_DIRECT).
_MOST_READS = 1024
_START_S = 30.0
# How long the supervisor has to account for the time used before all is killed regardless.
_STOP_GRACE_S = 0.5

Reply = tuple[dict[str, Any] | None, KilledReason | None]
"""What the supervisor answered, if it did, and why the host would have no more of it."""


@dataclass(frozen=True)
class Worker:
    """A started worker, as a backend hands it over.

    Attributes:
        control: The host's end of the control socket.
        stdout: What the code prints: the reading end of a pipe.
        stderr: Likewise.
        kill: Ends every process of the session and returns when none is left. Must be
            callable more than once.
        process: The direct child of the host, if there is one.
        oom_kills: How often the kernel has killed in it for want of memory.
    """

    control: socket.socket
    stdout: IO[bytes]
    stderr: IO[bytes]
    kill: Callable[[], None]
    process: subprocess.Popen[bytes] | None = None
    oom_kills: Callable[[], int] = lambda: 0

    @classmethod
    def of(
        cls, process: subprocess.Popen[bytes], control: socket.socket, kill: Callable[[], None]
    ) -> Self:
        """A worker that is a child of the host, with pipes for its output."""
        assert process.stdout is not None
        assert process.stderr is not None
        return cls(control, process.stdout, process.stderr, kill, process)


class Capture:
    """Reads one pipe without ever holding more than `cap` bytes of it."""

    def __init__(self, fd: int, cap: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.cap = cap
        self.kept = bytearray()
        self.total = 0

    @property
    def flooded(self) -> bool:
        """Whether so much came that it can be no mistake."""
        return self.total > self.cap * FLOOD

    def read_some(self) -> bool | None:
        """Reads once.

        Returns:
            True if something was read; False if nothing is there now, be it that the pipe was said
            to be readable: the code can open its own end for reading and be quicker. None at the
            pipe's end.
        """
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return False
        self.total += len(data)
        self.kept += data[: self.cap - len(self.kept)]
        return True if data else None

    def take(self) -> tuple[str, bool]:
        """Returns the text and whether it was cut, and starts afresh.

        The pipe is read empty, or the next branch would be given what is in it. It is finite, for
        whoever wrote is stopped; where nothing is contained (`unsafe_local`) that is not so sure.
        """
        for _ in range(_MOST_READS):
            if not self.read_some():
                break
        text, cut = self.kept.decode("utf-8", "replace"), self.total > self.cap
        self.kept.clear()
        self.total = 0
        return text, cut


class Container:
    """A worker in use. One branch at a time runs in it: hold `lock` around `call` and `post`."""

    def __init__(self, worker: Worker, limits: Limits) -> None:
        """Takes the worker over; `handshake` comes next."""
        self.worker = worker
        self.limits = limits
        self.lock = threading.RLock()
        self.ended: str | None = None
        """Why no branch can run any more, or None."""
        self.dropped: deque[int] = deque()
        """Branches that nobody holds any more, to be ended before the next call."""
        self.incoming = bytearray()
        self._owner = os.getpid()
        self._live = {0}
        self._numbers = itertools.count(1)
        self._oom_kills = 0
        self._owed = 0  # replies that nobody waits for
        worker.control.setblocking(False)
        cap = limits.output_kb << 10
        self.stdout = Capture(worker.stdout.fileno(), cap)
        self.stderr = Capture(worker.stderr.fileno(), cap)
        self._poll = select.poll()
        for fd in (worker.control.fileno(), self.stdout.fd, self.stderr.fd):
            self._poll.register(fd, select.POLLIN)

    def handshake(self, config: dict[str, Any]) -> dict[str, Any]:
        """Configures the worker and returns how it describes itself.

        Args:
            config: See `worker_config`.

        Raises:
            SandboxDied: The worker did not come up; the message has what it said.
            SandboxError: It came up and reported an error.
        """
        deadline = time.monotonic() + _START_S
        hello = None
        if self._send(encode(config), deadline) is None:
            hello, _ = self._pump(deadline)
        if hello is None:
            self.end("it did not start")
            raise SandboxDied(f"the worker did not start: {self.stderr.take()[0].strip()}")
        if "error" in hello:
            raise SandboxError(f"the worker did not start: {hello['error']}")
        return hello

    def call(self, request: dict[str, Any], wall_s: float) -> Reply:
        """Sends a request and waits for its reply.

        Args:
            request: `op` and `branch`, and what the operation needs.
            wall_s: Elapsed seconds it may take; then the branch is stopped.

        Returns:
            The reply, None if the supervisor is lost; and the host's reason to end the branch.
        """
        data = self._encode(request)
        deadline = time.monotonic() + wall_s
        reason = self._send(data, deadline)
        reply = None
        if reason is None:
            reply, reason = self._pump(deadline)
        if reply is None and reason is not KilledReason.INFRA:
            reply = self._stop()
        if reply is not None and not _well_formed(reply):
            reply, reason = None, reason or KilledReason.INFRA
        if reply is None:
            self.end(f"killed ({reason})")
        elif reply["signal"] == signal.SIGKILL and reason is None and reply["killed"] is None:
            kills, self._oom_kills = self._oom_kills, self.worker.oom_kills()
            if self._oom_kills > kills:
                reason = KilledReason.MEMORY
        return reply, reason

    def post(self, request: dict[str, Any]) -> None:
        """Sends a request whose reply nobody waits for."""
        if self._send(self._encode(request), time.monotonic() + _STOP_GRACE_S) is None:
            self._owed += 1
        else:
            self.end("its supervisor takes no requests")

    def _encode(self, request: dict[str, Any]) -> bytes:
        """Frames a request, and tells along with it which branches are to end first."""
        dropped = [self.dropped.popleft() for _ in range(len(self.dropped))]
        try:
            return encode({**request, "dropped": dropped})
        except ValueError:
            self.dropped.extend(dropped)
            raise

    def _send(self, message: bytes, deadline: float) -> KilledReason | None:
        """Sends a message; returns why that failed, if it did."""
        data = memoryview(message)
        while data:
            try:
                data = data[self.worker.control.send(data) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self.worker.control, select.POLLOUT)
                if not poll.poll(_milliseconds(deadline)):
                    return KilledReason.WALL
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.EBADF):
                    raise
                return KilledReason.INFRA
        return None

    def _pump(self, deadline: float, heed_floods: bool = True) -> Reply:
        """Reads all three channels until there is a message, or a reason to stop."""
        control = self.worker.control.fileno()
        while True:
            for fd, _ in self._poll.poll(_milliseconds(deadline)):
                if fd == control:
                    try:
                        message = self._receive()
                    except (OSError, EOFError, ValueError):
                        return None, KilledReason.INFRA
                    if message is not None:
                        return message, None
                    continue
                capture = self.stdout if fd == self.stdout.fd else self.stderr
                if capture.read_some() is None:
                    self._poll.unregister(fd)  # its end: the writers are gone
                if capture.flooded and heed_floods:
                    return None, KilledReason.OUTPUT
            if time.monotonic() >= deadline:
                return None, KilledReason.WALL

    def _receive(self) -> dict[str, Any] | None:
        """Takes what has come on the control socket; a message if that completes one."""
        data = self.worker.control.recv(1 << 16)
        if not data:
            raise EOFError
        self.incoming += data
        while len(self.incoming) >= HEADER.size:
            (length,) = HEADER.unpack_from(self.incoming)
            if length > MAX_FRAME:
                raise ValueError(f"a frame of {length} bytes")
            end = HEADER.size + length
            if len(self.incoming) < end:
                return None
            message = json.loads(self.incoming[HEADER.size : end])
            del self.incoming[:end]
            if not isinstance(message, dict):
                raise ValueError("a frame that is no object")
            if not self._owed:
                return message
            self._owed -= 1
            if message.get("ended") or "error" in message:
                # What is copied ahead has run nothing foreign: without it no copy can be made.
                self.end("its fresh interpreter was lost")
        return None

    def _stop(self) -> dict[str, Any] | None:
        """Lets the supervisor end the code and account for it; its silence changes nothing."""
        deadline = time.monotonic() + _STOP_GRACE_S
        if self._send(encode({"op": "stop"}), deadline) is not None:
            return None
        reply, _ = self._pump(deadline, heed_floods=False)
        return reply

    def new_branch(self) -> int:
        """A number for a branch that is about to be.

        Raises:
            SandboxError: There are as many as `Limits.branches`.
        """
        if len(self._live) >= self.limits.branches:
            raise SandboxError(
                f"{len(self._live)} live branches: close some, or raise Limits.branches"
            )
        number = next(self._numbers)
        self._live.add(number)
        return number

    def release(self, branch: int) -> None:
        """Ends a branch, at the latest before the next call; the last one ends the container.

        Takes no lock: the garbage collector calls it too, at any time.
        """
        if os.getpid() != self._owner:  # a fork of the host has a copy, not the thing itself
            self.close_channels()
            return
        self._live.discard(branch)
        if not self._live:
            self.end("it was closed")
            self.close_channels()
        else:
            self.dropped.append(branch)

    def end(self, why: str) -> None:
        """Ends every process in it, for the reason given."""
        if self.ended is None:
            self.ended = why
        self.worker.kill()

    def close_channels(self) -> None:
        """Gives the descriptors back; nothing can be called afterwards."""
        self.worker.control.close()
        self.worker.stdout.close()
        self.worker.stderr.close()


def worker_config(limits: Limits, *, contained: bool, **more: Any) -> dict[str, Any]:
    """What the supervisor is told first.

    Args:
        limits: The limits that it watches or sets.
        contained: Whether it is process 1 of a namespace of its own.
        **more: `area`, the writable directory; `filters`, seccomp programs for interpreters, as
            hex, the last one with a listener;
            `packages`, `extra_path` and `python`, the version that the latter is for.
    """
    numbers = {
        "cpu": limits.cpu_s,
        "memory": limits.memory_mb << 20,
        "pids": limits.pids,
        "workdir": limits.workdir_mb << 20,
        "inodes": limits.workdir_inodes,
        "open_files": limits.open_files,
        "branches": limits.branches,
        "branch_files": limits.branch_files_mb << 20,
    }
    return {"contained": contained, "limits": numbers, **more}


def _milliseconds(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic()) * 1000


def _well_formed(reply: dict[str, Any]) -> bool:
    """The supervisor is ours, yet it lives on the other side: a wrong reply is as good as none."""
    return (
        isinstance(reply.get("ended"), bool)
        and isinstance(reply.get("truncated"), bool)
        and isinstance(reply.get("cpu_s"), float)
        and isinstance(reply.get("exit_status"), int | None)
        and isinstance(reply.get("signal"), int | None)
        and isinstance(reply.get("value_repr"), str | None)
        and isinstance(reply.get("error"), str | None)
        and reply.get("killed") in (None, *KilledReason)
    )
