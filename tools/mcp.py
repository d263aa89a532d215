"""Tools of any MCP server (Model Context Protocol), started as a process that speaks over stdio.

    with McpServer("python", "server.py") as server:
        server.tools    # ready for `execute`, or for the toolset of an environment

The SDK is asynchronous; one background event loop serves all servers of this process, and ends with
the last of them. Needs the extra `journeyman[mcp]`.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from journeyman.tools.errors import ToolError, ToolServerError, ToolTimeout
from journeyman.tools.tool import Tool
from journeyman.tools.types import ToolSpec

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal, BlockingPortalProvider
    from mcp import Client
    from mcp.types import CallToolResult

Value = TypeVar("Value")


class McpServer:
    """A running MCP server and its tools. Close it, or use it in a `with` statement."""

    def __init__(
        self,
        command: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        """Start the server and read its tools.

        Args:
            command: The program.
            arguments: Its arguments.
            env: Environment variables on top of the few that the SDK passes on.
            cwd: Working directory.
            timeout_s: Longest wait for the start, and for each call, in seconds.

        Raises:
            ToolServerError: The SDK is not installed, or the server does not start.
            ToolDefinitionError: A tool's schema cannot be used.
        """
        try:
            from mcp import Client, StdioServerParameters
        except ModuleNotFoundError as error:
            raise ToolServerError(
                "MCP servers need the MCP SDK: pip install 'journeyman[mcp]'"
            ) from error
        self._name = " ".join((command, *arguments))
        self.timeout_s = timeout_s
        """Longest wait for a call, in seconds."""
        parameters = StdioServerParameters(
            command=command, args=list(arguments), env=dict(env or {}) or None, cwd=cwd
        )
        client = Client(parameters, read_timeout_seconds=timeout_s)
        with ExitStack() as stack:
            self._portal = stack.enter_context(_portals())
            self._client = _connect(stack, self._portal, client, self._name, timeout_s)
            self.tools: tuple[Tool, ...] = tuple(map(self._tool, self._list()))
            """The server's tools, in its order."""
            # Also run when the interpreter exits, so that no process is left behind.
            self._close = weakref.finalize(self, stack.pop_all().close)

    def close(self) -> None:
        """End the server; a second time does nothing."""
        self._close()

    def __enter__(self) -> McpServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _list(self) -> list[ToolSpec]:
        found, cursor = [], None
        while True:
            page = self._wait(functools.partial(self._client.list_tools, cursor=cursor))
            found += [ToolSpec(t.name, t.description or "", t.input_schema) for t in page.tools]
            cursor = page.next_cursor
            if cursor is None:
                return found

    def _tool(self, spec: ToolSpec) -> Tool:
        def call(**arguments: Any) -> Any:
            return self._call(spec.name, arguments)

        return Tool.from_schema(spec, call)

    def _call(self, name: str, arguments: dict[str, Any]) -> Any:
        if not self._close.alive:
            raise ToolServerError(f"the MCP server {self._name!r} is closed")
        ask = functools.partial(self._client.call_tool, name, arguments, self.timeout_s)
        result = self._wait(ask)
        text = _text(result)
        if result.is_error:
            raise ToolError(text or f"{name} failed")
        return text if result.content else result.structured_content

    def _wait(self, ask: Callable[[], Awaitable[Value]]) -> Value:
        """What the server answers.

        Raises:
            ToolTimeout: It did not in time.
            ToolError: It refuses the request.
            ToolServerError: It is gone.
        """
        from anyio import BrokenResourceError, ClosedResourceError
        from mcp import MCPError
        from mcp.types import CONNECTION_CLOSED, REQUEST_TIMEOUT

        gone = f"the MCP server {self._name!r} died"
        try:
            return self._portal.call(ask)
        except (BrokenResourceError, ClosedResourceError) as error:
            raise ToolServerError(gone) from error
        except MCPError as error:
            if error.code == REQUEST_TIMEOUT:
                raise ToolTimeout(f"no answer within {self.timeout_s:g} s") from error
            if error.code == CONNECTION_CLOSED:
                raise ToolServerError(gone) from error
            raise ToolError(error.message) from error


@functools.cache
def _portals() -> BlockingPortalProvider:
    from anyio.from_thread import BlockingPortalProvider

    return BlockingPortalProvider()


def _connect(
    stack: ExitStack, portal: BlockingPortal, client: Client, name: str, timeout_s: float
) -> Client:
    """Open the connection in a task of its own, where it must also be closed."""
    import anyio

    async def serve(ready: anyio.Event, done: anyio.Event) -> None:
        async with client:
            ready.set()
            await done.wait()

    ready, done = portal.call(anyio.Event), portal.call(anyio.Event)
    serving = portal.start_task_soon(serve, ready, done)

    async def started() -> bool:
        with anyio.move_on_after(timeout_s):
            while not ready.is_set() and not serving.done():
                await anyio.sleep(0.005)
        return ready.is_set()

    if portal.call(started):
        stack.callback(serving.exception)  # waits for the end
        stack.callback(portal.call, done.set)
        return client
    if serving.done() and (error := serving.exception()) is not None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise ToolServerError(f"the MCP server {name!r} did not start: {error}") from error
    serving.cancel()
    raise ToolServerError(f"the MCP server {name!r} did not start within {timeout_s:g} s")


def _text(result: CallToolResult) -> str:
    """What a model can read of the content."""
    return "\n".join(
        part.text if part.type == "text" else f"[{part.type}]" for part in result.content
    )
