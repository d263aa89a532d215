"""What a tool is, how a call is parsed, validated and executed; the mock APIs."""

from journeyman.tools.errors import ToolDefinitionError, ToolError, ToolTimeout
from journeyman.tools.execute import execute, validate
from journeyman.tools.parsing import CallFormat, get_parser, parse_hermes, render_hermes
from journeyman.tools.tool import Tool, tool
from journeyman.tools.types import CallStatus, ToolCall, ToolResult, ToolSpec

__all__ = [
    "CallFormat",
    "CallStatus",
    "Tool",
    "ToolCall",
    "ToolDefinitionError",
    "ToolError",
    "ToolResult",
    "ToolSpec",
    "ToolTimeout",
    "execute",
    "get_parser",
    "parse_hermes",
    "render_hermes",
    "tool",
    "validate",
]
