"""Episodes played on from inside another one."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest

from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.students.hf import load_student
from journeyman.agents.students.scripted import ScriptedPlayer, no_op, oracle
from journeyman.envs import BranchPoint, Episode, StopReason, env_class, make
from journeyman.tools import ToolCall, render_hermes

from .tiny import BUILTIN, chat

TASKS = 12
EXACT = "journeyman/ExactMDP-v0"


@pytest.fixture(scope="module")
def player():  # type: ignore[no-untyped-def]
    return load_student("embedded-student", render="names", max_turn_tokens=48, device="cpu")


@pytest.fixture(scope="module")
def parents(player) -> Sequence[Episode]:  # type: ignore[no-untyped-def]
    tasks = [TaskRef(BUILTIN[i % 3], f"test/{i}", seed=i) for i in range(TASKS)]
    return rollout(player.at(temperature=0.0), tasks, env_kwargs={"max_turns": 8}, keep=True)


def test_branch_points_are_kept_on_demand(parents: Sequence[Episode]) -> None:
    assert all(len(e.branch_points) == len(e.steps) > 0 for e in parents)
    (episode,) = rollout(ScriptedPlayer(chat(), no_op), [TaskRef(BUILTIN[0], "test/0")])
    assert episode.branch_points == ()
    with pytest.raises(ValueError, match=r"no branch point before step 0 of .* with keep=True"):
        Fork(episode, 0, seed=0)


def test_a_greedy_student_goes_on_as_before(player, parents: Sequence[Episode]) -> None:  # type: ignore[no-untyped-def]
    """From every step of every episode: the same tokens and the same end."""
    forks = [Fork(e, k, seed=99) for e in parents for k in range(len(e.steps))]
    for fork, episode in zip(
        forks,
        rollout(player.at(temperature=0.0), forks, env_kwargs={"max_turns": 8}, keep=True),
        strict=True,
    ):
        parent, start = fork.parent, fork.parent.steps[fork.step].span[0]
        assert episode.tokens == parent.tokens
        assert episode.steps == parent.steps
        assert episode.messages == parent.messages
        assert episode.seed == fork.seed
        assert episode.first_step == fork.step
        assert (episode.stop, episode.reward, episode.state_hash) == (
            parent.stop,
            parent.reward,
            parent.state_hash,
        )
        assert not any(episode.mask[:start])  # the prefix is trained once, with the parent
        assert episode.mask[start:] == parent.mask[start:]
        assert len(episode.branch_points) == len(episode.steps)


def test_a_given_turn_is_played_and_masked(player, parents: Sequence[Episode]) -> None:  # type: ignore[no-untyped-def]
    """The gold call in place of the student's first: masked, played, and gone on from."""
    forks = []
    for parent in parents:
        gold = make(parent.env_id).load_task(parent.task_id).gold[0]
        forks.append(Fork(parent, 0, seed=1, turn=tuple(chat().turn(render_hermes(gold)))))
    for fork, episode in zip(
        forks,
        rollout(player.at(temperature=0.0), forks, env_kwargs={"max_turns": 8}, keep=True),
        strict=True,
    ):
        start, end = episode.steps[0].span
        assert episode.tokens[start:end] == fork.turn
        assert not any(episode.mask[:end])
        assert any(episode.mask[end:])
        assert episode.steps[0].results[0].ok
        assert len(episode.branch_points) == len(episode.steps)
        again = Fork(episode, 1, seed=5)
        (deeper,) = rollout(player.at(temperature=0.0), [again], env_kwargs={"max_turns": 8})
        assert deeper.tokens == episode.tokens


def test_a_given_answer_ends_the_episode() -> None:
    bank = env_class(BUILTIN[0])
    # What is done decides, and what is said.
    both = next(i for i in bank.tasks("test/medium") if bank.load_task(i).kind == "alike")
    tasks = [TaskRef(BUILTIN[0], both)]
    (parent,) = rollout(ScriptedPlayer(chat(), oracle), tasks, keep=True)
    last = len(parent.steps) - 1
    right, wrong = (tuple(chat().turn(t)) for t in (parent.steps[last].text, "Answer: nothing"))
    good, bad, early = rollout(
        ScriptedPlayer(chat(), no_op),
        [Fork(parent, last, 0, right), Fork(parent, last, 0, wrong), Fork(parent, 0, 0, right)],
    )
    assert (good.reward, bad.reward, early.reward) == (1.0, 0.0, 0.0)
    assert good.tokens == parent.tokens
    assert {good.stop, bad.stop, early.stop} == {StopReason.ANSWERED}
    assert not any(good.mask)


def test_turn_limits_hold_across_forks() -> None:
    call = render_hermes(ToolCall("no_such_tool", {}))
    tasks = [TaskRef(BUILTIN[0], "test/0")]
    (parent,) = rollout(
        ScriptedPlayer(chat(), lambda env: iter([call] * 9)), tasks, env_kwargs={"max_turns": 3},
        keep=True,
    )  # fmt: skip
    (fork,) = rollout(
        ScriptedPlayer(chat(), lambda env: iter([call] * 9)),
        [Fork(parent, 1, 0, tuple(chat().turn(call)))],
        env_kwargs={"max_turns": 3},
    )
    assert fork.stop is StopReason.MAX_TURNS
    assert len(fork.steps) == 3


def test_an_environment_that_breaks_costs_its_own_fork_only() -> None:
    tasks = [TaskRef(BUILTIN[0], "test/0")]
    (parent,) = rollout(ScriptedPlayer(chat(), oracle), tasks, keep=True)
    broken = replace(parent, branch_points=(BranchPoint(None, ""),) * len(parent.steps))
    lost, whole = rollout(ScriptedPlayer(chat(), oracle), [Fork(broken, 0, 0), Fork(parent, 0, 0)])
    assert lost.stop is StopReason.INFRA_ERROR
    assert whole.success


@pytest.mark.parametrize("error", [KeyError("balance"), TypeError("no balance")])
def test_a_given_turn_that_breaks_its_tool_costs_its_own_fork_only(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors that a wrong task id gives too; here they are the tool's."""
    tasks = [TaskRef(BUILTIN[0], "test/0")]
    (parent,) = rollout(ScriptedPlayer(chat(), oracle), tasks, keep=True)
    given = parent.tokens[slice(*parent.steps[0].span)]

    def breaking(self: object, call: ToolCall) -> None:
        raise error

    monkeypatch.setattr(env_class(BUILTIN[0]), "_execute", breaking)
    (lost,) = rollout(ScriptedPlayer(chat(), oracle), [Fork(parent, 0, 0, given)])
    assert (lost.stop, lost.error) == (
        StopReason.INFRA_ERROR,
        f"{type(error).__name__}: {error}",
    )
    with pytest.raises(KeyError, match="no environment"):
        rollout(ScriptedPlayer(chat(), oracle), [TaskRef("acme/None-v0", "test/0")])


def test_forks_throw_dice_of_their_own() -> None:
    """The environment's too: one action of one state leads to all its outcomes, by seed."""
    exact = env_class(EXACT)
    tasks = itertools.islice(exact.tasks("test"), 200)
    task = next(i for i in tasks if exact.load_task(i).kind == "graph_40")
    call = render_hermes(ToolCall("choose", {"action": 1}))
    player = ScriptedPlayer(chat(), lambda env: iter([call]))
    (parent,) = rollout(player, [TaskRef(EXACT, task)], keep=True)
    given = tuple(chat().turn(call))
    forks = [Fork(parent, 0, seed, given) for seed in range(60)]
    first, again = rollout(player, forks, keep=True), rollout(player, forks, keep=True)
    seen = [e.branch_points[1].state_hash for e in first]
    assert seen == [e.branch_points[1].state_hash for e in again]
    assert len({e.branch_points[0].state_hash for e in first}) == 1
    assert len(set(seen)) > 1


def test_a_snapshot_that_fails_costs_its_own_episode_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(self: object) -> None:
        raise ConnectionError("the bank is gone")

    monkeypatch.setattr(env_class(BUILTIN[0]), "snapshot", snapshot)
    tasks = [TaskRef(env_id, "test/0") for env_id in BUILTIN[:2]]
    player = ScriptedPlayer(chat(), oracle)
    lost, whole = rollout(player, tasks, keep=True)
    assert (lost.stop, lost.error) == (StopReason.INFRA_ERROR, "ConnectionError: the bank is gone")
    assert whole.success
    assert all(e.success for e in rollout(player, tasks))  # nobody goes back: none is taken
