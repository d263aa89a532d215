"""The OpenEnv server under many clients, foreign pages and mistakes (`make test-openenv`)."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from journeyman.envs import ToolEnv, answer_text, env_class, make
from journeyman.envs.serving import MAX_BODY

from .served import BANK, CLIENTS, Counted, ask, served, wait_until

pytest.importorskip("openenv", reason="openenv is not installed: it needs a venv of its own")

from openenv import GenericEnvClient
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from journeyman.envs.openenv import make_app

JSON = {"Content-Type": "application/json"}


def talk(port: int, *messages: Any) -> list[Any]:
    """What a session answers to each message: text as it is, all else as JSON."""
    with connect(f"ws://127.0.0.1:{port}/ws") as socket:
        answers = []
        for message in messages:
            socket.send(message if isinstance(message, str) else json.dumps(message))
            answers.append(json.loads(socket.recv()))
        return answers


def test_fifty_clients_play_fifty_episodes() -> None:
    """All begin before any goes on; every second one plays the gold program."""
    envs, all_begun = Counted(), threading.Barrier(CLIENTS)

    def play(number: int) -> tuple[Any, ...]:
        task = env_class(BANK).load_task(f"test/{number}")
        with GenericEnvClient(base_url=f"http://127.0.0.1:{port}").sync() as client:
            opening = client.reset(task_id=task.id).observation
            assert opening["messages"][1]["content"] == task.prompt
            all_begun.wait(120)
            for gold in task.gold if number % 2 else ():
                call = {"name": gold.name, "arguments": dict(gold.arguments)}
                assert not client.step({"calls": [call]}).done
            answer = answer_text(task.turns[0]) if number % 2 else "Answer: nobody knows"
            end = client.step({"text": answer})
            return client.state()["task_id"], end.reward, end.done

    with served(make_app(envs, "Bank-v0")) as port, ThreadPoolExecutor(CLIENTS) as pool:
        seen = list(pool.map(play, range(CLIENTS)))
        assert seen == [(f"test/{n}", float(n % 2), True) for n in range(CLIENTS)]
        wait_until(lambda: envs.made == envs.closed)
    assert envs.made >= CLIENTS


def test_the_seed_and_the_turn_limit_are_told() -> None:
    with served(make_app(Counted(split="test", max_turns=2), "Bank-v0")) as port:
        lost = {"type": "step", "data": {"text": "<tool_call>{}</tool_call>"}}
        reset = {"type": "reset", "data": {"seed": 7}}
        _, state, first, last = talk(port, reset, {"type": "state"}, lost, lost)
        assert (state["data"]["seed"], state["data"]["max_turns"]) == (7, 2)
        assert (first["data"]["done"], last["data"]["done"]) == (False, True)
        assert last["data"]["reward"] == 0.0


def test_one_session_too_many_is_refused() -> None:
    with served(make_app(Counted(), "Bank-v0", sessions=1)) as port:
        with connect(f"ws://127.0.0.1:{port}/ws") as first:
            first.send(json.dumps({"type": "reset", "data": {}}))
            first.recv()
            with connect(f"ws://127.0.0.1:{port}/ws") as second:
                refused = json.loads(second.recv())
        assert refused["type"] == "error"
        assert refused["data"]["max_sessions"] == 1


def test_foreign_pages_are_refused() -> None:
    with served(make_app(Counted(), "Bank-v0")) as port:
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
            assert ask(port, "POST", "/reset", "{}", JSON | headers)[0] in (403, 421)
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://127.0.0.1:{port}/ws", origin="https://evil.example")
        assert refused.value.response.status_code == 403
        with connect(f"ws://127.0.0.1:{port}/ws", origin="http://localhost:1"):
            pass


def test_long_bodies_are_refused() -> None:
    with served(make_app(Counted(), "Bank-v0")) as port:
        for path in ("/reset", "/step", "/mcp", "/Bank-v0/tasks"):
            assert ask(port, "POST", path, b" " * (MAX_BODY + 1), JSON)[0] == 413


def secretive() -> ToolEnv:
    env = make(BANK)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a secret of line 3")

    env.step = fail  # type: ignore[method-assign]
    return env


def test_what_breaks_is_told_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with served(make_app(secretive, "Bank-v0")) as port:
        step = {"type": "step", "data": {"text": "x"}}
        _, broken = talk(port, {"type": "reset", "data": {"task_id": "test/0"}}, step)
        status, text, _ = ask(port, "POST", "/step", json.dumps({"action": {"text": "x"}}), JSON)
    assert "the environment broke" in broken["data"]["message"]
    assert (status, json.loads(text)["detail"]) == (500, broken["data"]["message"])
    assert "a secret of line 3" in caplog.text


def test_mistakes_are_told_without_a_traceback() -> None:
    with served(make_app(Counted(), "Bank-v0")) as port:
        for path, body, expected, message in (
            ("/step", '{"action": {"text": "x"}}', 409, "play over WebSocket"),
            ("/reset", '{"task": "test/0"}', 400, "no option 'task'"),
            ("/reset", '{"task_id": "test/x"}', 400, "no task 'test/x'"),
            ("/reset", '{"seed": -1}', 422, ""),
            ("/reset", '{"seed": 99999999999999999999}', 400, "expected 0 to 4294967295"),
            ("/reset", '{"split": 3}', 400, "no split 3"),
            ("/reset", '{"index": "x"}', 400, "no task"),
            ("/reset", '{"a": "\\ud800"}', 400, ""),
            ("/reset", "[" * 100_000, 400, ""),
            ("/reset", "[]", 422, ""),
            ("/step", '{"action": {"calls": [3]}}', 422, ""),
            ("/step", '{"action": {"calls": [{"name": "\\ud800"}]}}', 409, ""),
            ("/Bank-v0/task", '{"split": "tset", "index": 0}', 400, ""),
            ("/Bank-v0/task", '{"split": "test", "index": 99999999999999999999}', 400, ""),
            ("/Bank-v0/tasks", '{"split": "\\ud800"}', 400, ""),
            ("/mcp", '{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}', 200, ""),
            ("/mcp", "[3]", 200, ""),
        ):
            status, text, _ = ask(port, "POST", path, body, JSON)
            assert "Traceback" not in text and 'File "' not in text, text
            assert (status, message in text) == (expected, True), (path, body[:60], status, text)


def test_mistakes_in_a_session_are_told_without_a_traceback() -> None:
    with served(make_app(Counted(), "Bank-v0")) as port:
        for message in (
            "",
            "{",
            "[]",
            "3",
            "[" * 100_000,
            {"type": "what"},
            {"type": "step", "data": 3},
            {"type": "step", "data": {"calls": [3]}},
            {"type": "step", "data": {"calls": [{"name": "\ud800", "arguments": {"\ud800": 1}}]}},
            {"type": "reset", "data": {"seed": "x"}},
            {"type": "reset", "data": {"task_id": "\ud800"}},
        ):
            (answer,) = talk(port, message)
            text = json.dumps(answer)
            assert "Traceback" not in text and 'File "' not in text, text
            assert answer["type"] == "error", (message, answer)
        (fine,) = talk(port, {"type": "reset", "data": {"task_id": "test/0"}})
        assert fine["type"] == "observation"
