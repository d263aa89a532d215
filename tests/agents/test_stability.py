"""What keeps a policy gradient from going astray: value and gradient in float64, by definition."""

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from journeyman.agents.credit import TokenCredit, Uniform
from journeyman.agents.credit.trees import PolicyTarget
from journeyman.agents.errors import DivergedError, SettingError
from journeyman.agents.learning.advantages import scaled
from journeyman.agents.learning.collector import Collector
from journeyman.agents.learning.losses import NoLoss
from journeyman.agents.learning.losses.functions import (
    clipped_policy_gradient,
    generalised_jsd,
    kl_estimate,
    policy_gradient,
)
from journeyman.agents.learning.trainers import distill
from journeyman.agents.learning.trainers.beginning import Beginning
from journeyman.agents.learning.trainers.schedule import BEGAN, HELD, Schedule
from journeyman.agents.search.backup import Advantage
from journeyman.agents.search.estimators import Estimate
from journeyman.agents.search.evidence import Evidence
from journeyman.envs import Episode, StopReason

from .test_gradients import Setting, assert_equal, batch_of, ragged, random_credit
from .test_trainers import babbler, distillation, make_parts
from .tiny import broken, llama

INF = float("inf")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- what a model rules out ----------------------------------------------------------------------

BETAS = [0.0, 1e-9, 0.3, 0.5, 1 - 1e-9, 1.0]


def jsd_of_probabilities(p_s: Tensor, p_t: Tensor, beta: float) -> Tensor:
    """By definition, over tokens that both have."""
    if beta in (0, 1):
        one, other = (p_t, p_s) if beta == 0 else (p_s, p_t)
        return (one * (one / other).log()).sum(-1)
    mean = beta * p_t + (1 - beta) * p_s
    return beta * (p_t * (p_t / mean).log()).sum(-1) + (1 - beta) * (p_s * (p_s / mean).log()).sum(
        -1
    )


@pytest.mark.parametrize("beta", BETAS)
def test_what_both_rule_out_leaves_the_divergence_of_the_rest(beta: float) -> None:
    left = [0, 2, 3, 6]
    student, teacher = noise(5, 7), noise(5, 7, seed=1)
    out = [i for i in range(7) if i not in left]
    student[:, out] = teacher[:, out] = -INF
    student.requires_grad_()
    found = generalised_jsd(student, teacher, beta)
    (slope,) = torch.autograd.grad(found.sum(), student)
    rest = student.detach()[:, left].requires_grad_()
    expected = jsd_of_probabilities(rest.softmax(-1), teacher[:, left].softmax(-1), beta)
    (expected_slope,) = torch.autograd.grad(expected.sum(), rest)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(slope[:, left], expected_slope, atol=1e-12, rtol=1e-9)
    assert not slope[:, out].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_what_one_rules_out_is_finite(whose: str, beta: float, dtype: torch.dtype) -> None:
    logits = {"student": noise(5, 7).to(dtype), "teacher": noise(5, 7, seed=1).to(dtype)}
    logits[whose][:, 4] = -INF
    student = logits["student"].requires_grad_()
    found = generalised_jsd(student, logits["teacher"], beta)
    (slope,) = torch.autograd.grad(found.sum(), student)
    assert found.isfinite().all()
    assert slope.isfinite().all()
    if dtype == torch.float64 or beta in (0.0, 0.3, 0.5, 1.0):  # where float32 has digits left
        assert slope.abs().sum(-1).min() > 0  # something is learned of every token
    if whose == "student" and beta == 0:
        # Cross-entropy of what is left, by hand: d/dz_j = p_S(j) sum p_T - p_T(j).
        p_t = logits["teacher"].softmax(-1)
        left = [0, 1, 2, 3, 5, 6]
        p_s = student.detach().softmax(-1)[:, left]
        expected = p_s * p_t[:, left].sum(-1, keepdim=True) - p_t[:, left]
        torch.testing.assert_close(slope[:, left], expected)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("bad", [-INF, math.nan])
def test_a_distribution_that_is_none_is_refused(bad: float, beta: float) -> None:
    student = noise(3, 4)
    student[1] = bad
    for pair in ((student, noise(3, 4, seed=1)), (noise(3, 4, seed=1), student)):
        with pytest.raises(
            DivergedError, match=r"the loss of 1 of 3 tokens is no number.* token 1"
        ):
            generalised_jsd(*pair, beta)


# --- the policy gradient -------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0.2, None), (0.2, 0.28), (0.1, 0.5), (0.2, 0.0)])
def test_two_bounds_are_daposs(low: float, high: float | None) -> None:
    """Token by token, with branches instead of a minimum."""
    then, advantages = noise(60, seed=1) - 2, noise(60, seed=2)
    logprobs = (then + 0.3 * noise(60)).requires_grad_()
    found = clipped_policy_gradient(logprobs, then, advantages, low, high)
    (slope,) = torch.autograd.grad(found.sum(), logprobs)
    top, stopped = 1 + (low if high is None else high), 0
    for i in range(60):
        ratio, advantage = math.exp(logprobs[i].item() - then[i].item()), float(advantages[i])
        beyond = (advantage > 0 and ratio > top) or (advantage < 0 and ratio < 1 - low)
        bound = top if advantage > 0 else 1 - low
        value = -(bound if beyond else ratio) * advantage
        assert found[i].item() == pytest.approx(value, abs=1e-12)
        assert float(slope[i]) == pytest.approx(0.0 if beyond else value, abs=1e-12)
        stopped += beyond
    assert 5 < stopped < 55


@pytest.mark.parametrize("clip", [0.0, 0.2])
@pytest.mark.parametrize("far", [-INF, -1e4, 1e4])
def test_ratios_beyond_all_bounds_stay_numbers(far: float, clip: float) -> None:
    """Of a token that was ruled out then, or is now: also where nothing is to be learned of it."""
    now = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    found = clipped_policy_gradient(now, now.detach() + far, torch.tensor([0.0, 1.0, -1.0]), clip)
    (slope,) = torch.autograd.grad(found.sum(), now)
    assert found.isfinite().all()
    assert slope.isfinite().all()
    assert found[0].item() == 0


def test_the_estimate_of_a_divergence_is_k3() -> None:
    """Its mean over the student's own tokens is KL(student || reference); of its gradient, there,
    that of KL(reference || student)."""
    logits, reference = noise(9).requires_grad_(), noise(9, seed=1).log_softmax(0)
    logprobs = logits.log_softmax(0)
    found = kl_estimate(logprobs, reference)
    ratio = (reference - logprobs).exp()
    torch.testing.assert_close(found, ratio - 1 - ratio.log())
    assert (found >= 0).all()
    own = logprobs.detach().exp()
    torch.testing.assert_close((own * found).sum(), (own * (logprobs - reference)).sum())
    (slope,) = torch.autograd.grad((own * found).sum(), logits, retain_graph=True)
    forward = (reference.exp() * (reference - logprobs)).sum()
    (expected,) = torch.autograd.grad(forward, logits)
    torch.testing.assert_close(slope, expected)
    far = torch.tensor([-1.0, -200.0, -1e4], requires_grad=True)
    held = kl_estimate(far, torch.tensor([-1e4, -1.0, -INF]))
    assert held.isfinite().all()
    assert torch.autograd.grad(held.sum(), far)[0].isfinite().all()


def test_a_run_is_held_to_where_it_began(tmp_path: Path) -> None:
    """The trainer's gradient is that of advantages and of k3, token by token, without padding."""
    setting = Setting(tmp_path, NoLoss(), 6, 1)
    episodes = ragged(seed=3, count=6)
    credit = random_credit(episodes, seed=4)
    began = copy.deepcopy(setting.student)
    with torch.no_grad():
        for parameter in setting.student.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, dtype=parameter.dtype))
    rows = batch_of(episodes, credit)
    rows["sampled_logprobs"] = rows["sampled_logprobs"].double()
    rows[BEGAN] = Beginning(began).logprobs(rows)
    setting.trainer._schedule = Schedule(clip=0.2, clip_high=0.3, kl=0.7)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for episode, own in zip(episodes, credit, strict=True):
        if episode.stop is StopReason.INFRA_ERROR or not any(episode.mask):
            continue
        ids = torch.tensor([episode.tokens])
        now, then = (m(ids).logits[0].log_softmax(-1) for m in (setting.student, began))
        for i, mine in enumerate(episode.mask):
            if not mine:
                continue
            count += 1
            token = episode.tokens[i]
            ratio = (now[i - 1, token] - episode.logprobs[i]).exp()
            advantage = float(own.advantages[i])
            bound = ratio.clamp(0.8, 1.3)
            total = total - torch.minimum(ratio * advantage, bound * advantage)
            log_r = then[i - 1, token].detach() - now[i - 1, token]
            total = total + 0.7 * (log_r.exp() - 1 - log_r)
    names, parameters = zip(*setting.student.named_parameters(), strict=True)
    slopes = torch.autograd.grad(total / count, parameters, allow_unused=True)
    expected = {
        n: torch.zeros_like(p) if g is None else g
        for n, p, g in zip(names, parameters, slopes, strict=True)
    }
    assert max(float(g.abs().max()) for g in expected.values()) > 0.1
    assert_equal(setting.gradient(rows), expected, atol=1e-6)


def test_adapters_need_no_second_copy(tmp_path: Path) -> None:
    """What the student was is read below them; whatever they have learned."""
    episodes = ragged(seed=3, count=4)
    rows = batch_of(episodes, random_credit(episodes, seed=4))
    parts = make_parts(llama(64, seed=4))
    plain = Beginning(parts.student.model).logprobs(rows)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    args = distillation(tmp_path)
    trainer = distill.build(parts, args, kl=0.1, peft_config=lora)
    kept = trainer._beginning
    assert kept is not None
    assert kept._copy is None
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.5)
    trainer.model.train()
    torch.testing.assert_close(kept.logprobs(rows), plain)
    assert trainer.model.training
    assert Beginning(parts.student.model, object())._copy is not None
    changed = Beginning(parts.student.model).logprobs(rows)
    assert not torch.allclose(changed, plain)  # the adapters do count


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl": -0.1}, r"^trainer\.kl=-0\.1: expected 0 to"),
        ({"kl": math.nan}, r"^trainer\.kl=nan: expected 0 to"),
        ({"clip": 0.2, "clip_high": -1}, r"^trainer\.clip_high=-1: expected 0 to"),
        ({"clip_high": 0.3}, r"^trainer\.clip_high=0\.3: trainer\.clip=0 clips nothing"),
    ],
)
def test_bounds_that_are_none_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Schedule(**settings)  # type: ignore[arg-type]


def test_who_has_no_teacher_is_held_to_where_it_began(tmp_path: Path) -> None:
    parts = make_parts(babbler(), Uniform(0.0, 0.5))
    assert distill.build(parts, distillation(tmp_path))._schedule.kl == 0
    alone = dataclasses.replace(parts, teacher=None, loss=NoLoss())
    assert distill.build(alone, distillation(tmp_path))._schedule.kl == HELD > 0
    assert distill.build(alone, distillation(tmp_path), kl=0)._beginning is None


# --- advantages of one size ----------------------------------------------------------------------


def outcomes(rewards: list[float], tasks: list[str]) -> tuple[list[TokenCredit], list[Episode]]:
    """Broadcast: each reward less its task's mean, on each token of ragged episodes."""
    played = [e for e in ragged(seed=1, count=24) if any(e.mask)][: len(rewards)]
    assert len(played) == len(rewards)
    episodes = [
        dataclasses.replace(e, task_id=task, stop=StopReason.ANSWERED)
        for e, task in zip(played, tasks, strict=True)
    ]
    credit = []
    for episode, reward, task in zip(episodes, rewards, tasks, strict=True):
        alike = [r for r, t in zip(rewards, tasks, strict=True) if t == task]
        size = len(episode.tokens)
        advantage = torch.full((size,), reward - sum(alike) / len(alike)).double()
        credit.append(TokenCredit(torch.ones(size), advantage))
    return credit, episodes


REWARDS = [1.0, 0.0, 0.0, 0.25, 1.0, 1.0, 0.0, 1.0]
TASKS = ["a", "a", "a", "a", "b", "b", "b", "b"]


@pytest.mark.parametrize("scale", ["none", "batch", "group"])
def test_advantages_are_scaled_as_in_grpo(scale: str) -> None:
    """TRL's: (r - mean of the group) / (std + 1e-4), std of the group or of all."""
    credit, episodes = outcomes(REWARDS, TASKS)
    rewards = torch.tensor(REWARDS, dtype=torch.float64).view(2, 4)
    centred = rewards - rewards.mean(1, keepdim=True)
    expected = {
        "none": centred,
        "batch": centred / (centred.std() + 1e-4),
        "group": centred / (rewards.std(1, keepdim=True) + 1e-4),
    }[scale].flatten()
    found = scaled(credit, episodes, scale)
    for own, advantage, before in zip(found, expected, credit, strict=True):
        torch.testing.assert_close(own.advantages, advantage.expand_as(own.advantages))
        assert own.weights is before.weights


def test_what_is_alike_is_not_blown_up() -> None:
    credit, episodes = outcomes([1.0, 1.0, 0.0, 1.0], ["a", "a", "b", "b"])
    for own, before in list(zip(scaled(credit, episodes, "group"), credit, strict=True))[:2]:
        assert torch.equal(own.advantages, before.advantages)
    same = [TokenCredit(c.weights, torch.full_like(c.advantages, -1.0)) for c in credit]
    for own in scaled(same, episodes, "batch"):
        assert (own.advantages == -1).all()
    wrecked = [*episodes[:3], broken()]
    last = TokenCredit(torch.zeros(len(wrecked[3].tokens)), torch.zeros(len(wrecked[3].tokens)))
    assert all(
        own.advantages.isfinite().all() for own in scaled([*credit[:3], last], wrecked, "batch")
    )


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ("std", r"^trainer\.advantages=std: expected none, batch, group"),
        ("group", r"^trainer\.advantages=group: a group is the rows of one task"),
    ],
)
def test_a_size_of_nothing_is_refused(scale: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Collector(make_parts(babbler()).student, Uniform(), advantages=scale)


# --- credit in log space -------------------------------------------------------------------------


def known(choices: list[tuple[float, float]], own: float) -> Evidence:
    value = sum(p * q for p, q in choices)
    return Evidence(0.0, Estimate(value), Advantage(own - value, 0.0, 1.0), tuple(choices), None)


@pytest.mark.parametrize("temperature", [1e-300, 1e-3, 0.5, 1.0, 1e9, 1e300])
@pytest.mark.parametrize(
    "choices",
    [
        [(0.5, 0.0), (0.5, 1.0)],
        [(0.125, 1.0), (0.875, 0.0)],
        [(1.0, 0.3)],
        [(0.0, 5.0), (0.25, 1.0), (0.75, -1e6)],
        [(1e-30, 1.0), (1.0, 0.0)],
    ],
)
def test_a_policy_target_is_exact_at_every_temperature(
    choices: list[tuple[float, float]], temperature: float
) -> None:
    """p exp(Q / t) / sum p exp(Q / t) - 1, in numbers of 500 digits or more."""
    from decimal import Decimal, getcontext

    getcontext().prec = 700
    getcontext().Emin, getcontext().Emax = -(10**17), 10**17
    credit = PolicyTarget(Uniform(), temperature=temperature)
    played = [(p, q) for p, q in choices if p > 0]
    best = max(q for _, q in played)

    def power(q: float) -> Decimal:
        exponent = (Decimal(q) - Decimal(best)) / Decimal(temperature)
        return Decimal(0) if exponent < -(10**6) else exponent.exp()

    total = sum(Decimal(p) for p, _ in played)
    mean = sum(Decimal(p) * power(q) for p, q in played) / total
    for _, q in played:
        expected = float(power(q) / mean - 1)
        found = credit._advantage(known(choices, q))
        assert math.isfinite(found)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_policy_gradient_is_as_it_was() -> None:
    """The bound of the arithmetic is beyond what training comes to."""
    now, then, advantages = noise(50), noise(50, seed=1), noise(50, seed=2)
    expected = -(now - then).exp() * advantages
    assert torch.equal(policy_gradient(now, then, advantages), expected)
