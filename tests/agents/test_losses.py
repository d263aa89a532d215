import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from journeyman.agents.learning.losses.functions import (
    generalised_jsd,
    policy_gradient,
    weighted_mean,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_weighted_mean_divides_by_the_count_it_is_given() -> None:
    values, weights = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, 0.0, 2.0])
    assert float(weighted_mean(values, weights, 10)) == pytest.approx(0.85)
    nothing = torch.zeros(0)
    assert float(weighted_mean(nothing, nothing, torch.tensor(1))) == 0


def test_policy_gradient_is_reinforce_at_ratio_one() -> None:
    logits, tokens, advantages = noise(6, 5).requires_grad_(), torch.arange(6) % 5, noise(6, seed=1)
    logprobs = logits.log_softmax(-1)[torch.arange(6), tokens]
    loss = policy_gradient(logprobs, logprobs.detach(), advantages)
    torch.testing.assert_close(loss.detach(), -advantages)
    (found,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(-(logprobs * advantages).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_policy_gradient_descends_the_expected_advantage() -> None:
    """Exactly, for an old policy: the mean over its tokens of the estimate is the true gradient."""
    logits, old, values = noise(7).requires_grad_(), noise(7, seed=1), noise(7, seed=2)
    (expected,) = torch.autograd.grad(-(logits.softmax(0) * values).sum(), logits)
    loss = policy_gradient(logits.log_softmax(0), old.log_softmax(0), values)
    (found,) = torch.autograd.grad((old.softmax(0) * loss).sum(), logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_divergence_by_definition(beta: float) -> None:
    student, teacher = noise(8, 11), 3 * noise(8, 11, seed=1)
    ours, theirs = Categorical(logits=student), Categorical(logits=teacher)
    if beta == 0:
        expected = kl_divergence(theirs, ours)
    elif beta == 1:
        expected = kl_divergence(ours, theirs)
    else:
        mean = Categorical(probs=beta * theirs.probs + (1 - beta) * ours.probs)
        expected = beta * kl_divergence(theirs, mean) + (1 - beta) * kl_divergence(ours, mean)
    torch.testing.assert_close(generalised_jsd(student, teacher, beta), expected)
    assert (expected > 0.01).all()


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_divergence_of_equals_is_zero_and_flat(beta: float) -> None:
    student = noise(4, 9).requires_grad_()
    found = generalised_jsd(student, student.detach() + 5, beta)
    torch.testing.assert_close(found.detach(), torch.zeros(4, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(found.sum(), student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_divergence_has_its_gradient(beta: float) -> None:
    student, teacher = noise(3, 5).requires_grad_(), noise(3, 5, seed=1)
    assert torch.autograd.gradcheck(lambda s: generalised_jsd(s, teacher, beta), (student,))


def test_divergence_is_finite_for_certain_models() -> None:
    student = torch.tensor([[0.0, 200.0, 0.0]], requires_grad=True)
    for beta in (0.0, 0.5, 1.0):
        found = generalised_jsd(student, torch.tensor([[200.0, 0.0, 0.0]]), beta)
        (gradient,) = torch.autograd.grad(found.sum(), student)
        assert found.isfinite().all()
        assert gradient.isfinite().all()
