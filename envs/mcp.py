"""An MCP server that lets any MCP client play an environment: `journeyman envs serve ID --mcp`.

The environment's tools are the server's tools. Two more begin and end an episode: `episode_reset`
gives the system message and what the user says, `episode_answer` takes the answer and gives the
reward. A server plays one episode at a time, whoever calls. Needs the optional package `mcp`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import anyio
import anyio.to_thread
import uvicorn
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from journeyman.envs.core import Observation, ToolEnv
from journeyman.envs.errors import EpisodeOverError, UnknownTaskError
from journeyman.tools import ToolCall, ToolDefinitionError

RESET, ANSWER = "episode_reset", "episode_answer"
INSTRUCTIONS = (
    f"Call {RESET} first: it gives the task. Solve it with the tools, then call {ANSWER}: it gives "
    f"the reward, or what the user says next."
)
_Reply = tuple[str, bool]
"""Text, and whether it is an error that the client can mend."""


def make_server(env: ToolEnv, name: str, options: Mapping[str, Any] | None = None) -> Server[Any]:
    """An MCP server for an environment.

    Args:
        env: The environment; the server plays on it alone.
        name: How the server calls itself, such as the environment's id.
        options: Passed to `reset` where the client names no task: "split" or "task_id".

    Raises:
        ToolDefinitionError: Every task of the environment has tools of its own.
        ValueError: The environment has a tool of a name that the server needs.
    """
    if not env.tools:
        raise ToolDefinitionError(
            f"{name}: every task has its own tools, and a server's are there before a task is "
            f"chosen; serve it by OpenEnv, whose observations list them"
        )
    taken = {RESET, ANSWER} & {spec.name for spec in env.tools}
    if taken:
        raise ValueError(f"{name}: the server needs the name {taken.pop()!r}, but a tool has it")
    turn = anyio.Lock()
    tools = [_tool(s.name, s.description, s.parameters) for s in env.tools]
    own: dict[str, Callable[[Mapping[str, Any]], _Reply]] = {
        RESET: functools.partial(_reset, env, dict(options or {})),
        ANSWER: functools.partial(_answer, env),
    }

    async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[*tools, *_OWN])

    async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        run = own.get(params.name, functools.partial(_call, env, params.name))
        async with turn:  # the tools of an environment may wait, its episode may not
            text, failed = await anyio.to_thread.run_sync(_run, run, params.arguments or {})
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=text)], is_error=failed
        )

    return Server(
        name,
        version=version("journeyman"),
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def serve_stdio(server: Server[Any]) -> None:
    """Talk to one client over standard input and output, until it hangs up."""

    async def run() -> None:
        async with stdio_server() as (reader, writer):
            await server.run(reader, writer, server.create_initialization_options())

    anyio.run(run)


def serve_http(server: Server[Any], host: str, port: int) -> None:
    """Answer at http://host:port/mcp (streamable HTTP), until interrupted."""
    uvicorn.run(server.streamable_http_app(host=host), host=host, port=port, log_level="warning")


def _tool(name: str, description: str, parameters: Mapping[str, Any]) -> types.Tool:
    return types.Tool(name=name, description=description, input_schema=dict(parameters))


def _strings(**descriptions: str) -> dict[str, Any]:
    properties = {n: {"type": "string", "description": d} for n, d in descriptions.items()}
    return {"type": "object", "properties": properties}


_OWN = (
    _tool(
        RESET,
        "Start an episode: returns the system message and what the user says.",
        _strings(
            task_id='Which task, such as "test/0"; by default one is drawn.',
            split='Where a task is drawn from: "train", "validation" or "test".',
        ),
    ),
    _tool(
        ANSWER,
        "Answer the user: returns the reward, or what the user says next.",
        _strings(text="The whole answer, as the system message wants it.") | {"required": ["text"]},
    ),
)


def _run(run: Callable[[Mapping[str, Any]], _Reply], arguments: Mapping[str, Any]) -> _Reply:
    try:
        return run(arguments)
    except EpisodeOverError:
        return f"No episode is running: call {RESET} first.", True
    except UnknownTaskError as error:
        return str(error), True


def _call(env: ToolEnv, name: str, arguments: Mapping[str, Any]) -> _Reply:
    messages, *_, info = env.step([ToolCall(name, arguments)])
    return messages[0].content, not info["calls"][0].ok


def _reset(env: ToolEnv, options: Mapping[str, Any], arguments: Mapping[str, Any]) -> _Reply:
    unknown = set(arguments) - {"task_id", "split"}
    if unknown:
        return f"{RESET} has no argument {unknown.pop()!r}: use task_id or split.", True
    messages, info = env.reset(options=dict(arguments) or dict(options))
    return _to_json(messages, {"task_id": info["task_id"]}), False


def _answer(env: ToolEnv, arguments: Mapping[str, Any]) -> _Reply:
    text = arguments.get("text")
    if not isinstance(text, str):
        return f"{ANSWER} needs the argument 'text', a string.", True
    messages, reward, terminated, truncated, info = env.step(text)
    if info["calls"]:
        return f"{ANSWER} takes no calls: call the tool itself.", True
    outcome = {"reward": reward, "success": info["success"], "over": terminated or truncated}
    return _to_json(messages, outcome), False


def _to_json(messages: Observation, outcome: Mapping[str, Any]) -> str:
    value = {**outcome, "messages": [m.as_dict() for m in messages]}
    return json.dumps(value, ensure_ascii=False)
