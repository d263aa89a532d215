"""Environments whose tools fail by plan."""

import random
from dataclasses import replace
from typing import Any

import pytest

from journeyman.envs import Split, Task, ToolEnv, env_class
from journeyman.envs.core import Observation, Snapshot
from journeyman.envs.wrappers import Faults, with_faults
from journeyman.tools import CallStatus, ToolCall, ToolResult, execute, tool
from journeyman.tools.faults import Fault, FaultPlan

DOMAINS = ["journeyman/Bank-v0", "journeyman/Calendar-v0", "journeyman/Orders-v0"]
PLAN = FaultPlan(dict.fromkeys(Fault, 0.12), seed=3)


def make(env_id: str, plan: FaultPlan = PLAN) -> Faults:
    return with_faults(env_class(env_id), plan)(max_turns=60)


def solve(env: Faults) -> tuple[list[ToolResult], float]:
    """The gold program by somebody who tries again and heeds what errors say."""
    met = []
    for gold in env.oracle():
        while True:
            _, _, _, truncated, info = env.step([env.adapt(gold)])
            (result,) = info["calls"]
            met.append(result)
            assert not truncated
            if result.call.status is CallStatus.OK or plain_refusal(env, gold, result):
                break
    _, reward, *_ = env.step(f"Answer: {env.task.answer}")
    return met, reward


def plain_refusal(env: ToolEnv, gold: ToolCall, result: ToolResult) -> bool:
    """True if the tool itself refuses, as it may in a gold program."""
    said = result.call.error or ""
    return "Try again" not in said and "is now called" not in said


@pytest.mark.parametrize("env_id", DOMAINS)
def test_the_gold_program_gets_there(env_id: str) -> None:
    env, kinds = make(env_id), set()
    for index in range(30):
        env.reset(options={"task_id": f"test/{index}"})
        met, reward = solve(env)
        assert reward == 1.0, env.task
        kinds |= {r.call.error for r in met} | {"stale" for r in met if '"stale"' in r.content}
    said = " ".join(map(str, kinds))
    for words in ("in time", "Too many", "not available", "is now called"):
        assert words in said


@pytest.mark.parametrize("env_id", DOMAINS)
def test_same_seed_same_faults(env_id: str) -> None:
    def played(plan: FaultPlan) -> list[str]:
        env = make(env_id, plan)
        hashes = []
        for index in range(5):
            env.reset(options={"task_id": f"train/{index}"})
            solve(env)
            hashes.append(env.state_hash())
        return hashes

    assert played(PLAN) == played(PLAN)
    assert played(PLAN) != played(FaultPlan(PLAN.rates, seed=4))


@pytest.mark.parametrize("env_id", DOMAINS)
def test_snapshots_hold_the_faults(env_id: str) -> None:
    env, other = make(env_id), None
    other = type(env)(max_turns=60)
    env.reset(options={"task_id": "test/1"})
    for call in [*env.oracle()] * 4:
        branch, before = env.snapshot(), env.state_hash()
        first = env.step([env.adapt(call)])
        after = env.state_hash()
        assert after != before
        for one in (env, other):
            one.restore(branch)
            assert one.state_hash() == before
            again = one.step([one.adapt(call)])
            assert (again[0], again[4]["calls"]) == (first[0], first[4]["calls"])
            assert one.state_hash() == after


def test_other_dice_bring_other_faults_from_there_on() -> None:
    """And the same dice the same ones, in whichever env; a snapshot on the way keeps them."""
    env = make(DOMAINS[0], FaultPlan({Fault.TIMEOUT: 0.5}, in_a_row=30))
    other = type(env)(max_turns=60)
    env.reset(options={"task_id": "test/2"})
    call, start, before = env.oracle()[0], env.snapshot(), env.state_hash()

    def met(one: Faults, dice: int | None, hand_over: bool = False) -> str:
        one.restore(start)
        if dice is not None:
            one.reroll(dice)
        assert one.state_hash() == before  # nobody can see them
        found = ""
        for number in range(12):
            if hand_over and number == 6:
                middle, one = one.snapshot(), type(env)(max_turns=60)
                one.restore(middle)
            (result,) = one.step([call])[4]["calls"]
            found += "." if result.call.status is CallStatus.OK else "x"
        return found

    own = met(env, None)
    thrown = {met(env, dice) for dice in range(8)}
    assert len(thrown) == 8 and own not in thrown
    assert met(other, 5) == met(env, 5) == met(env, 5, hand_over=True)
    assert met(env, None) == own  # the task's own again


def test_the_position_alone_is_in_the_hash() -> None:
    env = make(DOMAINS[0], FaultPlan({Fault.TIMEOUT: 1.0}))
    env.reset(options={"task_id": "test/0"})
    snapshot = env.snapshot()
    env.step([env.oracle()[0]])
    later = env.snapshot()
    assert later.state[0] is snapshot.state[0]  # the bank is as it was
    assert later.state[1] != snapshot.state[1]


def test_tasks_are_those_of_the_plain_environment() -> None:
    plain, faulty = env_class(DOMAINS[0]), type(make(DOMAINS[0]))
    assert faulty.load_task("test/7") == plain.load_task("test/7")
    assert faulty.__name__ == f"Faulty{plain.__name__}" and faulty.__doc__ == plain.__doc__
    assert with_faults(plain).plan == FaultPlan()


def test_a_snapshot_of_another_class_is_refused() -> None:
    env, plain = make(DOMAINS[0]), env_class(DOMAINS[0])()
    plain.reset(options={"task_id": "test/0"})
    with pytest.raises(ValueError, match="cannot be restored into a FaultyBankEnv"):
        env.restore(plain.snapshot())


class Ledger:
    """Changes in place."""

    def __init__(self, entries: list[int]) -> None:
        self.entries = entries


@tool
def enter(state: Ledger, number: int) -> tuple[Ledger, int]:
    """Enter a number.

    Args:
        number: What to enter.
    """
    state.entries.append(number)
    return state, len(state.entries)


class LedgerEnv(ToolEnv):
    """Keeps its books in an object, as environments made of benchmarks do."""

    toolset = (enter,)

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: str) -> Task:
        return Task("", "book", "Enter 7.", (), (ToolCall("enter", {"number": 7}),), None)

    def begin(self, task: Task) -> tuple[Observation, dict[str, Any]]:
        self._ledger = Ledger([])
        return super().begin(task)

    def snapshot(self) -> Snapshot:
        return replace(super().snapshot(), state=tuple(self._ledger.entries))

    def restore(self, snapshot: Snapshot) -> None:
        super().restore(snapshot)
        self._ledger = Ledger([*snapshot.state])

    def solved(self) -> bool:
        return self._ledger.entries == [7]

    def _execute(self, call: ToolCall) -> ToolResult:
        _, result = execute(call, self._tools, self._ledger)
        self._state = tuple(self._ledger.entries)
        return result


def test_no_stale_reads_where_objects_change_in_place() -> None:
    """The call that is tried on the state before would be carried out, and then once more."""
    for plan in (None, FaultPlan({Fault.STALE_READ: 0.5})):
        with pytest.raises(
            TypeError, match=r"FaultyLedgerEnv: stale_read needs an environment who"
        ):
            with_faults(LedgerEnv, plan)
    with pytest.raises(TypeError, match="FaultyAirline: stale_read needs"):
        with_faults(env_class("journeyman/Tau2-airline-v0"))
    others = {kind: 0.2 for kind in Fault if kind is not Fault.STALE_READ}
    env = with_faults(LedgerEnv, FaultPlan(others))(max_turns=60)
    for index in range(20):
        env.reset(options={"task_id": f"test/{index}"})
        assert solve(env)[1] == 1.0
        assert env.snapshot().state[1].before is None


def test_faults_stand_before_an_environment() -> None:
    class Alone(Faults):
        toolset = ()

    with pytest.raises(TypeError, match="Alone: put Faults before an environment"):
        Alone.load_task("test/0")
    assert ToolCall("x") == make(DOMAINS[0]).adapt(ToolCall("x"))
