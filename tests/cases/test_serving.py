"""Environments served to many clients at once: an episode each, and no door for foreign pages."""

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
from mcp import Client

from journeyman.agents.cli import main
from journeyman.envs import ToolEnv, answer_text, env_class, make, serving
from journeyman.envs import mcp as mcp_door
from journeyman.envs.mcp import META, make_app
from journeyman.envs.serving import MAX_BODY

from .served import BANK, CLIENTS, Counted, ask, served, wait_until

INITIALIZE = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}


class Raw:
    """A client of the protocol before 2026, spoken by hand: fifty cost little."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._headers = {
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
        }
        self._number = 0

    def __enter__(self) -> "Raw":
        self.ask("initialize", **INITIALIZE)
        self._send("POST", {"jsonrpc": "2.0", "method": "notifications/initialized"})
        return self

    def __exit__(self, *_: object) -> None:
        self._send("DELETE", None)
        self._connection.close()

    def ask(self, method: str, **params: Any) -> Any:
        self._number += 1
        request = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        text = self._send("POST", request)
        line = next(line for line in text.splitlines() if "jsonrpc" in line)
        answer = json.loads(line.removeprefix("data: "))
        assert answer["id"] == self._number
        return answer["result"]

    def call(self, name: str, /, **arguments: Any) -> Any:
        return self.ask("tools/call", name=name, arguments=arguments)

    def _send(self, method: str, message: Any) -> str:
        body = None if message is None else json.dumps(message)
        self._connection.request(method, "/mcp", body, self._headers)
        reply = self._connection.getresponse()
        text = reply.read().decode()
        assert reply.status < 300, text
        if session := reply.headers["mcp-session-id"]:
            self._headers["mcp-session-id"] = session
        return text


def told(result: Any) -> Any:
    """The JSON in a result's last text."""
    return json.loads(result["content"][-1]["text"])


def test_fifty_sessions_play_fifty_episodes() -> None:
    """All begin before any goes on; every second one plays the gold program."""
    envs, all_begun = Counted(), threading.Barrier(CLIENTS)

    def play(number: int) -> tuple[Any, ...]:
        task = env_class(BANK).load_task(f"test/{number}")
        with Raw(port) as client:
            opening = client.call("episode_reset", task_id=task.id)
            assert told(opening)["messages"][1]["content"] == task.prompt
            all_begun.wait(60)
            for gold in task.gold if number % 2 else ():
                played = client.call(gold.name, **gold.arguments)
                assert played["_meta"][META]["task_id"] == task.id
            answer = answer_text(task.turns[0]) if number % 2 else "Answer: nobody knows"
            end = client.call("episode_answer", text=answer)
        stands = end["_meta"][META]
        return stands["task_id"], stands["reward"], told(end)["reward"], stands["over"]

    with served(make_app(envs, BANK)) as port, ThreadPoolExecutor(CLIENTS) as pool:
        seen = list(pool.map(play, range(CLIENTS)))
        assert seen == [(f"test/{n}", float(n % 2), float(n % 2), True) for n in range(CLIENTS)]
        # Each of them, and the one that told the tools; nothing waits for the server's end.
        wait_until(lambda: envs.made == envs.closed == CLIENTS + 1)


@pytest.mark.slow
def test_fifty_clients_of_the_sdk_play_fifty_episodes() -> None:
    """The SDK's client, which would rather speak a version without sessions."""
    seen: dict[int, float] = {}

    async def play(number: int, port: int, begun: list[int], all_begun: anyio.Event) -> None:
        task = env_class(BANK).load_task(f"test/{number}")
        async with Client(f"http://127.0.0.1:{port}/mcp") as client:
            await client.call_tool("episode_reset", {"task_id": task.id})
            begun.append(number)
            if len(begun) == CLIENTS:
                all_begun.set()
            await all_begun.wait()
            for gold in task.gold if number % 2 else ():
                await client.call_tool(gold.name, dict(gold.arguments))
            answer = answer_text(task.turns[0]) if number % 2 else "Answer: nobody knows"
            end = await client.call_tool("episode_answer", {"text": answer})
            assert end.meta is not None
            seen[number] = end.meta[META]["reward"]

    async def play_all(port: int) -> None:
        begun: list[int] = []
        all_begun = anyio.Event()
        async with anyio.create_task_group() as clients:
            for number in range(CLIENTS):
                clients.start_soon(play, number, port, begun, all_begun)

    with served(make_app(Counted(), BANK)) as port:
        anyio.run(play_all, port)
    assert seen == {n: float(n % 2) for n in range(CLIENTS)}


def test_a_seed_draws_the_task_and_is_told() -> None:
    with served(make_app(Counted(split="test"), BANK)) as port, Raw(port) as client:
        with make(BANK, split="test") as env:
            expected = env.reset(seed=7)[1]["task_id"]
        assert told(client.call("episode_reset", seed=7))["task_id"] == expected
        drawn = told(client.call("episode_reset"))
        again = told(client.call("episode_reset", seed=drawn["seed"]))
        assert again == drawn
        named = told(client.call("episode_reset", task_id="test/3", seed=7))
        assert (named["task_id"], named["seed"]) == ("test/3", None)
        for seed, message in ((-1, "expected 0 to 4294967295"), ("7", "expected an integer")):
            refused = client.call("episode_reset", seed=seed)
            assert refused["isError"] and message in refused["content"][0]["text"]


def test_the_turns_run_out_and_the_client_is_told() -> None:
    with served(make_app(Counted(max_turns=2), BANK)) as port, Raw(port) as client:
        assert "turns run out" in client.ask("initialize", **INITIALIZE)["instructions"]
        assert told(client.call("episode_reset", task_id="test/0"))["max_turns"] == 2
        first = client.call("find_account", owner="nobody")
        stands = {"task_id": "test/0", "seed": None, "max_turns": 2, "success": False}
        assert first["_meta"][META] == stands | {"turn": 1, "over": False, "reward": 0.0}
        assert len(first["content"]) == 1
        last = client.call("find_account", owner="nobody")
        assert last["_meta"][META] == stands | {"turn": 2, "over": True, "reward": 0.0}
        assert told(last) == {"reward": 0.0, "success": False, "over": True, "messages": []}
        over = client.call("find_account", owner="nobody")
        assert over["isError"]
        assert over["content"][0]["text"].startswith("The episode is over, with reward 0.0")


def test_one_session_too_many_is_refused_and_room_is_made() -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": INITIALIZE})
    headers = {
        "Accept": "application/json, text/event-stream",
        "Content-Type": "application/json",
    }
    with served(make_app(Counted(), BANK, sessions=2)) as port:
        with Raw(port) as one, Raw(port):
            status, text, _ = ask(port, "POST", "/mcp", body, headers)
            assert (status, "Too many open sessions" in text) == (503, True)
            assert told(one.call("episode_reset", task_id="test/0"))["task_id"] == "test/0"
        assert ask(port, "POST", "/mcp", body, headers)[0] == 200


def test_a_session_that_goes_away_takes_its_environment_along() -> None:
    envs = Counted()
    with served(make_app(envs, BANK)) as port, Raw(port) as stays:
        stays.call("episode_reset", task_id="test/1")
        with Raw(port) as leaves:
            leaves.call("episode_reset", task_id="test/0")
            assert (envs.made, envs.closed) == (3, 1)
        wait_until(lambda: envs.closed == 2)
        gold = env_class(BANK).load_task("test/1").gold[0]
        assert not stays.call(gold.name, **gold.arguments).get("isError")
    assert envs.made == envs.closed == 3


def broken_app(failing: str) -> Any:
    def make_env() -> ToolEnv:
        env = make(BANK)

        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError("a secret of line 1")

        if failing:
            setattr(env, failing, fail)
        return env

    return make_app(make_env, BANK)


def test_what_breaks_is_told_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with served(broken_app("step")) as port, Raw(port) as client:
        client.call("episode_reset", task_id="test/0")
        request = {"name": "find_account", "arguments": {"owner": "x"}}
        message = {"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": request}
        text = client._send("POST", message)
        assert "the environment broke" in text
        assert "secret" not in text and "Traceback" not in text
    assert "a secret of line 1" in caplog.text  # for whoever runs the server


@pytest.mark.parametrize("given", [[], ["--allow-host", "box.lan", "--sessions", "3"]])
def test_the_command_line_hands_its_settings_on(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(serving, "serve", lambda app, *rest: seen.append(rest))
    monkeypatch.setattr(mcp_door, "make_app", lambda *_, sessions, **__: seen.append(sessions))
    assert main(["envs", "serve", BANK, "--mcp", "--http", "8123", *given]) == 0
    expected = (3, ["box.lan"]) if given else (64, [])
    assert seen == [expected[0], ("127.0.0.1", 8123, expected[1])]


LOCAL = ("127.0.0.1", "localhost", "LOCALHOST", "[::1]")
FOREIGN = ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "0", "")


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """An application that says how much it read, and fails where it is asked to."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["path"] == "/fails":
        raise RuntimeError("a secret of line 2")
    message = await receive()
    body = str(len(message["body"])).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def test_foreign_hosts_are_refused() -> None:
    with served(hello) as port:
        for name in LOCAL:
            assert ask(port, "GET", "/", headers={"Host": f"{name}:{port}"})[0] == 200, name
            assert ask(port, "GET", "/", headers={"Host": name})[0] == 200, name
        for name in (*FOREIGN, "user@localhost", "localhost:x", "evil.example@localhost"):
            status, text, _ = ask(port, "GET", "/", headers={"Host": name})
            assert status == 421, name
            assert repr(name) in json.loads(text)["error"]


def test_foreign_origins_are_refused() -> None:
    with served(hello) as port:
        for origin in (f"http://{name}:1234" for name in LOCAL):
            assert ask(port, "POST", "/", "x", {"Origin": origin})[0] == 200, origin
        for origin in (
            *(f"http://{name}" for name in FOREIGN if name),
            "null",
            "https://evil.example",
            "file://",
            "http://localhost@evil.example",
        ):
            status, text, headers = ask(port, "POST", "/", "x", {"Origin": origin})
            assert status == 403, origin
            assert "may not call this server" in json.loads(text)["error"]
            assert headers["access-control-allow-origin"] is None
        assert ask(port, "GET", "/", headers={"Sec-Fetch-Site": "cross-site"})[0] == 403
        assert ask(port, "GET", "/", headers={"Sec-Fetch-Site": "same-origin"})[0] == 200


def test_names_that_are_allowed() -> None:
    with served(hello, "0.0.0.0", ("box.lan",)) as port:
        for name in ("box.lan", "BOX.lan", "10.0.0.1", "localhost"):
            assert ask(port, "GET", "/", headers={"Host": f"{name}:{port}"})[0] == 200, name
        assert ask(port, "GET", "/", headers={"Host": "evil.example"})[0] == 421
        here = {"Host": f"10.0.0.1:{port}"}
        assert ask(port, "GET", "/", headers=here | {"Origin": f"http://10.0.0.1:{port}"})[0] == 200
        assert ask(port, "GET", "/", headers=here | {"Origin": "http://10.0.0.2"})[0] == 403
        assert ask(port, "GET", "/", headers=here | {"Origin": "https://box.lan"})[0] == 200


def test_long_bodies_are_refused() -> None:
    with served(hello) as port:
        assert ask(port, "POST", "/", b"x" * MAX_BODY)[1] == str(MAX_BODY)
        for length in (str(MAX_BODY + 1), "200000000", "-1", "x"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.putrequest("POST", "/")
            connection.putheader("Content-Length", length)
            connection.endheaders()  # and nothing of the body: it is refused unread
            status = connection.getresponse().status
            assert status in (413, 400), length  # 400 is uvicorn's, of what is no number
            connection.close()
        assert ask(port, "POST", "/", b"x" * (MAX_BODY + 1))[0] == 413  # also whoever sends it all
        chunks = (b"x" * 2**20 for _ in range(5))  # whose length no header tells
        assert ask(port, "POST", "/", chunks)[0] == 413


def test_an_application_that_fails_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with served(hello) as port:
        status, text, _ = ask(port, "GET", "/fails")
    assert (status, json.loads(text)) == (500, {"error": "the server failed; its log says how"})
    assert "a secret of line 2" in caplog.text


def test_mistakes_in_the_protocol_are_told_without_a_traceback() -> None:
    headers = {
        "Accept": "application/json, text/event-stream",
        "Content-Type": "application/json",
    }
    modern = headers | {"mcp-protocol-version": "2026-07-28"}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x"}}
    with served(make_app(Counted(), BANK)) as port:
        for body, extra in (
            ("", headers),
            ("{", headers),
            ("[" * 100_000, headers),
            ("[]", headers),
            ('{"a": "\\ud800"}', headers),
            (json.dumps(call), headers),  # no session
            (json.dumps(call), headers | {"mcp-session-id": "nobody"}),
            (json.dumps(call), modern),  # a version without sessions
            ("[" * 100_000, modern),
            ("3", modern),
        ):
            status, text, _ = ask(port, "POST", "/mcp", body, extra)
            assert 400 <= status < 500, (body[:40], status, text)
            assert "Traceback" not in text and 'File "' not in text
        for method, path in (("GET", "/mcp"), ("DELETE", "/mcp"), ("PUT", "/mcp"), ("GET", "/")):
            status, text, _ = ask(port, method, path)
            assert 400 <= status < 500
            assert "Traceback" not in text


def test_a_session_that_falls_silent_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "IDLE_S", 0.2)
    envs = Counted()
    with served(make_app(envs, BANK)) as port:
        silent = Raw(port).__enter__()
        silent.call("episode_reset", task_id="test/0")
        silent._connection.close()
        wait_until(lambda: envs.closed == 2)


def test_a_gold_call_is_no_secret_of_another_session() -> None:
    """Two sessions on one task: what one has done, the other has not."""
    task = env_class(BANK).load_task("test/1")
    with served(make_app(Counted(), BANK)) as port, Raw(port) as one, Raw(port) as other:
        for client in (one, other):
            client.call("episode_reset", task_id=task.id)
        for gold in task.gold:
            one.call(gold.name, **gold.arguments)
        answer = answer_text(task.turns[0])
        assert told(other.call("episode_answer", text=answer))["reward"] == 0.0
        assert told(one.call("episode_answer", text=answer))["reward"] == 1.0
