"""Search at test time: picks what turns out well, from forks that leave the episode alone."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.search.playing import SearchPlayer
from journeyman.agents.students.scripted import ScriptedPlayer, no_op, oracle
from journeyman.envs import StopReason, ToolEnv, answer_text, env_class
from journeyman.tools import render_hermes

from ..tiny import BUILTIN, chat

TASKS = [TaskRef(BUILTIN[i % 3], f"test/{i}", seed=i) for i in range(6)]


class Sometimes:
    """Gives up at once in every second conversation; otherwise plays on by the gold program."""

    def __init__(self) -> None:
        self._count = itertools.count()

    def __call__(self, env: ToolEnv) -> Iterator[str]:
        done = env.snapshot().turns
        if done == 0 and next(self._count) % 2:
            return iter(["Answer: done"])
        program = [render_hermes(call) for call in env.task.gold][done:]
        return iter([*program, answer_text(env.user_turn)])


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_it_finds_the_turn_that_solves(rule: str) -> None:
    student = ScriptedPlayer(chat(), Sometimes())
    assert {e.success for e in rollout(student, TASKS)} == {True, False}
    player = SearchPlayer(student, rule, candidates=4, simulations=8)  # type: ignore[arg-type]
    episodes = rollout(player, TASKS)
    assert all(e.success and e.stop is StopReason.ANSWERED for e in episodes)


def test_a_row_without_a_branch_point_plays_on_without_a_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bank = env_class(BUILTIN[0])
    snapshot = bank.snapshot

    def sometimes(self: ToolEnv) -> Any:
        if self.task.id == TASKS[0].task_id:
            raise ConnectionError("the bank is gone")
        return snapshot(self)

    monkeypatch.setattr(bank, "snapshot", sometimes)
    episodes = rollout(SearchPlayer(ScriptedPlayer(chat(), no_op), simulations=2), TASKS[:3])
    assert [e.stop for e in episodes] == [StopReason.ANSWERED] * 3


def test_one_candidate_needs_no_simulation() -> None:
    player = SearchPlayer(ScriptedPlayer(chat(), no_op), candidates=3, simulations=4)
    episodes = rollout(player, TASKS[:3])
    plain = rollout(ScriptedPlayer(chat(), no_op), TASKS[:3])
    assert [(e.tokens, e.reward) for e in episodes] == [(e.tokens, e.reward) for e in plain]


def test_where_no_simulation_ends_the_prior_decides(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a replay does not reproduce: six proposals of eight say no, and so does it."""
    bank, count, lost = env_class(BUILTIN[0]), itertools.count(), set()
    restore, step = bank.restore, bank.step

    def mostly(env: ToolEnv) -> Iterator[str]:
        return iter(["Answer: yes" if next(count) % 4 == 3 else "Answer: no"])

    def losing(self: ToolEnv, snapshot: Any) -> None:
        restore(self, snapshot)
        lost.add(self)

    def breaking(self: ToolEnv, action: Any) -> Any:
        if self in lost:
            raise ConnectionError("the bank is gone")
        return step(self, action)

    monkeypatch.setattr(bank, "restore", losing)
    monkeypatch.setattr(bank, "step", breaking)
    player = SearchPlayer(ScriptedPlayer(chat(), mostly), "puct", candidates=8, simulations=8)
    (episode,) = rollout(player, TASKS[:1])
    assert [s.text for s in episode.steps] == ["Answer: no"]
    assert len(caplog.records) == 8  # all simulations broke


def test_without_forks_it_plays_as_the_player_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the bank, where nothing can be restored; the other tasks are searched."""

    def lost(self: ToolEnv, snapshot: Any) -> None:
        raise ConnectionError("the bank is gone")

    monkeypatch.setattr(env_class(BUILTIN[0]), "restore", lost)
    player = SearchPlayer(ScriptedPlayer(chat(), from_here), candidates=2, simulations=2)
    episodes = rollout(player, TASKS[:3])
    plain = rollout(ScriptedPlayer(chat(), oracle), TASKS[:3])
    assert [(e.tokens, e.success) for e in episodes] == [(e.tokens, True) for e in plain]


def from_here(env: ToolEnv) -> Iterator[str]:
    """What the oracle has left to say."""
    return itertools.islice(oracle(env), env.snapshot().turns, None)


def test_the_searched_environment_is_left_alone() -> None:
    """What the forks do never shows in the episode: the oracle's episode is the oracle's."""
    player = SearchPlayer(ScriptedPlayer(chat(), from_here), candidates=2, simulations=2)
    episodes = rollout(player, TASKS[:3])
    plain = rollout(ScriptedPlayer(chat(), oracle), TASKS[:3])
    assert [(e.tokens, e.state_hash) for e in episodes] == [(e.tokens, e.state_hash) for e in plain]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": 0}, "candidates=0: expected at least 1"),
        ({"simulations": 0}, "simulations=0: expected at least 1"),
        ({"rule": "best"}, "rule='best': expected 'gumbel' or 'puct'"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchPlayer(ScriptedPlayer(chat(), no_op), **settings)  # type: ignore[arg-type]
