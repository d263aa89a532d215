"""The sandbox for asyncio: the same calls, awaited, on threads of their own.

A cancelled task does not stop its code: that runs on to its end or its limit, unheard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, Self, TypeVar

from journeyman.sandbox.base import ExecResult, Session, Snapshot

P = ParamSpec("P")
T = TypeVar("T")


class AsyncSession:
    """A `Session` whose calls are awaited. `await AsyncSession.start(sandbox.session)` opens one.

    Attributes:
        session: The session behind it.
    """

    def __init__(self, session: Session, executor: Executor | None = None) -> None:
        """Wraps a session.

        Args:
            session: An open session.
            executor: Whose threads wait for it; the event loop's own if not given.
        """
        self.session = session
        self._executor = executor

    @classmethod
    async def start(cls, factory: Callable[[], Session], executor: Executor | None = None) -> Self:
        """Opens a session, as `Sandbox.session` does, without holding up the event loop."""
        loop = asyncio.get_running_loop()
        return cls(await loop.run_in_executor(executor, factory), executor)

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: call(*args, **kwargs))

    @property
    def alive(self) -> bool:
        """Whether `exec` can still be called."""
        return self.session.alive

    async def exec(self, code: str, timeout: float | None = None) -> ExecResult:
        """Runs `code`; see `Session.exec`."""
        return await self._run(self.session.exec, code, timeout)

    async def fork(self) -> AsyncSession:
        """Makes a branch; see `Session.fork`."""
        return AsyncSession(await self._run(self.session.fork), self._executor)

    async def snapshot(self, exact: bool = False) -> Snapshot:
        """Keeps the state of this moment; see `Session.snapshot`."""
        return await self._run(self.session.snapshot, exact)

    async def restore(self, snapshot: Snapshot) -> None:
        """Goes back to a snapshot; see `Session.restore`."""
        await self._run(self.session.restore, snapshot)

    async def put(self, path: str, data: bytes) -> None:
        """Writes a file; see `Session.put`."""
        await self._run(self.session.put, path, data)

    async def get(self, path: str) -> bytes:
        """Reads a file; see `Session.get`."""
        return await self._run(self.session.get, path)

    async def close(self) -> None:
        """Ends every process of the session; see `Session.close`."""
        await self._run(self.session.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
