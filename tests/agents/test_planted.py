"""Student against teacher where no setting of theirs is the other's: none can be swapped unseen."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from journeyman.agents.learning.losses import divergence
from journeyman.agents.learning.losses.divergence import Comparison, compare
from journeyman.agents.networks.heads import Head

TOKENS, VOCABULARY = 29, 101
BARE: dict[str, Any] = {}
HEADS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all differs": (
        {"bias": True, "scale": 0.6, "cap": 4.0},
        {"bias": True, "scale": 1.7, "cap": 7.0},
    ),
    "the student's": ({"bias": True, "scale": 0.6, "cap": 4.0}, BARE),
    "the teacher's": (BARE, {"bias": True, "scale": 1.7, "cap": 7.0}),
}
WAYS = {
    "dense": (divergence._dense, torch.float32),
    "tiled": (divergence._tiled, torch.float32),
    "dense in float64": (divergence._dense, torch.float64),
}


class Side(NamedTuple):
    """One of the two models, in float64."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: float
    cap: float | None

    def logits(self) -> Tensor:
        """From scratch."""
        raw = self.hidden @ self.weight.T
        raw = self.scale * (raw if self.bias is None else raw + self.bias)
        return raw if self.cap is None else self.cap * torch.tanh(raw / self.cap)

    def leaves(self) -> list[Tensor]:
        found = (self.hidden, self.weight, self.bias)
        return [tensor for tensor in found if tensor is not None]

    def head(self, dtype: torch.dtype) -> Head:
        """The same numbers as our functions take them."""
        projection = nn.Linear(self.weight.shape[1], VOCABULARY, self.bias is not None, dtype=dtype)
        with torch.no_grad():
            for parameter, tensor in zip(projection.parameters(), self.leaves()[1:], strict=True):
                parameter.copy_(tensor)
        return Head(projection, self.scale, self.cap)


def make_side(
    width: int, seed: int, bias: bool = False, scale: float = 1.0, cap: float | None = None
) -> Side:
    noise = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        # As float32 has them, so that only the computing differs.
        return torch.randn(*shape, generator=noise).double().requires_grad_()

    hidden, weight = draw(TOKENS, width), (0.5 * draw(VOCABULARY, width)).detach().requires_grad_()
    return Side(hidden, weight, draw(VOCABULARY) if bias else None, scale, cap)


TARGETS = torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(9))
FACTORS = torch.rand(2, TOKENS, generator=torch.Generator().manual_seed(8))


def expected(student: Side, teacher: Side, beta: float, temperature: float) -> Comparison:
    """By the definitions, on probabilities."""

    def probabilities(logits: Tensor) -> Tensor:
        return logits.exp() / logits.exp().sum(-1, keepdim=True)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p * (p / q).log()).sum(-1)

    ours = probabilities(student.logits() / temperature)
    theirs = probabilities(teacher.logits() / temperature).detach()
    if beta == 0:
        found = kl(theirs, ours)
    elif beta == 1:
        found = kl(ours, theirs)
    else:
        mixed = beta * theirs + (1 - beta) * ours
        found = beta * kl(theirs, mixed) + (1 - beta) * kl(ours, mixed)
    entropy = -(ours * ours.log()).sum(-1)
    chosen = probabilities(student.logits())[torch.arange(TOKENS), TARGETS].log()
    return Comparison(found, entropy.detach(), chosen)


def loss(found: Comparison) -> Tensor:
    """Unequal amounts of each token's divergence and log-probability."""
    assert found.logprobs is not None
    return (found.divergence * FACTORS[0]).sum() + (found.logprobs * FACTORS[1]).sum()


@pytest.mark.parametrize("temperature", [0.7, 2.5])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("way", WAYS)
def test_each_model_keeps_its_own_head(
    way: str, beta: float, kind: str, temperature: float
) -> None:
    run, dtype = WAYS[way]
    student, teacher = make_side(16, 0, **HEADS[kind][0]), make_side(24, 1, **HEADS[kind][1])
    exact = expected(student, teacher, beta, temperature)
    slopes = torch.autograd.grad(loss(exact), student.leaves())

    head, teacher_head = student.head(dtype), teacher.head(dtype)
    hidden = student.hidden.detach().to(dtype).requires_grad_()
    teachers = teacher.hidden.detach().to(dtype).requires_grad_()
    found = run(hidden, head, teachers, teacher_head, beta, temperature, TARGETS)
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {}
    for name in ("divergence", "entropy", "logprobs"):
        number = getattr(found, name)
        assert number.dtype == dtype
        torch.testing.assert_close(number.double(), getattr(exact, name), **close)
    assert not found.entropy.requires_grad

    loss(found).backward()  # type: ignore[no-untyped-call]
    close = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {}
    for leaf, slope in zip((hidden, *head.projection.parameters()), slopes, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad.double(), slope, **close)
    # The teacher learns nothing.
    assert all(leaf.grad is None for leaf in (teachers, *teacher_head.projection.parameters()))


def test_the_limit_itself_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the tokens and the vocabulary of this batch; one more logit is tiled."""
    taken: list[str] = []
    for name in ("_dense", "_tiled"):
        monkeypatch.setattr(divergence, name, lambda *_, name=name: taken.append(name))
    student, teacher = make_side(16, 0), make_side(24, 1)
    arguments = (
        student.hidden.float(),
        student.head(torch.float32),
        teacher.hidden.float(),
        teacher.head(torch.float32),
    )
    for limit in (TOKENS * VOCABULARY, TOKENS * VOCABULARY - 1):
        monkeypatch.setattr(divergence, "DENSE_LIMIT", limit)
        compare(*arguments, 0.5)
    assert taken == ["_dense", "_tiled"]
