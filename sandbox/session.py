"""A session on the host's side: one branch of a container, whatever walls stand around it."""

from __future__ import annotations

import base64
import os
import time
import weakref
from typing import Any, Self

from journeyman.sandbox.base import Closing, ExecResult, KilledReason, Limits, SandboxSnapshot
from journeyman.sandbox.container import Container, Worker
from journeyman.sandbox.errors import SandboxDied, SandboxError

_FORK_S = 10.0
# Bytes of a file that go in one message.
_CHUNK = 4 << 20


class WorkerSession(Closing):
    """A `Session` over a worker. Safe to share among threads: calls take turns."""

    def __init__(self, container: Container, branch: int = 0) -> None:
        """Takes a branch over; 0 is a container's first."""
        self.container = container
        self._hold(branch)

    def _hold(self, branch: int) -> None:
        self._branch = branch
        self._ended: str | None = None
        # A session that is merely dropped must not leave processes behind.
        self._release = weakref.finalize(self, self.container.release, branch)

    @classmethod
    def start(
        cls, worker: Worker, limits: Limits, config: dict[str, Any]
    ) -> tuple[Self, dict[str, Any]]:
        """Configures a worker; returns its session and how it describes itself.

        Raises:
            SandboxError: It did not come up; nothing of it is left.
        """
        session = cls(Container(worker, limits))
        try:
            return session, session.container.handshake(config)
        except BaseException:
            session.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether `exec` can still be called."""
        return self._ended is None and self.container.ended is None

    def exec(self, code: str, timeout: float | None = None) -> ExecResult:
        """Runs `code`; see `Session.exec`."""
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout={timeout!r}: expected a positive number of seconds")
        limit = self.container.limits.wall_s
        wall = limit if timeout is None else min(timeout, limit)
        if not isinstance(code, str):
            raise TypeError(f"code is a {type(code).__name__}: expected Python source, a str")
        with self.container.lock:
            start = time.monotonic()
            request = {"op": "exec", "branch": self._branch, "code": code}
            reply, reason = self._call(request, wall)
            duration = time.monotonic() - start
            # All that was written before the answer is in the pipes by now.
            stdout, out_cut = self.container.stdout.take()
            stderr, err_cut = self.container.stderr.take()
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

    def _call(
        self, request: dict[str, Any], wall_s: float
    ) -> tuple[dict[str, Any], KilledReason | None]:
        """Lets the branch run, and notes if that was its end."""
        ended = self._ended or self.container.ended
        if ended is not None:
            raise SandboxDied(f"this session is over: {ended}. Open a new one")
        try:
            reply, reason = self.container.call(request, wall_s)
        except ValueError:  # nothing was sent: the request is too long
            raise
        except BaseException:
            # An interrupted call (Ctrl-C, say) leaves an answer under way: nobody may get it.
            self.container.end("a call was interrupted")
            raise
        if reply is not None and reason is None and reply["killed"] is not None:
            reason = KilledReason(reply["killed"])
        if reply is None or reason is not None or reply["ended"]:
            self._ended = f"killed ({reason})" if reason else "its code ended the interpreter"
        return reply or {}, reason

    def fork(self) -> WorkerSession:
        """Makes a live copy; see `Session.fork`."""
        return WorkerSession(self.container, self._branch_off())

    def spare(self) -> WorkerSession:
        """Makes a copy ahead of its use; see `Session.spare`."""
        with self.container.lock:
            number = self.container.new_branch()
            self.container.post(self._fork_request(number, warm=True))
        return WorkerSession(self.container, number)

    def snapshot(self, exact: bool = False) -> WorkerSnapshot:
        """Keeps the state of this moment; see `Session.snapshot`."""
        return WorkerSnapshot(WorkerSession(self.container, self._branch_off(exact)), exact)

    def restore(self, snapshot: SandboxSnapshot) -> None:
        """Goes back to a snapshot, even from the dead; see `Session.restore`."""
        if (
            not isinstance(snapshot, WorkerSnapshot)
            or snapshot.source.container is not self.container
        ):
            raise ValueError(f"{snapshot!r} is not a snapshot of this session or of its forks")
        branch, old = snapshot.source._branch_off(snapshot.exact), self._release
        self._hold(branch)
        old()

    def _fork_request(self, to: int, warm: bool = False, exact: bool = False) -> dict[str, Any]:
        return {"op": "fork", "branch": self._branch, "to": to, "warm": warm, "exact": exact}

    def _branch_off(self, exact: bool = False) -> int:
        container = self.container
        with container.lock:
            number = container.new_branch()
            try:
                reply, reason = self._call(self._fork_request(number, exact=exact), _FORK_S)
                if reason is not None or self._ended is not None or "error" in reply:
                    why = reply.get("error") or self._ended or reason
                    raise SandboxError(f"this session cannot be forked: {why}")
            except BaseException:
                container.release(number)
                raise
            finally:
                # What its code wrote at the fork is nobody's, least of all the next branch's.
                for stream in (container.stdout, container.stderr):
                    stream.take()
                if self._ended is not None:
                    self._release()
        return number

    def put(self, path: str, data: bytes) -> None:
        """Writes a file; see `Session.put`."""
        with self.container.lock:  # a request in between would be the end of it
            for at in range(0, len(data) or 1, _CHUNK):
                text = base64.b64encode(data[at : at + _CHUNK]).decode("ascii")
                request = {"op": "put", "path": path, "at": at, "data": text}
                self._file(path, {**request, "last": at + _CHUNK >= len(data)})

    def get(self, path: str) -> bytes:
        """Reads a file; see `Session.get`."""
        data = bytearray()
        with self.container.lock:
            while True:
                request = {"op": "get", "path": path, "at": len(data), "count": _CHUNK}
                part = base64.b64decode(self._file(path, request)["data"])
                data += part
                if len(part) < _CHUNK:
                    return bytes(data)

    def _file(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(path, str) or not path or "\0" in path or not _encodable(path):
            raise ValueError(f"path={path!r}: expected a relative path below the working directory")
        parts = path.split("/")
        if path.startswith("/") or not {"", ".", ".."}.isdisjoint(parts):
            raise ValueError(
                f"path={path!r}: expected a relative path, without empty parts or dots"
            )
        with self.container.lock:
            reply, reason = self._call({**request, "branch": self._branch}, _FORK_S)
            if self._ended is not None:
                self._release()
        if "errno" in reply:
            raise OSError(reply["errno"], os.strerror(reply["errno"]), path)
        if reason is not None:
            raise SandboxDied(f"this session is over: killed ({reason})")
        return reply

    def close(self) -> None:
        """Ends every process of the session, after a call under way; see `Session.close`."""
        with self.container.lock:
            if self._ended is None:
                self._ended = "it was closed"
            self._release()


def _encodable(path: str) -> bool:
    """Whether a file can have this name: not with half of a surrogate pair in it."""
    try:
        path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


class WorkerSnapshot:
    """The state of a `WorkerSession` at one moment: a branch that never runs."""

    def __init__(self, source: WorkerSession, exact: bool) -> None:
        """Keeps a fork that was made for it."""
        self.source = source
        self.exact = exact

    def session(self) -> WorkerSession:
        """Makes a session that goes on from here; see `SandboxSnapshot.session`."""
        return WorkerSession(self.source.container, self.source._branch_off(self.exact))

    def close(self) -> None:
        """Gives its memory back; sessions that were restored from it go on."""
        self.source.close()
