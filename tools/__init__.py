"""What a tool is, how a call is parsed, validated and executed; the mock APIs."""

from journeyman.tools.errors import (
    NoBranchError,
    ToolDefinitionError,
    ToolError,
    ToolsError,
    ToolServerError,
    ToolTimeout,
    UnknownParserError,
    UnknownToolsError,
)
from journeyman.tools.execute import execute, validate
from journeyman.tools.limits import CallLimits
from journeyman.tools.parsing import CallFormat, get_parser, parse_hermes, render_hermes
from journeyman.tools.plugins import load_plugins, plugin_tools
from journeyman.tools.tool import Tool, tool
from journeyman.tools.types import UNREAD, CallStatus, ToolCall, ToolResult, ToolSpec

__all__ = [
    "UNREAD",
    "CallFormat",
    "CallLimits",
    "CallStatus",
    "NoBranchError",
    "Tool",
    "ToolCall",
    "ToolDefinitionError",
    "ToolError",
    "ToolResult",
    "ToolServerError",
    "ToolSpec",
    "ToolTimeout",
    "ToolsError",
    "UnknownParserError",
    "UnknownToolsError",
    "execute",
    "get_parser",
    "load_plugins",
    "parse_hermes",
    "plugin_tools",
    "render_hermes",
    "tool",
    "validate",
]
