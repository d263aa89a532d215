"""A fixed number of sessions, kept ready, for callers of any number: threads and asyncio tasks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

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
        if self.copy is None or self.fresh is None or not self.fresh.alive:
            self.close()
            self.fresh = self.sandbox.session()
            self.copy = self.fresh.spare()
        return self.copy

    def renew(self) -> None:
        """Takes the lent copy back; the next one is made while nobody waits for it."""
        copy, self.copy = self.copy, None
        if copy is not None:
            copy.close()
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
        self._lent = 0
        self._closed = False
        # For calls from asyncio: as many as can be under way. They end with the last loan.
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="sandbox-pool")
        self._free = [_Slot(sandbox) for _ in range(size)]
        try:
            opening = [self._threads.submit(slot.open) for slot in self._free]
            wait(opening)
            for each in opening:
                each.result()
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
            self._withdraw(asked)
            raise
        opening = self._threads.submit(slot.open)
        try:
            yield AsyncSession(await asyncio.wrap_future(opening), self._threads)
        finally:
            back = self._threads.submit(self._give_back, slot, opening)
            await asyncio.shield(asyncio.wrap_future(back))

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
            idle = not self._lent
        for asked in waiting:
            if asked.set_running_or_notify_cancel():
                asked.set_exception(SandboxDied("this pool is closed"))
        for slot in free:
            slot.close()
        if idle:
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
            self._lent += 1
        asked.set_running_or_notify_cancel()
        asked.set_result(slot)
        return asked

    def _take(self, asked: Future[_Slot], timeout: float | None) -> _Slot:
        try:
            return asked.result(timeout)
        except BaseException:
            self._withdraw(asked)
            raise

    def _withdraw(self, asked: Future[_Slot]) -> None:
        """Gives up on a slot; one that came at the last moment is given back."""
        if not asked.cancel() and asked.exception() is None:
            self._give_back(asked.result())

    def _give_back(self, slot: _Slot, opening: Future[Session] | None = None) -> None:
        """Lends a slot to the next in the queue, once it is opened and renewed."""
        if opening is not None:  # its task may have been cancelled meanwhile
            wait([opening])
        try:
            if not self._closed:
                slot.renew()
        finally:
            self._pass_on(slot)

    def _pass_on(self, slot: _Slot) -> None:
        with self._lock:
            while self._waiting:
                asked = self._waiting.popleft()
                if asked.set_running_or_notify_cancel():
                    asked.set_result(slot)
                    return
            self._lent -= 1
            if not self._closed:
                self._free.append(slot)
                return
            idle = not self._lent
        try:
            slot.close()
        finally:
            if idle:
                self._threads.shutdown(wait=False)
