"""Tools of a real MCP server in a process of its own."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from journeyman.tools import CallStatus, ToolCall, ToolResult, ToolServerError, execute
from journeyman.tools.mcp import McpServer

SERVER = str(Path(__file__).with_name("mcp_server.py"))


@pytest.fixture(scope="module")
def server() -> Iterator[McpServer]:
    with McpServer(sys.executable, SERVER, timeout_s=60) as server:
        yield server


def call(server: McpServer, name: str, **arguments: Any) -> ToolResult:
    _, result = execute(ToolCall(name, arguments), {t.name: t for t in server.tools}, None)
    return result


def test_tools_have_their_schemas(server: McpServer) -> None:
    specs = {tool.name: tool.spec for tool in server.tools}
    assert list(specs) == ["add", "move", "refuse", "wait", "picture", "die"]
    assert specs["add"].signature() == "add(a, b?)"
    assert specs["add"].description == "Add two numbers."
    point = specs["move"].parameters["properties"]["point"]
    assert point["properties"]["x"]["type"] == "integer"  # its $ref is resolved
    assert "$ref" not in str(specs["move"])


def test_calls(server: McpServer) -> None:
    assert call(server, "add", a=2, b=3).content == "5"
    assert call(server, "add", a=2).content == "3"
    assert call(server, "move", point={"x": 1}, to=[{"x": 2}]).content == "(1, 0) to 1 places"
    assert call(server, "picture").content == "[image, image/png, 0 bytes]"
    assert call(server, "add", a=1).call.status is CallStatus.OK


def test_what_the_model_can_mend(server: McpServer) -> None:
    refused = call(server, "refuse")
    assert refused.call.status is CallStatus.TOOL_ERROR
    assert "no luck today" in refused.content
    wrong = call(server, "move", point={"x": "1"}, to=[])
    assert wrong.call.status is CallStatus.INVALID_ARGUMENTS
    assert "point.x" in wrong.content


def test_a_slow_call_times_out(server: McpServer) -> None:
    server.timeout_s = 0.1
    slow = call(server, "wait", seconds=0.4)
    server.timeout_s = 60
    assert slow.call.status is CallStatus.TIMEOUT
    assert "no answer within 0.1 s" in slow.content
    assert call(server, "add", a=1).content == "2"


def test_a_dead_server_is_no_fault_of_the_model() -> None:
    threads = threading.active_count()
    server = McpServer(sys.executable, SERVER, timeout_s=60)
    with pytest.raises(ToolServerError, match=r"mcp_server\.py' died"):
        call(server, "die")
    with pytest.raises(ToolServerError, match="died"):
        call(server, "add", a=1)
    server.close()
    with pytest.raises(ToolServerError, match="is closed"):
        call(server, "add", a=1)
    server.close()
    assert threading.active_count() <= threads


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["/no/such/program"], "did not start: .*No such file"),
        ([sys.executable, "-c", ""], "did not start: Connection closed"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], "did not start within 0.5 s"),
    ],
)
def test_a_server_that_does_not_start(command: list[str], says: str) -> None:
    timeout_s = 0.5 if "60" in command[-1] else 30
    with pytest.raises(ToolServerError, match=says):
        McpServer(*command, timeout_s=timeout_s)


@pytest.mark.slow
def test_a_forgotten_server_ends_with_the_interpreter() -> None:
    program = f"""
import sys
from journeyman.tools.mcp import McpServer
server = McpServer({sys.executable!r}, {SERVER!r}, timeout_s=60)
print(server.tools[0].run(None, dict(a=1))[1])
"""
    # The interpreter ends, and the server with it.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr, done.returncode) == ("2\n", "", 0)


def test_without_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ToolServerError, match=r"pip install 'journeyman\[mcp\]'"):
        McpServer("anything")
