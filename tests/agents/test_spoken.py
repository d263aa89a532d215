"""Players that speak text alone, in the loop that plays all others."""

import threading
from collections import Counter
from collections.abc import Sequence

import pytest

from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.search.playing import SearchPlayer
from journeyman.agents.students.dialect import FAMILIES, Dialect
from journeyman.agents.students.player import Conversation
from journeyman.agents.students.scripted import ScriptedPlayer, oracle
from journeyman.agents.students.spoken import SpokenPlayer
from journeyman.envs import Episode, Message, StopReason, ToolEnv, answer_text, make
from journeyman.tools import ToolCall, ToolSpec, render_hermes

from .tiny import BUILTIN, chat, tokenizer

TASKS = [TaskRef(BUILTIN[i % 3], f"test/{i}", seed=10 * i) for i in range(7)]


def solution(prompt: str) -> list[ToolCall | str]:
    """The gold turns of the task with this prompt: all that a player of text knows it by."""
    for ref in TASKS:
        task = make(ref.env_id).load_task(ref.task_id)
        if task.prompt == prompt:
            return [*task.gold, answer_text(task.turns[0])]
    raise AssertionError(prompt)


Asked = tuple[tuple[Message, ...], tuple[str, ...], int]


class Solver(SpokenPlayer):
    """Writes the gold turns, and remembers what it was asked."""

    def __init__(self, dialect: Dialect | None = None, side_by_side: int = 8) -> None:
        super().__init__(dialect or chat(), side_by_side=side_by_side)
        self.asked: list[Asked] = []

    def turn(self, messages: Sequence[Message], tools: Sequence[ToolSpec], seed: int) -> str:
        self.asked.append((tuple(messages), tuple(t.name for t in tools), seed))
        said = sum(m.role == "assistant" for m in messages)
        turn = solution(next(m.content for m in messages if m.role == "user"))[said]
        return turn if isinstance(turn, str) else self.dialect.write_call(turn)

    def of(self, episode: Episode) -> list[Asked]:
        """What it was asked in an episode, in order."""
        opening = episode.opening
        found = [it for it in self.asked if it[0][: len(opening)] == opening]
        return sorted(found, key=lambda it: len(it[0]))


@pytest.mark.parametrize("side_by_side", [1, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_episodes_are_those_of_any_other_player(batch_size: int, side_by_side: int) -> None:
    found = rollout(Solver(side_by_side=side_by_side), TASKS, batch_size)
    assert found == rollout(ScriptedPlayer(chat(), oracle), TASKS)
    assert all(e.success and e.stop is StopReason.ANSWERED for e in found)
    assert not any(any(e.logprobs) for e in found)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda it: it.name)
def test_its_calls_are_in_the_form_of_its_dialect(family: type[Dialect]) -> None:
    assert all(e.success for e in rollout(Solver(family(tokenizer(), "names")), TASKS[:3]))


def test_it_hears_all_that_was_said_and_each_turn_has_dice_of_its_own() -> None:
    player = Solver()
    played = rollout(player, TASKS)
    seeds: list[int] = []
    for episode in played:
        names = tuple(t.name for t in make(episode.env_id).tools)
        asked = player.of(episode)
        assert len(asked) == len(episode.steps)
        for k, (messages, tools, seed) in enumerate(asked):
            before = len(episode.opening) + sum(1 + len(s.reply) for s in episode.steps[:k])
            assert messages == episode.messages[:before]
            assert tools == names
            seeds.append(seed)
        replies = {m.content for step in episode.steps for m in step.reply}
        assert replies <= {m.content for m in asked[-1][0] if m.role == "tool"}
    assert len(set(seeds)) == len(seeds)
    again = Solver(side_by_side=1)
    rollout(again, TASKS, batch_size=2)
    assert Counter(again.asked) == Counter(player.asked)


def test_neighbouring_seeds_share_no_dice() -> None:
    """Tasks are dealt with seeds in a row."""
    player = Solver()
    rollout(player, [TaskRef(BUILTIN[0], "test/0", seed) for seed in range(40)])
    seeds = [seed for _, _, seed in player.asked]
    assert len(set(seeds)) == len(seeds) > 80


def test_a_fork_hears_what_was_said_before_it() -> None:
    parents = rollout(Solver(), TASKS[:3], keep=True)
    forks = [Fork(e, k, seed=5) for e in parents for k in range(len(e.steps))]
    player = Solver()
    for fork, episode in zip(forks, rollout(player, forks), strict=True):
        assert episode.messages == fork.parent.messages
        assert episode.success


def test_a_search_hears_what_was_said_too() -> None:
    found = rollout(SearchPlayer(Solver(), candidates=2, simulations=2), TASKS[:3])
    assert [e.messages for e in found] == [e.messages for e in rollout(Solver(), TASKS[:3])]


class Meeting(Solver):
    """Each turn returns only once all rows are being asked."""

    def __init__(self, rows: int) -> None:
        super().__init__(side_by_side=rows)
        self.barrier = threading.Barrier(rows)

    def turn(self, messages: Sequence[Message], tools: Sequence[ToolSpec], seed: int) -> str:
        self.barrier.wait(30)
        return "Answer: done"


def test_rows_are_asked_side_by_side() -> None:
    assert [len(e.steps) for e in rollout(Meeting(5), TASKS[:5])] == [1] * 5


def test_no_more_than_wanted_are_asked_at_once() -> None:
    class Counting(Solver):
        now, most, lock = 0, 0, threading.Lock()

        def turn(self, messages: Sequence[Message], tools: Sequence[ToolSpec], seed: int) -> str:
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            threading.Event().wait(0.01)
            with self.lock:
                self.now -= 1
            return super().turn(messages, tools, seed)

    player = Counting(side_by_side=2)
    rollout(player, TASKS)
    assert player.most == 2


def test_an_error_of_the_player_is_raised_and_leaves_nobody_asked() -> None:
    class Broken(Solver):
        def turn(self, messages: Sequence[Message], tools: Sequence[ToolSpec], seed: int) -> str:
            super().turn(messages, tools, seed)
            raise ConnectionError("no such key")

    player = Broken(side_by_side=1)
    with pytest.raises(ConnectionError, match="no such key"):
        rollout(player, [TaskRef(BUILTIN[0], "test/0", seed) for seed in range(50)])
    assert len(player.asked) < 10


def conversation(seed: int = 0) -> Conversation:
    env: ToolEnv = make(BUILTIN[0])
    messages, _ = env.reset(options={"task_id": "test/0"})
    return Conversation(tuple(chat().opening(messages, env.tools)), seed, env, tuple(messages))


def test_a_row_that_is_dropped_while_it_is_asked() -> None:
    """Its turn is not heard of; the others go on."""
    gate = threading.Event()

    class Gated(Solver):
        def turn(self, messages: Sequence[Message], tools: Sequence[ToolSpec], seed: int) -> str:
            assert gate.wait(30)
            return render_hermes(ToolCall("no_such_tool"))

    stream = Gated().open([conversation(0), conversation(1)])
    stream.finish(0)
    gate.set()
    turns = []
    while not stream.idle:
        turns += stream.advance()
    assert [t.row for t in turns] == [1]
    stream.extend(1, (), [Message("tool", "1")])
    assert not stream.idle
    stream.finish(1)
    while not stream.idle:
        assert stream.advance() == []


def test_nothing_to_play() -> None:
    stream = Solver().open([])
    assert stream.idle
    assert stream.advance() == []
