"""Our environments behind the MCP SDK's server, played by its client."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError, StdioServerParameters

from journeyman.envs import env_class, make
from journeyman.envs.mcp import make_server
from journeyman.envs.task import answer_text
from journeyman.tools import ToolDefinitionError

from .conftest import SumEnv, add

BANK = "journeyman/Bank-v0"
Play = Callable[[Client], Awaitable[None]]


def connect(server: Any, play: Play) -> None:
    async def run() -> None:
        async with Client(server) as client:
            await play(client)

    anyio.run(run)


async def call(client: Client, name: str, /, **arguments: Any) -> tuple[str, bool]:
    result = await client.call_tool(name, arguments)
    (content,) = result.content
    return content.text, bool(result.is_error)  # type: ignore[union-attr]


async def solve(client: Client) -> None:
    """The whole of a bank task, wrongly first."""
    listed = {t.name: t for t in (await client.list_tools()).tools}
    specs = {t.name: t.spec for t in env_class(BANK).toolset}
    assert set(listed) == {*specs, "episode_reset", "episode_answer"}
    assert listed["transfer"].input_schema == specs["transfer"].parameters
    text, failed = await call(client, "find_account", owner="x")
    assert (text, failed) == ("No episode is running: call episode_reset first.", True)
    task = env_class(BANK).load_task("test/0")
    for answer, reward in (("Answer: no", 0.0), (answer_text(task.turns[0]), 1.0)):
        opening, failed = await call(client, "episode_reset", task_id="test/0")
        assert not failed
        assert json.loads(opening)["messages"][1] == {"role": "user", "content": task.prompt}
        for gold in task.gold:
            text, failed = await call(client, gold.name, **gold.arguments)
            assert not failed, text
        ended = json.loads((await call(client, "episode_answer", text=answer))[0])
        assert ended == {"reward": reward, "success": reward == 1.0, "over": True, "messages": []}


def test_over_stdio() -> None:
    command = ["-m", "journeyman.agents.cli", "envs", "serve", BANK, "--mcp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    connect(StdioServerParameters(command=sys.executable, args=command, env=environment), solve)


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        with closing(socket.socket()) as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert server.poll() is None, "the server has ended"
        time.sleep(0.1)
    raise TimeoutError("the server does not listen")


@pytest.mark.slow
def test_over_http() -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "journeyman.agents.cli", "envs", "serve", BANK, "--mcp", "--http", str(port)]
    with subprocess.Popen([sys.executable, *command]) as server:
        try:
            wait_for(port, server)
            connect(f"http://127.0.0.1:{port}/mcp", solve)
        finally:
            server.terminate()


def test_errors_are_told_and_the_episode_goes_on() -> None:
    async def play(client: Client) -> None:
        await call(client, "episode_reset", task_id="test/0")
        for name, arguments, message in (
            ("add", {"number": 404}, "no such number"),
            ("add", {"number": "1"}, "is not of type 'integer'"),
            ("ad", {}, "Did you mean add?"),
            ("episode_answer", {}, "episode_answer needs the argument 'text'"),
            ("episode_answer", {"text": "<tool_call>x</tool_call>"}, "takes no calls"),
            (
                "episode_reset",
                {"task": "test/0"},
                "has no argument 'task': use task_id, split or seed",
            ),
            ("episode_reset", {"task_id": "test/x"}, "no task 'test/x': write <split>/<number>"),
        ):
            text, failed = await call(client, name, **arguments)
            assert failed
            assert message in text
        assert (await call(client, "add", number=1)) == ("1", False)
        with pytest.raises(MCPError):  # what breaks is no answer of a tool
            await call(client, "add", number=500)
        assert (await call(client, "add", number=1))[1]
        opening, _ = await call(client, "episode_reset")
        assert json.loads(opening)["task_id"].startswith("validation/")

    connect(make_server(SumEnv(), "acme/Sum-v0", {"split": "validation"}), play)


def test_names_that_the_server_needs() -> None:
    class OddEnv(SumEnv):
        toolset = (replace(add, name="episode_reset"),)

    with pytest.raises(ValueError, match="acme/Odd-v0: the server needs the name 'episode_reset'"):
        make_server(OddEnv(), "acme/Odd-v0")


@pytest.mark.parametrize("category", ["multi_turn_base", "parallel"])
def test_tools_that_come_with_tasks_are_refused(category: str) -> None:
    env_id = f"journeyman/BFCL-{category}-v0"
    with pytest.raises(ToolDefinitionError, match=f"{env_id}: every task has its own tools"):
        make_server(make(env_id), env_id)


@pytest.mark.benchmark
def test_tau2_is_served_with_its_tools() -> None:
    async def play(client: Client) -> None:
        listed = {t.name for t in (await client.list_tools()).tools}
        assert {"cancel_reservation", "episode_reset", "episode_answer"} <= listed
        task_id = next(i for i in env.tasks("test") if env.load_task(i).gold)
        await call(client, "episode_reset", task_id=task_id)
        gold = env.task.gold[0]
        assert not (await call(client, gold.name, **gold.arguments))[1]

    with make("journeyman/Tau2-airline-v0") as env:
        connect(make_server(env, "journeyman/Tau2-airline-v0"), play)


def test_every_environment_can_be_served() -> None:
    for env_id in ("journeyman/Python-v0", "journeyman/Orders-v0"):
        with make(env_id) as env:
            assert make_server(env, env_id).name == env_id
