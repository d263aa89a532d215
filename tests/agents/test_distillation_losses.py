"""Every loss against its definition in float64, dense and tiled, values and gradients."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from journeyman.agents.errors import AgentError, SettingError
from journeyman.agents.learning.losses import (
    JSD,
    EntropyAwareKL,
    ImportantTokens,
    Loss,
    NoLoss,
    Predictions,
    SampledReverseKL,
    SkewedKL,
    TeacherView,
    TopKReverseKL,
    divergence,
    loss,
)
from journeyman.agents.learning.losses.divergence import chosen_logprobs, logprobs_of
from journeyman.agents.networks.heads import Head
from journeyman.agents.networks.tries import Distinct
from journeyman.agents.teachers import Detail, Distribution, TopK

from .test_divergence import HEADS, TARGETS, TOKENS, VOCABULARY, make_head, states

WAYS = ("dense", "tiled")
SAMPLED = -5 * torch.rand(TOKENS, generator=torch.Generator().manual_seed(7))
"""Log-probabilities that the chosen tokens had when they were sampled."""
FACTORS = torch.rand(TOKENS, generator=torch.Generator().manual_seed(8))


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """How logits are formed; nothing but their number decides it."""
    if request.param == "tiled":
        monkeypatch.setattr(divergence, "DENSE_LIMIT", 10 * VOCABULARY)  # slices of 10, and 7
    yield request.param


class Pair:
    """A student's and a teacher's states and heads, and what is known of both."""

    def __init__(self, kind: str = "plain", dtype: torch.dtype = torch.float32) -> None:
        self.head, self.other = make_head(16, 0, **HEADS[kind]), make_head(24, 1, **HEADS[kind])
        for head in (self.head, self.other):
            head.projection.to(dtype)
        self.hidden = states(16, 2).to(dtype).requires_grad_()
        self.theirs = states(24, 3).to(dtype)
        self.student = Predictions(self.hidden, self.head, TARGETS)

    def logits(self) -> tuple[Tensor, Tensor]:
        """Of both [N, V]; the student's with gradient."""
        return self.head.logits(self.hidden), self.other.logits(self.theirs).detach()

    def view(self, k: int = 16) -> TeacherView:
        """All that a teacher may tell."""
        _, logits = self.logits()
        logprobs = logits.log_softmax(-1)
        best = logprobs.topk(k)
        rest = logprobs.scatter(1, best.indices, -torch.inf).logsumexp(-1)
        return TeacherView(
            logprobs[torch.arange(TOKENS), self.student.targets],
            TopK(best.indices, best.values, rest),
            Distribution(self.theirs, self.other),
        )

    def slopes(self, values: Tensor) -> tuple[Tensor, ...]:
        """Gradient of unequal amounts of each token's value."""
        over = (self.hidden, *self.head.projection.parameters())
        total = (values * FACTORS.to(values.dtype)).sum()
        return torch.autograd.grad(total, over, retain_graph=True)


def exactly(kind: str) -> Pair:
    """The same pair, in float64."""
    return Pair(kind, torch.float64)


def batch(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"sampled_logprobs": SAMPLED.to(dtype), "weights": torch.ones(TOKENS)}


def assert_is(
    found: Tensor, ours: Pair, expected: Tensor, theirs: Pair, atol: float = 1e-5
) -> None:
    """The same values and gradients, whatever the precision."""
    torch.testing.assert_close(found.double(), expected, atol=atol, rtol=atol)
    for one, other in zip(ours.slopes(found), theirs.slopes(expected), strict=True):
        torch.testing.assert_close(one.double(), other, atol=atol, rtol=10 * atol)


# --- whole distributions --------------------------------------------------------------------------


def by_definition(pair: Pair, beta: float, temperature: float) -> Tensor:
    ours, theirs = (Categorical(logits=logits / temperature) for logits in pair.logits())
    if beta == 0:
        return kl_divergence(theirs, ours)
    if beta == 1:
        return kl_divergence(ours, theirs)
    mean = Categorical(probs=beta * theirs.probs + (1 - beta) * ours.probs)
    return beta * kl_divergence(theirs, mean) + (1 - beta) * kl_divergence(ours, mean)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_jsd_is_its_definition(beta: float, kind: str, temperature: float, way: str) -> None:
    loss = JSD(beta, temperature)
    exact, pair = exactly(kind), Pair(kind)
    expected = by_definition(exact, beta, temperature)
    assert_is(loss(exact.student, exact.view(), {}), exact, expected, exact, atol=1e-8)
    assert_is(loss(pair.student, pair.view(), {}), pair, expected, exact)
    warm = Categorical(logits=exact.logits()[0].detach() / temperature).entropy()
    torch.testing.assert_close(pair.student.entropy.double(), warm, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reinforced", [True, False])
@pytest.mark.parametrize("asked_first", [True, False])
def test_log_probabilities_beside_a_divergence_are_at_temperature_one(
    asked_first: bool, reinforced: bool, way: str
) -> None:
    pair, exact = Pair("bias, scale and cap"), exactly("bias, scale and cap")
    student = Predictions(pair.hidden, pair.head, TARGETS, reinforced)
    if asked_first:
        _ = student.logprobs
    JSD(0.5, 2.5)(student, pair.view(), {})
    expected = exact.logits()[0].log_softmax(-1)[torch.arange(TOKENS), TARGETS]
    assert_is(student.logprobs, pair, expected, exact)


LOSSES: dict[str, Callable[[Predictions, TeacherView], Tensor]] = {
    "jsd": lambda student, view: JSD(0.3, 2.0)(student, view, {}),
    "measured": lambda student, view: student.measured(_squares, _full(view), 2.0),
    "chosen": lambda student, _: student.logprobs + student.entropy,
    "others": lambda student, view: student.logprobs_at(_top(view).ids).sum(-1),
}


def _squares(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours.softmax(-1) - theirs.softmax(-1)).square().sum(-1)


def _full(view: TeacherView) -> Distribution:
    assert view.full is not None
    return view.full


def _top(view: TeacherView) -> TopK:
    assert view.top is not None
    return view.top


@pytest.mark.parametrize("name", LOSSES)
def test_tokens_that_are_one_pass_the_head_once(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As trees have them: values and gradients of all that have it, wherever the teacher agrees."""
    passed: list[int] = []
    for function in ("compare", "compare_by", "chosen_logprobs", "logprobs_of"):
        it = getattr(loss, function)

        def counted(*args: Any, it: Any = it) -> Any:
            passed.append(max(len(arg) for arg in args if isinstance(arg, Tensor)))
            return it(*args)

        monkeypatch.setattr(loss, function, counted)
    half = TOKENS // 2
    rows = torch.cat([torch.arange(half), torch.arange(TOKENS - half)])
    distinct = Distinct(*rows.unique(return_inverse=True))
    distinct = Distinct(distinct.kept + torch.where(distinct.kept < half, 0, half), distinct.back)
    found, sums = [], []
    for which in (distinct, None):
        pair = exactly("bias, scale and cap")
        pair.hidden = pair.hidden.detach()[rows].requires_grad_()
        pair.theirs = pair.theirs[rows]
        pair.theirs[0] += 1  # told something else about the first one
        pair.student = Predictions(pair.hidden, pair.head, TARGETS[rows], True, which)
        values = LOSSES[name](pair.student, pair.view())
        slopes, *others = pair.slopes(values)
        # A state's, whichever of the equal ones it came by.
        by_state = torch.zeros(TOKENS - half, slopes.shape[1], dtype=slopes.dtype)
        found.append([values, by_state.index_add(0, rows, slopes), *others, pair.student.entropy])
        sums.append(sum(passed) / len(passed))
        passed.clear()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert sums[1] == TOKENS and sums[0] <= TOKENS - half + 1


def by_token_of_the_vocabulary(
    pair: Pair, temperature: float, value: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Of each token's two distributions [V], written out with exp and log."""
    ours, theirs = ((logits / temperature).exp() for logits in pair.logits())
    return torch.stack([value(p / p.sum(), q / q.sum()) for p, q in zip(ours, theirs, strict=True)])


def sum_of(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) by definition."""
    return (p * (p / q).log()).sum()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_skewed_is_its_definition(
    alpha: float, reverse: bool, kind: str, temperature: float, way: str
) -> None:
    def value(ours: Tensor, theirs: Tensor) -> Tensor:
        p, q = (ours, theirs) if reverse else (theirs, ours)
        return sum_of(p, alpha * p + (1 - alpha) * q)

    loss = SkewedKL(alpha, reverse, temperature)
    exact, pair = exactly(kind), Pair(kind)
    expected = by_token_of_the_vocabulary(exact, temperature, value)
    assert_is(loss(exact.student, exact.view(), {}), exact, expected, exact, atol=1e-8)
    assert_is(loss(pair.student, pair.view(), {}), pair, expected, exact)
    warm = Categorical(logits=exact.logits()[0].detach() / temperature).entropy()
    torch.testing.assert_close(pair.student.entropy.double(), warm, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_skewed_is_bounded_where_one_rules_out_what_the_other_says(reverse: bool) -> None:
    pair = exactly("plain")
    with torch.no_grad():
        pair.other.projection.weight *= 100
        pair.head.projection.weight *= 100
    (plain,) = [SkewedKL(0.0, reverse)(pair.student, pair.view(), {})]
    found = SkewedKL(0.1, reverse)(pair.student, pair.view(), {})
    assert float(plain.detach().max()) > 100
    assert float(found.detach().max()) <= math.log(10) + 1e-9
    assert found.isfinite().all()


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_entropy_aware_is_its_definition(weight: float, kind: str, way: str) -> None:
    exact, pair = exactly(kind), Pair(kind)
    teachers = by_token_of_the_vocabulary(exact, 1.0, lambda p, q: -(q * q.log()).sum())
    threshold = float(teachers.median()) + 1e-3  # some tokens above it, some below

    def value(ours: Tensor, theirs: Tensor) -> Tensor:
        unsure = float(-(theirs * theirs.log()).sum()) > threshold
        return sum_of(ours, theirs) + (weight * sum_of(theirs, ours) if unsure else 0.0)

    expected = by_token_of_the_vocabulary(exact, 1.0, value)
    loss = EntropyAwareKL(threshold, weight)
    assert_is(loss(exact.student, exact.view(), {}), exact, expected, exact, atol=1e-8)
    assert_is(loss(pair.student, pair.view(), {}), pair, expected, exact)


def kept_by_hand(entropies: list[float], divergences: list[float], count: int) -> list[int]:
    """Places of the tokens with the highest soft OR of two scores from 0 to 1."""

    def scaled(values: list[float]) -> list[float]:
        return [(v - min(values)) / (max(values) - min(values)) for v in values]

    scores = [h + d - h * d for h, d in zip(scaled(entropies), scaled(divergences), strict=True)]
    return sorted(range(len(scores)), key=lambda i: -scores[i])[:count]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_important_tokens_are_the_paper_s(share: float, kind: str, way: str) -> None:
    exact, pair = exactly(kind), Pair(kind)
    values = by_token_of_the_vocabulary(exact, 1.0, sum_of)
    entropies = by_token_of_the_vocabulary(exact, 1.0, lambda p, q: -(p * p.log()).sum())
    count = math.ceil(share * TOKENS)
    kept = kept_by_hand(entropies.tolist(), values.tolist(), count)
    by_one = [values[i] * (TOKENS / count) if i in kept else 0 * values[i] for i in range(TOKENS)]
    expected, loss = torch.stack(by_one), ImportantTokens(share)
    batch = {"weights": torch.ones(TOKENS)}
    assert len(kept) == count
    assert_is(loss(exact.student, exact.view(), batch), exact, expected, exact, atol=1e-8)
    assert_is(loss(pair.student, pair.view(), batch), pair, expected, exact)
    # Its mean is that over the tokens kept.
    mean = torch.stack([values[i] for i in kept]).mean()
    torch.testing.assert_close(loss(exact.student, exact.view(), batch).mean(), mean)


def test_tokens_without_weight_take_no_place_of_important_ones() -> None:
    pair = exactly("plain")
    loss, weights = ImportantTokens(0.5), torch.ones(TOKENS)
    whole = ImportantTokens(1.0)(pair.student, pair.view(), {"weights": weights})
    weights[int(whole.argmax())] = 0  # the farthest from the teacher, who is silent there
    found = loss(pair.student, pair.view(), {"weights": weights})
    count = math.ceil(0.5 * (TOKENS - 1))
    kept = [i for i, value in enumerate(found.tolist()) if value]
    heard = [i for i in range(TOKENS) if weights[i]]
    entropies, values = (it.tolist() for it in (pair.student.entropy[heard], whole[heard]))
    assert kept == sorted(heard[i] for i in kept_by_hand(entropies, values, count))
    torch.testing.assert_close(found[heard].mean(), whole[kept].mean())
    silence = loss(pair.student, pair.view(), {"weights": torch.zeros(TOKENS)})
    assert not silence.any() and silence.requires_grad


def test_all_tokens_alike_are_important_alike() -> None:
    pair = exactly("plain")
    hidden = torch.ones_like(pair.hidden)
    pair.theirs = torch.ones_like(pair.theirs)
    student = Predictions(hidden, pair.head, TARGETS)
    found = ImportantTokens(0.25)(student, pair.view(), {"weights": torch.ones(TOKENS)})
    assert found.isfinite().all()
    assert int((found != 0).sum()) == math.ceil(0.25 * TOKENS)


# --- tokens that a model rules out ----------------------------------------------------------------

RULED_OUT = 20
EVERY: dict[str, Loss] = {
    "forward": JSD(0.0),
    "jsd": JSD(0.5),
    "reverse": JSD(1.0),
    "warm": JSD(1.0, 2.5),
    "skewed": SkewedKL(),
    "skewed reverse": SkewedKL(reverse=True),
    "skewed by nothing": SkewedKL(0.0),
    "entropy aware": EntropyAwareKL(0.1),
    "important": ImportantTokens(),
    "top k": TopKReverseKL(),
    "sampled": SampledReverseKL(),
}


def without_some(kind: str, dtype: torch.dtype, ours: bool, theirs: bool) -> Pair:
    """A pair of which either gives the vocabulary's last tokens a logit of -inf, or has them not.

    Args:
        kind: "ruled out", or "not there".
        dtype: Of everything.
        ours: The student is changed.
        theirs: The teacher is changed.
    """
    pair = Pair("bias", dtype)
    left = VOCABULARY - RULED_OUT
    for name, concerned in (("head", ours), ("other", theirs)):
        full = getattr(pair, name).projection
        with torch.no_grad():
            if concerned and kind == "ruled out":
                full.bias[left:] = -torch.inf
            elif concerned:
                part = nn.Linear(full.in_features, left, dtype=dtype)
                part.weight.copy_(full.weight[:left])
                part.bias.copy_(full.bias[:left])
                setattr(pair, name, Head(part))
    targets = TARGETS % left
    pair.student = Predictions(pair.hidden, pair.head, targets, reinforced=True)
    return pair


@pytest.mark.parametrize(("name", "k"), [*((it, 16) for it in EVERY), ("top k", VOCABULARY)])
def test_what_both_rule_out_might_as_well_not_be_there(name: str, k: int, way: str) -> None:
    loss = EVERY[name]
    exact = without_some("not there", torch.float64, True, True)
    expected = loss(exact.student, exact.view(min(k, VOCABULARY - RULED_OUT)), batch(torch.float64))
    for dtype, atol in ((torch.float64, 1e-8), (torch.float32, 1e-5)):
        pair = without_some("ruled out", dtype, True, True)
        found = loss(pair.student, pair.view(k), batch(dtype))
        torch.testing.assert_close(found.double(), expected, atol=atol, rtol=atol)
        assert pair.student.entropy.isfinite().all()
        assert pair.student.logprobs.isfinite().all()
        for ours, theirs in zip(pair.slopes(found), exact.slopes(expected), strict=True):
            rows = slice(None) if len(ours) == TOKENS else slice(len(theirs))
            torch.testing.assert_close(ours[rows].double(), theirs, atol=atol, rtol=10 * atol)
            assert not ours[len(theirs) :].any()  # the rows of what is ruled out


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("name", EVERY)
def test_what_one_of_them_rules_out_gives_no_nan(name: str, ours: bool, way: str) -> None:
    for dtype in (torch.float64, torch.float32):
        pair = without_some("ruled out", dtype, ours, not ours)
        found = EVERY[name](pair.student, pair.view(), batch(dtype))
        assert found.isfinite().all()
        assert all(slope.isfinite().all() for slope in pair.slopes(found))


# --- the teacher's most probable tokens -----------------------------------------------------------


def bucketed(pair: Pair, view: TeacherView) -> Tensor:
    """KL over the teacher's tokens and one bucket, by probabilities, token by token."""
    assert view.top is not None
    values = []
    for row, logits in enumerate(pair.logits()[0]):
        student, best = logits.softmax(-1), view.top.ids[row].tolist()
        theirs = view.top.logprobs[row].exp()
        outside = torch.tensor([i not in best for i in range(VOCABULARY)])
        p, q = (
            torch.cat([student[best], student[outside].sum()[None]]),
            theirs.new_zeros(len(best) + 1),
        )
        q[:-1], q[-1] = theirs, 1 - theirs.sum()
        values.append((p * (p / q).log()).sum())
    return torch.stack(values)


@pytest.mark.parametrize("kind", HEADS)
def test_top_k_with_a_tail_is_its_definition(kind: str, way: str) -> None:
    loss, exact, pair = TopKReverseKL(), exactly(kind), Pair(kind)
    expected = bucketed(exact, exact.view())
    assert_is(loss(exact.student, exact.view(), {}), exact, expected, exact, atol=1e-8)
    assert_is(loss(pair.student, pair.view(), {}), pair, expected, exact)
    # A lower bound of the whole, and one that leaves something out.
    whole = by_definition(exact, 1.0, 1.0)
    assert (expected < whole + 1e-12).all()
    assert (whole - expected).mean() > 0.01


@pytest.mark.parametrize("kind", HEADS)
def test_top_k_of_the_whole_vocabulary_is_the_reverse_divergence(kind: str, way: str) -> None:
    loss, exact, pair = TopKReverseKL(), exactly(kind), Pair(kind)
    expected = by_definition(exact, 1.0, 1.0)
    view = exact.view(VOCABULARY)
    assert view.top is not None
    assert (view.top.tail == -torch.inf).all()
    assert_is(loss(exact.student, view, {}), exact, expected, exact, atol=1e-6)
    assert_is(loss(pair.student, pair.view(VOCABULARY), {}), pair, expected, exact)


def test_top_k_is_finite_where_the_teacher_is_sure() -> None:
    """It has no mass left for what the student might say."""
    head = Head(nn.Linear(3, 4, bias=False))
    hidden = torch.ones(1, 3, requires_grad=True)
    told = TopK(torch.tensor([[2]]), torch.tensor([[0.0]]), torch.tensor([-torch.inf]))
    student = Predictions(hidden, head, torch.tensor([2]))
    found = TopKReverseKL()(student, TeacherView(torch.zeros(1), top=told), {})
    (slope,) = torch.autograd.grad(found.sum(), hidden)
    assert found.isfinite().all()
    assert slope.isfinite().all()
    assert float(found.detach()) > 1


# --- the sampled token alone ----------------------------------------------------------------------


def by_token(pair: Pair, view: TeacherView, clip: float, most: float) -> tuple[Tensor, list[bool]]:
    """PPO's loss, token by token; and which tokens are clipped."""
    values, stopped = [], []
    logprobs = pair.logits()[0].log_softmax(-1)
    for row, target in enumerate(TARGETS.tolist()):
        then = float(SAMPLED[row].double())
        advantage = min(max(float(view.logprobs[row]) - then, -most), most)
        ratio = (logprobs[row, target] - then).exp()
        low, high = (1 - clip, 1 + clip) if clip else (0.0, torch.inf)
        # Beyond a bound, and on its side of it, a token has had its step.
        far = ratio.item() > high if advantage > 0 else ratio.item() < low
        bound = high if advantage > 0 else low
        values.append(-advantage * (0 * ratio + bound if far else ratio))
        stopped.append(far)
    return torch.stack(values), stopped


@pytest.mark.parametrize("clip", [0.0, 0.2])
@pytest.mark.parametrize("kind", HEADS)
def test_sampled_is_its_definition(kind: str, clip: float, way: str) -> None:
    loss, exact, pair = SampledReverseKL(clip, most=2.0), exactly(kind), Pair(kind)
    expected, stopped = by_token(exact, exact.view(), clip, 2.0)
    found = loss(exact.student, exact.view(), batch(torch.float64))
    assert_is(found, exact, expected, exact, atol=1e-8)
    assert_is(loss(pair.student, pair.view(), batch()), pair, expected, exact)
    assert any(stopped) == (clip > 0)
    assert not all(stopped)
    capped = (exact.view().logprobs - SAMPLED.double()).abs() > 2
    assert capped.any()
    assert not capped.all()


def test_sampled_descends_the_reverse_divergence() -> None:
    """Exactly, on policy: the mean over its tokens of the estimate is the true gradient."""
    pair = exactly("plain")
    ours, theirs = (logits.log_softmax(-1) for logits in pair.logits())
    (expected,) = torch.autograd.grad(
        (ours.exp() * (ours - theirs)).sum(), pair.hidden, retain_graph=True
    )
    loss, found = SampledReverseKL(clip=0.2, most=1e6), torch.zeros_like(expected)
    for token in range(VOCABULARY):
        targets = torch.full((TOKENS,), token)
        student, then = Predictions(pair.hidden, pair.head, targets), ours[:, token].detach()
        values = loss(student, TeacherView(theirs[:, token]), {"sampled_logprobs": then})
        (slope,) = torch.autograd.grad((values * then.exp()).sum(), pair.hidden)
        found += slope
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


# --- none, and settings ---------------------------------------------------------------------------


def test_no_loss_is_nothing_and_asks_nobody() -> None:
    pair = Pair()
    found = NoLoss()(pair.student, None, batch())
    assert found.tolist() == [0.0] * TOKENS
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("loss", "needs"),
    [
        (JSD(), Detail.FULL),
        (SkewedKL(), Detail.FULL),
        (EntropyAwareKL(), Detail.FULL),
        (ImportantTokens(), Detail.FULL),
        (TopKReverseKL(), Detail.TOP_K),
        (SampledReverseKL(), Detail.SAMPLED),
        (NoLoss(), None),
    ],
)
def test_what_a_loss_must_know(loss: Loss, needs: Detail | None) -> None:
    assert loss.needs is needs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JSD(beta=1.5), "beta=1.5: expected 0 to 1"),
        (lambda: JSD(beta=True), "beta=True: expected 0 to 1"),
        (lambda: JSD(beta=float("nan")), "beta=nan: expected 0 to 1"),
        (lambda: JSD(temperature=0), "temperature=0: expected 0.001 to 100"),
        (lambda: SkewedKL(alpha=1.0), "alpha=1.0: expected 0 to 0.999"),
        (lambda: SkewedKL(temperature=0), "temperature=0: expected 0.001 to 100"),
        (lambda: EntropyAwareKL(threshold=-1), "threshold=-1: expected 0 to 1e+06"),
        (lambda: EntropyAwareKL(weight=-0.5), "weight=-0.5: expected 0 to 1e+06"),
        (lambda: ImportantTokens(share=0), "share=0: expected 0.001 to 1"),
        (lambda: ImportantTokens(beta=2), "beta=2: expected 0 to 1"),
        (lambda: SampledReverseKL(clip=-0.1), "clip=-0.1: expected 0 to 1"),
        (lambda: SampledReverseKL(most=0.0), "most=0.0: expected 0.001 to "),
        (lambda: SampledReverseKL(most="ten"), "most=ten: expected"),  # type: ignore[arg-type]
    ],
)
def test_a_setting_out_of_its_range_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value, AgentError)
    assert isinstance(caught.value, ValueError)


# --- what losses are made of ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
def test_chosen_log_probabilities_are_the_same_tiled(kind: str, way: str) -> None:
    pair, exact = Pair(kind), exactly(kind)
    found, entropy = chosen_logprobs(pair.hidden, pair.head, TARGETS)
    logprobs = exact.logits()[0].log_softmax(-1)
    assert_is(found, pair, logprobs[torch.arange(TOKENS), TARGETS], exact)
    expected = Categorical(logits=logprobs.detach()).entropy()
    torch.testing.assert_close(entropy.double(), expected, atol=1e-5, rtol=1e-5)
    assert not entropy.requires_grad


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("count", [1, 16, VOCABULARY])
def test_other_tokens_log_probabilities_are_the_same_tiled(
    count: int, kind: str, temperature: float, way: str
) -> None:
    pair, exact = Pair(kind), exactly(kind)
    noise = torch.rand(TOKENS, VOCABULARY, generator=torch.Generator().manual_seed(6))
    ids = noise.argsort(1)[:, :count]
    found = logprobs_of(pair.hidden, pair.head, ids, temperature)
    logprobs = (exact.logits()[0] / temperature).log_softmax(-1).gather(1, ids)
    factors = torch.rand(count, generator=torch.Generator().manual_seed(5)) / count**0.5
    assert_is(found @ factors, pair, logprobs @ factors.double(), exact)
    torch.testing.assert_close(found.double(), logprobs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_tokens_of_models_in_bfloat16_are_told_apart_in_float32(autocast: bool) -> None:
    """As `trainer.args.bf16` has it; on logits in bfloat16 the error is 0.05 and more."""
    vocabulary, width = 4096, 64
    noise = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, width, generator=noise).bfloat16()
    weight = (0.6 * torch.randn(vocabulary, width, generator=noise)).bfloat16()
    ids = torch.randint(vocabulary, (64, 16), generator=noise)
    exact = Head(nn.Linear(width, vocabulary, bias=False, dtype=torch.float64))
    with torch.no_grad():
        exact.projection.weight.copy_(weight)
        expected = logprobs_of(hidden.double(), exact, ids)
    for dtype in (torch.bfloat16, torch.float32):
        head = Head(nn.Linear(width, vocabulary, bias=False, dtype=dtype))
        with torch.no_grad(), torch.autocast("cpu", enabled=autocast):
            head.projection.weight.copy_(weight)
            found = logprobs_of(hidden.to(dtype), head, ids)
            own, _ = chosen_logprobs(hidden.to(dtype), head, ids[:, 0])
        assert found.dtype == own.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(own.double(), expected[:, 0], atol=1e-4, rtol=0)
