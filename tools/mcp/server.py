"""An MCP server as a source of tools: a process that speaks over stdio, or an address.

    with McpServer("python", "server.py") as server:
        server.tools    # ready for `execute`, or for the toolset of an environment

The SDK is asynchronous; one background event loop serves all servers of this process, and ends with
the last of them. How sessions are dealt to episodes is in `journeyman.tools.live`.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import warnings
import weakref
from collections.abc import Mapping
from concurrent.futures import wait
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from journeyman.tools.errors import ToolDefinitionError, ToolServerError
from journeyman.tools.live import ServerState
from journeyman.tools.mcp.connection import Connection
from journeyman.tools.mcp.source import Source
from journeyman.tools.tool import Tool

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortalProvider


class McpServer:
    """An MCP server and its tools. Close it, or use it in a `with` statement.

    In an environment each episode has a session of its own (`state`): over stdio, a process, and
    one more is kept ready, so that an episode seldom waits for a start. Outside of environments all
    calls of `tools` go to one session.
    """

    def __init__(
        self,
        command: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        headers: Mapping[str, str] | None = None,
        sse: bool = False,
        state: ServerState | str | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        """Start the server, or reach it, and read its tools.

        Args:
            command: The program; or the address, such as "http://localhost:8000/mcp".
            arguments: The program's arguments.
            env: A program's environment variables, on top of the few that the SDK passes on.
            cwd: A program's working directory.
            headers: Sent to an address with every request, such as "Authorization".
            sse: An address speaks the older HTTP+SSE, not streamable HTTP.
            state: What the server remembers from call to call, and so how episodes share it (see
                `ServerState`). A program's is "episode" by default. An address has no default,
                since its server cannot be started anew: "none" if it remembers nothing, "episode"
                or "replay" if it remembers by session of the protocol.
            timeout_s: Longest wait for a start, and for each call, in seconds.

        Raises:
            ToolServerError: The SDK is not installed, or the server does not start.
            ToolDefinitionError: None of its tools can be used.
            ValueError: Arguments that do not go together, or no such state.
        """
        try:
            import mcp  # noqa: F401 - a missing extra is told before anything else
        except ModuleNotFoundError as error:
            raise ToolServerError(
                "MCP servers need the MCP SDK: pip install 'journeyman[mcp]'"
            ) from error
        self._source = Source(
            (command, *arguments), dict(env or {}), cwd, dict(headers or {}), sse, timeout_s
        )
        self.name = self._source.name
        """How errors call it."""
        self.state = self._read_state(state)
        """What it remembers from one call to the next."""
        self._source.sessions = self.state is not ServerState.NONE
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._spare: Connection | None = None
        self._own: Connection | None = None
        with ExitStack() as stack:
            self._portal = stack.enter_context(_portals())
            stack.callback(_close_all, self._connections)
            self._spare = self._connect()
            self.tools, self.refused = self._read_tools(self._spare.list_tools())
            # Also run when the interpreter exits, so that no process is left behind.
            self._close = weakref.finalize(self, stack.pop_all().close)

    tools: tuple[Tool, ...]
    """The tools that can be used, in the server's order; what it lists later is not among them."""
    refused: Mapping[str, str]
    """Why each of its other tools cannot be used, by name."""

    @property
    def timeout_s(self) -> float:
        """Longest wait for a start, and for each call, in seconds."""
        return self._source.timeout_s

    @timeout_s.setter
    def timeout_s(self, seconds: float) -> None:
        self._source.timeout_s = seconds

    def open(self) -> Connection:
        """A new session, in which nothing has been called.

        Raises:
            ToolServerError: The server is closed, or does not start.
        """
        # A process takes a while to start, an address answers at once.
        return self._take(replace=not self._source.is_address)

    def close(self) -> None:
        """End the server and all its sessions; a second time does nothing."""
        self._close()

    def __enter__(self) -> McpServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_state(self, state: ServerState | str | None) -> ServerState:
        if state is None and self._source.is_address:
            raise ValueError(
                f"the MCP server at {self.name!r} cannot be started anew for each episode: say "
                f"state='none' if no call changes what a later one sees, or state='episode' if the "
                f"server keeps what it remembers apart by session of the protocol"
            )
        try:
            return ServerState(ServerState.EPISODE if state is None else state)
        except ValueError:
            known = ", ".join(ServerState)
            raise ValueError(f"state={state!r}: expected one of {known}") from None

    def _take(self, replace: bool) -> Connection:
        """The connection that is ready, or a new one; another may be made ready in its place."""
        with self._lock:
            if not self._close.alive:
                raise ToolServerError(f"the MCP server {self.name!r} is closed")
            taken, self._spare = self._spare, None
            if taken is None or not taken.alive:
                taken = self._connect()
            if replace:
                self._spare = self._connect()
        taken.opened()
        return taken

    def _connect(self) -> Connection:
        connection = Connection(self._source, self._portal, self._connections.discard)
        self._connections.add(connection)
        return connection

    def _read_tools(self, listed: list[Any]) -> tuple[tuple[Tool, ...], dict[str, str]]:
        """The tools that can be used, and why the others cannot."""
        tools: dict[str, Tool] = {}
        refused: dict[str, str] = {}
        for number, given in enumerate(listed, 1):
            name = given.get("name") if isinstance(given, dict) else None
            if not isinstance(name, str) or not name:
                refused[f"number {number}"] = f"it has no name: {str(given)[:80]}"
            elif name in tools:
                refused[f"{name} (number {number})"] = "another tool has its name"
            else:
                try:
                    tools[name] = self._tool(name, given)
                except ToolDefinitionError as error:
                    refused[name] = str(error)
        if refused:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
            message = f"tools of the MCP server {self.name!r} that cannot be used: {reasons}"
            if not tools:
                raise ToolDefinitionError(message)
            warnings.warn(message, stacklevel=3)
        return tuple(tools.values()), refused

    def _tool(self, name: str, given: Mapping[str, Any]) -> Tool:
        schema = given.get("inputSchema")
        if not isinstance(schema, Mapping):
            raise ToolDefinitionError(f"its inputSchema is no JSON Schema: {str(schema)[:80]}")

        def call(**arguments: Any) -> Any:
            return self._call(name, arguments)

        description = given.get("description") or given.get("title")
        function = {
            "name": name,
            "description": description if isinstance(description, str) else "",
            "parameters": {"type": "object", **schema},  # the protocol knows no other type
        }
        # The connection has a time limit of its own.
        return Tool.from_schema(function, call, live=self, timeout_s=math.inf)

    def _call(self, name: str, arguments: dict[str, Any]) -> Any:
        """Call a tool outside of environments, or where episodes have nothing to share."""
        lost = self._own is not None and not self._own.alive
        if self._own is None or not self._close.alive or (lost and self.state is ServerState.NONE):
            self._own = self._take(replace=False)
        return self._own.call(name, arguments)


@functools.cache
def _portals() -> BlockingPortalProvider:
    from anyio.from_thread import BlockingPortalProvider

    # Without a handler, Python prints a traceback for each line of a server's that is not JSON.
    logging.getLogger("mcp").addHandler(logging.NullHandler())
    return BlockingPortalProvider()


def _close_all(connections: set[Connection]) -> None:
    """End connections and wait until nothing is left of them."""
    ending = list(connections)
    for connection in ending:
        connection.close()
    wait([connection.over for connection in ending])
