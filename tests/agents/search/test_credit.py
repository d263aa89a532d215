"""Token weights and advantages from evidence, against values computed by hand."""

from statistics import NormalDist

import pytest
import torch

from journeyman.agents.credit import Uniform
from journeyman.agents.search.backup import NodeValue, expected_backup
from journeyman.agents.search.credit import Additive, Gated
from journeyman.agents.search.evidence import Evidence, _evidence
from journeyman.agents.search.tree import Continuation, Kind, Step, Tree
from journeyman.envs import Episode, StopReason
from journeyman.envs import Step as Turn

SPANS = ((2, 4), (5, 8))


def episode() -> Episode:
    """Two turns, of two and three tokens."""
    mask = tuple(any(a <= t < b for a, b in SPANS) for t in range(9))
    steps = tuple(Turn(span, "") for span in SPANS)
    return Episode("e", "t", tuple(range(9)), (0.0,) * 9, mask, steps, StopReason.ANSWERED)


def known(
    advantage: float = 0.0,
    samples: int = 1,
    influence: float = 0.0,
    teacher: tuple[float, float] | None = None,
) -> Evidence:
    return Evidence(0.5, (advantage, 0.0), samples, influence, teacher)


def test_additive() -> None:
    credit = Additive(Uniform(), reinforce=2.0, kappa=1.0)
    evidence = (known(0.5, samples=3), None)
    (found,) = credit.assign([episode()], None, [evidence])
    assert found.weights.tolist() == Uniform().assign([episode()], None)[0].weights.tolist()
    assert found.advantages.tolist() == [0, 0, 0.75, 0.75, 0, 0, 0, 0, 0]  # 2 * 0.5 * 3 / 4


def test_gated_weighs_by_what_a_step_decides() -> None:
    credit = Gated(Uniform(), reinforce=0.0, epsilon=0.5, doubt=0.1)
    evidence = (known(influence=0.0), known(influence=1.0))
    (found,) = credit.assign([episode()], None, [evidence])
    assert found.weights[list(range(2, 4))].tolist() == [0.5, 0.5]  # 0.5 / mean(0.5, 1.5)
    assert found.weights[list(range(5, 8))].tolist() == [1.5, 1.5, 1.5]
    assert found.advantages.abs().sum() == 0


def test_the_gate_closes_on_evidence_against_the_teacher_only() -> None:
    credit = Gated(Uniform(), doubt=0.1)
    assert credit.gate(None) == credit.gate((0.0, 0.3)) == credit.gate((0.7, 0.3)) == 1.0
    z = -0.6 / (0.15 + 0.01) ** 0.5
    assert credit.gate((-0.6, 0.15)) == pytest.approx(2 * NormalDist().cdf(z))
    assert credit.gate((-0.6, 0.0)) < 1e-6
    evidence = (known(teacher=(-0.6, 0.15)), known(teacher=(0.2, 0.1)))
    (found,) = credit.assign([episode()], None, [evidence])
    assert found.weights[2] == pytest.approx(2 * NormalDist().cdf(z))
    assert found.weights[5] == 1.0
    assert credit.log["gate/closed"] == 0.5


def test_nothing_known_leaves_the_base() -> None:
    for credit in (Additive(Uniform()), Gated(Uniform())):
        (found,) = credit.assign([episode()], None, [(None, None)])
        (base,) = Uniform().assign([episode()], None)
        assert torch.equal(found.weights, base.weights)
        assert torch.equal(found.advantages, base.advantages)


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
        step = Step(action, reward, f"s{action}", terminal=True)
        tree.add(tree.root, Continuation((step,)), kind)
    return expected_backup(tree)[tree.root]


def test_evidence_of_a_node() -> None:
    found = _evidence(node(), "b", "c", None)
    assert found is not None
    assert found.value == pytest.approx(2 / 3)
    assert found.advantage[0] == pytest.approx(-2 / 3)
    assert found.samples == 3
    assert found.influence == pytest.approx((2 / 9) ** 0.5)  # Bernoulli(2/3)
    assert found.teacher is not None
    assert found.teacher[0] == pytest.approx(-2 / 3)
    agreed = _evidence(node(), "a", "a", None)
    assert agreed is not None
    assert agreed.teacher == agreed.advantage
    assert _evidence(node(), "never played", "c", None) is None
    untried = _evidence(node(), "a", None, None)
    assert untried is not None
    assert untried.teacher is None
