"""A client of an MCP server, held open by the background event loop: below `server.py`."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import IO, TYPE_CHECKING, Any, TypeVar

from journeyman.tools.errors import ToolError, ToolServerError, ToolTimeout
from journeyman.tools.mcp.content import readable

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal
    from mcp import Client

    from journeyman.tools.mcp.source import Source

Value = TypeVar("Value")

_PAGES = 100
"""Pages of tools that are read: a list without an end is no list."""
_SPAWN_S = 5.0
"""Longest time that beginning a process takes."""


class Connection:
    """Over stdio a process, at an address a session of the protocol."""

    def __init__(
        self, source: Source, portal: BlockingPortal, ended: Callable[[Connection], None]
    ) -> None:
        """Begin to connect, in the background.

        Args:
            source: Where to.
            portal: The event loop.
            ended: Called, in the event loop, when nothing is left of the connection.
        """
        import anyio

        from journeyman.tools.mcp.wire import Wire

        self._source, self._portal, self._tell = source, portal, ended
        self._client: Client
        self._wire: Wire | None = None
        self._ready: Future[None] = Future()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end
        self._last_words = ""
        self._done = portal.call(anyio.Event)
        self.over: Future[None] = portal.start_task_soon(self._serve)
        """Done when nothing is left of the connection."""
        self.over.add_done_callback(self._end)

    @property
    def alive(self) -> bool:
        """False once it has failed, has been closed, or the server is gone."""
        gone = self._wire is not None and self._wire.over
        return not (gone or self._done.is_set() or self.over.done())

    def opened(self) -> None:
        """Wait until it is open.

        Raises:
            ToolServerError: The server did not start.
        """
        name, limit = self._source.name, self._source.timeout_s
        try:
            self._ready.result(limit)
        except TimeoutError:
            said = self._said()
            self.close()
            raise ToolServerError(
                f"the MCP server {name!r} did not start within {limit:g} s{said}"
            ) from None
        except Exception as error:
            raise ToolServerError(
                f"the MCP server {name!r} did not start: {error}{self._said()}"
            ) from error

    def list_tools(self) -> list[Any]:
        """Every tool as the server describes it, of all pages.

        Raises:
            ToolServerError: The server did not start, or does not say.
        """
        self.opened()
        name, cursor = self._source.name, None
        assert self._wire is not None
        try:
            for _ in range(_PAGES):
                page = self._wait(functools.partial(self._client.list_tools, cursor=cursor))
                if page.next_cursor is None:
                    return self._wire.tools
                cursor = page.next_cursor
        except ToolError as error:
            raise ToolServerError(
                f"the MCP server {name!r} does not list its tools: {error}{self._said()}"
            ) from error
        raise ToolServerError(
            f"the MCP server {name!r} lists its tools without end: {_PAGES} pages were read"
        )

    def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """What a tool returns, for a model to read.

        Raises:
            ToolTimeout: It did not answer in time.
            ToolError: It refuses.
            ToolServerError: The server is gone, or answers what is no result.
        """
        limit = self._source.timeout_s
        result = self._wait(functools.partial(self._client.call_tool, name, dict(arguments), limit))
        value = readable(result)
        if result.is_error:
            raise ToolError(value if isinstance(value, str) and value else f"{name} failed")
        return value

    def close(self) -> None:
        """End it; a process ends in the background."""
        if not self.over.done():
            self._portal.start_task_soon(self._finish)

    async def _finish(self) -> None:
        import anyio

        self._done.set()
        if self._ready.done():
            return
        if self._wire is not None:
            # Half a start cannot be undone: asyncio loses the pipes of a process that it is
            # about to begin.
            with anyio.move_on_after(_SPAWN_S):
                await self._wire.opened.wait()
        self.over.cancel()

    async def _serve(self) -> None:
        """Hold the connection open: it must be closed in the task that it was opened in."""
        from mcp import Client

        from journeyman.tools.mcp.wire import Wire

        source, before = self._source, set(self._source.seen)
        wire = self._wire = Wire(source.transport(self._log))
        # Only the handshake of the protocol before 2026 opens a session at an address.
        sessions = source.is_address and source.sessions
        mode = "legacy" if sessions else "auto"
        async with Client(
            wire.streams(), read_timeout_seconds=source.timeout_s, mode=mode
        ) as client:
            if sessions and not source.sse and source.seen == before:
                raise ConnectionError(
                    "it opens no sessions, so all episodes would share what it remembers: say "
                    "state='none' if that is nothing"
                )
            self._client = client
            self._ready.set_result(None)
            await self._done.wait()

    def _end(self, over: Future[None]) -> None:
        """Tell whoever waits for the start, and the owner."""
        self._last_words = self._said()
        self._log.close()
        if not self._ready.done():
            error = ConnectionError("it was closed") if over.cancelled() else over.exception()
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            self._ready.set_exception(error or ConnectionError("it ended"))
        self._tell(self)

    def _said(self) -> str:
        """The last line that the server wrote to stderr, to end a message with."""
        if self._log.closed:
            return self._last_words
        size = os.fstat(self._log.fileno()).st_size
        # Not by seeking: the server writes at the same position.
        tail = os.pread(self._log.fileno(), 2000, max(0, size - 2000))
        lines = tail.decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"; its last words: {last[:300]}" if last else ""

    def _wait(self, ask: Callable[[], Awaitable[Value]]) -> Value:
        from anyio import BrokenResourceError, ClosedResourceError
        from mcp import MCPError
        from mcp.types import CONNECTION_CLOSED, REQUEST_TIMEOUT
        from pydantic import ValidationError

        name = self._source.name
        if self._done.is_set():
            raise ToolServerError(f"the MCP server {name!r} is closed")
        try:
            return self._portal.call(ask)
        except (BrokenResourceError, ClosedResourceError) as error:
            raise ToolServerError(f"the MCP server {name!r} died{self._said()}") from error
        except ValidationError as error:
            told = error.errors()[0]
            where = ".".join(str(part) for part in told["loc"])
            raise ToolServerError(
                f"the MCP server {name!r} answers what is no result: {where}: {told['msg']}"
            ) from error
        except MCPError as error:
            if error.code == REQUEST_TIMEOUT:
                raise ToolTimeout(f"no answer within {self._source.timeout_s:g} s") from error
            if error.code == CONNECTION_CLOSED:
                raise ToolServerError(f"the MCP server {name!r} died{self._said()}") from error
            raise ToolError(error.message) from error
