"""A student behind a server of OpenAI's Responses: the same outcomes as by chat completions."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from journeyman.agents.cli import main
from journeyman.agents.errors import SettingError, StudentServerError
from journeyman.agents.networks import outages
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.students.answers import Prices
from journeyman.agents.students.openai import OpenAIPlayer
from journeyman.envs import StopReason
from journeyman.tools import CallStatus

pytest.importorskip("openai")  # of the developer's tools

from .chat_server import ChatServer, called, chatting, gold, silent
from .chat_server import said as saying
from .responses_server import ResponsesServer, response
from .test_openai import FAULTS, KEY, SECRET, TASKS, Fault, posting, spoken
from .test_served import times


@pytest.fixture
def server() -> Iterator[ResponsesServer]:
    with chatting(gold, ResponsesServer) as server:
        assert isinstance(server, ResponsesServer)
        yield server


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv(KEY, SECRET)


def player(server: ChatServer, **settings: Any) -> OpenAIPlayer:
    made = OpenAIPlayer(server.url, api="responses", **settings)
    made.check()
    return made


def test_the_episodes_are_those_of_chat_completions(server: ResponsesServer) -> None:
    found = rollout(player(server), TASKS)
    assert all(e.success for e in found) and any(len(e.steps) > 2 for e in found)
    with chatting(gold) as other:
        it = OpenAIPlayer(other.url)
        it.check()
        theirs = rollout(it, TASKS)
    assert [e.tokens for e in found] == [e.tokens for e in theirs]
    assert [e.calls for e in found] == [e.calls for e in theirs]
    server.speak = silent
    found = rollout(player(server), TASKS)
    assert not any(e.success for e in found)
    assert {e.stop for e in found} == {StopReason.ANSWERED}


def test_what_is_sent(server: ResponsesServer) -> None:
    it = player(server, max_turn_tokens=99, extra_body={"reasoning": {"effort": "low"}})
    (episode,) = rollout(it.at(temperature=0.25), TASKS[1:2])
    first, *_, last = server.asked
    assert first["store"] is False and first["reasoning"] == {"effort": "low"}
    assert (first["temperature"], first["max_output_tokens"]) == (0.25, 99)
    assert not {"seed", "max_tokens", "messages"} & first.keys()
    assert [item["role"] for item in first["input"]] == ["system", "user"]
    assert all(tool["type"] == "function" and tool["name"] for tool in first["tools"])
    # What the server wrote goes back as it came: reasoning before the call that followed from it.
    heard = last["input"][2:]
    kinds = ["reasoning", "function_call", "function_call_output"]
    assert [item["type"] for item in heard] == kinds * len(episode.calls)
    thoughts = [item["encrypted_content"] for item in heard if item["type"] == "reasoning"]
    assert thoughts == [f"secret thoughts {n}" for n in range(1, len(thoughts) + 1)]
    calls, results = heard[1::3], heard[2::3]
    assert [c["call_id"] for c in calls] == [r["call_id"] for r in results]
    assert [c["id"] for c in calls] == [f"fc_{n}_0" for n in range(1, len(calls) + 1)]
    assert [r["output"] for r in results] == [r.content for r in episode.calls]
    # Reasoning of which nothing is kept is not sent: a server that stores nothing knows it not.
    server.reasons = False
    server.asked.clear()
    rollout(player(server), TASKS[1:2])
    assert not any(item.get("type") == "reasoning" for item in server.asked[-1]["input"])


def test_reasoning_is_seen_where_it_is_told(server: ResponsesServer) -> None:
    thought = {"type": "reasoning", "id": "rs", "summary": []}
    for told in (
        {"content": [{"type": "reasoning_text", "text": "hmm"}]},
        {"summary": [{"type": "summary_text", "text": "hmm"}]},
    ):
        output = [{**thought, **told}, _message("Answer: 1")]
        server.faults[:] = [_posting(output=output)]
        (episode,) = rollout(player(server), TASKS[:1])
        assert episode.steps[0].text == "<think>\nhmm\n</think>\n\nAnswer: 1"


def _message(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    shape = {"type": "message", "role": "assistant", "status": "completed", "id": "msg"}
    return {**shape, "content": [part]}


def _posting(**fields: Any) -> Fault:
    """Every turn is this."""

    def fault(handler: Any) -> bool:
        if handler.command == "POST":
            told = response(handler.body, {}, 1, False, **fields)
            handler.send(200, told)
        return bool(handler.command == "POST")

    return fault


def test_turns_that_end_otherwise(server: ResponsesServer) -> None:
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    server.faults[:] = [_posting(output=[_message("Answer")], **cut)]
    (episode,) = rollout(player(server), TASKS[:1])
    assert episode.steps[0].truncated and episode.steps[0].text == "Answer"
    refusal = {**_message(""), "content": [{"type": "refusal", "refusal": "I will not"}]}
    server.faults[:] = [_posting(output=[refusal])]
    (episode,) = rollout(player(server), TASKS[:1])
    assert not episode.success and episode.steps[0].text == "I will not"
    assert episode.stop is StopReason.ANSWERED and not episode.calls


def test_a_malformed_call_is_one_and_is_answered(server: ResponsesServer) -> None:
    server.speak = spoken(called(("list_accounts", '{"a": ')), saying("Answer: 1"))
    (episode,) = rollout(player(server), TASKS[:1])
    (result,) = episode.steps[0].results
    assert result.call.status is CallStatus.INVALID_JSON
    call, told = server.asked[-1]["input"][-2:]
    assert json.loads(call["arguments"])["unreadable"]
    assert call["call_id"] == told["call_id"] and "error" in told["output"]


@pytest.mark.parametrize("name", FAULTS)
def test_what_passes_is_waited_for(name: str, server: ResponsesServer) -> None:
    expected = rollout(player(server), TASKS[:3])
    it = player(server, concurrency=3)
    server.faults.append(times(5, FAULTS[name]))  # type: ignore[arg-type]
    assert [e.tokens for e in rollout(it, TASKS[:3])] == [e.tokens for e in expected]


def _failed(code: str) -> dict[str, Any]:
    return {
        "object": "response",
        "status": "failed",
        "output": [],
        "error": {"code": code, "message": "it failed"},
    }


def test_a_failure_that_passes_is_waited_for(server: ResponsesServer) -> None:
    it = player(server)
    for code in ("server_error", "rate_limit_exceeded"):
        server.faults[:] = [times(2, lambda handler, code=code: handler.send(200, _failed(code)))]  # type: ignore[misc,arg-type]
        assert rollout(it, TASKS[:1])[0].success


REFUSED: dict[str, tuple[Fault, str]] = {
    "a key": (posting(401, {"error": {"message": "bad"}}), "(401): 'bad'; student.key names"),
    "a prompt": (posting(200, _failed("invalid_prompt")), "refuses (400): 'it failed'"),
    "HTML": (posting(200, "<html>Welcome</html>"), "answers text/html and not JSON"),
    "no output": (posting(200, {"object": "response"}), "gives no output"),
    "cancelled": (posting(200, {"status": "cancelled", "output": []}), "gives a turn that broke"),
    "chat only": (posting(404, {"detail": "Not Found"}), "refuses (404)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_server_that_refuses_ends_the_run_in_one_line(name: str, server: ResponsesServer) -> None:
    fault, message = REFUSED[name]
    server.faults.append(fault)
    with pytest.raises(StudentServerError) as caught:
        rollout(player(server), TASKS[:2])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_context_that_is_full_ends_the_episode(server: ResponsesServer) -> None:
    message = "Your input exceeds the context window of this model."

    def full(handler: Any) -> bool:
        long = handler.command == "POST" and len(handler.body["input"]) > 2
        if long:
            handler.send(400, {"error": {"message": message, "code": "context_length_exceeded"}})
        return long

    server.faults.append(full)
    found = rollout(player(server), TASKS[:3])
    assert StopReason.CONTEXT_FULL in {e.stop for e in found}


def test_money_and_tokens(server: ResponsesServer) -> None:
    it = player(server, prices={"prompt": 2.0, "completion": 10.0, "cached": 1.0})
    (episode,) = rollout(it, TASKS[:1])
    usage = episode.steps[0].usage
    assert usage is not None and usage.prompt and usage.completion
    cached = usage.prompt // 2
    prices = Prices(2.0, 10.0, 1.0)
    read = (usage.prompt - cached) * prices.prompt + cached * 1.0
    assert usage.cost == pytest.approx((read + usage.completion * prices.completion) / 1e6)


def evaluate(server: ChatServer, run: Path, *more: str) -> int:
    given = (f"student.base_url={server.url}", f"student.key={KEY}", "student.api=responses")
    tasks = ("env=journeyman/Bank-v0", "evaluation.tasks=6", "evaluation.batch_size=6")
    return main(["eval", "student=openai", *given, *tasks, f"run_dir={run}", *more])


def test_a_run_that_is_resumed_sends_back_what_it_kept_and_pays_once(
    server: ResponsesServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert evaluate(server, run) == 0
    paid = [json.dumps(body, sort_keys=True) for body in server.asked]
    file = run / "answers.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    # As if it had been killed half-way: the other half is asked anew, after the same thoughts.
    first = {body for body in paid if len(json.loads(body)["input"]) == 2}
    kept = [line for line in lines if len(json.loads(line)["items"]) and _begins(line, server)]
    file.write_text("".join(kept))
    (run / "episodes.jsonl").unlink()
    server.asked.clear()
    assert evaluate(server, run) == 0
    again = [json.dumps(body, sort_keys=True) for body in server.asked]
    assert len(again) == len(paid) - len(kept) and not set(again) & first
    assert all(
        item["type"] != "reasoning" or item["encrypted_content"]
        for body in server.asked
        for item in body["input"]
        if "type" in item
    )
    assert any(item.get("type") == "reasoning" for body in server.asked for item in body["input"])
    printed = capsys.readouterr()
    told = [f.read_bytes() for f in run.rglob("*") if f.is_file()]
    assert not any(
        SECRET.encode() in it for it in (*told, printed.out.encode(), printed.err.encode())
    )


def _begins(line: str, server: ResponsesServer) -> bool:
    """True of the answer to an opening."""
    number = int(json.loads(line)["items"][0]["id"].removeprefix("rs_"))
    return len(server.asked[number - 1]["input"]) == 2


def test_no_other_form_is_known(server: ResponsesServer) -> None:
    with pytest.raises(SettingError, match="api=grpc: expected chat or responses"):
        OpenAIPlayer(server.url, api="grpc")
