"""An MCP server that lets MCP clients play an environment: `journeyman envs serve ID --mcp`.

The environment's tools are the server's tools. Two more begin and end an episode: `episode_reset`
gives the system message and what the user says, `episode_answer` takes the answer and gives the
reward. Over stdio there is one client; over HTTP every session of the protocol plays in an
environment of its own, which is closed with it. Needs the optional package `mcp`.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import anyio
import anyio.to_thread
from mcp import MCPError, types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types.version import HANDSHAKE_PROTOCOL_VERSIONS

from journeyman.envs import serving
from journeyman.envs.core import Observation, ToolEnv
from journeyman.envs.errors import EpisodeOverError, UnknownTaskError
from journeyman.tools import ToolCall, ToolDefinitionError

RESET, ANSWER = "episode_reset", "episode_answer"
INSTRUCTIONS = (
    f"Call {RESET} first: it gives the task, its seed and how many turns there are. Each call of a "
    f"tool takes one turn, and so does each answer. Solve the task with the tools, then call "
    f"{ANSWER}: it gives the reward, or what the user says next. If the turns run out, the last "
    f"result says so and gives the reward. Every result has the turn in its metadata."
)
META = "journeyman/episode"
"""Where a result's `_meta` says how the episode stands: see `Standing`."""

_Open = Callable[[Any], Awaitable["SessionEpisode"]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """How an episode stands."""

    task_id: str
    seed: int | None
    """What the task was drawn with; None if it was named."""
    turn: int
    """Turns taken."""
    max_turns: int
    """Turns there are."""
    over: bool = False
    reward: float = 0.0
    success: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


class SessionEpisode:
    """One client's environment, and how its episode stands."""

    def __init__(self, make_env: Callable[[], ToolEnv], options: Mapping[str, Any]) -> None:
        """Play on what `make_env` makes.

        Args:
            make_env: Called at the first call.
            options: Passed to `reset` where the client names no task: "split" or "task_id".
        """
        self._make_env, self._options = make_env, dict(options)
        self._made: ToolEnv | None = None
        self._turn = anyio.Lock()
        self._standing: Standing | None = None
        self._closed = False

    async def call(self, name: str, arguments: Mapping[str, Any]) -> types.CallToolResult:
        """What a tool of the server answers.

        Raises:
            MCPError: The environment broke.
        """
        async with self._turn:  # a client may call two tools at once, an episode goes on by turns
            try:
                return await anyio.to_thread.run_sync(self._play, name, arguments)
            except Exception as error:
                logger.exception("a call of %s", name[:80])
                raise MCPError(
                    code=types.INTERNAL_ERROR,
                    message=f"the environment broke, and the episode with it: call {RESET}",
                ) from error
            finally:
                if self._closed:
                    await self._close()

    async def aclose(self) -> None:
        """Close the environment, at once or when the call that runs in it has ended."""
        self._closed = True
        if not self._turn.locked():
            await self._close()

    async def _close(self) -> None:
        if self._made is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._made.close)

    @property
    def _env(self) -> ToolEnv:
        if self._made is None:
            self._made = self._make_env()
        return self._made

    def _play(self, name: str, arguments: Mapping[str, Any]) -> types.CallToolResult:
        try:
            if name == RESET:
                return self._reset(arguments)
            if name == ANSWER:
                return self._answer(arguments)
            return self._call(name, arguments)
        except EpisodeOverError:
            return self._result(self._no_episode(), failed=True)
        except UnknownTaskError as error:
            return self._result(str(error), failed=True)

    def _no_episode(self) -> str:
        if self._standing is None or not self._standing.over:
            return f"No episode is running: call {RESET} first."
        return f"The episode is over, with reward {self._standing.reward}: call {RESET} to go on."

    def _reset(self, arguments: Mapping[str, Any]) -> types.CallToolResult:
        wrong = _wrong_argument(RESET, arguments, {"task_id": str, "split": str, "seed": int})
        if wrong is not None:
            return self._result(wrong, failed=True)
        options = dict(arguments)
        seed = options.pop("seed", None)
        if seed is not None and not 0 <= seed < 2**32:
            return self._result(f"seed={seed}: expected 0 to {2**32 - 1}.", failed=True)
        options = options or self._options
        if "task_id" not in options and seed is None:
            seed = secrets.randbelow(2**32)  # told, so that the client can play it again
        messages, info = self._env.reset(seed=seed, options=options)
        self._standing = Standing(
            info["task_id"], None if "task_id" in options else seed, 0, self._env.max_turns
        )
        told = {"task_id": info["task_id"], "seed": self._standing.seed}
        return self._result(_to_json(messages, told | {"max_turns": self._env.max_turns}))

    def _answer(self, arguments: Mapping[str, Any]) -> types.CallToolResult:
        text = arguments.get("text")
        if not isinstance(text, str):
            return self._result(f"{ANSWER} needs the argument 'text', a string.", failed=True)
        messages, outcome, info = self._step(text)
        if info["calls"]:
            return self._result(f"{ANSWER} takes no calls: call the tool itself.", failed=True)
        return self._result(_to_json(messages, outcome))

    def _call(self, name: str, arguments: Mapping[str, Any]) -> types.CallToolResult:
        messages, outcome, info = self._step([ToolCall(name, arguments)])
        end = [_to_json((), outcome)] if outcome["over"] else []
        return self._result(messages[0].content, *end, failed=not info["calls"][0].ok)

    def _step(self, action: Any) -> tuple[Observation, dict[str, Any], dict[str, Any]]:
        messages, reward, terminated, truncated, info = self._env.step(action)
        assert self._standing is not None
        old, over = self._standing, terminated or truncated
        self._standing = Standing(
            old.task_id, old.seed, old.turn + 1, old.max_turns, over, reward, info["success"]
        )
        return messages, {"reward": reward, "success": info["success"], "over": over}, info

    def _result(self, *texts: str, failed: bool = False) -> types.CallToolResult:
        meta = {} if self._standing is None else {META: self._standing.as_dict()}
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=text) for text in texts],
            is_error=failed,
            _meta=meta,
        )


def make_server(env: ToolEnv, name: str, options: Mapping[str, Any] | None = None) -> Server[Any]:
    """An MCP server for one client, such as there is over stdio.

    Args:
        env: The environment; the server plays on it alone.
        name: How the server calls itself, such as the environment's id.
        options: Passed to `reset` where the client names no task: "split" or "task_id".

    Raises:
        ToolDefinitionError: Every task of the environment has tools of its own.
        ValueError: The environment has a tool of a name that the server needs.
    """
    episode = SessionEpisode(lambda: env, options or {})

    async def opened(context: Any) -> SessionEpisode:
        return episode

    return _server(env, name, opened)


def make_app(
    make_env: Callable[[], ToolEnv],
    name: str,
    options: Mapping[str, Any] | None = None,
    sessions: int = serving.SESSIONS,
) -> serving.App:
    """An MCP server as an ASGI application, at /mcp (streamable HTTP), with an episode a session.

    Args:
        make_env: Called for each session, at its first call; and once for the tools.
        name: How the server calls itself, such as the environment's id.
        options: Passed to `reset` where the client names no task: "split" or "task_id".
        sessions: How many there may be at once; one more is refused with status 503.

    Raises:
        ToolDefinitionError: Every task of the environment has tools of its own.
        ValueError: The environment has a tool of a name that the server needs.
    """

    async def opened(context: Any) -> SessionEpisode:
        # The SDK's one place that lives as long as a session, and that knows of every end of it.
        connection = context.session._connection
        if "episode" not in connection.state:
            connection.state["episode"] = episode = SessionEpisode(make_env, options or {})
            connection.exit_stack.push_async_callback(episode.aclose)
        found: SessionEpisode = connection.state["episode"]
        return found

    with make_env() as env:
        server = _server(env, name, opened)
    app = server.streamable_http_app(
        max_request_body_size=serving.MAX_BODY,
        max_sessions=sessions,
        session_idle_timeout=serving.IDLE_S,
        # The guard checks both, for every server alike.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    return _with_sessions(app)


def serve_stdio(server: Server[Any]) -> None:
    """Talk to one client over standard input and output, until it hangs up."""

    async def run() -> None:
        async with stdio_server() as (reader, writer):
            await server.run(reader, writer, server.create_initialization_options())

    anyio.run(run)


def serve_http(
    make_env: Callable[[], ToolEnv],
    env_id: str,
    host: str,
    port: int,
    allow: Sequence[str] = (),
    sessions: int = serving.SESSIONS,
) -> None:
    """Answer at http://host:port/mcp (streamable HTTP), until interrupted."""
    serving.serve(make_app(make_env, env_id, sessions=sessions), host, port, allow)


def _server(env: ToolEnv, name: str, opened: _Open) -> Server[Any]:
    """The server of an environment's tools, whose calls go to the episode that `opened` gives."""
    if not env.tools:
        raise ToolDefinitionError(
            f"{name}: every task has its own tools, and a server's are there before a task is "
            f"chosen; serve it by OpenEnv, whose observations list them"
        )
    taken = {RESET, ANSWER} & {spec.name for spec in env.tools}
    if taken:
        raise ValueError(f"{name}: the server needs the name {taken.pop()!r}, but a tool has it")
    tools = [_tool(s.name, s.description, s.parameters) for s in env.tools]

    async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[*tools, *_OWN])

    async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        episode = await opened(context)
        return await episode.call(params.name, params.arguments or {})

    return Server(
        name,
        version=version("journeyman"),
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _with_sessions(app: serving.App) -> serving.App:
    """The application for the versions of the protocol that have sessions.

    From 2026 on, a request belongs to none: an episode would be everybody's. A client is told which
    versions there are, and goes back to one of them.
    """

    async def checked(scope: serving.Scope, receive: serving.Receive, send: serving.Send) -> None:
        given = next((v for n, v in scope.get("headers", ()) if n == b"mcp-protocol-version"), None)
        if given is None or given.decode("latin-1") in HANDSHAKE_PROTOCOL_VERSIONS:
            await app(scope, receive, send)
            return
        message = await receive()
        try:
            request_id = json.loads(message.get("body", b"")).get("id")
        except (ValueError, AttributeError, RecursionError):
            request_id = None
        error = {
            "code": types.UNSUPPORTED_PROTOCOL_VERSION,
            "message": "an episode is a session, and this version of the protocol has none",
            "data": {
                "supported": list(HANDSHAKE_PROTOCOL_VERSIONS),
                "requested": given.decode("latin-1")[:80],
            },
        }
        answer = {"jsonrpc": "2.0", "id": request_id, "error": error}
        await serving.answer(send, 400, answer)

    return checked


def _tool(name: str, description: str, parameters: Mapping[str, Any]) -> types.Tool:
    return types.Tool(name=name, description=description, input_schema=dict(parameters))


_OWN = (
    _tool(
        RESET,
        "Start an episode: returns the system message and what the user says.",
        {
            "type": "object",
            "properties": {
                "task_id": {
                    "type": "string",
                    "description": 'Which task, such as "test/0"; by default one is drawn.',
                },
                "split": {
                    "type": "string",
                    "description": 'Where a task is drawn from: "train", "validation" or "test".',
                },
                "seed": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": 2**32 - 1,
                    "description": "Draws the task: equal seeds draw equal ones.",
                },
            },
        },
    ),
    _tool(
        ANSWER,
        "Answer the user: returns the reward, or what the user says next.",
        {
            "type": "object",
            "properties": {
                "text": {
                    "type": "string",
                    "description": "The whole answer, as the system message wants it.",
                }
            },
            "required": ["text"],
        },
    ),
)


def _wrong_argument(
    tool: str, arguments: Mapping[str, Any], known: Mapping[str, type]
) -> str | None:
    for name, value in arguments.items():
        if name not in known:
            *others, last = known
            return f"{tool} has no argument {name!r}: use {', '.join(others)} or {last}."
        if not isinstance(value, known[name]) or isinstance(value, bool):
            kind = "an integer" if known[name] is int else "a string"
            return f"{tool}: {name}={value!r}: expected {kind}."
    return None


def _to_json(messages: Observation, outcome: Mapping[str, Any]) -> str:
    value = {**outcome, "messages": [m.as_dict() for m in messages]}
    return json.dumps(value, ensure_ascii=False)
