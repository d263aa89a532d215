"""Token weights and advantages from evidence, against values computed by hand."""

import math
from statistics import NormalDist

import pytest
import torch

from journeyman.agents.credit import Experience, Uniform
from journeyman.agents.credit.trees import Additive, Gated, PolicyTarget
from journeyman.agents.search.backup import Advantage, NodeValue, expected_backup
from journeyman.agents.search.estimators import Estimate
from journeyman.agents.search.evidence import Evidence, evidence
from journeyman.agents.search.tree import Continuation, Kind, Move, Tree
from journeyman.envs import Episode, Step, StopReason

SPANS = ((2, 4), (5, 8))


def episode() -> Episode:
    """Two turns, of two and three tokens."""
    mask = tuple(any(a <= t < b for a, b in SPANS) for t in range(9))
    steps = tuple(Step(span, "") for span in SPANS)
    return Episode("e", "t", tuple(range(9)), (0.0,) * 9, mask, steps, StopReason.ANSWERED)


def known(
    credit: float = 0.0,
    influence: float = 0.0,
    value: float = 0.5,
    teacher: Estimate | None = None,
) -> Evidence:
    """Of a step whose Q is `value + credit`; one choice in two is `influence` off either way."""
    choices = ((0.5, value - influence), (0.5, value + influence))
    return Evidence(credit, Estimate(value, 0.15), Advantage(credit, 0.0, 1), choices, teacher)


def test_additive() -> None:
    credit = Additive(Uniform(), reinforce=2.0)
    evidence = (known(0.5), None)
    (found,) = credit.assign(Experience([episode()], [evidence]))
    assert found.weights.tolist() == Uniform().assign(Experience([episode()]))[0].weights.tolist()
    assert found.advantages.tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0]


def test_policy_target() -> None:
    """Two choices, worth 1 and 0, equally often: the target gives the better one 1 / (1 + e^-2)."""
    credit = PolicyTarget(Uniform(), reinforce=2.0, temperature=0.5)
    good, bad = known(0.5, influence=0.5), known(-0.5, influence=0.5)
    (found,) = credit.assign(Experience([episode()], [(good, bad)]))
    share = 1 / (1 + math.exp(-2))
    assert found.advantages[2] == pytest.approx(2 * (share / 0.5 - 1))
    assert found.advantages[5] == pytest.approx(2 * ((1 - share) / 0.5 - 1))
    assert found.weights[2] == 1
    with pytest.raises(ValueError, match=r"temperature=0: expected above 0"):
        PolicyTarget(Uniform(), temperature=0)


def test_gated_weighs_by_what_a_step_decides() -> None:
    credit = Gated(Uniform(), reinforce=0.0, epsilon=0.5, doubt=0.1)
    evidence = (known(influence=0.0), known(influence=1.0))
    (found,) = credit.assign(Experience([episode()], [evidence]))
    assert found.weights[list(range(2, 4))].tolist() == [0.5, 0.5]  # 0.5 / mean(0.5, 1.5)
    assert found.weights[list(range(5, 8))].tolist() == [1.5, 1.5, 1.5]
    assert found.advantages.abs().sum() == 0


def test_the_gate_closes_on_evidence_against_the_teacher_only() -> None:
    credit = Gated(Uniform(), doubt=0.1, bar=0.4)
    assert credit.gate(known()) == 1.0
    for worth in (0.5, 1.0):
        assert credit.gate(known(teacher=Estimate(worth, 0.3))) == 1.0
    z = -0.5 / (0.15 + 0.2 + 0.01) ** 0.5
    wrong = known(teacher=Estimate(0.0, 0.2))
    assert credit.gate(wrong) == pytest.approx(2 * NormalDist().cdf(z))
    z = -0.4 / (0.15 + 0.2 + 0.01) ** 0.5  # the student fails too: the bar decides
    both = known(value=0.0, teacher=Estimate(0.0, 0.2))
    assert credit.gate(both) == pytest.approx(2 * NormalDist().cdf(z))
    given = Experience([episode()], [(wrong, known(teacher=Estimate(1.0)))])
    (found,) = credit.assign(given)
    assert found.weights[2] == pytest.approx(credit.gate(wrong))
    assert found.weights[5] == 1.0
    assert given.figures["gate/closed"] == 0.5


def test_nothing_known_leaves_the_base() -> None:
    for credit in (Additive(Uniform()), Gated(Uniform())):
        (found,) = credit.assign(Experience([episode()], [(None, None)]))
        (base,) = Uniform().assign(Experience([episode()]))
        assert torch.equal(found.weights, base.weights)
        assert torch.equal(found.advantages, base.advantages)


def test_credit_from_trees_needs_a_search() -> None:
    with pytest.raises(ValueError, match="reads what a search finds and was given no evidence"):
        Additive(Uniform()).assign(Experience([episode()]))


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"epsilon=0.0, doubt=0.1: expected above 0"):
        Gated(Uniform(), epsilon=0.0)
    with pytest.raises(ValueError, match=r"epsilon=1.0, doubt=0: expected above 0"):
        Gated(Uniform(), doubt=0)


def node() -> NodeValue:
    """The student chose a twice (worth 1) and b once (0); the teacher's c is worth 0."""
    tree = Tree("s")
    for action, reward, kind in (
        ("a", 1.0, Kind.SAMPLED),
        ("a", 1.0, Kind.SAMPLED),
        ("b", 0.0, Kind.SAMPLED),
        ("c", 0.0, Kind.TEACHER),
    ):
        step = Move(action, reward, f"s{action}", terminal=True)
        tree.add(tree.root, Continuation((step,)), kind)
    return expected_backup(tree)[tree.root]


def test_evidence_of_a_node() -> None:
    found = evidence(node(), "b", 0.25, Estimate(0.1))
    assert found is not None
    assert found.credit == 0.25
    assert found.value.mean == pytest.approx(2 / 3)
    assert found.advantage.mean == pytest.approx(-2 / 3)
    assert found.influence == pytest.approx((2 / 9) ** 0.5)  # Bernoulli(2/3)
    assert found.teacher == Estimate(0.1)
    assert evidence(node(), "never played", 0.25, None) is None


def test_where_the_teacher_is_worse_the_students_call_takes_its_place() -> None:
    credit = Gated(Uniform(), reinforce=0.0, doubt=0.1, correct=0.5)
    better, open_gate = known(0.3, teacher=Estimate(0.0)), known(-0.3, teacher=Estimate(1.0))
    (found,) = credit.assign(Experience([episode()], [(better, open_gate)]))
    closed = 1 - credit.gate(better)
    assert 0.5 < closed < 1
    assert found.advantages[2] == pytest.approx(0.5 * closed * 0.8)
    assert found.advantages[5] == 0
