"""The OpenEnv door, played by OpenEnv's own client over a real socket (`make test-openenv`)."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from journeyman.envs import answer_text, make

pytest.importorskip("openenv", reason="openenv is not installed: it needs a venv of its own")

from openenv import GenericEnvClient

BANK = "journeyman/Bank-v0"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ("envs", "serve", BANK, "--openenv", "--http", str(port), "--split", "test")
    server = subprocess.Popen([sys.executable, "-m", "journeyman.agents.cli", *command])
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert server.poll() is None, "the server died"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with GenericEnvClient(base_url=address).sync() as client:
        yield client


def ask(address: str, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address + path, data, headers)
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def as_calls(env: Any) -> list[dict[str, Any]]:
    return [{"name": c.name, "arguments": dict(c.arguments)} for c in env.task.gold]


def test_gold_is_rewarded(client: Any) -> None:
    with make(BANK) as env:
        env.reset(options={"task_id": "test/3"})
        start = client.reset(split="test", index=3)
        assert start.observation["messages"][-1]["content"] == env.task.prompt
        assert {t["function"]["name"] for t in start.observation["tools"]} == {
            t.name for t in env.tools
        }
        for call in as_calls(env):
            turn = client.step({"calls": [call]})
            assert turn.observation["calls"][0]["status"] in ("ok", "tool_error")
            assert not turn.done
        end = client.step({"text": answer_text(env.task.turns[0])})
        assert (end.done, end.reward, end.observation["success"]) == (True, 1.0, True)


def test_seeds_hold(client: Any) -> None:
    first = client.reset(seed=7).observation
    state = client.state()
    assert client.reset(seed=7).observation == first
    assert client.state()["state_hash"] == state["state_hash"]
    assert client.state()["task_id"].startswith("test/")
    with make(BANK, split="test") as env:
        assert env.reset(seed=7)[1]["task_id"] == state["task_id"]
        assert env.state_hash() == state["state_hash"]


def test_raw_text_and_its_mistakes(client: Any) -> None:
    client.reset(task_id="test/0", episode_id="mine")
    turn = client.step({"text": '<tool_call>{"name": "find_acount", "arguments": {}}</tool_call>'})
    (call,) = turn.observation["calls"]
    assert call["status"] == "unknown_tool" and "find_account" in call["error"]
    assert client.state()["episode_id"] == "mine"
    assert client.state()["step_count"] == 1


def test_sessions_do_not_meet(address: str, client: Any) -> None:
    client.reset(task_id="test/0")
    before = client.state()["state_hash"]
    with GenericEnvClient(base_url=address).sync() as other:
        other.reset(task_id="test/1")
        assert other.state()["task_id"] == "test/1"
    assert client.state()["state_hash"] == before


def test_a_mistake_says_what_is_wrong_and_the_session_goes_on(client: Any) -> None:
    with pytest.raises(RuntimeError, match="no split 'tset'"):
        client.reset(split="tset", index=0)
    with pytest.raises(RuntimeError, match="no option 'task'"):
        client.reset(task="test/0")
    client.reset(task_id="test/0")
    client.step({"text": "Answer: no idea"})
    with pytest.raises(RuntimeError, match="the episode is over"):
        client.step({"text": "Answer: again"})
    assert not client.reset(task_id="test/0").done


def test_tasks_are_listed(address: str) -> None:
    splits = [split["name"] for split in ask(address, "/Bank-v0/splits")]
    assert splits[:2] == ["train", "train/medium"]
    assert ask(address, "/Bank-v0/num_tasks", {"split": "test"}) == {"num_tasks": 2**31}
    (task,) = ask(address, "/Bank-v0/task_range", {"split": "test", "start": 4, "stop": 5})["tasks"]
    with make(BANK) as env:
        assert task["prompt"] == env.load_task("test/4").prompt
    assert len(ask(address, "/Bank-v0/tasks", {"split": "test"})["tasks"]) == 100
