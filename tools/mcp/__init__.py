"""Tools of MCP servers (Model Context Protocol). Needs the extra `journeyman[mcp]`.

`server.py` starts or reaches a server and calls its tools, `wire.py` mends on the way what the SDK
would refuse whole, `content.py` makes a result readable.
"""

from journeyman.tools.live import ServerState
from journeyman.tools.mcp.server import McpServer

__all__ = ["McpServer", "ServerState"]
