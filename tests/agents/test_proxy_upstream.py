"""The proxy in front of somebody else's server: what passes through, what is kept, what is not."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from journeyman.agents.networks import outages
from journeyman.agents.runs.proxy import gateway
from journeyman.agents.runs.proxy.talks import Talks
from journeyman.tools import CallStatus

pytest.importorskip("openai")  # of the developer's tools

from .chat_server import ENV, MODEL, ChatHandler, ChatServer, called, chatting, gold, said
from .openai_agent import Agent, client
from .test_proxy import OPENING, TOOLS, answered, judge, message_of, played_in, proxy
from .test_proxy import said as ask
from .test_served import hang_up, times

KEY, SECRET = "APPRENTICE_KEY", "sk-s3cret0123456789"
OWN, OWN_SECRET = "PROXY_KEY", "pk-0wn9876543210"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(gateway, "LOOK_S", 0.01)
    monkeypatch.setenv(KEY, SECRET)
    monkeypatch.setenv(OWN, OWN_SECRET)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chatting(gold) as server:
        yield server


@contextmanager
def before(server: ChatServer, run: Path, *more: str) -> Iterator[str]:
    """A proxy before a server."""
    with proxy(run, "student=openai", f"student.base_url={server.url}", *more) as url:
        yield url


def test_what_is_said_passes_through_and_is_kept(server: ChatServer, tmp_path: Path) -> None:
    prices = "student.prices={prompt: 2, completion: 10}"
    with before(server, tmp_path, prices) as url, client(url) as to:
        headers = {"journeyman-episode": "e", "journeyman-env": ENV, "journeyman-task": "test/0"}
        more = {"extra_headers": headers, "parallel_tool_calls": False, "user": "somebody"}
        agent = Agent(to, ENV, "test/0", 9, **more)
        assert agent.play()
        judge(url, "e", {"success": agent.success})
    (played,) = played_in(tmp_path)
    assert played.episode.success and len(played.episode.steps) == len(server.asked)
    assert played.episode.calls and all(result.ok for result in played.episode.calls)
    usage = played.episode.steps[0].usage
    assert usage is not None and usage.prompt and usage.cost
    asked = server.asked[0]
    assert (asked["model"], asked["parallel_tool_calls"], asked["user"]) == (
        MODEL,
        False,
        "somebody",
    )
    assert asked["messages"] == OPENING and asked["tools"] == TOOLS
    # Nothing is known of tokens: they are bytes of text, without log-probabilities.
    assert set(played.episode.logprobs) == {0.0}


def ids(message: dict[str, Any]) -> list[int]:
    """Tokens of a server's: the bytes of what is said, and an end."""
    told = {key: message.get(key) for key in ("content", "tool_calls")}
    return [*json.dumps(told, sort_keys=True).encode(), 300]


def telling_tokens(handler: ChatHandler) -> bool:
    """Answers as vLLM does that is asked for tokens."""
    answer = handler.server.answer(handler.body)
    (choice,) = answer["choices"]
    answer["prompt_token_ids"] = [it for m in handler.body["messages"] for it in ids(m)]
    choice["token_ids"] = ids(choice["message"])
    told = [{"token": "x", "logprob": -0.25} for _ in choice["token_ids"]]
    choice["logprobs"] = {"content": told}
    handler.send(200, answer)
    return True


def test_tokens_are_kept_where_the_server_tells_them(server: ChatServer, tmp_path: Path) -> None:
    extra = "student.extra_body={return_token_ids: true, logprobs: true}"
    with before(server, tmp_path, extra) as url:
        server.faults.append(telling_tokens)  # type: ignore[arg-type]
        first = ask(url, *OPENING, name="e").json()
        assert "prompt_token_ids" not in first and "token_ids" not in first["choices"][0]
        assert first["choices"][0]["logprobs"] is None
        one = first["choices"][0]["message"]
        message_of(ask(url, *OPENING, one, *answered(one, "7"), name="e"))
        told = judge(url, "e", {"success": True}).json()
        assert (told["streams"], told["turns"]) == (1, 2)
        # A template that tells earlier turns otherwise: two streams, each of them whole.
        two = message_of(ask(url, *OPENING, name="f"))
        server.faults[:] = [lambda handler: _rewritten(handler)]  # type: ignore[list-item]
        message_of(ask(url, *OPENING, two, *answered(two, "7"), name="f"))
        assert judge(url, "f", {"success": True}).json()["streams"] == 2
    whole, aside, rewritten = (p.episode for p in played_in(tmp_path))
    history = [*OPENING, one, *answered(one, "7")]
    start, end = whole.steps[1].span
    assert list(whole.tokens[:start]) == [it for m in history for it in ids(m)]
    assert [i for i, it in enumerate(whole.mask) if it] == [
        *range(*whole.steps[0].span),
        *range(start, end),
    ]
    assert {whole.logprobs[i] for i, it in enumerate(whole.mask) if it} == {-0.25}
    assert server.asked[0]["return_token_ids"] is True and server.asked[0]["logprobs"] is True
    assert len(aside.steps) == len(rewritten.steps) == 1
    assert len(rewritten.opening) == len(history)


def _rewritten(handler: ChatHandler) -> bool:
    for message in handler.body["messages"]:
        if message["role"] == "assistant":
            message["content"] = "(earlier)"
    return telling_tokens(handler)


def test_errors_of_the_server_are_the_client_s(server: ChatServer, tmp_path: Path) -> None:
    def refuse(status: int, body: Any) -> None:
        server.faults[:] = [times(1, lambda handler: handler.send(status, body))]  # type: ignore[arg-type]

    with before(server, tmp_path, "student.patience=2") as url:
        refuse(400, {"error": {"message": "no such field", "code": "odd"}})
        reply = ask(url, *OPENING)
        assert reply.status_code == 400 and reply.json()["error"]["code"] == "odd"
        refuse(503, {"error": {"message": "busy"}})  # is waited for
        message_of(ask(url, *OPENING))
        refuse(200, {"choices": []})
        assert ask(url, *OPENING).status_code == 502
        server.faults[:] = [times(2, hang_up)]  # type: ignore[list-item]
        message_of(ask(url, *OPENING))
        server.faults[:] = [times(10**6, hang_up)]  # type: ignore[list-item]
        reply = ask(url, *OPENING)
        assert reply.status_code == 502 and reply.json()["error"]["type"] == "upstream_error"
        reply = ask(url, *OPENING, stream=True)
        assert reply.status_code == 502
    assert len(played_in(tmp_path)) == 2  # of the two that were answered


def test_who_hangs_up_has_asked_for_nothing(server: ChatServer, tmp_path: Path) -> None:
    """The turn is not written down; the same may be asked again, and goes on."""
    begun, go = threading.Event(), threading.Event()

    def slow(body: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        assert go.wait(30)
        return gold(body)

    with before(server, tmp_path) as url:
        one = message_of(ask(url, *OPENING, name="e"))
        server.speak = slow
        history = [*OPENING, one, *answered(one, "7")]
        for streamed in (False, True):
            begun.clear()
            body = {"model": "m", "messages": history, "tools": TOOLS, "stream": streamed}
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(
                    f"{url}/chat/completions",
                    json=body,
                    headers={"journeyman-episode": "e"},
                    timeout=httpx.Timeout(30, read=0.3),
                )
            assert begun.wait(30)
        go.set()
        message_of(ask(url, *history, name="e"))
        told = judge(url, "e", {"success": True}).json()
        assert (told["turns"], told["streams"]) == (2, 1)


def test_a_verdict_waits_for_the_turn_that_is_being_written(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, waiting, go = threading.Event(), threading.Event(), threading.Event()
    busy = Talks.busy

    def seen(talks: Talks, name: str) -> Any:
        talk = busy(talks, name)
        if talk is not None:
            waiting.set()
        return talk

    def slow(body: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        assert go.wait(30)
        return gold(body)

    monkeypatch.setattr(Talks, "busy", seen)
    with before(server, tmp_path) as url, ThreadPoolExecutor(2) as pool:
        one = message_of(ask(url, *OPENING, name="e"))
        server.speak = slow
        turn = pool.submit(ask, url, *OPENING, one, *answered(one, "7"), name="e")
        assert begun.wait(30)
        verdict = pool.submit(judge, url, "e", {"success": True})
        assert waiting.wait(30)
        go.set()
        message_of(turn.result())
        told = verdict.result().json()
        assert (told["turns"], told["streams"]) == (2, 1)
    assert [it.row for it in played_in(tmp_path)] == ["agent"]


def test_a_turn_that_takes_too_long(server: ChatServer, tmp_path: Path) -> None:
    go = threading.Event()

    def slow(body: dict[str, Any]) -> dict[str, Any]:
        assert go.wait(30)
        return gold(body)

    server.speak = slow
    with before(server, tmp_path, "timeout=0.1") as url:
        reply = ask(url, *OPENING)
        assert reply.status_code == 504 and "0.1 s" in reply.json()["error"]["message"]
        go.set()
    assert not (tmp_path / "episodes.jsonl").exists()


def test_a_budget_and_keys_that_are_nowhere(
    server: ChatServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = set()
    server.faults.append(lambda handler: bool(keys.add(handler.headers["authorization"])))
    leak = {"error": {"message": f"odd: {SECRET}"}}
    given = (f"student.key={KEY}", f"key={OWN}", "student.budget=10")
    with before(server, tmp_path, *given) as url:
        server.faults.append(times(1, lambda handler: handler.send(400, leak)))  # type: ignore[arg-type]
        assert ask(url, *OPENING).status_code == 401
        assert judge(url, "e", {"success": True}).status_code == 401
        assert httpx.get(f"{url}/models").status_code == 401
        headers = {"authorization": f"Bearer {OWN_SECRET}"}
        body = {"messages": OPENING, "tools": TOOLS}
        replies = [
            httpx.post(f"{url}/chat/completions", json=body, headers=headers) for _ in range(3)
        ]
        assert [it.status_code for it in replies] == [400, 200, 402]
        assert SECRET not in replies[0].text
        assert "budget" in replies[2].json()["error"]["message"]
    assert keys == {f"Bearer {SECRET}"}
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"config.yaml", "episodes.jsonl"} <= {file.name for file in files}
    printed = capfd.readouterr()
    told = [*(file.read_bytes() for file in files), printed.out.encode(), printed.err.encode()]
    assert not any(secret.encode() in it for secret in (SECRET, OWN_SECRET) for it in told)


def test_a_budget_that_cannot_be_kept_is_refused(server: ChatServer, tmp_path: Path) -> None:
    """A server that tells no tokens would be paid without end."""
    told = {"choices": [{"index": 0, "message": said("Answer: 1"), "finish_reason": "stop"}]}
    with before(server, tmp_path, "student.budget=10") as url:
        server.faults.append(times(1, lambda handler: handler.send(200, told)))  # type: ignore[arg-type]
        reply = ask(url, *OPENING)
    assert reply.status_code == 502 and "student.budget=10" in reply.json()["error"]["message"]
    assert not (tmp_path / "episodes.jsonl").exists()


def test_many_at_once_are_independent(server: ChatServer, tmp_path: Path) -> None:
    """Twelve conversations over six tasks, side by side and without names."""

    def speak(body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.002)
        return gold(body)

    server.speak = speak
    agents: list[Agent] = []
    with before(server, tmp_path) as url, client(url) as to:
        agents += [Agent(to, ENV, f"test/{i % 6}", 9) for i in range(12)]
        threads = [threading.Thread(target=agent.play) for agent in agents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert all(agent.success for agent in agents)
    found = [p.episode for p in played_in(tmp_path)]
    assert len(found) == 12
    contents = sorted(_contents(p) for p in found)
    mine = sorted([m["content"] for m in a.history if m["role"] == "tool"] for a in agents)
    assert contents == mine


def _contents(episode: Any) -> list[str]:
    return [result.content for result in episode.calls]


def test_calls_that_cannot_be_read_are_answered_too(server: ChatServer, tmp_path: Path) -> None:
    """A server's broken arguments reach the client as they are."""
    server.speak = lambda body: (
        called(("transfer", '{"amount": '))
        if len(body["messages"]) == len(OPENING)
        else said("Answer: 1")
    )
    with before(server, tmp_path) as url:
        one = message_of(ask(url, *OPENING, name="e"))
        assert one["tool_calls"][0]["function"]["arguments"] == '{"amount": '
        message_of(ask(url, *OPENING, one, *answered(one, "no"), name="e"))
        told = judge(url, "e", {"success": False}).json()
        assert (told["streams"], told["turns"]) == (1, 2)
    (played,) = played_in(tmp_path)
    (result,) = played.episode.steps[0].results
    assert result.call.status is CallStatus.INVALID_JSON and result.content == "no"
