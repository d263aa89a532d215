"""An MCP server written by hand, which lists and answers what its case says.

    python mcp_raw_server.py CASE [MARK]

MARK is a file that is made when the server has begun something that a test waits for.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CASE = sys.argv[1]
MARK = Path(sys.argv[2]) if len(sys.argv) > 2 else None

X = {"type": "object", "properties": {"x": {"type": "string"}}}
GOOD = {"name": "good", "inputSchema": X}

ODD: list[Any] = [
    {"name": "no schema"},
    {"name": "schema is text", "inputSchema": "object"},
    {"name": "schema of a list", "inputSchema": {"type": "array"}},
    {"name": "schema is nonsense", "inputSchema": {"type": "object", "required": 3}},
    {"name": "properties are", "inputSchema": {"type": "object", "properties": {"x": 3}}},
    {"inputSchema": X},
    3,
    GOOD | {"inputSchema": {"type": "object"}},
]
NONE = {"type": "object"}
TEXT = {"type": "text", "text": "hi"}
FILE = {"uri": "file:///a.txt", "text": "line 1\nline 2"}
LISTS: dict[str, list[Any]] = {
    "odd tools": [GOOD, *ODD],
    "nothing usable": ODD[:2],
    "a schema without a type": [{"name": "good", "inputSchema": {}}],
    "an output schema": [GOOD | {"outputSchema": {"type": "object", "required": ["never"]}}],
}
RESULTS: dict[str, dict[str, Any]] = {
    "resource": {"content": [{"type": "resource", "resource": FILE | {"mimeType": "text/plain"}}]},
    "resource without a type": {"content": [{"type": "resource", "resource": FILE}]},
    "blob": {"content": [{"type": "resource", "resource": {"uri": "file:///b", "blob": "aGk="}}]},
    "link": {"content": [{"type": "resource_link", "uri": "file:///a.txt", "name": "a"}]},
    "full link": {
        "content": [
            {
                "type": "resource_link",
                "uri": "file:///a.txt",
                "name": "a",
                "title": "Letter A",
                "mimeType": "text/plain",
                "size": 13,
                "description": "The first of them.",
            }
        ]
    },
    "image": {"content": [{"type": "image", "data": "aGkh", "mimeType": "image/png"}]},
    "audio": {"content": [{"type": "audio", "data": "aA==", "mimeType": "audio/wav"}]},
    "many": {"content": [TEXT, {"type": "resource", "resource": FILE}, TEXT]},
    "structured": {"content": [], "structuredContent": {"a": 1}},
    "structured alone": {"structuredContent": {"a": 1}},
    "structured and more": {"content": [TEXT], "structuredContent": {"a": 1}},
    "structured twice": {
        "content": [{"type": "text", "text": '{"a":  1}'}],
        "structuredContent": {"a": 1},
    },
    "structured result": {
        "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "2"}],
        "structuredContent": {"result": [1, 2]},
    },
    "structured list": {"content": [], "structuredContent": [1]},
    "nothing": {"content": []},
    "no content": {"content": None, "isError": False},
    "text as content": {"content": "hi"},
    "unknown part": {"content": [{"type": "what", "of": 1}, TEXT]},
    "part without its data": {"content": [{"type": "image"}, TEXT]},
    "refused": {"content": [{"type": "text", "text": "no luck"}], "isError": True},
    "refused in silence": {"content": [], "isError": True},
    "refused by a file": {"content": [{"type": "resource", "resource": FILE}], "isError": True},
    "half a character": {"content": [{"type": "text", "text": "a\ud800b"}]},
    "no result": {"what": 1},
}


def send(message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def pages(cursor: str | None) -> dict[str, Any]:
    """Three pages of tools; or pages for ever."""
    number = int(cursor or 0)
    tool = {"name": f"t{number}", "inputSchema": X}
    more = CASE == "endless" or number < 2
    return {"tools": [tool]} | ({"nextCursor": str(number + 1)} if more else {})


def answer(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    if method == "initialize":
        if CASE == "refuses to begin":
            raise ValueError("not today")
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {"listChanged": True}},
            "serverInfo": {"name": "raw", "version": "1"},
        }
    if method == "tools/list":
        if CASE == "does not list":
            raise ValueError("no list today")
        if CASE in ("pages", "endless"):
            return pages(params.get("cursor"))
        if CASE == "results":
            return {"tools": [{"name": name, "inputSchema": NONE} for name in RESULTS]}
        return {"tools": LISTS.get(CASE, [GOOD])}
    if method == "tools/call":
        if CASE == "dies":
            print("a last word", file=sys.stderr)
            os._exit(3)
        if CASE == "hangs":
            return None
        if CASE == "breaks":
            raise ValueError("internal")
        if CASE == "changes its tools":
            send({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        given = {"type": "text", "text": json.dumps(params.get("arguments"))}
        return RESULTS.get(params["name"], {"content": [given]})
    raise ValueError("no such method")


def main() -> None:
    if CASE == "dies at start":
        sys.exit("cannot open the shop")
    if CASE == "leaves a child":
        assert MARK is not None
        child = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
        MARK.write_text(str(child.pid))
    if CASE == "talks":
        print("Starting the server. DEBUG=1")
        print('{"level": "info"}')
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        if CASE == "talks":
            print("called:", message["method"])
        try:
            result = answer(message["method"], message.get("params") or {})
        except ValueError as error:
            problem = {"code": -32603, "message": str(error)}
            send({"jsonrpc": "2.0", "id": message["id"], "error": problem})
            continue
        if result is not None:
            send({"jsonrpc": "2.0", "id": message["id"], "result": result})


main()
