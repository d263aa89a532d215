"""What a student does is its own result; what breaks beside it costs one episode, and is closed."""

import gc
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import gymnasium
import pytest

from journeyman.agents.errors import DivergedError, NoSnapshotError
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.students.player import Conversation, Stream, Turn
from journeyman.agents.students.scripted import ScriptedPlayer, oracle
from journeyman.envs import StopReason, Task, ToolEnv, answer_text, make, register, registry
from journeyman.envs.core import Action, Snapshot
from journeyman.envs.errors import UnknownEnvError, UnknownTaskError
from journeyman.envs.tasks.analyst import AnalystEnv
from journeyman.envs.tasks.bank import BankEnv
from journeyman.envs.tasks.interpreter import InterpreterEnv
from journeyman.envs.tasks.python import PythonEnv
from journeyman.envs.trl import trl_environment, trl_reward, trl_rows
from journeyman.sandbox import Limits, Sandbox
from journeyman.tools import ToolCall

from ..agents.tiny import chat
from ..processes import sandboxes
from .programs import Player, ShellEnv, opened

ENVS = (PythonEnv, AnalystEnv, ShellEnv)
LIMITS = Limits(wall_s=2.0, cpu_s=2.0)


@pytest.fixture
def nothing_left(bwrap: str) -> Iterator[None]:
    """No sandbox is left by a test, however it went."""
    before = sandboxes()
    yield
    gc.collect()
    assert sandboxes() == before


def play(kind: type[InterpreterEnv], first: int, episodes: int) -> Counter[str]:
    """Random programs, one after the other in one environment and those that it is forked to."""
    counts: Counter[str] = Counter()
    with opened(lambda: kind(max_turns=60, sandbox=Sandbox(limits=LIMITS))) as (
        make,
        _,
    ):
        env = make()
        for seed in range(first, first + episodes):
            level = env.levels[seed % min(2, len(env.levels))]
            env.reset(options={"task_id": f"train/{level}/{seed}"})
            player = Player(env, make, seed)
            player.play(length=4 + seed % 10)
            counts.update(player.counts)
    return counts


@pytest.mark.parametrize("kind", ENVS)
@pytest.mark.usefixtures("nothing_left")
def test_whatever_a_student_runs_is_no_infrastructure_failure(kind: type[InterpreterEnv]) -> None:
    """An exception out of an environment would be one; the ledger finds what was lost unheard."""
    counts = play(kind, 0, 20)
    assert counts["crash"] > 5 and counts["restore"] > 5


@pytest.mark.usefixtures("nothing_left")
def test_where_forks_are_few_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most places are reached by running the program again, which shows something else."""
    monkeypatch.setattr("journeyman.tools.cells.MAX_CHECKPOINTS", 2)
    # How often depends on what a clock or a process number happens to show a second time.
    assert play(PythonEnv, 500, 8)["told"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ENVS)
@pytest.mark.usefixtures("nothing_left")
def test_two_thousand_programs(kind: type[InterpreterEnv]) -> None:
    counts: Counter[str] = Counter()
    for first in range(1000, 1670, 10):
        counts += play(kind, first, 10)
    assert counts["crash"] > 300 and counts["restore"] > 300


# Whatever breaks outside a step


class Flaky(BankEnv):
    """A bank whose server is gone at one moment of one task."""

    opened: ClassVar[list["Flaky"]] = []
    closed: ClassVar[list["Flaky"]] = []
    where: ClassVar[str] = ""
    error: ClassVar[BaseException] = ConnectionError("the server is gone")
    last: ClassVar[bool] = False
    """Whether it works until the episode is over."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.opened.append(self)

    def fails(self, where: str) -> None:
        if where == self.where and self.task.id == "test/1" and self.over == self.last:
            raise self.error

    def begin(self, task: Task) -> Any:
        begun = super().begin(task)
        self.fails("reset")
        return begun

    def step(self, action: Action) -> Any:
        self.fails("step")
        return super().step(action)

    def snapshot(self) -> Snapshot:
        self.fails("snapshot")
        return super().snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        super().restore(snapshot)
        self.fails("restore")

    def reroll(self, seed: int) -> None:
        self.fails("reroll")

    def hashed_state(self) -> Any:
        self.fails("state_hash")
        return super().hashed_state()

    @property
    def tools(self) -> Any:
        if self._task is not None:
            self.fails("tools")
        return super().tools

    def close(self) -> None:
        self.closed.append(self)
        if self._task is not None:
            self.fails("close")
        super().close()


class Waiting(Flaky):
    """Its steps run in threads."""

    waits = True


IDS = {"cases/Flaky-v0": Flaky, "cases/Waiting-v0": Waiting}
REFS = {name: [TaskRef(name, f"test/{i}", i) for i in range(4)] for name in IDS}


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Registered for one test, at the end of which each that was opened has been closed once."""
    registry.load_plugins()
    gym = gymnasium.envs.registration
    monkeypatch.setattr(registry, "_ids", set(registry._ids))
    monkeypatch.setattr(gym, "registry", dict(gym.registry))
    for name, cls in IDS.items():
        register(name, cls)
    Flaky.opened.clear()
    Flaky.closed.clear()
    yield monkeypatch
    assert Flaky.opened
    assert Counter(map(id, Flaky.closed)) == Counter(map(id, Flaky.opened))


def breaks(patch: pytest.MonkeyPatch, where: str, error: BaseException, last: bool = False) -> None:
    patch.setattr(Flaky, "where", where)
    patch.setattr(Flaky, "error", error)
    patch.setattr(Flaky, "last", last)


ERRORS = (ConnectionError("gone"), TypeError("None"), KeyError("id"), UnicodeError("\ud800"))


@pytest.mark.parametrize("error", ERRORS, ids=lambda it: type(it).__name__)
@pytest.mark.parametrize(
    ("where", "last"),
    [("reset", False), ("step", False), ("snapshot", False), ("state_hash", False),
     ("state_hash", True), ("tools", False)],
)  # fmt: skip
@pytest.mark.parametrize("name", IDS)
def test_it_costs_its_own_episode(
    flaky: pytest.MonkeyPatch, name: str, where: str, last: bool, error: Exception
) -> None:
    breaks(flaky, where, error, last)
    found = rollout(ScriptedPlayer(chat(), oracle), REFS[name], keep=True)
    stops = [StopReason.ANSWERED] * 4
    stops[1] = StopReason.INFRA_ERROR
    assert [episode.stop for episode in found] == stops
    assert [episode.success for episode in found] == [True, False, True, True]
    assert found[1].error == f"{type(error).__name__}: {error}"
    assert (found[1].reward, found[1].state_hash) == (0.0, "")


@pytest.mark.parametrize("where", ["restore", "reroll", "state_hash", "tools"])
@pytest.mark.parametrize("name", IDS)
def test_it_costs_its_own_fork(flaky: pytest.MonkeyPatch, name: str, where: str) -> None:
    player = ScriptedPlayer(chat(), oracle)
    parents = rollout(player, REFS[name], keep=True)
    assert all(parent.success for parent in parents)
    breaks(flaky, where, TypeError("gone"))
    forks = [Fork(parent, 0, 7, parent.tokens[slice(*parent.steps[0].span)]) for parent in parents]
    broken = [it.stop is StopReason.INFRA_ERROR for it in rollout(player, forks, keep=True)]
    assert broken == [False, True, False, False]


def test_what_does_not_close_costs_nothing(flaky: pytest.MonkeyPatch) -> None:
    breaks(flaky, "close", ConnectionError("gone"), last=True)
    found = rollout(ScriptedPlayer(chat(), oracle), REFS["cases/Flaky-v0"])
    assert all(episode.success for episode in found)


class Stops(ScriptedPlayer):
    """Its third round of turns never comes."""

    error: BaseException = KeyboardInterrupt()

    def open(self, conversations: Sequence[Conversation]) -> Stream:
        stream = super().open(conversations)
        rounds = itertools.count()
        advance = stream.advance

        def stopping() -> list[Turn]:
            if next(rounds) == 2:
                raise self.error
            return advance()

        stream.advance = stopping  # type: ignore[method-assign]
        return stream


class NeverOpens(ScriptedPlayer):
    """It has no stream to give."""

    def open(self, conversations: Sequence[Conversation]) -> Stream:
        raise DivergedError


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DivergedError(), MemoryError()])
@pytest.mark.parametrize("name", IDS)
def test_all_is_closed_when_the_player_stops(
    flaky: pytest.MonkeyPatch, name: str, error: BaseException
) -> None:
    player = Stops(chat(), oracle)
    player.error = error
    with pytest.raises(type(error)):
        rollout(player, REFS[name])
    with pytest.raises(DivergedError):
        rollout(NeverOpens(chat(), oracle), REFS[name])


@pytest.mark.parametrize("where", ["reset", "step", "snapshot", "state_hash"])
@pytest.mark.parametrize("name", IDS)
def test_all_is_closed_after_an_interrupt(flaky: pytest.MonkeyPatch, name: str, where: str) -> None:
    breaks(flaky, where, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        rollout(ScriptedPlayer(chat(), oracle), REFS[name], keep=True)


def test_all_is_closed_after_a_mistake(flaky: pytest.MonkeyPatch) -> None:
    """A task that does not exist, an environment without snapshots, a bar that breaks."""
    player = ScriptedPlayer(chat(), oracle)
    refs = REFS["cases/Flaky-v0"]
    with pytest.raises(UnknownTaskError):
        rollout(player, [*refs, TaskRef("cases/Flaky-v0", "nonsense")])
    with pytest.raises(UnknownEnvError):
        rollout(player, [*refs, TaskRef("cases/None-v0", "test/0")])
    with pytest.raises(ZeroDivisionError):
        rollout(player, refs, progress=lambda done: 1 // 0)
    breaks(flaky, "snapshot", NotImplementedError())
    with pytest.raises(NoSnapshotError):
        rollout(player, refs, keep=True)


# The same through every door


@pytest.mark.parametrize("env_id", ["journeyman/Python-v0", "journeyman/Analyst-v0"])
@pytest.mark.usefixtures("nothing_left")
def test_forks_of_what_cannot_be_run_again(env_id: str) -> None:
    """Of every step, in environments of their own, after that of the parent is closed."""
    codes = [
        "import time, uuid\nt = time.time_ns(), uuid.uuid4()\nt",
        "import os; os._exit(1)",
        "print(t)",
        "print(t); t = 0",
    ]

    def script(env: ToolEnv) -> Iterator[ToolCall | str]:
        yield from (ToolCall("python", {"code": code}) for code in codes)
        yield "Answer: 1"

    player = ScriptedPlayer(chat(), script)
    (parent,) = rollout(player, [TaskRef(env_id, "test/0")], keep=True)
    seen = parent.calls[2].content
    given = parent.tokens[slice(*parent.steps[2].span)]  # print(t)
    forks = rollout(player, [Fork(parent, at, 0, given) for at in (1, 2, 3)])
    assert [fork.stop for fork in forks] == [StopReason.ANSWERED] * 3
    assert [fork.calls[at].content for at, fork in zip((1, 2, 3), forks, strict=True)] == [seen] * 3


@pytest.mark.usefixtures("nothing_left")
def test_a_trl_run_goes_on() -> None:
    environment = trl_environment("journeyman/Python-v0")()
    (row,) = trl_rows("journeyman/Python-v0", "train", 1)
    environment.reset(task_id=row["task_id"])
    play: Any = environment
    now = play.python(code="import time; t = time.time(); t")
    assert "ended the interpreter" in play.python(code="import os; os._exit(1)")
    assert play.python(code="t") == now
    (gold,) = make("journeyman/Python-v0").load_task(row["task_id"]).turns
    said = [[{"role": "assistant", "content": answer_text(gold)}]]
    assert trl_reward(said, [environment]) == [1.0]
