"""A fixed number of sessions, kept ready, for callers of any number: threads and asyncio tasks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from journeyman.sandbox.aio import AsyncSession
from journeyman.sandbox.base import Closing, ExecResult, Sandbox, Session
from journeyman.sandbox.errors import SandboxDied


class _Slot:
    """A fresh session, which never runs foreign code, and a copy of it to be lent."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.fresh: Session | None = None
        self.copy: Session | None = None

    def open(self) -> Session:
        if self.fresh is None or not self.fresh.alive:
            self.close()
            self.fresh = self.sandbox.session()
            self.copy = self.fresh.spare()
        assert self.copy is not None
        return self.copy

    def renew(self) -> None:
        """Takes the lent copy back; the next one is made while nobody waits for it."""
        if self.copy is not None:
            self.copy.close()
        if self.fresh is not None and self.fresh.alive:
            self.copy = self.fresh.spare()

    def close(self) -> None:
        for session in (self.copy, self.fresh):
            if session is not None:
                session.close()
        self.fresh = self.copy = None


class Pool(Closing):
    """Lends sessions. Each loan is of a fresh state; what died is replaced at the next loan.

    Example:
        >>> with Pool(Sandbox(), 2) as pool:  # doctest: +SKIP
        ...     pool.exec("1 + 1").value_repr
        '2'
    """

    def __init__(self, sandbox: Sandbox, size: int) -> None:
        """Starts all sessions.

        Args:
            sandbox: Where they come from.
            size: How many can be lent at once.

        Raises:
            IsolationUnavailable: The machine cannot isolate them.
        """
        if size < 1:
            raise ValueError(f"size={size}: expected at least 1 session")
        self.size = size
        self._lock = threading.Lock()
        self._waiting: deque[Future[_Slot]] = deque()
        self._closed = False
        # For calls from asyncio: as many as can be under way.
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="sandbox-pool")
        self._free = [_Slot(sandbox) for _ in range(size)]
        try:
            list(self._threads.map(_Slot.open, self._free))
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def session(self, timeout: float | None = None) -> Iterator[Session]:
        """Lends a session; its state is gone when the block ends.

        Args:
            timeout: Seconds to wait for one to be free; None waits for ever.

        Raises:
            TimeoutError: None was free in time.
            SandboxDied: The pool is closed.
        """
        slot = self._take(self._ask(), timeout)
        try:
            yield slot.open()
        finally:
            self._give_back(slot)

    @contextlib.asynccontextmanager
    async def asession(self) -> AsyncIterator[AsyncSession]:
        """Lends a session to a task; see `session`."""
        asked = self._ask()
        try:
            slot = await asyncio.wrap_future(asked)
        except asyncio.CancelledError:
            if asked.done() and not asked.cancelled():  # it came too late
                self._give_back(asked.result())
            raise
        loop = asyncio.get_running_loop()
        try:
            session = await loop.run_in_executor(self._threads, slot.open)
            yield AsyncSession(session, self._threads)
        finally:
            await asyncio.shield(loop.run_in_executor(self._threads, self._give_back, slot))

    def exec(self, code: str, timeout: float | None = None) -> ExecResult:
        """Runs `code` in a session of its own; see `Session.exec`."""
        with self.session() as session:
            return session.exec(code, timeout)

    async def aexec(self, code: str, timeout: float | None = None) -> ExecResult:
        """Runs `code` in a session of its own; see `Session.exec`."""
        async with self.asession() as session:
            return await session.exec(code, timeout)

    def close(self) -> None:
        """Ends all sessions; those on loan when they are given back. May be repeated."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
            waiting = list(self._waiting)
            self._waiting.clear()
        for asked in waiting:
            if asked.set_running_or_notify_cancel():
                asked.set_exception(SandboxDied("this pool is closed"))
        for slot in free:
            slot.close()
        self._threads.shutdown(wait=False)

    def _ask(self) -> Future[_Slot]:
        """Queues for a slot: first come, first served."""
        asked: Future[_Slot] = Future()
        with self._lock:
            if self._closed:
                raise SandboxDied("this pool is closed")
            if not self._free:
                self._waiting.append(asked)
                return asked
            slot = self._free.pop()
        asked.set_running_or_notify_cancel()
        asked.set_result(slot)
        return asked

    def _take(self, asked: Future[_Slot], timeout: float | None) -> _Slot:
        try:
            return asked.result(timeout)
        except BaseException:
            # Given up on, unless it came at the last moment.
            if not asked.cancel() and asked.exception() is None:
                self._give_back(asked.result())
            raise

    def _give_back(self, slot: _Slot) -> None:
        if self._closed:
            slot.close()
            return
        slot.renew()
        with self._lock:
            while self._waiting:
                asked = self._waiting.popleft()
                if asked.set_running_or_notify_cancel():
                    asked.set_result(slot)
                    return
            if not self._closed:
                self._free.append(slot)
                return
        slot.close()
