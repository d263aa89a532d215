"""A place that is free is taken by the next task, whoever plays, and nothing else changes."""

import gc
import random
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
import torch

from journeyman.agents.errors import DivergedError, LostTurnError, ParcelError
from journeyman.agents.rollouts.occupancy import Occupancy
from journeyman.agents.rollouts.rollout import played, rollout
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.rollouts.workers.errands import Errand, restored
from journeyman.agents.rollouts.workers.parcels import Packer
from journeyman.agents.rollouts.workers.station import Station
from journeyman.agents.runs.measuring import stretch
from journeyman.agents.search.playing import SearchPlayer
from journeyman.agents.students.hf import HFPlayer
from journeyman.agents.students.player import Conversation, Player, Sampling, Stream, Turn
from journeyman.agents.students.scripted import ScriptedPlayer, load_oracle
from journeyman.agents.students.spoken import SpokenPlayer
from journeyman.agents.students.vllm import VLLMPlayer
from journeyman.envs import Message, StopReason, Task, ToolEnv, register
from journeyman.envs.task import Task as AnyTask
from journeyman.tools import ToolCall, ToolSpec, render_hermes, tool

from .tiny import BUILTIN, chat, gpt2, tokenizer

PATIENCE = 30.0
"""Seconds until a test that waits in vain fails."""
LENGTHS = (3, 1, 5, 2, 0, 4, 1, 6, 2, 3, 0, 1)
"""Calls of each episode before its answer."""
SHUT, BREAKS = 4, 7
"""Tasks whose environment does not start, and whose third call breaks."""
COUNT = render_hermes(ToolCall("count_up", {}))


def count_up(state: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Count one further."""
    number, count = state
    if number == BREAKS and count == 2:
        raise RuntimeError("the server is gone")
    return (number, count + 1), count + 1


class Room:
    """What is open, and what waits."""

    alive: ClassVar[set[int]]
    most: ClassVar[int]
    begun: ClassVar[list[str]]
    made: ClassVar["weakref.WeakSet[ToolEnv]"]
    barrier: ClassVar[threading.Barrier]


class Counter(ToolEnv):
    """Counts up, and is counted."""

    toolset = (tool(count_up),)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        Room.alive.add(id(self))
        Room.made.add(self)
        Room.most = max(Room.most, len(Room.alive))

    @classmethod
    def generate(cls, rng: random.Random, split: str, level: str) -> Task:
        return Task("", "count", f"Count. {rng.random()}", (0, 0), (), None)

    def open_state(self, task: AnyTask) -> Any:
        Room.begun.append(task.id)
        if number(task.id) == SHUT:
            raise ConnectionError("the door is shut")
        return number(task.id), 0

    def close(self) -> None:
        Room.alive.remove(id(self))  # once


def meet(state: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Wait until two are here."""
    Room.barrier.wait(PATIENCE)
    return state, 0


class Waiting(Counter):
    """Its tools wait for one another."""

    waits = True
    toolset = (*Counter.toolset, tool(meet))


@pytest.fixture(autouse=True)
def room(scratch_registry: None) -> Iterator[None]:
    """An empty one for each test, which has nothing open at its end."""
    Room.alive, Room.most, Room.begun, Room.made = set(), 0, [], weakref.WeakSet()
    Room.barrier = threading.Barrier(2)
    for cls in (Counter, Waiting):
        register(f"refill/{cls.__name__}-v0", cls)
    yield
    assert not Room.alive


def number(task_id: str) -> int:
    return int(task_id.rpartition("/")[2])


def tasks(count: int = len(LENGTHS), name: str = "Counter") -> list[TaskRef]:
    return [TaskRef(f"refill/{name}-v0", f"test/{i}", seed=i) for i in range(count)]


def counting(env: ToolEnv) -> Iterator[str]:
    yield from [COUNT] * LENGTHS[number(env.task.id)]
    yield "Answer: done"


def scripted() -> ScriptedPlayer:
    return ScriptedPlayer(chat(), counting)


class Speaker(SpokenPlayer):
    """The same, as one who reads text."""

    lost: int | None = None
    """Of this task no turn comes."""

    def __init__(self) -> None:
        super().__init__(chat(), side_by_side=2)

    def turn(self, messages: Sequence[Message], tools: Sequence[ToolSpec], seed: int) -> str:
        prompt = next(m.content for m in messages if m.role == "user")
        done = sum(m.role == "assistant" for m in messages)
        which = PROMPTS[prompt]
        if which == self.lost:
            raise LostTurnError("nothing came back")
        return COUNT if done < LENGTHS[which] else "Answer: done"


PROMPTS: dict[str, int] = {}
"""Task by what the user says."""


@pytest.fixture
def prompts(room: None) -> None:
    env = Counter()
    PROMPTS.update({env.load_task(ref.task_id).prompt: i for i, ref in enumerate(tasks())})
    env.close()
    Room.most = 0


@pytest.mark.parametrize("places", [1, 2, 3, 12, 64])
@pytest.mark.usefixtures("prompts")
def test_results_are_in_order_and_no_more_are_open_than_there_are_places(places: int) -> None:
    """Episodes of unequal lengths, some of which break, before they begin or after."""
    for player in (scripted(), Speaker()):
        Room.most = 0
        counts: list[int] = []
        found = rollout(player, tasks(), places, progress=counts.append)
        assert counts == [1] * len(LENGTHS)
        assert [e.task_id for e in found] == [ref.task_id for ref in tasks()]
        for i, (episode, length) in enumerate(zip(found, LENGTHS, strict=True)):
            broken = i in (SHUT, BREAKS)
            assert (episode.stop is StopReason.INFRA_ERROR) is broken
            assert len(episode.calls) == (length if not broken else 0 if i == SHUT else 2)
        assert Room.most == min(places, len(LENGTHS) - 1)  # one is shut before the next begins


def test_tasks_that_come_later_take_the_places_that_are_free() -> None:
    """Nobody waits for the end of the first ones; nothing is asked for before there is room."""
    late = [tasks()[4:6], [], tasks()[6:]]
    begun_when_asked = []

    def more() -> list[TaskRef]:
        begun_when_asked.append(len(Room.begun))
        assert len(Room.alive) < 3
        return late.pop(0) if late else []

    ended = dict(played(scripted(), tasks(4), 3, more=more))
    assert begun_when_asked[0] == 4 and not late
    assert [ended[i] for i in range(len(LENGTHS))] == rollout(scripted(), tasks(), 3)


@pytest.mark.usefixtures("prompts")
def test_a_turn_that_never_comes_leaves_its_place_to_others() -> None:
    player = Speaker()
    player.lost = 1
    found = rollout(player, tasks(4), 2)
    assert [e.stop is StopReason.INFRA_ERROR for e in found] == [False, True, False, False]
    assert found[1].error == "LostTurnError: nothing came back"


def test_a_task_begins_once_a_place_is_free() -> None:
    """By hand: two places, and calls 3, 1, 5, 2 before the answers; a turn in each tick."""
    begun: list[list[str]] = []
    rollout(scripted(), tasks(4), 2, progress=lambda _: begun.append(list(Room.begun)))
    # The second ends in the 2nd tick, the first in the 4th, then 2+1 ticks for the fourth.
    assert [len(it) for it in begun] == [2, 3, 4, 4]
    assert Room.begun == [f"test/{i}" for i in range(4)]


def test_occupancy_is_that_of_a_count_by_hand() -> None:
    """Turns 4, 2, 6, 3 at two places: ticks 1-2, 3-4 with tasks left, 5-7 both, 8 one alone."""
    seen = Occupancy()
    rollout(scripted(), tasks(4), 2, occupancy=seen)
    assert (seen.ticks, seen.taken, seen.places) == (8, 15, 16)
    assert (seen.early_taken, seen.early_places) == (8, 8)
    assert (seen.share, seen.overall) == (1.0, 15 / 16)
    nothing = Occupancy()
    assert nothing.share != nothing.share and nothing.overall != nothing.overall


@pytest.mark.parametrize(
    ("count", "size", "processes", "expected"),
    [
        (10, 8, 1, 1),  # two batches
        (600, 128, 1, 1),  # 4.7
        (1000, 64, 1, 3),  # 15.6, in six goes
        (1000, 64, 8, 1),  # each of eight has two
        (10_000, 64, 1, 4),
        (10_000, 64, 8, 4),
        (0, 64, 1, 1),
    ],
)
def test_evaluations_of_many_tasks_play_some_batches_in_one_go(
    count: int, size: int, processes: int, expected: int
) -> None:
    assert stretch(count, size, processes) == expected


def test_there_must_be_a_place() -> None:
    with pytest.raises(ValueError, match="batch_size=0: expected at least 1"):
        rollout(scripted(), tasks(), 0)


@pytest.mark.usefixtures("prompts")
def test_what_is_over_is_not_kept() -> None:
    """Ten thousand tasks must not hold ten thousand environments."""
    held: list[int] = []
    gc.collect()
    gc.freeze()  # so that only what is made here is looked through

    def look(_: int) -> None:
        gc.collect()
        held.append(len(Room.made))

    try:
        for player in (scripted(), Speaker(), SearchPlayer(scripted(), simulations=1)):
            refs = [ref for ref in tasks() if number(ref.task_id) not in (SHUT, BREAKS)]
            rollout(player, refs, 2, progress=look)
    finally:
        gc.unfreeze()
    # Two at the places, the one that has just ended, and the forks of a search.
    assert max(held[:20]) <= 3
    assert max(held[20:]) <= 6


class Stops:
    """A player that breaks in a tick."""

    def __init__(self, inner: Player, tick: int, error: BaseException) -> None:
        self.dialect, self.max_context = inner.dialect, inner.max_context
        self.inner, self.tick, self.error = inner, tick, error

    def open(self, conversations: Sequence[Conversation]) -> Stream:
        stream = self.inner.open(conversations)
        advance, ticks = stream.advance, iter(range(self.tick))

        def stopping() -> list[Turn]:
            if next(ticks, None) is None:
                raise self.error
            return advance()

        stream.advance = stopping  # type: ignore[method-assign]
        return stream


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DivergedError(), MemoryError()])
@pytest.mark.parametrize("tick", [0, 1, 5])
def test_all_are_closed_when_the_player_stops(tick: int, error: BaseException) -> None:
    with pytest.raises(type(error)):
        rollout(Stops(scripted(), tick, error), tasks(), 3)
    assert len(Room.begun) >= 3


def test_all_are_closed_when_a_later_task_is_none() -> None:
    refs = [*tasks(3), TaskRef("refill/Counter-v0", "nonsense")]
    with pytest.raises(KeyError, match="nonsense"):
        rollout(scripted(), refs, 2)


def test_who_waits_keeps_its_place() -> None:
    """Two at a time meet; a third would break the pairs, or a place kept free would wait on."""

    def meeting(env: ToolEnv) -> Iterator[str]:
        yield from [render_hermes(ToolCall("meet", {}))] * 2
        yield "Answer: done"

    found = rollout(ScriptedPlayer(chat(), meeting), tasks(4, "Waiting"), 2)
    assert [e.error for e in found] == [None] * 4
    assert [len(e.calls) for e in found] == [2] * 4
    assert Room.most == 2


def test_a_place_that_gets_free_is_not_kept_until_a_tool_has_finished() -> None:
    """The first one's tool ends once the third has come to the place of the second, who never
    waits."""

    def meeting(env: ToolEnv) -> Iterator[str]:
        if number(env.task.id) != 1:
            yield render_hermes(ToolCall("meet", {}))
        yield "Answer: done"

    refs = tasks(3, "Waiting")
    refs[1] = tasks(3)[1]
    found = rollout(ScriptedPlayer(chat(), meeting), refs, 2)
    assert [[r.call.status for r in e.calls] for e in found] == [["ok"], [], ["ok"]]


def test_forks_take_free_places_too() -> None:
    refs = [ref for ref in tasks() if number(ref.task_id) not in (SHUT, BREAKS)]
    parents = rollout(scripted(), refs, 3, keep=True)
    forks = [Fork(e, i, seed=i) for e in parents for i in range(len(e.steps))]
    assert len(forks) > 20

    def going_on(env: ToolEnv) -> Iterator[str]:
        yield from [COUNT] * (LENGTHS[number(env.task.id)] - env.snapshot().turns)
        yield "Answer: done"

    found = rollout(ScriptedPlayer(chat(), going_on), forks, 3)
    assert [e.tokens for e in found] == [fork.parent.tokens for fork in forks]
    assert found == rollout(ScriptedPlayer(chat(), going_on), forks, 1)


def test_a_student_in_this_process_says_the_same_at_any_number_of_places() -> None:
    """Each conversation has dice of its own; rows come in beside others at another length."""
    model = gpt2(len(tokenizer()), seed=4)
    (opener,) = tokenizer().encode("<tool_call>")
    with torch.no_grad():  # what is begun as a call and is none is answered, and goes on
        model.transformer.ln_f.bias.fill_(1.0)
        model.get_input_embeddings().weight[opener] = 0.3
    player = HFPlayer(model, chat(), Sampling(max_tokens=6))
    refs = [ref for ref in tasks() if number(ref.task_id) not in (SHUT, BREAKS)]
    kwargs = {"max_turns": 4}
    alone, few, all_at_once = (rollout(player, refs, n, kwargs) for n in (1, 3, 64))
    assert {len(e.steps) for e in alone} >= {1, 4}
    for others in (few, all_at_once):
        for one, other in zip(alone, others, strict=True):
            assert one.tokens == other.tokens
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    greedy = player.at(temperature=0.0)
    assert [e.tokens for e in rollout(greedy, refs, 4, kwargs)] == [
        e.tokens for e in rollout(greedy, refs, 1, kwargs)
    ]


class Engine:
    """As vLLM's: a turn is written in two steps, its tokens those of the conversation's seed."""

    max_length, vocabulary = 1 << 20, 1 << 20

    def __init__(self) -> None:
        self.asked: dict[str, tuple[list[int], int]] = {}
        self.age: dict[str, int] = {}

    def sync(self) -> None:
        pass

    def submit(self, tokens: Sequence[int], ends: Sequence[int], **sampling: Any) -> str:
        name = str(len(self.asked))
        self.asked[name] = list(tokens), sampling["seed"]
        self.age[name] = 0
        return name

    def step(self) -> None:
        for name in self.age:
            self.age[name] += 1

    def abort(self, request: str) -> None:
        del self.age[request]

    def take(self, request: str) -> tuple[list[int], list[float]] | None:
        if self.age[request] < 2:
            return None
        del self.age[request]
        prompt, seed = self.asked[request]
        text = COUNT if len(prompt) < 150 + seed % 100 else f"Answer: {seed}"
        turn = chat().turn(text)
        return list(turn), [-1.0] * len(turn)


def test_vllm_takes_conversations_in_beside_others() -> None:
    refs = [ref for ref in tasks() if number(ref.task_id) not in (SHUT, BREAKS)]
    found = {}
    for places in (1, 3, 64):
        engine = Engine()
        found[places] = rollout(VLLMPlayer(engine, chat()), refs, places)  # type: ignore[arg-type]
        assert not engine.age
    assert len({len(e.steps) for e in found[1]}) > 1
    assert found[1] == found[3] == found[64]


def test_a_search_takes_conversations_in_beside_others() -> None:
    refs = [ref for ref in tasks(6) if number(ref.task_id) != SHUT]
    player = SearchPlayer(scripted(), candidates=2, simulations=2)
    assert [e.tokens for e in rollout(player, refs, 2)] == [
        e.tokens for e in rollout(player, refs, 8)
    ]


def test_a_worker_goes_on_with_the_next_errand_in_the_places_of_the_last() -> None:
    player = load_oracle()
    refs = [TaskRef(BUILTIN[i % 3], f"test/{i}", seed=i) for i in range(9)]
    packer = Packer()
    first, *rest = [Errand.of(packer.pack(player), refs[i : i + 3], 4) for i in (0, 3, 6)]
    station = Station("here")
    ended = station.play(first, lambda: rest.pop(0) if rest else None)
    found = {it.index: restored(refs[it.index], it) for it in ended}
    assert [found[i] for i in range(9)] == rollout(player, refs)
    other = Errand.of(packer.pack(player), refs[:3], 5)
    with pytest.raises(ParcelError, match="an errand of another rollout came while one is under"):
        list(station.play(first, lambda: other))
    assert len(list(station.play(other))) == 3  # it is not at work
