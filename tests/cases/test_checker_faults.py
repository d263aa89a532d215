"""`envs check` names each planted fault once, and passes what has none."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from journeyman.agents.cli import main
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.scripted import ScriptedPlayer, oracle
from journeyman.envs import StopReason, Task, ToolEnv, env_class, make, refused, register
from journeyman.envs.checker import CHECKS, CheckResult, check
from journeyman.envs.errors import InvalidEnvError, InvalidTaskError, StateChangedError
from journeyman.tools import CallStatus, ToolCall, ToolError, tool

from ..agents.tiny import chat
from . import planted
from .planted import FAULTS, Fault, LibraryEnv

pytestmark = pytest.mark.usefixtures("scratch_registry")


def run(cls: type[ToolEnv], **kwargs: Any) -> list[CheckResult]:
    # A class that no module holds: no other process is started to play it.
    register("planted/Env-v0", type(cls.__name__, (cls,), {"__doc__": cls.__doc__}))
    return check("planted/Env-v0", episodes=6, prefixes=8, **kwargs)


def wrong(results: Sequence[CheckResult]) -> list[tuple[str, str]]:
    return [(r.name, r.detail) for r in results if not r.passed]


def test_there_are_enough() -> None:
    assert len(FAULTS) >= 60
    assert {fault.check for fault in FAULTS} | {"processes"} == set(CHECKS)


@pytest.mark.parametrize("seed", range(3))
def test_the_environment_without_a_fault_passes(seed: int) -> None:
    results = run(LibraryEnv, seed=seed)
    assert [r.name for r in results] == list(CHECKS)
    assert not any(r.skipped or not r.passed for r in results), results


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.env.__name__)
def test_a_fault_is_named_once(fault: Fault) -> None:
    results = run(fault.env)
    assert [name for name, _ in wrong(results)] == [fault.check], wrong(results)
    ((_, said),) = wrong(results)
    assert re.search(fault.words, said, re.DOTALL), said
    assert {r.name for r in results} == set(CHECKS)


def test_each_of_several_faults_is_named() -> None:
    class Several(LibraryEnv):
        toolset = (*FAULTY_TOOLS, LibraryEnv.toolset[1])

    found = wrong(run(Several))
    assert [name for name, _ in found] == ["tools", "tools"]
    assert re.search("tool 'look' raised KeyError", found[0][1])
    assert re.search("tool 'audit' raised ZeroDivisionError", found[1][1])


FAULTY_TOOLS = (
    planted.BareException.toolset[0],
    planted.ToolThatGoldNeverCalls.toolset[2],
)


def test_what_gold_does_in_vain_is_counted() -> None:
    ((_, said),) = wrong(run(planted.GoldTheToolRefuses))
    first, count, tasks = re.search(r"task (\S+) .*\((\d+) of (\d+) tasks\)$", said).groups()  # type: ignore[union-attr]
    assert (first.split("/")[0], int(tasks)) == ("train", 18)
    assert 4 < int(count) < 14  # a throw of a coin each


def test_a_refusal_may_be_declared() -> None:
    class Declared(LibraryEnv):
        @classmethod
        def generate(cls, rng: Any, split: Any, level: Any) -> Task:
            task = LibraryEnv.generate(rng, split, level)
            vain = refused(ToolCall("look", {"shelf": "the lost one"}))
            return replace(task, gold=(vain, *task.gold))

    results = run(Declared)
    assert wrong(results) == []
    (gold,) = (r for r in results if r.name == "gold")
    assert gold.detail == "18/18 gold programs succeeded, 18 calls refused as declared"


def test_a_declaration_changes_nothing_but_what_is_expected() -> None:
    call = ToolCall("look", {"shelf": "x"})
    assert refused(call) == replace(call, status=CallStatus.TOOL_ERROR)
    with LibraryEnv() as env:
        task = env.load_task("test/0")
        env.begin(task)
        one = env.step([task.gold[0]])
        env.begin(task)
        assert env.step([refused(task.gold[0])])[4]["calls"] == one[4]["calls"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, where environments may lie."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


GUESTS = '''
from immutables import Map
from journeyman.envs import Task, ToolEnv, register
from journeyman.tools import ToolCall, ToolError, tool

NAMES = {{"train": "Ada Bo Cy Di Eve Flo", "validation": "Gus Hal Ida Jo Kim Lea",
         "test": "Max Ned Ole Pia Quin Rob"}}

@tool
def seat(state: Map, guest: str, table: int) -> tuple[Map, str]:
    """Seat a guest.

    Args:
        guest: Who.
        table: Where.
    """
    if table > {tables}:
        raise ToolError("no such table")
    return state.set(guest, table), "seated"

class Guests(ToolEnv):
    """Guests and tables."""

    toolset = (seat,)

    @classmethod
    def generate(cls, rng, split, level):
        names = {names}
        first, second = names[0], names[1]
        tables = [rng.randint(1, 10**6) for _ in range(2)]
        gold = tuple(ToolCall("seat", {{"guest": g, "table": t}})
                     for g, t in zip((first, second), tables))
        prompt = f"{{first}} to table {{tables[0]}}, {{second}} to {{tables[1]}}."
        return Task("", "seat", prompt, Map(), gold, None)

register("acme/Guests-v0", Guests)
'''


def write(folder: Path, module: str, names: str, tables: int) -> None:
    (folder / f"{module}.py").write_text(GUESTS.format(names=names, tables=tables))


def test_the_order_of_a_set(folder: Path) -> None:
    write(folder, "unsorted_guests", "list(set(NAMES[split].split()))", 10**6)
    ((name, said),) = wrong(check("unsorted_guests:acme/Guests-v0", episodes=6, prefixes=8))
    assert name == "processes"
    assert "the task is another in a process with another hash seed" in said


def test_a_sorted_set(folder: Path) -> None:
    write(folder, "sorted_guests", "sorted(set(NAMES[split].split()))", 10**6)
    results = check("sorted_guests:acme/Guests-v0", episodes=6, prefixes=8)
    assert wrong(results) == []
    details = {r.name: r.detail for r in results}
    assert details["processes"] == "9 tasks were played alike in another process"


def test_gold_that_is_half_refused_fails_on_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, "partial_guests", "NAMES[split].split()", 500_000)
    assert main(["envs", "check", "partial_guests:acme/Guests-v0", "--prefixes", "8"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "partial_guests:acme/Guests-v0"
    failed = [line for line in lines if line.startswith("  FAIL  ")]
    assert len(failed) == 1
    assert re.match(r"  FAIL  gold: task .*turned down \(tool_error\).*no such table", failed[0])


def test_a_class_that_cannot_work_is_refused_wherever_it_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    register("planted/Bad-v0", planted.PlainFunction)
    for ask in (make, env_class):
        with pytest.raises(InvalidEnvError, match="holds the function sweep: write @tool above"):
            ask("planted/Bad-v0")
    with pytest.raises(InvalidEnvError, match="holds the function sweep"):
        planted.PlainFunction()
    # It takes no other down.
    assert main(["envs", "list"]) == 0
    listed = capsys.readouterr()
    assert "journeyman/Bank-v0" in listed.out and "planted/Bad-v0" not in listed.out
    assert "warning: planted/Bad-v0: PlainFunction.toolset holds the function sweep" in listed.err
    assert main(["envs", "check", "planted/Bad-v0"]) == 1
    assert "FAIL  definition: PlainFunction.toolset holds" in capsys.readouterr().out


@pytest.mark.parametrize("entry_point", [LibraryEnv.generate, "acme_garden.Garden", dict, None])
def test_what_cannot_be_registered(entry_point: Any) -> None:
    with pytest.raises(InvalidEnvError, match="'planted/Odd-v0' cannot be registered as"):
        register("planted/Odd-v0", entry_point)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"answer": 7}, r"answer=7: expected a str or None.*write answer=str"),
        ({"gold": ToolCall("look")}, r"expected a tuple of ToolCall; write \(call,\)"),
        ({"gold": ("look",)}, r"gold=\('look',\): expected a tuple of ToolCall"),
        ({"prompt": None}, r"prompt=None: expected a str"),
        ({"policy": ("Be kind.",)}, r"policy=\('Be kind.',\): expected a str"),
    ],
)
def test_a_task_of_the_wrong_types_cannot_be_made(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidTaskError, match=said):
        replace(LibraryEnv.load_task("test/0"), **fields)


def puts(env: ToolEnv) -> ToolCall:
    return env.task.gold[1]


@pytest.mark.parametrize("cls", [planted.InPlace, planted.ListInARecord])
def test_a_state_changed_in_place_is_noticed_when_it_is_played(cls: type[ToolEnv]) -> None:
    name = {"InPlace": "put", "ListInARecord": "audit"}[cls.__name__]
    with cls() as env:
        env.reset(options={"task_id": "test/0"})
        call = puts(env) if name == "put" else ToolCall(name)
        with pytest.raises(StateChangedError, match=f"tool '{name}' changed the state"):
            env.step([call])
        assert env.over  # nothing is earned in what is left


def test_gold_that_changes_the_state_in_place_rewards_nobody() -> None:
    class Careless(planted.InPlace):
        """No answer is asked for, and who does nothing would be where gold ends."""

        @classmethod
        def generate(cls, rng: Any, split: Any, level: Any) -> Task:
            return replace(super().generate(rng, split, level), answer=None)

    with Careless() as env:
        env.reset(options={"task_id": "test/0"})
        with pytest.raises(StateChangedError, match="tool 'put'"):
            env.step("Answer: done")


def test_a_mutable_state_that_is_copied_is_fine() -> None:
    @tool
    def put(state: dict, shelf: str, count: int) -> tuple[dict, dict]:  # type: ignore[type-arg]
        """Put books on a shelf.

        Args:
            shelf: Its name.
            count: How many.
        """
        if shelf not in state or not 0 < count < 100:
            raise ToolError("no")
        return {**state, shelf: state[shelf] + count}, {"shelf": shelf}

    class Copied(LibraryEnv):
        toolset = (LibraryEnv.toolset[0], put, LibraryEnv.toolset[2])

        @classmethod
        def generate(cls, rng: Any, split: Any, level: Any) -> Task:
            task = super().generate(rng, split, level)
            return replace(task, state=dict(task.state))

    assert wrong(run(Copied)) == []


def test_a_rollout_tells_of_a_state_changed_in_place() -> None:
    """Its episodes are broken ones: nothing that was earned in them is learned from."""
    register("planted/InPlace-v0", planted.InPlace)
    tasks = [TaskRef("planted/InPlace-v0", f"train/{i}") for i in range(3)]
    for episode in rollout(ScriptedPlayer(chat(), oracle), tasks):
        assert episode.stop is StopReason.INFRA_ERROR
        assert episode.error is not None
        assert episode.error.startswith("StateChangedError: tool 'put' changed the state")
