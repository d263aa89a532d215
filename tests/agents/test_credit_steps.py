import math

import pytest
import torch
from torch import Tensor

from journeyman.agents.credit import (
    StepSignals,
    additive,
    criticality,
    gated,
    policy_target,
    reliability,
    step_signals,
    target_cross_entropy,
)
from journeyman.agents.credit.steps import to_tokens
from journeyman.agents.search import Continuation, Kind, Step, Tree, expected_backup

NAN = math.nan


def signals(
    advantage: list[float],
    deviation: list[float] | None = None,
    teacher: list[float] | None = None,
    error: list[float] | None = None,
) -> StepSignals:
    nothing = [NAN] * len(advantage)
    parts = (advantage, deviation or [0.0] * len(advantage), teacher or nothing, error or nothing)
    return StepSignals(*map(torch.tensor, parts))


TURNS = torch.tensor([-1, 0, 0, -1, 1, -1])


def rounded(values: Tensor) -> list[float]:
    return [round(x, 4) for x in values.tolist()]


def test_additive_by_hand() -> None:
    ratio = torch.tensor([9.0, 0.5, -9.0, 9.0, 1.0, 0.0])
    credit = additive(ratio, TURNS, signals([0.2, -0.4]), beta=0.5, clip=2.0, scale=3.0)
    assert not credit.weights.any()
    # 0.5 * 0.5 + 0.6;  0.5 * -2 + 0.6;  0.5 * 1 - 1.2
    assert rounded(credit.advantages) == [0, 0.85, -0.4, 0, -0.7, 0]


def test_gated_by_hand() -> None:
    given = signals([0.2, -0.4], deviation=[0.3, 0.0], teacher=[0.1, -0.2], error=[0.1, 0.2])
    credit = gated(TURNS, given, epsilon=0.1, scale=2.0)
    # w = (0.4, 0.1) / 0.25; g = Phi(1), Phi(-1).
    first, second = 1.6 * 0.8413, 0.4 * 0.1587
    assert credit.weights.tolist() == pytest.approx([0, first, first, 0, second, 0], abs=1e-4)
    assert rounded(credit.advantages) == [0, 0.4, 0.4, 0, -0.8, 0]
    trusting = gated(TURNS, given, epsilon=0.1, gate=False)
    assert rounded(trusting.weights) == [0, 1.6, 1.6, 0, 0.4, 0]


def test_criticality_has_mean_one() -> None:
    assert rounded(criticality(torch.tensor([0.0, 0.1, 0.5]), 0.1)) == [0.3333, 0.6667, 2.0]
    assert rounded(criticality(torch.zeros(3))) == [1, 1, 1]
    assert criticality(torch.zeros(0)).tolist() == []
    with pytest.raises(ValueError, match="epsilon=0"):
        criticality(torch.zeros(3), 0)


def test_reliability() -> None:
    advantage = torch.tensor([0.0, 1.0, -1.0, 0.5, -0.5, 0.0, NAN])
    error = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, NAN])
    expected = [0.5, 0.8413, 0.1587, 1, 0, 0.5, 1]
    assert rounded(reliability(advantage, error)) == expected


def test_policy_target() -> None:
    prior = torch.tensor([0.5, 0.25, 0.25]).log()
    q = torch.tensor([0.0, math.log(2.0), math.log(4.0)])
    assert rounded(policy_target(prior, q, 1.0)) == [0.25, 0.25, 0.5]
    assert rounded(policy_target(prior, q, 1e6)) == [0.5, 0.25, 0.25]
    with pytest.raises(ValueError, match="temperature=0"):
        policy_target(prior, q, 0)


def test_the_target_is_where_the_cross_entropy_is_least() -> None:
    target = torch.tensor([0.25, 0.25, 0.5])
    logits = (target.log() + 3.0).requires_grad_()  # any constant added
    loss = target_cross_entropy(logits, target)
    assert float(loss.detach()) == pytest.approx(1.5 * math.log(2))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-6
    elsewhere = torch.zeros(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(target_cross_entropy(elsewhere, target), elsewhere)
    assert rounded(gradient) == [0.0833, 0.0833, -0.1667]  # softmax - target


def test_tokens_of_no_step() -> None:
    with pytest.raises(ValueError, match="a token of step 1, but values of 1 steps"):
        to_tokens(torch.zeros(1), TURNS)


def test_signals_from_a_tree() -> None:
    tree = Tree("s")
    ends = [("a", 1.0), ("a", 1.0), ("b", 0.0), ("b", 0.0)]
    paths = [tree.add(tree.root, Continuation((Step(a, r, a, terminal=True),))) for a, r in ends]
    tree.add(tree.root, Continuation((Step("t", 0.25, "t", terminal=True),)), Kind.TEACHER)
    values = expected_backup(tree)
    spread = values[tree.root].spread
    found = step_signals(values, paths[0], {tree.root: "t"}, kappa=1.0)
    assert float(found.advantage) == pytest.approx(0.5 * 4 / 5)
    assert float(found.deviation) == pytest.approx(math.sqrt(spread))
    assert float(found.teacher_advantage) == pytest.approx(-0.25)
    assert float(found.teacher_error) == pytest.approx(math.sqrt(spread / 4))
    unasked = step_signals(values, paths[2])
    assert float(unasked.advantage) == pytest.approx(-0.5 * 4 / 5)
    assert unasked.teacher_advantage.isnan().all() and unasked.teacher_error.isnan().all()


def test_signals_of_what_broke() -> None:
    tree = Tree("s")
    path = tree.add(tree.root, Continuation((Step("a", 0.0, "x"),), failure="broke"))
    found = step_signals(expected_backup(tree), path)
    assert found.advantage.tolist() == found.deviation.tolist() == [0.0]
    empty = tree.add(tree.root, Continuation((), failure="broke"))
    assert len(step_signals(expected_backup(tree), empty).advantage) == 0
