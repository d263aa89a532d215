"""A student behind an OpenAI-compatible server: what it plays, survives, costs and never tells."""

import gc
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from journeyman.agents.cli import main
from journeyman.agents.errors import (
    BudgetSpentError,
    RunFileError,
    SettingError,
    StudentServerError,
)
from journeyman.agents.evaluation.metrics import summarise
from journeyman.agents.evaluation.records import EpisodeFile
from journeyman.agents.networks import outages, replies
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.students import answers, openai
from journeyman.agents.students.answers import Answer, Answers, Pace, Prices
from journeyman.agents.students.openai import OpenAIPlayer
from journeyman.agents.students.spoken import plain_dialect
from journeyman.agents.students.wording import as_messages, as_text
from journeyman.envs import Episode, Message, StopReason, env_class
from journeyman.tools import CallStatus

from .chat_server import (
    ENV,
    MODEL,
    ChatHandler,
    ChatServer,
    Fault,
    called,
    chatting,
    gold,
    said,
    silent,
)
from .test_served import always, hang_up, times

KEY, SECRET = "APPRENTICE_KEY", "sk-s3cret0123456789"
TASKS = [TaskRef(ENV, f"test/{i}", seed=i) for i in range(6)]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chatting(gold) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For servers that never answer: one that does may take its time elsewhere."""
    monkeypatch.setattr(openai, "START_PATIENCE", 0.2)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv(KEY, SECRET)


def player(server: ChatServer, **settings: Any) -> OpenAIPlayer:
    made = OpenAIPlayer(server.url, **settings)
    made.check()
    return made


def spoken(*turns: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Speaks these turns, and the last one for ever."""

    def speak(body: dict[str, Any]) -> dict[str, Any]:
        place = sum(m["role"] == "assistant" for m in body["messages"])
        return turns[min(place, len(turns) - 1)]

    return speak


def one(server: ChatServer, *turns: dict[str, Any]) -> Episode:
    """The episode in which it speaks so."""
    server.speak = spoken(*turns)
    (episode,) = rollout(player(server), TASKS[:1])
    return episode


def test_the_gold_turns_win_and_silence_loses(server: ChatServer) -> None:
    found = rollout(player(server), TASKS)
    assert all(e.success and e.stop is StopReason.ANSWERED for e in found)
    assert any(len(e.steps) > 2 for e in found)
    server.speak = silent
    found = rollout(player(server), TASKS)
    assert not any(e.success for e in found)
    assert {e.stop for e in found} == {StopReason.ANSWERED}


def test_what_is_sent(server: ChatServer) -> None:
    extra = {"reasoning_effort": "low", "top_p": None}
    it = player(server, max_turn_tokens=99, extra_body=extra).at(temperature=0.25)
    (episode,) = rollout(it, TASKS[:1])
    first, *_, last = server.asked
    assert first["model"] == MODEL
    assert (first["temperature"], first["max_tokens"]) == (0.25, 99)
    assert first["reasoning_effort"] == "low" and "top_p" not in first
    assert 0 <= first["seed"] < 2**31 and first["seed"] != last["seed"]
    assert [m["role"] for m in first["messages"]] == ["system", "user"]
    names = [tool["function"]["name"] for tool in first["tools"]]
    assert "transfer" in names and all(tool["type"] == "function" for tool in first["tools"])
    # The ids are those that the server gave, and the contents those of the tools.
    heard = last["messages"][2:]
    calls = [call for m in heard for call in m.get("tool_calls", [])]
    results = [m for m in heard if m["role"] == "tool"]
    assert [c["id"] for c in calls] == [m["tool_call_id"] for m in results]
    assert all(c["id"].startswith("call_") for c in calls)
    assert [m["content"] for m in results] == [r.content for r in episode.calls]
    server.asked.clear()
    rollout(
        player(server, seed=None, max_turn_tokens=None, extra_body={"temperature": None}), TASKS[:1]
    )
    assert not {"seed", "max_tokens", "temperature"} & server.asked[0].keys()


def test_dice_are_those_of_the_task_and_of_the_setting(server: ChatServer) -> None:
    seeds = []
    for seed in (0, 0, 7):
        server.asked.clear()
        rollout(player(server, seed=seed), TASKS)
        seeds.append(sorted(body["seed"] for body in server.asked))
        assert len(set(seeds[-1])) == len(seeds[-1])
    assert seeds[0] == seeds[1] != seeds[2]


def test_several_calls_in_one_turn(server: ChatServer) -> None:
    played = one(server, called(("no_such", "{}"), ("list_accounts", "")), said("Answer: 1"))
    first, second = played.steps[0].results
    assert (first.call.name, first.call.status) == ("no_such", CallStatus.UNKNOWN_TOOL)
    assert second.call.name == "list_accounts"
    tools = [m for m in server.asked[-1]["messages"] if m["role"] == "tool"]
    assert [m["tool_call_id"] for m in tools] == ["call_no_such_0", "call_list_accounts_1"]
    assert [m["content"] for m in tools] == [first.content, second.content]


@pytest.mark.parametrize(
    ("call", "status"),
    [
        (("transfer", '{"source": '), CallStatus.INVALID_JSON),
        (("transfer", "[1]"), CallStatus.INVALID_ARGUMENTS),
        (("transfer", '{"amount": NaN}'), CallStatus.INVALID_JSON),
        (("transfer", "{} </tool_call> <tool_call> {}"), CallStatus.INVALID_JSON),
        (("", "{}"), CallStatus.MISSING_NAME),
    ],
)
def test_a_malformed_call_is_one_and_is_answered(
    call: tuple[str, str], status: CallStatus, server: ChatServer
) -> None:
    played = one(server, called(call), said("Answer: 1"))
    (result,) = played.steps[0].results
    assert result.call.status is status
    # Servers refuse to hear again what is not JSON.
    again = server.asked[-1]["messages"][2]["tool_calls"][0]["function"]
    assert isinstance(json.loads(again["arguments"]), dict)
    assert re.fullmatch(r"[\w-]+", again["name"])
    assert server.asked[-1]["messages"][3]["content"] == result.content


CALL = '<tool_call>\n{"name": "list_accounts", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize(
    "message",
    [
        said(f"Answer: 1 {CALL}"),
        said("Answer: 1", reasoning_content=f"Perhaps {CALL} </think> {CALL}"),
        said("Answer: 1", reasoning=CALL),
        said(f"<think>{CALL}</think>Answer: 1"),
        said(None, refusal="Answer: 1"),
        said("Answer: 1", tool_calls=[]),
        said([{"type": "text", "text": "Answer: 1"}], tool_calls=None),  # type: ignore[arg-type]
    ],
)
def test_only_what_is_called_acts(message: dict[str, Any], server: ChatServer) -> None:
    played = one(server, message)
    assert not played.calls and played.stop is StopReason.ANSWERED
    assert played.steps[0].said.startswith("Answer: 1")


def test_reasoning_is_seen_in_the_episode_and_not_sent_back(server: ChatServer) -> None:
    first = called(("list_accounts", "{}"), content="I look.", reasoning_content="deep thought")
    played = one(server, first, said("Answer: 1"))
    assert "deep thought" in played.steps[0].text
    back = server.asked[-1]["messages"][2]
    assert back["content"] == "I look." and "deep thought" not in json.dumps(back)


def test_calls_that_a_server_leaves_in_the_text_are_told_of_once(
    server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.speak = spoken(said(CALL))
    assert not any(e.calls for e in rollout(player(server), TASKS))
    (told,) = caplog.messages
    assert "--tool-call-parser" in told


def test_half_a_character_is_none(server: ChatServer) -> None:
    played = one(server, called(("list\ud800", "{}"), content="\ud800"), said("Answer: \ud800"))
    assert played.stop is StopReason.ANSWERED
    assert "\ud800" not in json.dumps(server.asked[-1], ensure_ascii=False)


def finishing(reason: Any, message: dict[str, Any]) -> Fault:
    def fault(handler: ChatHandler) -> bool:
        if handler.command == "POST":
            handler.send(200, {"choices": [{"message": message, "finish_reason": reason}]})
        return handler.command == "POST"

    return fault


def test_finish_reasons(server: ChatServer) -> None:
    for reason, truncated in [
        ("length", True),
        ("content_filter", False),
        ("?", False),
        (None, False),
    ]:
        server.faults[:] = [finishing(reason, said("Answer: 1"))]
        (played,) = rollout(player(server), TASKS[:1])
        (step,) = played.steps
        assert (step.truncated, step.said, played.mask[-1]) == (
            truncated,
            "Answer: 1",
            not truncated,
        )
    server.faults[:] = [finishing("length", called(("transfer", '{"source": "A')))]
    (played,) = rollout(player(server), TASKS[:1])
    assert {r.call.status for r in played.calls} == {CallStatus.UNCLOSED}
    assert summarise([played]).truncated_turns == len(played.steps)


def test_whatever_a_message_holds_there_are_as_many_calls_as_were_made() -> None:
    bits = [
        "{",
        "}",
        '"',
        "\\",
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
        "[",
        "]",
        ":",
    ]
    bits += [",", "\n", '"name": "x"', "\\ud800", "\ud800", "NaN", '{"x": 1}', "{}", "é", "a "]
    rng, dialect = random.Random(0), plain_dialect()

    def words(most: int) -> str:
        return "".join(rng.choice(bits) for _ in range(rng.randrange(most)))

    for _ in range(400):
        calls = [(rng.choice(["a", words(4)]), words(8)) for _ in range(rng.randrange(1, 4))]
        message = called(*calls, content=words(6), reasoning=words(4))
        text, ids = as_text(message, rng.random() < 0.3, dialect)
        text = dialect.decode(dialect.turn(text)[:-1])
        assert len(dialect.read(text).calls) == len(ids) == len(calls)
        conversation = [Message("assistant", text), *[Message("tool", "1")] * len(calls)]
        turn, *results = as_messages(conversation, dialect, lambda _, ids=ids: ids)
        assert [m["tool_call_id"] for m in results] == ids
        for call in turn["tool_calls"]:
            assert call["function"]["name"] and isinstance(
                json.loads(call["function"]["arguments"]), dict
            )


def test_fifty_conversations_at_once_are_independent(server: ChatServer) -> None:
    first = {prompt_of(TaskRef(ENV, f"test/{i}")): i for i in reversed(range(60))}
    tasks = [TaskRef(ENV, f"test/{i}", seed=i) for i in sorted(first.values())][:50]
    alone = rollout(player(server, concurrency=1), tasks, batch_size=1)
    server.asked.clear()
    together = threading.Barrier(50)

    def meet(handler: ChatHandler) -> bool:
        if handler.command == "POST" and len(handler.body["messages"]) == 2:
            together.wait(60)  # all first turns are under way
        return False

    server.faults.append(meet)
    found = rollout(player(server, concurrency=50), tasks)
    assert found == alone and all(e.success for e in found)


def test_a_fork_goes_on_from_what_was_said(server: ChatServer) -> None:
    parents = rollout(player(server), TASKS[:2], keep=True)
    forks = [Fork(e, k, seed=5) for e in parents for k in range(len(e.steps))]
    assert all(e.success for e in rollout(player(server), forks))


# What a server does wrong


FAULTS: dict[str, Callable[[ChatHandler], Any]] = {
    "busy": lambda handler: handler.send(429, {"error": "slow down"}, retry_after="0"),
    "broken": lambda handler: handler.send(500, {"error": {"message": "out of memory"}}),
    "a proxy's page": lambda handler: handler.send(502, "<html>Bad Gateway</html>"),
    "gone": hang_up,  # type: ignore[dict-item]
    "an error that says it is well": lambda handler: handler.send(
        200, {"error": {"code": 503, "message": "no provider"}}
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_passes_is_waited_for(name: str, server: ChatServer) -> None:
    expected = rollout(player(server), TASKS[:3])
    it = player(server, concurrency=3)
    server.faults.append(times(5, FAULTS[name]))  # type: ignore[arg-type]
    assert rollout(it, TASKS[:3]) == expected


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_pass_ends_in_one_line(name: str, server: ChatServer) -> None:
    server.faults.append(always(FAULTS[name]))  # type: ignore[arg-type]
    with pytest.raises(StudentServerError, match="has not answered for") as caught:
        player(server)
    assert "\n" not in str(caught.value) and server.url in str(caught.value)


def posting(status: int, answer: Any) -> Fault:
    def fault(handler: ChatHandler) -> bool:
        if handler.command == "POST":
            handler.send(status, answer)
        return handler.command == "POST"

    return fault


QUOTA = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
REFUSED: dict[str, tuple[Fault, str]] = {
    "HTML": (posting(200, "<html>Welcome</html>"), "answers text/html and not JSON"),
    "a key": (posting(401, {"error": {"message": "bad"}}), "(401): 'bad'; student.key names"),
    "no money": (posting(402, {"error": {"message": "pay"}}), "refuses (402): 'pay'"),
    "no quota": (posting(429, QUOTA), "refuses (429): 'You exceeded your quota'"),
    "a field": (posting(400, {"error": {"message": "no seed here"}}), "(400): 'no seed here'"),
    "always broken": (posting(500, {"error": {"message": "bug"}}), "refuses (500): 'bug'"),
    "no choices": (posting(200, {}), "gives no message"),
    "choices of nothing": (posting(200, {"choices": [3]}), "gives no message"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_server_that_refuses_ends_the_run_in_one_line(name: str, server: ChatServer) -> None:
    fault, message = REFUSED[name]
    server.faults.append(fault)
    with pytest.raises(StudentServerError, match=re.escape(message)) as caught:
        rollout(player(server), TASKS)
    assert "\n" not in str(caught.value)


def test_the_model_must_be_served(server: ChatServer) -> None:
    with pytest.raises(StudentServerError, match=rf"does not exist.*it lists {MODEL}"):
        rollout(player(server, model="other"), TASKS)
    server.names.append("second")
    with pytest.raises(StudentServerError, match=f"serves {MODEL}, second: choose one by"):
        player(server)
    assert rollout(player(server, model="second"), TASKS[:1])[0].success


def test_a_server_that_lists_no_models_will_do(server: ChatServer) -> None:
    server.faults.append(
        lambda handler: handler.command == "GET" and bool(handler.send(404, {}) or 1)
    )
    assert rollout(player(server, model=MODEL), TASKS[:1])[0].success
    with pytest.raises(StudentServerError, match="nothing that it lists"):
        player(server)


def second_task(handler: ChatHandler) -> bool:
    if handler.command != "POST":
        return False
    return bool(handler.body["messages"][1]["content"] == prompt_of(TASKS[1]))


def prompt_of(ref: TaskRef) -> str:
    return env_class(ref.env_id).load_task(ref.task_id).prompt


@pytest.mark.parametrize("status", [400, 500])
def test_one_conversation_that_is_refused_is_one_broken_episode(
    status: int, server: ChatServer
) -> None:
    error = {"error": {"message": "I cannot read this"}}
    server.faults.append(lambda h: second_task(h) and bool(h.send(status, error) or 1))
    found = rollout(player(server, concurrency=1), TASKS)
    assert [e.stop is StopReason.INFRA_ERROR for e in found] == [i == 1 for i in range(6)]
    assert "I cannot read this" in str(found[1].error)
    metrics = summarise(found)
    assert (metrics.infra_failures, metrics.success.value) == (1, 1.0)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "This model's maximum context length is 4096 tokens. However, you requested 5000"),
        (400, "prompt is too long: 210000 tokens > 200000 maximum"),
        (400, "the request exceeds the available context size (512 tokens), try increasing it"),
        (422, "`inputs` tokens + `max_new_tokens` must be <= 4096"),
        (400, "The input token count (9) exceeds the maximum number of tokens allowed (8)."),
    ],
)
def test_a_context_that_is_full_ends_the_episode(
    status: int, message: str, server: ChatServer
) -> None:
    def full(handler: ChatHandler) -> bool:
        long = handler.command == "POST" and len(handler.body["messages"]) > 2
        if long:
            handler.send(status, {"error": {"message": message}})
        return long

    server.faults.append(full)
    found = rollout(player(server), TASKS)
    full_ones = [e for e in found if e.stop is StopReason.CONTEXT_FULL]
    assert full_ones and all(len(e.steps) == 1 and not e.success for e in full_ones)
    assert summarise(found).infra_failures == 0


def test_an_answer_that_trickles_is_none(server: ChatServer) -> None:
    over = threading.Event()

    def trickle(handler: ChatHandler) -> bool:
        handler.send_response(200)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", "10000")
        handler.end_headers()
        handler.close_connection = True
        try:
            while not over.wait(0.02):
                handler.wfile.write(b" ")
                handler.wfile.flush()
        except OSError:
            pass
        return True

    it = player(server, timeout=0.3, patience=0.5)
    server.faults.append(trickle)
    begun = time.monotonic()
    try:
        with pytest.raises(StudentServerError, match=r"no whole answer in 0\.3 s"):
            rollout(it, TASKS[:2])
    finally:
        over.set()
    assert time.monotonic() - begun < 20
    server.faults.clear()
    it._endpoint.timeout = it._endpoint.patience = 60.0
    assert rollout(it, TASKS[:1])[0].success  # it can be asked again


def test_a_pause_is_as_long_as_the_server_asks_for() -> None:
    def pause(value: str) -> float:
        return replies.Reply(429, {"retry-after": value}, "").pause

    assert (pause("7"), pause("0.5"), pause("-1"), pause("soon"), pause("nan")) == (7, 0.5, 0, 0, 0)
    assert pause("99999") == replies.LONGEST_ASKED
    assert 0 < pause("Fri, 01 Jan 2100 00:00:00 GMT") <= replies.LONGEST_ASKED
    assert pause("Sat, 01 Jan 2000 00:00:00 GMT") == 0


def test_no_more_requests_a_minute_than_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting(threading.Event):
        def __init__(self) -> None:
            super().__init__()
            self.waited: list[float] = []

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            self.waited.append(timeout)
            return False

    monkeypatch.setattr(answers.time, "monotonic", lambda: 100.0)
    pace, stopped = Pace(120), Waiting()
    for _ in range(4):
        pace.wait(stopped)
    assert stopped.waited == [0.5, 1.0, 1.5]


# What it costs


def test_tokens_and_money_are_those_that_the_server_counts(server: ChatServer) -> None:
    prices = {"prompt": 2.0, "completion": 10.0}
    found = rollout(player(server, prices=prices), TASKS)
    metrics = summarise(found)
    counted = [server.answer(body)["usage"] for body in list(server.asked)]
    prompt = sum(u["prompt_tokens"] for u in counted)
    completion = sum(u["completion_tokens"] for u in counted)
    assert (metrics.prompt_tokens, metrics.completion_tokens) == (prompt, completion)
    assert metrics.cost == pytest.approx((2 * prompt + 10 * completion) / 1e6)
    assert metrics.tokens_per_task == completion / len(TASKS)
    kept = [Episode.from_dict(e.to_dict()) for e in found]
    assert summarise(kept) == metrics
    assert summarise(rollout(player(server), TASKS)).cost is None


def test_where_a_server_counts_nothing_nothing_is_guessed(server: ChatServer) -> None:
    server.faults.append(finishing("stop", said("Answer: 1")))
    metrics = summarise(rollout(player(server, prices={"prompt": 1, "completion": 1}), TASKS))
    assert metrics.tasks == 6
    assert (metrics.prompt_tokens, metrics.completion_tokens, metrics.cost) == (None, None, None)
    assert metrics.tokens_per_task is None
    with pytest.raises(StudentServerError, match=r"student\.budget=5 cannot be kept"):
        rollout(player(server, budget=5), TASKS)


def test_prices() -> None:
    answer = Answer("", False, (), 1000, 400, 50)
    assert Prices(2, 10).of(answer) == pytest.approx((1000 * 2 + 50 * 10) / 1e6)
    assert Prices(2, 10, 0.5).of(answer) == pytest.approx((600 * 2 + 400 * 0.5 + 50 * 10) / 1e6)


def test_a_budget_stops_the_run_and_more_of_it_goes_on(server: ChatServer, tmp_path: Path) -> None:
    whole = rollout(player(server), TASKS)
    requests = len(server.asked)
    server.asked.clear()
    poor = player(server, budget=1500, concurrency=2)
    poor.keep_in(tmp_path)
    with pytest.raises(
        BudgetSpentError, match=r"student\.budget=1500 \(tokens\) is spent"
    ) as caught:
        rollout(poor, TASKS)
    assert str(tmp_path / answers.FILE) in str(caught.value)
    wait_for(all_turns_are_over)
    assert poor.answers.count == len(server.asked)
    paid = len(server.asked)
    assert 0 < paid < requests and 1500 <= poor.answers.spent < 1500 + 3 * 1000
    again = player(server, budget=1500)
    again.keep_in(tmp_path)
    assert again.answers.spent == poor.answers.spent
    with pytest.raises(BudgetSpentError):
        rollout(again, TASKS)
    assert len(server.asked) == paid
    richer = player(server, budget=10**6)
    richer.keep_in(tmp_path)
    assert rollout(richer, TASKS) == whole
    assert len(server.asked) == requests  # nothing is paid for twice


def all_turns_are_over() -> bool:
    """What was under way when a budget was spent is answered and kept, as a process ends by."""
    return not any("journeyman-turn" in thread.name for thread in threading.enumerate())


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_is_paid_for_is_found_again_and_a_cut_line_is_passed_over(tmp_path: Path) -> None:
    first = Answers(Prices(1, 1))
    first.keep_in(tmp_path)
    one, two = Answer("a\ud800", True, ("x",), 3, None, 4), Answer("b", False, (), None, None, None)
    first.add("k1", one)
    first.add("k2", two)
    file = tmp_path / answers.FILE
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"key": "k3", "te')
    again = Answers(Prices(1, 1))
    again.keep_in(tmp_path)
    assert (again.find("k1"), again.find("k2"), again.find("k3")) == (one, two, None)
    assert (again.count, again.spent) == (2, pytest.approx(7e-6))
    assert file.read_bytes() == whole
    file.write_bytes(whole + b"[]\n")
    with pytest.raises(RunFileError, match="line 3 is no answer"):
        Answers().keep_in(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url=localhost:8000: expected http://"),
        ({"base_url": "http://me:pass@here/v1"}, "expected no password"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"timeout": 0}, "timeout=0"),
        ({"temperature": -1}, "temperature=-1"),
        ({"max_turn_tokens": 0}, "max_turn_tokens=0"),
        ({"seed": -1}, "seed=-1"),
        ({"requests_per_minute": 0}, "requests_per_minute=0"),
        ({"budget": 0}, "budget=0"),
        ({"prices": {"prompt": 1}}, "expected prompt and completion"),
        ({"prices": {"prompt": 1, "completion": -2}}, "prices.completion=-2"),
        ({"key": "NO_SUCH_KEY"}, "key=NO_SUCH_KEY: no environment variable of that name"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        OpenAIPlayer(**{"base_url": "http://127.0.0.1:1/v1", **settings})


# From the command line


def evaluate(server: ChatServer, run: Path, *more: str) -> int:
    return main(
        [
            *("eval", "student=openai", f"student.base_url={server.url}", f"student.key={KEY}"),
            *("env=journeyman/Bank-v0", "evaluation.tasks=6", f"run_dir={run}", *more),
        ]
    )


def test_an_evaluation_from_the_command_line(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = set()
    server.faults.append(lambda handler: bool(keys.add(handler.headers["authorization"])))
    # A server that tells the key to everybody who hears its errors, once.
    leak = {"error": {"message": f"busy with {SECRET}"}}
    server.faults.append(times(1, lambda handler: handler.send(503, leak)))  # type: ignore[arg-type]
    run = tmp_path / "run"
    prices = "student.prices={prompt: 2, completion: 10}"
    assert evaluate(server, run, prices, "evaluation.breakdown=true") == 0
    printed = capsys.readouterr()
    assert keys == {f"Bearer {SECRET}"}
    (row,) = [line for line in printed.out.splitlines() if line.startswith("student ")]
    assert "100.0%" in row and "prompt tokens  completion tokens" in printed.out
    rows = json.loads((run / "summary.json").read_text())["rows"]
    assert rows["student"]["success"]["rate"] == 1.0
    assert rows["student"]["cost"] > 0 and rows["oracle"]["cost"] is None
    paid = len(server.asked)
    # Killed after its answers came and before its episodes were written: nothing is paid again.
    (run / "episodes.jsonl").unlink()
    server.faults.append(always(FAULTS["broken"]))  # type: ignore[arg-type]
    server.faults[-1:] = [posting(400, {"error": "asked twice"})]
    assert evaluate(server, run, prices, "evaluation.breakdown=true") == 0
    assert len(server.asked) == paid
    again = json.loads((run / "summary.json").read_text())["rows"]
    assert again["student"] == rows["student"]
    assert len(EpisodeFile(run).of_row("student", EpisodeFile(run).read()[-1].weights)) == 6
    printed_again = capsys.readouterr()
    everything = [f.read_bytes() for f in run.rglob("*") if f.is_file()]
    assert len(everything) > 5
    for told in (*everything, *(it.encode() for it in (*printed, *printed_again))):
        assert SECRET.encode() not in told


def test_a_collection_goes_on_with_a_larger_budget_and_pays_once(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def collect(run: str, *more: str) -> int:
        played = ("env=journeyman/Bank-v0", "evaluation.split=test", "evaluation.tasks=6")
        where = (f"student.base_url={server.url}", "evaluation.batch_size=2", "student.key=" + KEY)
        args = ("student=openai", *where, *played, f"run_dir={tmp_path / run}", *more)
        return main(["collect", *args])

    assert collect("whole") == 0
    requests = len(server.asked)
    server.asked.clear()
    assert collect("poor", "student.budget=900") == 2
    assert "student.budget=900 (tokens) is spent" in capsys.readouterr().err
    assert len(EpisodeFile(tmp_path / "poor").read()) in (2, 4)  # whole batches
    wait_for(all_turns_are_over)
    gc.collect()  # a failure holds its frames, and they the folder's lock, as long as a process
    assert collect("poor", "student.budget=100000", "student.concurrency=2") == 0
    assert len(server.asked) == requests
    assert "6 episodes were played, 6 are kept" in capsys.readouterr().out
    told = [(tmp_path / run / "conversations.jsonl").read_bytes() for run in ("whole", "poor")]
    assert told[0] == told[1]
    assert collect("poor", "student.temperature=0.5", "student.max_turn_tokens=9") == 2
    assert "holds a run with another config" in capsys.readouterr().err


KILLED = """
import os, signal
from journeyman.agents.students.answers import Answers
add, left = Answers.add, [{count}]
def last(self, key, answer):
    add(self, key, answer)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
Answers.add = last
"""


@pytest.mark.slow
def test_ten_kills_cost_nothing(server: ChatServer, journeyman: Any, tmp_path: Path) -> None:
    """Killed and resumed, a run asks for each turn once, and plays each task to one end."""
    given = (f"student.base_url={server.url}", "student.concurrency=1")
    tasks = ("env=journeyman/Bank-v0", "evaluation.tasks=9", "evaluation.batch_size=3")

    def evaluate(run: str, before: str = "") -> int:
        where = f"run_dir={tmp_path / run}"
        return int(
            journeyman("eval", "student=openai", *given, *tasks, where, before=before).status
        )

    assert evaluate("whole") == 0
    asked = sorted(json.dumps(body, sort_keys=True) for body in server.asked)
    assert len(asked) > 20
    server.asked.clear()
    statuses = [evaluate("killed", KILLED.format(count=1 + i % 3)) for i in range(10)]
    assert statuses == [-9] * 10
    assert evaluate("killed") == 0
    assert sorted(json.dumps(body, sort_keys=True) for body in server.asked) == asked
    whole, killed = (EpisodeFile(tmp_path / run).read() for run in ("whole", "killed"))
    assert [p.place for p in killed] == [p.place for p in whole]
    assert [p.episode.tokens for p in killed] == [p.episode.tokens for p in whole]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["student.key=sk-pasted-by-mistake"], "student.key: no environment variable"),
        (["student.model=other"], "it lists apprentice-1"),
        (["student.base_url=nowhere"], "student.base_url=nowhere: expected http://"),
    ],
)
def test_mistakes_are_one_line(
    given: list[str],
    message: str,
    server: ChatServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert evaluate(server, tmp_path / "run", *given) == 2
    (line,) = [it for it in capsys.readouterr().err.splitlines() if "journeyman: error" in it]
    assert message in line and "pasted" not in line
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"pasted" not in file.read_bytes()


def test_it_is_not_trained(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    override = [f"student.base_url={server.url}", f"run_dir={tmp_path / 'run'}"]
    assert main(["train", "student=openai", "env=journeyman/Bank-v0", *override]) == 2
    assert "has no weights to train; it is for `journeyman eval`" in capsys.readouterr().err
