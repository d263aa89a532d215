"""`journeyman serve proxy`: what a program plays that knows nothing of us is recorded as it was."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from journeyman.agents.evaluation.records import EpisodeFile, Played, digest_of
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.runs.config import ProxyConfig, read
from journeyman.agents.runs.folder import RunFolder
from journeyman.agents.runs.proxy.command import open_gateway
from journeyman.agents.students.hf import HFPlayer, load_student
from journeyman.envs import StopReason, make
from journeyman.tools import UNREAD, CallStatus

pytest.importorskip("openai")  # of the developer's tools

from .openai_agent import Agent, client, served

BANK, CALENDAR, ORDERS = (f"journeyman/{name}-v0" for name in ("Bank", "Calendar", "Orders"))


def composed(run: Path, *overrides: str) -> DictConfig:
    with initialize_config_module(version_base="1.3", config_module="journeyman.conf"):
        return compose("proxy", overrides=[f"run_dir={run}", *overrides])


@contextmanager
def proxy(run: Path, *overrides: str) -> Iterator[str]:
    config = composed(run, *overrides)
    folder = RunFolder(config)
    gateway = open_gateway(read(ProxyConfig, config), folder)
    with served(gateway.app) as url:
        yield url
    del folder


@pytest.fixture(scope="module")
def student() -> HFPlayer:
    return load_student(
        "embedded-student", render="names", max_turn_tokens=48, max_context=640, device="cpu"
    )


def judge(url: str, name: str, body: Any) -> httpx.Response:
    return httpx.post(f"{url}/episodes/{name}", json=body)


def played_in(run: Path) -> list[Played]:
    return EpisodeFile(run).read()


MOST_TURNS = 5


def names_of(task: TaskRef, episode: str) -> dict[str, str]:
    return {
        "journeyman-episode": episode,
        "journeyman-env": task.env_id,
        "journeyman-task": task.task_id,
    }


def play(url: str, tasks: list[TaskRef], **asked: Any) -> list[Agent]:
    """One after the other, each with its verdict."""
    agents = []
    with client(url) as to:
        for i, task in enumerate(tasks):
            headers = names_of(task, f"episode-{i}")
            agent = Agent(to, task.env_id, task.task_id, MOST_TURNS, extra_headers=headers, **asked)
            agent.play()
            verdict = {"success": agent.success, "reward": agent.reward}
            told = judge(url, f"episode-{i}", verdict).json()
            assert (told["success"], told["streams"]) == (agent.success, 1)
            agents.append(agent)
    return agents


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TaskRef], list[Agent]]:
    """A run in which a program played twenty tasks, greedily."""
    run = tmp_path_factory.mktemp("twenty")
    tasks = [TaskRef((BANK, CALENDAR, ORDERS)[i % 3], f"test/{i}") for i in range(20)]
    with proxy(run) as url:
        return run, tasks, play(url, tasks)


@pytest.mark.slow
def test_a_program_plays_twenty_tasks(
    student: HFPlayer, twenty: tuple[Path, list[TaskRef], list[Agent]]
) -> None:
    """The same tokens, log-probabilities and ends as when the student plays in this process."""
    run, tasks, agents = twenty
    found = played_in(run)
    assert [p.episode.success for p in found] == [agent.success for agent in agents]
    assert any(agent.success for agent in agents) and not all(agent.success for agent in agents)
    assert [p.episode.task_id for p in found] == [task.task_id for task in tasks]
    assert {p.row for p in found} == {"agent"} and all(p.kind for p in found)
    greedy = student.at(temperature=0.0)
    compared = 0
    for task, theirs in zip(tasks[:12], (p.episode for p in found), strict=False):
        (mine,) = rollout(greedy, [task], env_kwargs={"max_turns": MOST_TURNS})
        # A rollout of ours shows less of a result where there is no room for it, and says of a call
        # that it cannot read what is wrong with it.
        odd = [any(c.call.status in UNREAD for c in s.results) for s in theirs.steps[:-1]]
        if theirs.stop is StopReason.CONTEXT_FULL or any(odd):
            steps = odd.index(True) + 1 if any(odd) else len(theirs.steps)
            end = theirs.steps[steps - 1].span[1]
            assert theirs.tokens[:end] == mine.tokens[:end]
            continue
        compared += 1
        assert theirs.tokens == mine.tokens and theirs.mask == mine.mask
        assert theirs.logprobs == pytest.approx(mine.logprobs, abs=1e-4)
        assert theirs.opening == mine.opening
        assert (theirs.success, theirs.reward) == (mine.success, mine.reward)
        assert theirs.stop is mine.stop
        assert [s.span for s in theirs.steps] == [s.span for s in mine.steps]
        assert [s.parts for s in theirs.steps] == [s.parts for s in mine.steps]
        for one, other in zip(theirs.steps[:-1], mine.steps, strict=False):
            assert [r.call.status for r in one.results] == [r.call.status for r in other.results]
            assert one.reply == other.reply
        pairs = zip(theirs.calls, mine.calls, strict=True)
        assert all(a.call.canonical() == b.call.canonical() for a, b in pairs)
    assert compared >= 5


@pytest.mark.slow
def test_one_step_of_distillation_on_what_was_played(
    journeyman: Any, twenty: tuple[Path, list[TaskRef], list[Agent]], tmp_path: Path
) -> None:
    """The rows are the recorded tokens; the teacher scores them, and the weights move."""
    run, _, _ = twenty
    learned = tmp_path / "learned"
    given = ("steps=1", "evaluation.tasks=0", "log_episodes=20", f"run_dir={learned}", "threads=1")
    rows = ("trainer.args.per_device_train_batch_size=20", "trainer.args.warmup_steps=0")
    done = journeyman("train", f"trainer.episodes={run}", *given, *rows)
    assert done.status == 0, done.stderr
    there, found = played_in(run), played_in(learned)
    assert [p.episode.tokens for p in found] == [p.episode.tokens for p in there]
    assert [p.episode.mask for p in found] == [p.episode.mask for p in there]
    assert all(p.scores is not None and p.step == 1 for p in found)
    lines = [json.loads(line) for line in (learned / "metrics.jsonl").read_text().splitlines()]
    (loss,) = [line["loss"] for line in lines if "loss" in line]
    assert 0 < loss < 50
    before = load_student("embedded-student", device="cpu").model.state_dict()
    after = load_student(str(learned / "model"), device="cpu").model.state_dict()
    assert any(not before[name].equal(after[name]) for name in before)
    refused = journeyman("train", f"trainer.episodes={run}", "trainer.lmbda=0.5", *given, *rows)
    assert refused.status == 2


# One conversation and another


@pytest.fixture(scope="module")
def open_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A proxy that several tests ask; whatever is under way at its end is unjudged."""
    run = tmp_path_factory.mktemp("open")
    with proxy(run) as url:
        yield url, run


def said(url: str, *history: dict[str, Any], name: str | None = None, **asked: Any) -> Any:
    """The message that answers, and what the conversation is called."""
    headers = {} if name is None else {"journeyman-episode": name}
    body = {"model": "m", "temperature": 0, "messages": list(history), "tools": TOOLS, **asked}
    return httpx.post(f"{url}/chat/completions", json=body, headers=headers, timeout=60)


def message_of(reply: httpx.Response) -> dict[str, Any]:
    assert reply.status_code == 200, reply.text
    message = reply.json()["choices"][0]["message"]
    assert isinstance(message, dict)
    return message


def answered(message: dict[str, Any], content: str = "{}") -> list[dict[str, Any]]:
    return [
        {"role": "tool", "tool_call_id": call["id"], "content": content}
        for call in message["tool_calls"]
    ]


def _opening() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    env = make(BANK)
    messages, _ = env.reset(options={"task_id": "test/0"})
    tools = [tool.as_function() for tool in env.tools]
    env.close()
    return [dict(m.as_dict()) for m in messages], tools


OPENING, TOOLS = _opening()


def end(
    url: str, run: Path, name: str, success: bool = True
) -> tuple[dict[str, Any], list[Played]]:
    """What a verdict says, and the episodes that it wrote."""
    before = len(played_in(run))
    told = judge(url, name, {"success": success}).json()
    return told, played_in(run)[before:]


def test_a_history_told_again_goes_on_and_one_with_edits_begins_anew(
    open_run: tuple[str, Path],
) -> None:
    url, run = open_run
    first = said(url, *OPENING)
    name = first.headers["journeyman-episode"]
    one = message_of(first)
    assert one["tool_calls"]
    # Other programs write the same JSON with other spaces, and leave empty fields out.
    call = one["tool_calls"][0]
    retold = json.dumps(json.loads(call["function"]["arguments"]), indent=2)
    again = {
        "role": "assistant",
        "tool_calls": [
            {**call, "function": {**call["function"], "arguments": retold}},
            *one["tool_calls"][1:],
        ],
    }
    second = said(url, *OPENING, again, *answered(one))
    assert second.headers["journeyman-episode"] == name
    # What the tool said is told otherwise: the same history no more.
    other = said(url, *OPENING, {**again, "content": "edited"}, *answered(one))
    assert other.headers["journeyman-episode"] != name
    told, (played,) = end(url, run, name)
    assert (told["turns"], told["streams"]) == (2, 1)
    episode = played.episode
    assert (episode.env_id, episode.task_id, played.kind) == ("visited", name, "")
    assert digest_of(episode) == ""  # so that training can write it down
    assert played.row == "agent" and episode.success and episode.reward == 1.0
    assert len(episode.steps) == 2
    assert episode.steps[0].results[0].content == "{}"
    start, stop = episode.steps[0].span
    assert all(episode.mask[start:stop]) and not any(episode.mask[stop : episode.steps[1].span[0]])
    # The edited one begins with turns that others wrote: nothing of them is learned.
    _, (edited,) = end(url, run, other.headers["journeyman-episode"])
    assert len(edited.episode.steps) == 1
    assert [m.role for m in edited.episode.opening][-2:] == ["assistant", "tool"]
    assert (
        sum(edited.episode.mask)
        == edited.episode.steps[0].span[1] - edited.episode.steps[0].span[0]
    )
    assert judge(url, name, {"success": True}).status_code == 404


def test_conversations_that_are_alike_are_kept_apart(open_run: tuple[str, Path]) -> None:
    url, run = open_run
    replies = [said(url, *OPENING) for _ in range(2)]
    names = [it.headers["journeyman-episode"] for it in replies]
    assert len(set(names)) == 2
    for place, content in ((1, "1"), (0, "2")):
        one = message_of(replies[place])
        more = said(url, *OPENING, one, *answered(one, content))
        assert more.headers["journeyman-episode"] == names[place]
    contents = []
    for name in names:
        _, (played,) = end(url, run, name)
        contents.append(played.episode.steps[0].results[0].content)
    assert contents == ["2", "1"]


def test_a_name_holds_streams_together(open_run: tuple[str, Path]) -> None:
    """A program that shortens its history goes on in another stream of the same episode."""
    url, run = open_run
    one = message_of(said(url, *OPENING, name="long"))
    short = [OPENING[0], {"role": "user", "content": "go on"}]
    message_of(said(url, *short, name="long"))
    told, played = end(url, run, "long", success=False)
    assert told["streams"] == 2 and told["turns"] == 1
    assert [p.row for p in played] == ["agent, aside", "agent"]
    assert played[1].episode.opening[-1].content == "go on"
    assert not any(p.episode.success for p in played)
    assert one["tool_calls"]


def test_statuses_of_calls_are_those_of_our_environments(open_run: tuple[str, Path]) -> None:
    url, run = open_run
    one = message_of(said(url, *OPENING, name="refused"))
    message_of(said(url, *OPENING, one, *answered(one, '{"error": "no"}'), name="refused"))
    _, (played,) = end(url, run, "refused")
    first = played.episode.steps[0].results
    assert {r.call.status for r in first} == {CallStatus.TOOL_ERROR} and first[0].call.error == "no"


def test_a_stream_says_the_same(open_run: tuple[str, Path]) -> None:
    url, run = open_run
    whole = message_of(said(url, *OPENING))
    with (
        client(url) as to,
        to.chat.completions.create(
            model="m",
            messages=OPENING,  # type: ignore[arg-type]
            tools=TOOLS,  # type: ignore[arg-type]
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"journeyman-episode": "streamed"},
        ) as stream,
    ):
        chunks = list(stream)
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    content = "".join(delta.content or "" for delta in deltas)
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert content == (whole["content"] or "")
    told = [(c.function.name, c.function.arguments) for c in calls]  # type: ignore[union-attr]
    assert told == [
        (c["function"]["name"], c["function"]["arguments"]) for c in whole["tool_calls"]
    ]
    assert chunks[-2].choices[0].finish_reason == "tool_calls"
    told_again = {
        "role": "assistant",
        "content": content or None,
        "tool_calls": [
            {"id": c.id, "type": "function", "function": {"name": n, "arguments": a}}
            for c, (n, a) in zip(calls, told, strict=True)
        ],
    }
    results = [{"role": "tool", "tool_call_id": c.id, "content": "1"} for c in calls]
    message_of(said(url, *OPENING, told_again, *results, name="streamed"))
    found, _ = end(url, run, "streamed")
    assert (found["streams"], found["turns"]) == (1, 2)


def test_tokens_and_log_probabilities_are_told(open_run: tuple[str, Path]) -> None:
    url, run = open_run
    reply = said(url, *OPENING, name="told", logprobs=True, return_token_ids=True).json()
    _, (played,) = end(url, run, "told")
    choice, episode = reply["choices"][0], played.episode
    assert tuple(reply["prompt_token_ids"] + choice["token_ids"]) == episode.tokens
    start = episode.steps[0].span[0]
    logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    assert logprobs == pytest.approx(list(episode.logprobs[start:]), abs=1e-6)


def test_limits_and_dice_are_the_client_s(open_run: tuple[str, Path]) -> None:
    url, _ = open_run
    cut = said(url, *OPENING, max_tokens=3).json()
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 4  # and the end that was not chosen
    hot = {"temperature": 1.5, "tools": [], "max_tokens": 12}
    messages = [message_of(said(url, *OPENING, **hot, seed=seed)) for seed in (1, 1, 2, 3)]
    texts = [
        json.dumps([m["content"], [c["function"] for c in m.get("tool_calls", ())]])
        for m in messages
    ]
    assert texts[0] == texts[1] and len(set(texts)) > 1


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages: expected one of user or tool"),
    "a role": ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0]",
    ),
    "a tool": ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    "several": ({"n": 2}, "n=2"),
    "a forced call": ({"tool_choice": "required"}, "tool_choice"),
    "a form": ({"response_format": {"type": "json_object"}}, "response_format"),
    "a temperature": ({"temperature": -1}, "temperature=-1"),
    "no number": ({"temperature": "warm"}, "temperature: expected a number"),
    "no room": ({"messages": [{"role": "user", "content": "word " * 900}]}, "context is 640"),
    "half a task": ({"metadata": {"journeyman-env": BANK}}, "belong together"),
    "an environment": (
        {"metadata": {"journeyman-env": "x/Y-v0", "journeyman-task": "1"}},
        "x/Y-v0",
    ),
    "a task": ({"metadata": {"journeyman-env": BANK, "journeyman-task": "no/0"}}, "no split"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_done_is_refused_in_openai_s_words(
    name: str, open_run: tuple[str, Path]
) -> None:
    url, _ = open_run
    body, words = BAD[name]
    reply = (
        said(url, *OPENING, **body)
        if "messages" not in body
        else httpx.post(f"{url}/chat/completions", json={"model": "m", **body})
    )
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert words in error["message"] and error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


def test_other_requests(open_run: tuple[str, Path]) -> None:
    url, _ = open_run
    one = message_of(said(url, *OPENING, name="unanswered"))
    reply = said(url, *OPENING, one, {"role": "user", "content": "well?"}, name="unanswered")
    assert reply.status_code == 400 and "has no answer" in reply.json()["error"]["message"]
    assert httpx.post(f"{url}/chat/completions", content=b"{").status_code == 400
    lost = httpx.post(f"{url}/responses", json={})
    assert lost.status_code == 404 and "/v1/chat/completions" in lost.json()["error"]["message"]
    with client(url) as to:
        assert [model.id for model in to.models.list()] == ["embedded-student"]
        assert to.models.retrieve("embedded-student").owned_by == "journeyman"
    for body, words in (
        ({}, "success"),
        ({"success": 1}, "success"),
        ({"success": True, "reward": "x"}, "reward"),
        ({"sucess": True}, "sucess"),
    ):
        refused = judge(url, "unanswered", body)
        assert refused.status_code == 400 and words in refused.json()["error"]["message"]
    broken = judge(url, "unanswered", {"error": "the browser crashed"}).json()
    assert broken["success"] is False


def test_what_breaks_and_what_nobody_judged_does_not_count(tmp_path: Path) -> None:
    with proxy(tmp_path, "student.render=names") as url:
        message_of(said(url, *OPENING, name="broken"))
        judge(url, "broken", {"error": "the browser crashed"})
        message_of(said(url, *OPENING, name="forgotten"))
        assert len(played_in(tmp_path)) == 1
    broken, forgotten = played_in(tmp_path)
    assert broken.broken and broken.episode.error == "the browser crashed"
    assert (forgotten.row, forgotten.episode.success) == ("agent, unjudged", False)
    assert forgotten.episode.logprobs != (0.0,) * len(forgotten.episode.tokens)
