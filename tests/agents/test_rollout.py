import itertools
import json
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import pytest

from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.students.dialect import FAMILIES, Dialect
from journeyman.agents.students.hf import HFPlayer
from journeyman.agents.students.player import Sampling
from journeyman.agents.students.scripted import Script, ScriptedPlayer, no_op, oracle
from journeyman.envs import Episode, StopReason, Task, ToolEnv, make, register, registry
from journeyman.envs.errors import UnknownTaskError
from journeyman.envs.shortfall import AnswerCheck, Difference, Shortfall
from journeyman.envs.types import Level, Split
from journeyman.tools import CallStatus, ToolCall, render_hermes, tool

from .tiny import BUILTIN, chat, llama, tokenizer

PATIENCE = 30.0
"""Seconds until a test that waits in vain fails."""


def count_up(state: int) -> tuple[int, int]:
    """Count one further."""
    return state + 1, state + 1


def break_down(state: int) -> tuple[int, int]:
    """Lose the server."""
    raise RuntimeError("the server is gone")


class CounterEnv(ToolEnv):
    """Count up twice; a third tool breaks."""

    toolset = (tool(count_up), tool(break_down))

    @classmethod
    def generate(cls, rng: random.Random, split: str, level: str) -> Task:
        gold = (ToolCall("count_up", {}), ToolCall("count_up", {}))
        return Task("", "count", f"Count to 2. {rng.random()}", 0, gold, "2")


class LockedEnv(CounterEnv):
    """Its door opens for some tasks only."""

    def open_state(self, task: Task) -> Any:
        if task.id in ("test/1", "test/2"):
            raise ConnectionError("the door is shut")
        return super().open_state(task)


class UnfinishedEnv(CounterEnv):
    """Its author made a mistake."""

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        return {}["state"]  # type: ignore[no-any-return]


class GradedEnv(CounterEnv):
    """Gives credit for half the way."""

    def score(self) -> float:
        return min(int(self._state), 2) / 2


class MisgradedEnv(CounterEnv):
    """Its author took per cent."""

    def score(self) -> float:
        return 50.0


class TonguetiedEnv(CounterEnv):
    """Cannot say what is wrong."""

    def shortfall(self) -> Shortfall:
        raise RuntimeError("no words")


class Meeting:
    """What waiting tools wait for, made anew for each test."""

    barrier: threading.Barrier
    signal: threading.Event


def meet(state: int) -> tuple[int, int]:
    """Wait until another one is here."""
    Meeting.barrier.wait(PATIENCE)
    return state, 0


def await_signal(state: int) -> tuple[int, int]:
    """Wait until somebody gives a signal."""
    assert Meeting.signal.wait(PATIENCE)
    return state, 0


def give_signal(state: int) -> tuple[int, int]:
    """Let the others go on."""
    Meeting.signal.set()
    return state, 0


class WaitingEnv(CounterEnv):
    """Some of its tools wait."""

    waits = True
    toolset = (*CounterEnv.toolset, tool(meet), tool(await_signal))


class SignalEnv(CounterEnv):
    """It never waits."""

    toolset = (tool(give_signal),)


@pytest.fixture(autouse=True)
def scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environments above are registered for one test."""
    registry.load_plugins()
    gym = gymnasium.envs.registration
    monkeypatch.setattr(registry, "_ids", set(registry._ids))
    monkeypatch.setattr(gym, "registry", dict(gym.registry))
    graded = GradedEnv, MisgradedEnv, TonguetiedEnv
    for cls in (CounterEnv, LockedEnv, UnfinishedEnv, WaitingEnv, SignalEnv, *graded):
        register(f"test/{cls.__name__.removesuffix('Env')}-v0", cls)
    Meeting.barrier, Meeting.signal = threading.Barrier(2), threading.Event()


def tasks(env_id: str, count: int, split: str = "test") -> list[TaskRef]:
    return [TaskRef(env_id, f"{split}/{i}", seed=i) for i in range(count)]


def says(*turns: str | ToolCall) -> Script:
    """The same turns in every episode."""

    def script(env: ToolEnv) -> Iterator[str]:
        return (t if isinstance(t, str) else render_hermes(t) for t in turns)

    return script


def play(script: Script, refs: Sequence[TaskRef], **kwargs: Any) -> list[Episode]:
    return rollout(ScriptedPlayer(chat(), script), refs, **kwargs)


COUNT, BREAK = ToolCall("count_up", {}), ToolCall("break_down", {})


# Bounds


@pytest.mark.parametrize("env_id", BUILTIN)
def test_the_oracle_solves_everything(env_id: str) -> None:
    for episode in play(oracle, tasks(env_id, 40)):
        assert episode.success, episode.task_id
        assert episode.reward == 1
        assert episode.stop is StopReason.ANSWERED
        assert len(episode.calls) == len(make(env_id).load_task(episode.task_id).gold)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda it: it.name)
def test_the_oracle_writes_as_the_student_is_read(family: type[Dialect]) -> None:
    dialect = family(tokenizer(), "names")
    for episode in rollout(ScriptedPlayer(dialect, oracle), tasks(BUILTIN[0], 10)):
        assert episode.success, episode.task_id
        gold = make(BUILTIN[0]).load_task(episode.task_id).gold
        written = [step.text for step in episode.steps if step.results]
        assert written == [dialect.write_call(call) for call in gold]


@pytest.mark.parametrize("env_id", BUILTIN)
def test_doing_nothing_solves_nothing(env_id: str) -> None:
    for episode in play(no_op, tasks(env_id, 40)):
        assert (episode.success, episode.reward) == (False, 0.0), episode.task_id
        assert (episode.stop, episode.calls) == (StopReason.ANSWERED, ())


# The record


def student() -> HFPlayer:
    return HFPlayer(llama(len(tokenizer()), seed=3), chat(), Sampling(max_tokens=6))


def played() -> list[Episode]:
    refs = [ref for env_id in BUILTIN for ref in tasks(env_id, 3)]
    broken = says("<tool_call>\n{]\n</tool_call> and " + render_hermes(COUNT), "Answer: 1")
    return [*play(oracle, refs), *play(broken, refs), *rollout(student(), refs)]


def test_the_layout_of_an_episode() -> None:
    forced = 0
    for episode in played():
        chosen = set()
        end = 0
        for step in episode.steps:
            start = step.span[0]
            assert start > end
            end = step.span[1]
            turn = episode.tokens[start:end]
            assert turn[-1] == chat().eos_id
            assert chat().decode(turn[:-1]) == step.text
            chosen.update(range(start, end - step.truncated))
            forced += step.truncated
            assert step.parts["stop"] == ((end - 1, end),)
            assert len(step.parts["call"]) == len(step.results)
            for (first, last), result in zip(step.parts["call"], step.results, strict=True):
                text = chat().decode(episode.tokens[first:last])
                assert text == step.text[slice(*result.call.span)]
            if not step.results:
                assert step.parts["answer"] == ((start, end - 1),)
        assert end == len(episode.tokens)
        assert {i for i, m in enumerate(episode.mask) if m} == chosen
        assert all(p == 0 for p, m in zip(episode.logprobs, episode.mask, strict=True) if not m)
    assert forced > 0


def test_the_stream_is_the_conversation() -> None:
    """As the environment tells it, tokenised in one piece."""
    (episode,) = play(oracle, tasks(BUILTIN[0], 1))
    env = make(BUILTIN[0])
    messages, _ = env.reset(options={"task_id": "test/0"})
    conversation = [m.as_dict() for m in messages]
    assert episode.messages[: len(messages)] == tuple(messages)
    conversation[0]["content"] += "\nTools: " + " ".join(t.name for t in env.tools)
    for step in episode.steps:
        conversation.append({"role": "assistant", "content": step.text})
        conversation += [m.as_dict() for m in env.step(step.text)[0]]
    text = tokenizer().apply_chat_template(conversation, tokenize=False)
    assert list(episode.tokens) == tokenizer().encode(text.removesuffix("\n"))
    assert [m.as_dict() for m in episode.messages[1:]] == conversation[1:]
    assert episode.seed == 0


def test_several_end_tokens() -> None:
    """Whichever the student chose ends its turn, and is none of its text."""
    other = 9
    dialect = Dialect(tokenizer(), "names", ends=(other,))
    player = HFPlayer(llama(len(tokenizer()), seed=3), dialect, Sampling(2.0, max_tokens=400))
    refs = tasks("test/Counter-v0", 24)
    steps = [
        (episode, step)
        for episode in rollout(player.at(max_tokens=300), refs, env_kwargs={"max_turns": 2})
        for step in episode.steps
    ]
    ended = set()
    for episode, step in steps:
        *body, last = episode.tokens[slice(*step.span)]
        assert not set(dialect.end_ids).intersection(body)
        assert dialect.decode(body) == step.text
        assert episode.mask[step.span[1] - 1] != step.truncated
        ended.add((last, step.truncated))
    assert {(dialect.eos_id, False), (other, False)} <= ended
    assert (other, True) not in ended


def test_statuses_of_bad_calls_are_kept() -> None:
    text = "<tool_call>\n{]\n</tool_call>" + render_hermes(ToolCall("fly", {}))
    (episode,) = play(says(text, "Answer: 2"), tasks("test/Counter-v0", 1))
    assert [r.call.status for r in episode.calls] == [
        CallStatus.INVALID_JSON,
        CallStatus.UNKNOWN_TOOL,
    ]
    assert episode.stop is StopReason.ANSWERED
    assert not episode.success


def test_results_come_in_the_order_of_the_tasks() -> None:
    def short_or_long(env: ToolEnv) -> Iterator[str]:
        yield from itertools.repeat(render_hermes(COUNT), int(env.task.id[-1]) * 3 % 5)
        yield "Answer: 2"

    refs = tasks("test/Counter-v0", 10)
    found = play(short_or_long, refs, batch_size=4)
    assert [e.task_id for e in found] == [r.task_id for r in refs]
    assert [len(e.calls) for e in found] == [i * 3 % 5 for i in range(10)]
    assert [e.success for e in found] == [i * 3 % 5 == 2 for i in range(10)]


def test_equal_seeds_play_equal_episodes_in_any_batch() -> None:
    refs = [ref for env_id in BUILTIN for ref in tasks(env_id, 2)]
    first = rollout(student(), refs)
    second = rollout(student(), refs, batch_size=2)
    for a, b in zip(first, second, strict=True):
        assert a.tokens == b.tokens
        assert a.mask == b.mask
        assert a.state_hash == b.state_hash
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    others = rollout(student(), [TaskRef(r.env_id, r.task_id, r.seed + 100) for r in refs])
    assert all(a.tokens != b.tokens for a, b in zip(first, others, strict=True))


def test_the_hash_is_that_of_the_final_state() -> None:
    (episode,) = play(says(COUNT, "Answer: 1"), tasks("test/Counter-v0", 1))
    (again,) = play(says(COUNT, "Answer: 1"), tasks("test/Counter-v0", 1))
    (other,) = play(says(COUNT, COUNT, "Answer: 1"), tasks("test/Counter-v0", 1))
    assert episode.state_hash == again.state_hash != other.state_hash
    env = make("test/Counter-v0")
    env.reset(options={"task_id": "test/0"})
    env.step([COUNT])
    env.step("Answer: 1")
    assert episode.state_hash == env.state_hash()


# Ends


def test_max_turns() -> None:
    (episode,) = play(says(*[COUNT] * 9), tasks("test/Counter-v0", 1), env_kwargs={"max_turns": 3})
    assert episode.stop is StopReason.MAX_TURNS
    assert len(episode.steps) == 3
    assert episode.tokens[-1] == chat().eos_id
    assert not episode.success


def test_a_full_context_ends_with_the_students_turn() -> None:
    refs = tasks("test/Counter-v0", 2)
    whole = play(says(*[COUNT] * 5, "Answer: 2"), refs)
    limit = len(whole[0].tokens) - 3  # the last answer would not fit in
    player = ScriptedPlayer(chat(), says(*[COUNT] * 5, "Answer: 2"), max_context=limit)
    for episode, long in zip(rollout(player, refs), whole, strict=True):
        assert episode.stop is StopReason.CONTEXT_FULL
        assert 0 < len(episode.steps) < len(long.steps)
        assert episode.tokens == long.tokens[: len(episode.tokens)]
        assert episode.tokens[-1] == chat().eos_id
        assert len(episode.tokens) < limit
        assert (episode.success, episode.error) == (False, None)
        assert episode.state_hash


def test_a_prompt_beyond_the_context_is_not_played() -> None:
    refs = [*tasks("test/Counter-v0", 1), *tasks(BUILTIN[0], 1)]
    lengths = [len(e.tokens) for e in play(no_op, refs)]
    assert lengths[0] != lengths[1]
    player = ScriptedPlayer(chat(), no_op, max_context=sum(lengths) // 2)
    counts: list[int] = []
    found = rollout(player, refs, progress=counts.append)
    long = lengths.index(max(lengths))
    assert found[long].stop is StopReason.CONTEXT_FULL
    assert found[long].steps == ()
    assert not any(found[long].mask)
    assert found[1 - long].stop is StopReason.ANSWERED
    assert counts == [1, 1]


# Failures of the infrastructure


def test_a_broken_tool_costs_its_own_episode_only(caplog: pytest.LogCaptureFixture) -> None:
    def script(env: ToolEnv) -> Iterator[str]:
        yield render_hermes(COUNT)
        yield render_hermes(BREAK if env.task.id == "test/1" else COUNT)
        yield "Answer: 2"

    for env_id in ("test/Counter-v0", "test/Waiting-v0"):
        caplog.clear()
        found = play(script, tasks(env_id, 4))
        broken = found.pop(1)
        assert broken.stop is StopReason.INFRA_ERROR
        assert broken.error == "RuntimeError: the server is gone"
        assert len(broken.steps) == 1  # what had been played before
        assert (broken.reward, broken.success, broken.state_hash) == (0.0, False, "")
        assert all(e.success for e in found)
        (record,) = caplog.records
        assert f"{env_id} test/1" in record.getMessage()


def test_an_environment_that_does_not_start() -> None:
    counts: list[int] = []
    found = play(oracle, tasks("test/Locked-v0", 5), batch_size=3, progress=counts.append)
    assert [e.stop is StopReason.INFRA_ERROR for e in found] == [False, True, True, False, False]
    assert found[1].error == "ConnectionError: the door is shut"
    assert found[1].tokens == ()
    assert [e.success for e in found] == [True, False, False, True, True]
    assert sum(counts) == 5


def test_none_starts() -> None:
    found = play(oracle, [TaskRef("test/Locked-v0", "test/1"), TaskRef("test/Locked-v0", "test/2")])
    assert [e.stop for e in found] == [StopReason.INFRA_ERROR] * 2
    found = rollout(student(), [TaskRef("test/Locked-v0", "test/1")])
    assert [e.stop for e in found] == [StopReason.INFRA_ERROR]


def test_a_programmers_error_is_raised() -> None:
    with pytest.raises(UnknownTaskError):
        play(oracle, [TaskRef("test/Counter-v0", "nonsense")])
    with pytest.raises(KeyError, match="state"):
        play(oracle, tasks("test/Unfinished-v0", 1))
    with pytest.raises(TypeError, match="wings"):
        play(oracle, tasks("test/Counter-v0", 1), env_kwargs={"wings": 2})


def test_environments_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(LockedEnv, "close", lambda env: closed.append(env.spec.id))
    play(oracle, tasks("test/Locked-v0", 5))
    assert len(closed) == 5


# Waiting


def test_an_environment_that_does_not_close(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ToolEnv) -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(CounterEnv, "close", fail)
    refs = [*tasks("test/Counter-v0", 2), *tasks(BUILTIN[0], 1)]
    episodes = play(says(COUNT, COUNT, "Answer: 2"), refs)
    assert [e.success for e in episodes] == [True, True, False]
    assert [e.error for e in episodes] == [None] * 3
    assert caplog.text.count("close(): ConnectionError('the server is gone')") == 2
    (broken,) = play(says(BREAK), tasks("test/Counter-v0", 1))
    assert broken.stop is StopReason.INFRA_ERROR  # it says what broke first
    assert broken.error == "RuntimeError: the server is gone"


def test_waiting_tools_run_side_by_side() -> None:
    """Each call returns only once the other one has begun."""
    found = play(says(ToolCall("meet", {}), "Answer: 2"), tasks("test/Waiting-v0", 2))
    assert [e.error for e in found] == [None, None]
    assert [r.call.status for e in found for r in e.calls] == [CallStatus.OK] * 2


@pytest.mark.parametrize("waiting_first", [True, False])
def test_the_others_go_on_while_a_row_waits(waiting_first: bool) -> None:
    """A row waits for what another one does after three more turns."""

    def script(env: ToolEnv) -> Iterator[str]:
        if isinstance(env, WaitingEnv):
            yield render_hermes(ToolCall("await_signal", {}))
        else:
            yield from ["<tool_call>\nnothing\n</tool_call>"] * 3
            yield render_hermes(ToolCall("give_signal", {}))
        yield "Answer: 2"

    refs = [TaskRef("test/Waiting-v0", "test/0"), TaskRef("test/Signal-v0", "test/0")]
    found = play(script, refs if waiting_first else refs[::-1])
    assert sorted(len(e.steps) for e in found) == [2, 5]
    assert [e.error for e in found] == [None, None]


# Progress


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_progress_counts_every_episode_once(batch_size: int) -> None:
    def script(env: ToolEnv) -> Iterator[str]:
        yield render_hermes(BREAK if env.task.id == "test/2" else COUNT)
        yield "Answer: 1"

    counts: list[int] = []
    play(script, tasks("test/Counter-v0", 5), batch_size=batch_size, progress=counts.append)
    assert counts == [1] * 5


def test_no_tasks() -> None:
    assert play(oracle, []) == []


def halfway(env: ToolEnv) -> Iterator[ToolCall | str]:
    yield ToolCall("count_up", {})
    yield "Answer: 1"


def test_an_episode_has_its_score_its_gold_and_what_it_lacks() -> None:
    player = ScriptedPlayer(chat(), halfway)
    for limit in (20, 1):  # an answer, and the turn limit
        (episode,) = rollout(
            player, [TaskRef("test/Graded-v0", "test/0")], env_kwargs={"max_turns": limit}
        )
        assert (episode.score, episode.reward) == (0.5, 0.0)
        assert episode.gold == ((ToolCall("count_up", {}), ToolCall("count_up", {})),)
        given = "1" if limit > 1 else None
        assert episode.shortfall == Shortfall(
            (Difference("state", "1", "2"),), (AnswerCheck(given, "2", right=False),)
        )
        assert Episode.from_dict(json.loads(json.dumps(episode.to_dict()))) == episode
    (solved,) = rollout(ScriptedPlayer(chat(), oracle), [TaskRef("test/Graded-v0", "test/0")])
    assert (solved.score, solved.shortfall) == (1.0, None)


def test_a_score_out_of_range_breaks_the_episode_and_says_why() -> None:
    (episode,) = rollout(ScriptedPlayer(chat(), oracle), [TaskRef("test/Misgraded-v0", "test/0")])
    assert episode.stop is StopReason.INFRA_ERROR
    assert episode.error == "InvalidEnvError: MisgradedEnv.score() is 50.0: expected 0 to 1"
    assert (episode.score, episode.gold, episode.shortfall) == (None, None, None)


def test_a_verdict_stands_whatever_can_be_said_of_it(caplog: pytest.LogCaptureFixture) -> None:
    (episode,) = rollout(ScriptedPlayer(chat(), halfway), [TaskRef("test/Tonguetied-v0", "test/0")])
    assert (episode.stop, episode.success) == (StopReason.ANSWERED, False)
    assert (episode.score, episode.shortfall) == (0.0, None)
    assert "no words" in caplog.text


def test_forks_are_not_asked_what_they_lack() -> None:
    player = ScriptedPlayer(chat(), halfway)
    (parent,) = rollout(player, [TaskRef("test/Graded-v0", "test/0")], keep=True)
    (fork,) = rollout(ScriptedPlayer(chat(), no_op), [Fork(parent, 1, seed=1)])
    assert (fork.score, fork.shortfall) == (0.5, None)
    assert fork.gold == parent.gold
