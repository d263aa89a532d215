"""An MCP server for the tests, run as a process."""

import os
import time

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ImageContent
from pydantic import BaseModel

server = MCPServer("test", log_level="CRITICAL")


class Point(BaseModel):
    x: int
    y: int = 0


@server.tool()
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def move(point: Point, to: list[Point]) -> str:
    """Move a point."""
    return f"({point.x}, {point.y}) to {len(to)} places"


@server.tool()
def refuse() -> str:
    """Refuse."""
    raise ToolError("no luck today")


@server.tool()
def wait(seconds: float) -> str:
    """Wait."""
    time.sleep(seconds)
    return "done"


@server.tool()
def picture() -> ImageContent:
    """Draw."""
    return ImageContent(type="image", data="", mime_type="image/png")


@server.tool()
def die() -> str:
    """End the server in the middle of a call."""
    os._exit(3)


if __name__ == "__main__":
    server.run("stdio")
