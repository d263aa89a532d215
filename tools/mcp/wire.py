"""A transport that mends what a server says before the SDK reads it.

The SDK refuses a list of tools for one odd tool, and a result for one odd part. Here the list is
taken down as it came (`tools`), and the SDK shown what it takes of it; a part that it would not
take becomes text. Between a connection of `server.py` and the SDK's own transport.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from mcp.shared.message import SessionMessage
from mcp.types import ContentBlock, JSONRPCResponse
from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

_block: TypeAdapter[Any] = TypeAdapter(ContentBlock)
_response: TypeAdapter[JSONRPCResponse] = TypeAdapter(JSONRPCResponse)


class Wire:
    """A transport around another one."""

    def __init__(self, transport: AbstractAsyncContextManager[TransportStreams]) -> None:
        """Lay it around `transport`, which it opens and closes."""
        self.tools: list[Any] = []
        """Every tool that the server listed, as it came."""
        self.opened = anyio.Event()
        """The transport is open: a program has been started."""
        self.over = False
        """The server says nothing more."""
        self._transport = transport

    def streams(self) -> AbstractAsyncContextManager[TransportStreams]:
        """Open the transport; what is read of it comes out mended."""
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[TransportStreams]:
        async with self._transport as (read, write):
            self.opened.set()
            send, mended = anyio.create_memory_object_stream[SessionMessage | Exception](0)

            async def relay() -> None:
                async with send:
                    async for item in read:
                        await send.send(self._mend(item))
                self.over = True

            async with anyio.create_task_group() as tasks, mended:
                tasks.start_soon(relay)
                yield mended, write
                tasks.cancel_scope.cancel()

    def _mend(self, item: SessionMessage | Exception) -> SessionMessage | Exception:
        if isinstance(item, ValidationError):
            return _with_whole_characters(item)
        if isinstance(item, SessionMessage) and isinstance(item.message, JSONRPCResponse):
            result = item.message.result
            if isinstance(result.get("tools"), list):
                self.tools += result["tools"]
                result["tools"] = [_for_sdk(tool) for tool in result["tools"] if _is_named(tool)]
                if not isinstance(result.get("nextCursor"), str):
                    result.pop("nextCursor", None)
            elif "content" in result or "structuredContent" in result:
                _mend_result(result)
        return item


def _is_named(tool: Any) -> bool:
    return isinstance(tool, dict) and isinstance(tool.get("name"), str)


def _for_sdk(tool: dict[str, Any]) -> dict[str, Any]:
    """What the SDK must know of it; an output schema would be held against results."""
    schema = tool.get("inputSchema")
    shown = schema if _is_plain(schema) else {"type": "object"}
    return {"name": tool["name"], "inputSchema": shown}


def _is_plain(schema: Any) -> bool:
    """The SDK takes it: it looks at these keywords only."""
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return False
    properties, required = schema.get("properties", {}), schema.get("required", [])
    return (
        isinstance(properties, dict)
        and all(isinstance(shape, dict) for shape in properties.values())
        and isinstance(required, list)
        and all(isinstance(name, str) for name in required)
        and isinstance(schema.get("$schema", ""), str)
    )


def _mend_result(result: dict[str, Any]) -> None:
    """Make a tool's result one that the SDK takes, with all that it says."""
    given = result.get("content")
    parts = [] if given is None else given if isinstance(given, list) else [given]
    result["content"] = [part if _is_block(part) else _as_text(part) for part in parts]
    structured = result.get("structuredContent")
    if structured is not None and not isinstance(structured, dict):
        result["content"].append(_as_text(result.pop("structuredContent")))
    if not isinstance(result.get("isError", False), bool):
        result["isError"] = bool(result["isError"])


def _is_block(part: Any) -> bool:
    try:
        _block.validate_python(part, by_name=False)
    except ValidationError:
        return False
    return True


def _as_text(part: Any) -> dict[str, str]:
    text = part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
    return {"type": "text", "text": text}


def _with_whole_characters(error: ValidationError) -> SessionMessage | Exception:
    """The response in a line that holds half of a surrogate pair, which pydantic refuses."""
    line = error.errors()[0]["input"]
    try:
        found = json.loads(line)
        clean = json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")
        return SessionMessage(_response.validate_json(clean, by_name=False))
    except (TypeError, ValueError):
        return error  # no response: text that is not for us, such as a log line on stdout
