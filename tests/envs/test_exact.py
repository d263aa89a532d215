import numpy as np
import pytest

from journeyman.envs import env_class, make
from journeyman.envs.checker import check
from journeyman.envs.exact import FAMILIES, MDP, make_mdp
from journeyman.envs.wrappers import with_faults
from journeyman.tools import CallStatus, ToolCall
from journeyman.tools.faults import FaultPlan

ENV_ID = "journeyman/ExactMDP-v0"


def test_values_by_hand() -> None:
    """Two layers: 0 leads to 0 or, half the time, to 1; then action 1 wins in state 0 alone."""
    mdp = MDP(
        successors=(np.array([[[0, 0], [0, 1]]]), np.array([[[0, 0], [1, 1]], [[0, 0], [0, 0]]])),
        chances=(np.full((1, 2, 2), 0.5), np.full((2, 2, 2), 0.5)),
        wins=np.array([0.0, 1.0]),
        policy=(np.array([[0.25, 0.75]]), np.array([[0.2, 0.8], [0.5, 0.5]])),
    )
    assert mdp.q[1].tolist() == [[0, 1], [0, 0]]
    assert mdp.v[1].tolist() == pytest.approx([0.8, 0])
    assert mdp.q[0].tolist() == [pytest.approx([0.8, 0.4])]
    assert mdp.v[0].tolist() == pytest.approx([0.25 * 0.8 + 0.75 * 0.4])


SHAPES = {"wide_peaked": (12, 4), "wide_flat": (12, 4), "wide": (24, 3), "deep": (2, 12)}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    mdp = make_mdp(family, 3)
    assert (mdp.actions, mdp.horizon) == SHAPES.get(family, (4, 6))
    for t in range(mdp.horizon):
        assert mdp.policy[t].sum(axis=1) == pytest.approx(1)
        assert mdp.chances[t].sum(axis=2) == pytest.approx(1)
        assert mdp.successors[t].max() < len(mdp.v[t + 1])
    assert 0 < mdp.v[0][0] < 1
    dice = (mdp.chances[1] < 1).any()
    assert dice == family.startswith("graph")
    assert make_mdp(family, 4).policy[0].tolist() != mdp.policy[0].tolist()


def test_policies_are_peaked_or_flat() -> None:
    peaked, flat = make_mdp("wide_peaked", 0).policy[3], make_mdp("wide_flat", 0).policy[3]
    assert peaked.max(axis=1).mean() > 0.6
    assert flat.max(axis=1).mean() < 0.2


def test_one_step_is_critical() -> None:
    mdp = make_mdp("critical", 0)
    spread = [float(np.ptp(q, axis=1).max()) for q in mdp.q]
    decisive = next(t for t, it in enumerate(spread) if it > 1 - 1e-9)
    assert max(spread[decisive + 1 :]) < 1e-9


def test_the_student_comes_to_a_state_as_often_as_it_does() -> None:
    """J = sum of the final states' chances of those that win; each layer's chances sum to 1."""
    mdp = make_mdp("graph_6", 1)
    assert [it.sum() for it in mdp.reach] == pytest.approx([1] * mdp.horizon)
    assert mdp.reach[-1] @ mdp.v[-2] == pytest.approx(mdp.v[0][0])


def test_students_that_hardly_ever_and_nearly_always_win() -> None:
    rare = [make_mdp("rare", i).v[0][0] for i in range(10)]
    common = [make_mdp("common", i).v[0][0] for i in range(10)]
    assert 0.02 < np.mean(rare) < 0.08
    assert 0.86 < np.mean(common) < 0.94


def test_a_learned_student_wins_more_than_the_one_it_was() -> None:
    skilled = [make_mdp("skilled", i).v[0][0] for i in range(10)]
    assert np.mean(skilled) > 0.6


def test_rewards_on_the_way_are_in_the_values() -> None:
    """Each of six choices earns a sixth, one time in four."""
    mdp = make_mdp("dense", 0)
    assert mdp.gains is not None and not mdp.wins.any()
    assert set(np.unique(mdp.gains[5])) == {0, 1 / 6}
    assert mdp.q[5].tolist() == mdp.gains[5].tolist()
    first = mdp.gains[0] + mdp.v[1][mdp.successors[0][:, :, 0]]
    assert mdp.q[0] == pytest.approx(first)
    assert 0.1 < mdp.v[0][0] < 0.5


def test_unknown_family() -> None:
    with pytest.raises(KeyError, match="no family 'bush'; there are: tree"):
        make_mdp("bush", 0)


def test_environment_passes_its_checks() -> None:
    results = check(ENV_ID, episodes=2)
    assert [r for r in results if not r.passed] == []


def test_bad_choices_are_told() -> None:
    env = make(ENV_ID)
    env.reset(options={"task_id": "test/0"})
    *_, info = env.step([ToolCall("choose", {"action": 99})])
    assert "no action 99: choose 0 to" in info["calls"][0].content
    for call in env.oracle():
        *_, info = env.step([call])
        assert info["calls"][0].ok
    assert '"choices_left": 0' in info["calls"][0].content
    *_, info = env.step([ToolCall("choose", {"action": 0})])
    assert info["calls"][0].call.status is CallStatus.TOOL_ERROR


def test_a_branch_may_throw_other_dice() -> None:
    env = make(ENV_ID)
    index = next(i for i in range(100) if type(env).load_task(f"train/{i}").kind == "graph_40")
    env.reset(options={"task_id": f"train/{index}"})
    before, snapshot, seen = env.state_hash(), env.snapshot(), {}
    for seed in range(200):
        env.restore(snapshot)
        env.reroll(seed)
        assert env.state_hash() == before
        messages, *_ = env.step([ToolCall("choose", {"action": 1})])
        seen.setdefault(messages[0].content, env.state_hash())
    mdp = make_mdp("graph_40", env.task.state.seed)
    reachable = set(mdp.successors[0][0, 1][mdp.chances[0][0, 1] > 0.03].tolist())
    assert len(reachable) <= len(seen) <= 3
    assert len(set(seen.values())) == len(seen)


def test_dice_are_thrown_through_what_is_laid_around() -> None:
    env, plain = with_faults(env_class(ENV_ID), FaultPlan({}))(), make(ENV_ID)
    index = next(i for i in range(100) if type(plain).load_task(f"train/{i}").kind == "graph_40")
    for it in (env, plain):
        it.reset(options={"task_id": f"train/{index}"})
    snapshots = [it.snapshot() for it in (env, plain)]
    for seed in range(20):
        seen = []
        for it, snapshot in zip((env, plain), snapshots, strict=True):
            it.restore(snapshot)
            it.reroll(seed)
            seen.append(it.step([ToolCall("choose", {"action": 1})])[0])
        assert seen[0] == seen[1]
