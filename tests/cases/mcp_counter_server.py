"""An MCP server with a state: `add` counts its calls, `die` ends it, `odd` tells its process."""

import json
import os
import sys
from typing import Any

NONE = {"type": "object", "properties": {}}
TOOLS = [{"name": name, "inputSchema": NONE} for name in ("add", "die", "odd", "refuse")]


def main() -> None:
    count = 0
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        method, result = message["method"], None
        if method == "initialize":
            result = {
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "counter", "version": "1"},
            }
        elif method == "tools/list":
            result = {"tools": TOOLS}
        elif method == "tools/call":
            name = message["params"]["name"]
            if name == "die":
                os._exit(3)
            count += name == "add"
            text = f"process {os.getpid()}" if name == "odd" else str(count)
            result = {"content": [{"type": "text", "text": text}], "isError": name == "refuse"}
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        if result is None:
            answer["error"] = {"code": -32601, "message": "no such method"}
        else:
            answer["result"] = result
        print(json.dumps(answer), flush=True)


main()
