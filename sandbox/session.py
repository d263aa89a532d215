"""The host's side of a session: drives a started worker, whatever walls stand around it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from journeyman.sandbox.base import ExecResult, KilledReason, Limits
from journeyman.sandbox.errors import SandboxDied, SandboxError
from journeyman.sandbox.worker import HEADER, MAX_FRAME, encode

# Printing too much is a mistake, and only cut; printing this many times more is a flood.
FLOOD = 64
_START_S = 30.0
# How long the supervisor has to account for the time used before all is killed regardless.
_STOP_GRACE_S = 0.5


@dataclass(frozen=True)
class Worker:
    """A started worker, as a backend hands it over.

    Attributes:
        process: The direct child of the host; its stdout and stderr are pipes.
        control: The host's end of the control socket.
        kill: Ends every process of the session and returns when none is left. Must be
            callable more than once.
    """

    process: subprocess.Popen[bytes]
    control: socket.socket
    kill: Callable[[], None]


class _Capture:
    """Reads one pipe without ever holding more than `cap` bytes of it."""

    def __init__(self, fd: int, cap: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.cap = cap
        self.kept = bytearray()
        self.total = 0

    @property
    def flooded(self) -> bool:
        return self.total > self.cap * FLOOD

    def read_some(self) -> bool:
        """Reads once; False if there was nothing to read."""
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return False
        self.total += len(data)
        self.kept += data[: self.cap - len(self.kept)]
        return bool(data)

    def take(self) -> tuple[str, bool]:
        """Returns the text and whether it was cut, and starts afresh."""
        text, cut = self.kept.decode("utf-8", "replace"), self.total > self.cap
        self.kept.clear()
        self.total = 0
        return text, cut


class WorkerSession:
    """A `Session` over a worker. Safe to share among threads: calls take turns."""

    def __init__(self, worker: Worker, limits: Limits) -> None:
        """Takes the worker over; `handshake` comes next."""
        self._worker = worker
        self._limits = limits
        self._lock = threading.Lock()
        self._ended: str | None = None
        self._incoming = bytearray()
        worker.control.setblocking(False)
        assert worker.process.stdout is not None
        assert worker.process.stderr is not None
        cap = limits.output_kb << 10
        self._stdout = _Capture(worker.process.stdout.fileno(), cap)
        self._stderr = _Capture(worker.process.stderr.fileno(), cap)
        self._poll = select.poll()
        self._poll.register(worker.control, select.POLLIN)
        for capture in (self._stdout, self._stderr):
            self._poll.register(capture.fd, select.POLLIN)
        # A session that is merely dropped must not leave processes behind.
        self._release = weakref.finalize(self, _release, worker, os.getpid())

    @property
    def alive(self) -> bool:
        """Whether `exec` can still be called."""
        return self._ended is None

    def handshake(self, config: dict[str, Any]) -> dict[str, Any]:
        """Configures the worker and returns how it describes itself.

        Args:
            config: See `worker_config`.

        Raises:
            SandboxDied: The worker did not come up; the message has what it said.
        """
        deadline = time.monotonic() + _START_S
        hello = None
        if self._send(encode(config), deadline) is None:
            hello, _ = self._pump(deadline)
        if hello is None:
            self._finish("it did not start")
            while self._stderr.read_some():  # whatever it complained of is there
                pass
            raise SandboxDied(f"the worker did not start: {self._stderr.take()[0].strip()}")
        if "error" in hello:
            raise SandboxError(f"the worker did not start: {hello['error']}")
        return hello

    def exec(self, code: str, timeout: float | None = None) -> ExecResult:
        """Runs `code`; see `Session.exec`."""
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout={timeout!r}: expected a positive number of seconds")
        wall = self._limits.wall_s if timeout is None else min(timeout, self._limits.wall_s)
        if not isinstance(code, str):
            raise TypeError(f"code is a {type(code).__name__}: expected Python source, a str")
        request = encode({"op": "exec", "code": code})
        with self._lock:
            if self._ended is not None:
                raise SandboxDied(f"this session is over: {self._ended}. Open a new one")
            try:
                return self._exec(request, wall)
            except BaseException:
                # An interrupted call (Ctrl-C, say) leaves an answer under way: nobody may get it.
                if self._ended is None:
                    self._finish("a call was interrupted")
                raise

    def _exec(self, request: bytes, wall: float) -> ExecResult:
        start = time.monotonic()
        deadline = start + wall
        reason = self._send(request, deadline)
        reply = None
        if reason is None:
            reply, reason = self._pump(deadline)
        duration = time.monotonic() - start
        if reply is None and reason is not KilledReason.INFRA:
            reply = self._stop()
        if reply is not None and not _well_formed(reply):
            reply, reason = None, reason or KilledReason.INFRA
        if reply is not None and reason is None and reply["killed"] is not None:
            reason = KilledReason(reply["killed"])
        if reply is None or reason is not None or reply["ended"]:
            self._finish(f"killed ({reason})" if reason else "its code ended the interpreter")
        return self._result(reply or {}, reason, duration)

    def _result(
        self, reply: dict[str, Any], reason: KilledReason | None, duration: float
    ) -> ExecResult:
        # All that was written before the answer is in the pipes by now.
        for capture in (self._stdout, self._stderr):
            while not capture.flooded and capture.read_some():
                pass
        (stdout, out_cut), (stderr, err_cut) = self._stdout.take(), self._stderr.take()
        if self._ended is not None:
            self._release()
        return ExecResult(
            stdout=stdout,
            stderr=stderr,
            value_repr=None if reason else reply.get("value_repr"),
            exit_status=None if reason else reply.get("exit_status"),
            signal=reply.get("signal"),
            duration_s=duration,
            cpu_s=reply.get("cpu_s", 0.0),
            truncated=out_cut or err_cut or reply.get("truncated", False),
            killed_reason=reason,
        )

    def _send(self, message: bytes, deadline: float) -> KilledReason | None:
        """Sends a message; returns why that failed, if it did."""
        data = memoryview(message)
        poll = select.poll()
        poll.register(self._worker.control, select.POLLOUT)
        while data:
            try:
                data = data[self._worker.control.send(data) :]
            except BlockingIOError:
                if not poll.poll(_milliseconds(deadline)):
                    return KilledReason.WALL
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                    raise
                return KilledReason.INFRA
        return None

    def _pump(self, deadline: float) -> tuple[dict[str, Any] | None, KilledReason | None]:
        """Reads all three channels until there is a message, or a reason to stop."""
        control = self._worker.control.fileno()
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
                capture = self._stdout if fd == self._stdout.fd else self._stderr
                if not capture.read_some():
                    self._poll.unregister(fd)  # its end: the writers are gone
                if capture.flooded:
                    return None, KilledReason.OUTPUT
            if time.monotonic() >= deadline:
                return None, KilledReason.WALL

    def _receive(self) -> dict[str, Any] | None:
        """Takes what has come on the control socket; a message if that completes one."""
        data = self._worker.control.recv(1 << 16)
        if not data:
            raise EOFError
        self._incoming += data
        if len(self._incoming) < HEADER.size:
            return None
        (length,) = HEADER.unpack_from(self._incoming)
        if length > MAX_FRAME:
            raise ValueError(f"a frame of {length} bytes")
        end = HEADER.size + length
        if len(self._incoming) < end:
            return None
        message = json.loads(self._incoming[HEADER.size : end])
        del self._incoming[:end]
        if not isinstance(message, dict):
            raise ValueError("a frame that is no object")
        return message

    def _stop(self) -> dict[str, Any] | None:
        """Lets the supervisor end the code and account for it; its silence changes nothing."""
        deadline = time.monotonic() + _STOP_GRACE_S
        if self._send(encode({"op": "stop"}), deadline) is not None:
            return None
        for capture in (self._stdout, self._stderr):  # a flood must not end the wait
            with contextlib.suppress(KeyError):
                self._poll.unregister(capture.fd)
        reply, _ = self._pump(deadline)
        return reply

    def _finish(self, why: str) -> None:
        self._ended = why
        self._worker.kill()

    def close(self) -> None:
        """Ends every process of the session, after a call under way; see `Session.close`."""
        with self._lock:
            if self._ended is None:
                self._finish("it was closed")
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.close()


def worker_config(limits: Limits, *, contained: bool, **more: Any) -> dict[str, Any]:
    """What the supervisor is told first.

    Args:
        limits: The limits that it watches or sets.
        contained: Whether it is process 1 of a namespace of its own.
        **more: `packages`, `extra_path` and `python`, the version that the latter is for.
    """
    numbers = {
        "cpu": limits.cpu_s,
        "memory": limits.memory_mb << 20,
        "pids": limits.pids,
        "workdir": limits.workdir_mb << 20,
        "inodes": limits.workdir_inodes,
        "open_files": limits.open_files,
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
        and reply.get("killed") in (None, *KilledReason)
    )


def _release(worker: Worker, owner: int) -> None:
    if os.getpid() == owner:  # a fork of the host has a copy of the session, not the session
        worker.kill()
    worker.control.close()
    for stream in (worker.process.stdout, worker.process.stderr):
        if stream is not None:
            stream.close()
