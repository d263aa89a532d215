"""Where an MCP server is, and the SDK's transport that leads there: below a `Connection`."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

# A shell that leads the server's process group and ends all of it once the server has ended: what a
# server starts and leaves behind would otherwise outlive it.
_GROUP = ("/bin/sh", "-c", '"$@"; kill -9 0', "sh")
_SILENCE_S = 300.0
"""How long a stream of an address may say nothing."""


@dataclass
class Source:
    """A program, or an address."""

    command: tuple[str, ...]
    """Program and arguments; or the address alone."""
    env: Mapping[str, str]
    cwd: str | None
    headers: Mapping[str, str]
    sse: bool
    timeout_s: float
    """Longest wait for a start, and for each call, in seconds."""
    sessions: bool = True
    """Each connection has to be a session of its own."""
    seen: set[str] = field(default_factory=set)
    """Ids of the sessions that an address has opened."""

    def __post_init__(self) -> None:
        """Check that the arguments go together.

        Raises:
            ValueError: They do not.
        """
        if self.is_address and (len(self.command) > 1 or self.env or self.cwd):
            raise ValueError(f"{self.name!r} is an address: arguments, env and cwd are a program's")
        if not self.is_address and (self.headers or self.sse):
            raise ValueError(f"{self.name!r} is a program: headers and sse are an address's")

    @property
    def name(self) -> str:
        """How errors call it."""
        return " ".join(self.command)

    @property
    def is_address(self) -> bool:
        """Its server runs elsewhere, and cannot be started anew."""
        return self.command[0].startswith(("http://", "https://"))

    def transport(self, log: IO[bytes]) -> AbstractAsyncContextManager[TransportStreams]:
        """A new connection, to be opened.

        Args:
            log: Where a program's stderr goes.

        Raises:
            FileNotFoundError: There is no such program.
        """
        if not self.is_address:
            return self._process(log)
        if self.sse:
            from mcp.client.sse import sse_client

            return sse_client(self.command[0], headers=dict(self.headers), timeout=self.timeout_s)
        return self._http()

    def _process(self, log: IO[bytes]) -> AbstractAsyncContextManager[TransportStreams]:
        from mcp import StdioServerParameters
        from mcp.client.stdio import stdio_client

        program = self.command[0]
        place = os.path.join(self.cwd or "", program) if os.sep in program else program
        if shutil.which(place, path=self.env.get("PATH")) is None:
            raise FileNotFoundError(f"No such file or program: {program!r}")
        command = (*_GROUP, *self.command) if os.name == "posix" else self.command
        parameters = StdioServerParameters(
            command=command[0], args=list(command[1:]), env=dict(self.env) or None, cwd=self.cwd
        )
        return stdio_client(parameters, errlog=log)  # type: ignore[arg-type]  # a file is enough

    @asynccontextmanager
    async def _http(self) -> AsyncGenerator[TransportStreams]:
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        async def note(response: httpx2.Response) -> None:
            self.seen.update(response.headers.get_list("mcp-session-id"))

        limits = httpx2.Timeout(self.timeout_s, read=_SILENCE_S)
        hooks = {"response": [note]}
        async with (
            httpx2.AsyncClient(headers=self.headers, timeout=limits, event_hooks=hooks) as client,
            streamable_http_client(self.command[0], http_client=client) as streams,
        ):
            yield streams
