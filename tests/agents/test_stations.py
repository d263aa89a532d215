"""Rollouts in other processes: the same episodes, whoever plays them where."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from journeyman.agents.errors import ParcelError
from journeyman.agents.networks.adapters import begin, saved_bytes
from journeyman.agents.rollouts.guidance import GuidedPlayer
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.rollouts.workers.errands import Errand, Pinned, bound, home_of
from journeyman.agents.rollouts.workers.parcels import Packer
from journeyman.agents.search.playing import SearchPlayer
from journeyman.agents.students.hf import HFPlayer, load_student
from journeyman.agents.students.player import Player, Sampling
from journeyman.agents.students.scripted import ScriptedPlayer, load_oracle, no_op
from journeyman.envs import BranchPoint, Episode, StopReason
from journeyman.envs.errors import UnknownEnvError

from .elsewhere import Elsewhere, Shelf
from .tiny import BUILTIN, chat, llama, tokenizer

TASKS = [TaskRef(BUILTIN[i % 3], f"test/{i}", seed=i) for i in range(5)]
SHORT = {"max_turns": 3}

GARDEN = '''
"""An environment, and scripts, that no package has."""

from journeyman.envs import Task, ToolEnv, register
from journeyman.tools import ToolCall, tool


@tool
def water(state: tuple[int, ...], plant: int) -> tuple[tuple[int, ...], str]:
    """Water a plant.

    Args:
        plant: Its number.
    """
    if plant == 13:
        raise ConnectionError("the hose burst")
    return (*state, plant), "watered"


class Garden(ToolEnv):
    """Water what is dry."""

    toolset = (water,)

    @classmethod
    def generate(cls, rng, split, level):
        plant = rng.randrange(9)
        calls = (ToolCall("water", {"plant": plant}),)
        return Task("", "dry", f"Water {plant}.", (), calls, "done")


class Wild(Garden):
    """A state that holds what no pickle takes."""

    def open_state(self, task):
        return (lambda: task.id,)

    def hashed_state(self):
        return tuple(it for it in self._state if isinstance(it, int))

    @classmethod
    def outcome(cls, state):
        return tuple(it for it in state if isinstance(it, int))


register("acme/Garden-v0", Garden)
register("acme/Wild-v0", Wild)


def careless(env):
    """Gold in even tasks, a burst hose in odd ones."""
    odd = int(env.task.id.rpartition("/")[2]) % 2
    yield ToolCall("water", {"plant": 13}) if odd else env.task.turns[0].gold[0]
    yield "Answer: done"


def now(env):
    """Notes the time, and tells it later."""
    yield ToolCall("python", {"code": "import time; noted = time.time_ns(); noted"})
    yield ToolCall("python", {"code": "noted"})
    yield "Answer: done"


def later(env):
    yield ToolCall("python", {"code": "noted"})
    yield "Answer: done"
'''


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Elsewhere, Elsewhere]]:
    folder = tmp_path_factory.mktemp("stations")
    both = Elsewhere("one", folder / "one"), Elsewhere("two", folder / "two")
    yield both[0].ready(), both[1].ready()
    for it in both:
        it.close()


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.fixture(scope="module")
def student() -> HFPlayer:
    return load_student("embedded-student", render="names", max_turn_tokens=32, device="cpu")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums hang on their order, which hangs on the threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def garden(
    scratch_registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    name = f"garden_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(GARDEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module(name)
    del sys.modules[name]


def everything(episode: Episode) -> tuple[Any, ...]:
    """What equality leaves out too, but for how long things took."""
    hashes = [point.state_hash for point in episode.branch_points]
    told = (episode.seed, episode.score, episode.gold, episode.shortfall, episode.tools)
    return (episode, *told, hashes)


def assert_same(there: Sequence[Episode], here: Sequence[Episode]) -> None:
    assert len(there) == len(here) > 0
    for one, other in zip(there, here, strict=True):
        assert everything(one) == everything(other)


def rounded(episode: Episode) -> Episode:
    return replace(episode, logprobs=tuple(round(it, 3) + 0.0 for it in episode.logprobs))


def step(player: HFPlayer) -> None:
    """One of an optimiser's, large enough to be heard."""
    trained = [it for it in player.model.parameters() if it.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    player.model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_student_plays_the_same_in_another_process(
    pair: tuple[Elsewhere, Elsewhere], shelf: Shelf, student: HFPlayer, temperature: float
) -> None:
    """However the tasks are dealt out, and whatever is beside them."""
    player = student.at(temperature=temperature)
    how: dict[str, Any] = {"env_kwargs": SHORT, "keep": True, "batch_size": 3}
    here = rollout(player, TASKS, **how)
    parcel = Packer(shelf.put).pack(player)
    all_at_one = pair[0].play(parcel, TASKS, **how)
    assert_same(all_at_one.episodes, here)
    assert all_at_one.versions == {1}
    assert all(e.mask[s.span[0]] for e in here for s in e.steps)
    for i in range(2):  # sums of another batch may differ in the last bit
        there = pair[1].play(parcel, TASKS[i::2], **how).episodes
        assert_same([rounded(e) for e in there], [rounded(e) for e in here[i::2]])


@pytest.mark.usefixtures("one_thread")
def test_a_step_of_training_is_a_new_version(
    pair: tuple[Elsewhere, Elsewhere], shelf: Shelf
) -> None:
    player = load_student("embedded-student", render="names", max_turn_tokens=32, device="cpu")
    packer = Packer(shelf.put)
    tasks, how = TASKS[:2], {"env_kwargs": {"max_turns": 2}}
    old = packer.pack(player)
    before = pair[0].play(old, tasks, **how)
    step(player)
    new = packer.pack(player.at(temperature=0.0))
    after = pair[0].play(new, tasks, **how)
    assert (before.versions, after.versions) == ({1}, {2})
    assert_same(after.episodes, rollout(player.at(temperature=0.0), tasks, **how))
    assert [e.logprobs for e in before.episodes] != [e.logprobs for e in after.episodes]
    with pytest.raises(ParcelError, match="weights of version 1, and this worker has version 2"):
        pair[0].play(old, tasks, **how)
    late = pair[1].play(new, tasks, **how)  # it never had the first
    assert_same(late.episodes, after.episodes)


@pytest.mark.usefixtures("one_thread")
def test_an_adapter_goes_alone(pair: tuple[Elsewhere, Elsewhere], shelf: Shelf) -> None:
    model = begin(llama(len(tokenizer())), {"r": 2})
    player = HFPlayer(model, chat(), Sampling(max_tokens=8))
    packer, tasks = Packer(shelf.put), TASKS[:2]
    pair[0].play(packer.pack(player), tasks, env_kwargs=SHORT)
    whole, there = packer.pushed, pair[0].facts["received"]
    step(player)
    after = pair[0].play(packer.pack(player), tasks, env_kwargs=SHORT)
    assert packer.pushed - whole == pair[0].facts["received"] - there == saved_bytes(model)
    assert saved_bytes(model) < whole / 20
    assert after.versions == {2}
    assert_same(after.episodes, rollout(player, tasks, env_kwargs=SHORT))


def test_scripts_play_the_same(pair: tuple[Elsewhere, Elsewhere], shelf: Shelf) -> None:
    for player in (load_oracle(), ScriptedPlayer(chat(), no_op)):
        answer = pair[0].play(Packer(shelf.put).pack(player), TASKS, batch_size=2)
        assert answer.versions == {0}
        assert_same(answer.episodes, rollout(player, TASKS))
    assert not any(e.success for e in answer.episodes)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["guided", "search"])
def test_players_of_players_play_the_same(
    pair: tuple[Elsewhere, Elsewhere], shelf: Shelf, student: HFPlayer, kind: str
) -> None:
    player: Player
    if kind == "guided":
        player = GuidedPlayer(student, student.at(temperature=0.0), 0.5)
    else:
        player = SearchPlayer(student, candidates=2, simulations=2)
    tasks, how = TASKS[:3], {"env_kwargs": SHORT}
    here = rollout(player, tasks, **how)
    assert_same(pair[0].play(Packer(shelf.put).pack(player), tasks, **how).episodes, here)
    if kind == "guided":
        taken = [any(e.mask[slice(*s.span)]) for e in here for s in e.steps]
        assert {*taken} == {True, False}


@pytest.mark.usefixtures("one_thread")
def test_forks_are_played_at_another_station(
    pair: tuple[Elsewhere, Elsewhere], shelf: Shelf, student: HFPlayer
) -> None:
    """The state of a mock API is a value; a parent goes once, and does not come back."""
    parcel = Packer(shelf.put).pack(student)
    how: dict[str, Any] = {"env_kwargs": SHORT, "keep": True}
    parents = pair[0].play(parcel, TASKS[:3], **how).episodes
    turn = tuple(chat().turn("Answer: nothing"))
    forks = [
        Fork(parent, k, seed=10 + k, turn=turn if k == 1 else None)
        for parent in parents
        for k in range(len(parent.branch_points))
    ]
    assert len(forks) > 3
    assert {home_of(fork) for fork in forks} == {None}
    there = pair[1].play(parcel, forks, **how)
    assert_same(there.episodes, rollout(student, forks, **how))
    for fork, episode in zip(forks, there.episodes, strict=True):
        assert all(map(lambda a, b: a is b, episode.steps[: fork.step], fork.parent.steps))
    assert_same(  # and of a fork's fork
        pair[0].play(parcel, [Fork(there.episodes[-1], 0, 5)], **how).episodes,
        rollout(student, [Fork(there.episodes[-1], 0, 5)], **how),
    )


def test_a_hundred_forks_hardly_weigh_more_than_one(student: HFPlayer) -> None:
    (parent,) = rollout(load_oracle(), TASKS[:1], keep=True)
    parcel = Packer().pack(load_oracle())
    sizes = [
        len(Errand.of(parcel, [Fork(parent, 0, i) for i in range(count)]).tasks)
        for count in (1, 100)
    ]
    assert sizes[1] - sizes[0] < 2000 < sizes[0]


def test_an_environment_from_a_file_is_found(
    pair: tuple[Elsewhere, Elsewhere], shelf: Shelf, garden: ModuleType
) -> None:
    """By "module:ID", and by an id that only this process has registered; one that breaks."""
    parcel = Packer(shelf.put).pack(ScriptedPlayer(chat(), garden.careless))
    for env_id in (f"{garden.__name__}:acme/Garden-v0", "acme/Garden-v0"):
        tasks = [TaskRef(env_id, f"test/{i}") for i in range(4)]
        there = pair[0].play(parcel, tasks, batch_size=4).episodes
        assert_same(there, rollout(ScriptedPlayer(chat(), garden.careless), tasks, batch_size=4))
        assert [e.stop is StopReason.INFRA_ERROR for e in there] == [False, True] * 2
        assert [e.success for e in there] == [True, False] * 2
        assert there[1].error == "ConnectionError: the hose burst"


def test_an_environment_that_is_not_there_is_named(
    pair: tuple[Elsewhere, Elsewhere], shelf: Shelf, garden: ModuleType
) -> None:
    errand = Errand.of(Packer(shelf.put).pack(load_oracle()), [TaskRef("acme/Garden-v0", "test/0")])
    lost = replace(errand, paths=(), envs=(replace(errand.envs[0], module="no_garden"),))
    with pytest.raises(UnknownEnvError, match=r"'acme/Garden-v0' at a worker.*no_garden"):
        pair[1].run(lost, [])


def test_what_no_pickle_takes_stays(
    pair: tuple[Elsewhere, Elsewhere], shelf: Shelf, garden: ModuleType
) -> None:
    player = ScriptedPlayer(chat(), garden.careless)
    parcel = Packer(shelf.put).pack(player)
    tasks = [TaskRef("acme/Wild-v0", f"test/{i}") for i in (0, 2)]
    first, second = pair[0].play(parcel, tasks, keep=True).episodes
    fork = Fork(first, 1, seed=3)
    assert (home_of(fork), bound(fork)) == ("one", True)
    with pytest.raises(ParcelError, match=r"before step 1 is alive at one alone, and this is two"):
        pair[1].play(parcel, [fork])
    kept = pair[0].facts["kept"]
    (again,) = pair[0].play(parcel, [Fork(second, 1, seed=3)], keep=True).episodes
    assert len(again.branch_points) == len(again.steps) == 3  # the script begins again
    assert again.state_hash != ""
    assert again.branch_points[0] is second.branch_points[0]  # is not kept twice
    assert pair[0].facts["kept"] == kept + 2
    del second, again
    errand = Errand.of(parcel, [], released=pair[0].ledger.released("one"))
    pair[0].run(errand, [])
    assert pair[0].facts["kept"] == kept + 2 - 4


@pytest.mark.usefixtures("bwrap")
def test_a_live_snapshot_is_gone_on_from_where_it_is(
    pair: tuple[Elsewhere, Elsewhere], shelf: Shelf, garden: ModuleType
) -> None:
    """A session's fork keeps what was noted; elsewhere the code runs again, and that is said."""
    packer = Packer(shelf.put)
    task = TaskRef("journeyman/Python-v0", "test/0")
    first = packer.pack(ScriptedPlayer(chat(), garden.now))
    (parent,) = pair[0].play(first, [task], keep=True).episodes
    noted = parent.steps[1].results[0].content
    assert noted == parent.steps[0].results[0].content
    fork = Fork(parent, 1, seed=1)
    assert (home_of(Fork(parent, 0, 1)), home_of(fork), bound(fork)) == (None, "one", False)
    assert isinstance(parent.branch_points[1].snapshot, Pinned)
    then = packer.pack(ScriptedPlayer(chat(), garden.later))
    at_home = pair[0].play(then, [fork]).episodes[0]
    away = pair[1].play(then, [fork]).episodes[0]
    assert at_home.steps[1].results[0].content == noted
    assert "run again" in away.steps[1].results[0].content
    assert noted.strip('"') not in away.steps[1].results[0].content
    assert at_home.branch_points[:1] == parent.branch_points[:1]
    kept = pair[0].facts["kept"]
    assert kept >= 2
    point: BranchPoint | None = parent.branch_points[1]
    del parent, fork, at_home, away, point
    pair[0].release(pair[0].ledger.released("one"))
    assert pair[0].facts["kept"] < kept
    assert pair[0].play(then, TASKS[:1]).episodes  # and it plays on
