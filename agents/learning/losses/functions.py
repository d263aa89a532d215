"""Pure tensor functions: what is minimised. Shapes: N chosen tokens, V vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from journeyman.agents.errors import DivergedError

IMPOSSIBLE = -1e4
"""A log-probability, in nats, that stands for log 0: times the probability 0 it is 0."""
FARTHEST = 20.0
"""Log-ratios, in nats, are held within this, either way: a bound of the arithmetic (verl has the
same), far beyond what any clip lets through."""


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax [N, V], finite also where a model rules tokens out by a logit of -inf.

    What two models rule out alike adds nothing to a divergence, and gets no gradient; of -inf
    both would be NaN.
    """
    return logits.log_softmax(-1).clamp(min=IMPOSSIBLE)


def checked(values: Tensor) -> Tensor:
    """Values of tokens [N] as they are.

    Raises:
        DivergedError: One is no number. A distribution that rules out every token has none, and
            neither has one of a NaN: its gradient would be lost without a word, or be NaN as well.
    """
    if values.isnan().any():
        places = values.isnan().nonzero().flatten()
        raise DivergedError(
            f"the loss of {len(places)} of {len(values)} tokens is no number (NaN), first of token "
            f"{int(places[0])}: student or teacher gives NaN, or rules every token out there (all "
            f"logits -inf); look at the models, or take a smaller trainer.args.learning_rate"
        )
    return values


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy [N] of distributions, in nats, from logits [N, V]."""
    logp = log_probabilities(logits)
    return -(logp.exp() * logp).sum(-1)


def weighted_mean(values: Tensor, weights: Tensor, count: Tensor | float) -> Tensor:
    """Sum of weights * values over the batch, divided by the global count of chosen tokens.

    Args:
        values: [N] per-token losses.
        weights: [N].
        count: Chosen tokens of the whole batch, over all microbatches and processes.
    """
    return (values * weights).sum() / count


def ratio_of(logprobs: Tensor, sampled_logprobs: Tensor) -> Tensor:
    """Importance ratios [N] of the current policy to the one that sampled, with gradient.

    Beyond e to the `FARTHEST`, either way, they are held, and give no gradient: e^100 in float32 is
    infinite, and infinity times an advantage of zero is NaN.
    """
    return (logprobs - sampled_logprobs).clamp(-FARTHEST, FARTHEST).exp()


def visits(logprobs: Tensor, sampled_logprobs: Tensor, chosen: Tensor, most: float = 2.0) -> Tensor:
    """How much more often than whoever played the current policy comes to each token's place; [N].

    The product of `ratio_of` over the tokens that were chosen before it in its row, which corrects
    a mean over states for the policy that led there (Precup et al. 2000); without gradient. It is
    cut off at 1 / most and most: bias for variance, as in verl's and IMPALA's truncation.

    Args:
        logprobs: [N] of the sampled tokens under the current policy.
        sampled_logprobs: [N] under the policy that sampled them.
        chosen: [B, C] true on these N tokens.
        most: Bound.
    """
    ahead = torch.zeros(chosen.shape, dtype=torch.float64, device=logprobs.device)
    ahead[chosen] = (logprobs.detach() - sampled_logprobs).double()
    before = (ahead.cumsum(1) - ahead)[chosen]
    return before.clamp(-math.log(most), math.log(most)).exp().to(logprobs.dtype)


def policy_gradient(logprobs: Tensor, sampled_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Per-token loss -ratio * advantage [N] whose gradient is that of the expected advantage.

    The ratio to the sampling policy is 1 at the first update after a rollout; it corrects later
    ones. (Williams 1992; with importance weights as in Thinking Machines' OPD, 2025.)

    Args:
        logprobs: [N] of the sampled tokens under the current policy, with gradient.
        sampled_logprobs: [N] under the policy that sampled them.
        advantages: [N].
    """
    return -ratio_of(logprobs, sampled_logprobs) * advantages


def generalised_jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence of full distributions (Agarwal et al. 2023, GKD).

    beta * KL(p_T || m) + (1 - beta) * KL(p_S || m) with m = beta * p_T + (1 - beta) * p_S; by
    definition KL(p_T || p_S) at beta 0 and KL(p_S || p_T) at beta 1. The readable reference for the
    tiled kernel that trains.

    Args:
        student: [N, V] logits.
        teacher: [N, V] logits.
        beta: In [0, 1].

    Returns:
        [N], in nats: finite also where logits are -inf. Where one of the two rules out what the
        other says and the divergence is infinite, it stands at -`IMPOSSIBLE` times that mass, and
        its gradient is that of the tokens that are left.

    Raises:
        DivergedError: All logits of a row are -inf, or one is NaN.
    """
    return checked(_jsd(log_probabilities(student), log_probabilities(teacher), beta))


def _jsd(log_s: Tensor, log_t: Tensor, beta: float) -> Tensor:
    if beta == 0:
        return (log_t.exp() * (log_t - log_s)).sum(-1)
    if beta == 1:
        return (log_s.exp() * (log_s - log_t)).sum(-1)
    log_m = torch.logaddexp(
        log_t + math.log(beta),
        log_s + math.log(1 - beta),
    )
    to_teacher = (log_t.exp() * (log_t - log_m)).sum(-1)
    to_student = (log_s.exp() * (log_s - log_m)).sum(-1)
    return beta * to_teacher + (1 - beta) * to_student


def skewed_kl(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """KL(p || alpha p + (1 - alpha) q) [N], in nats (DistiLLM, Ko et al. 2024, equation 3).

    At alpha 0 it is KL(p || q). Otherwise it is at most log(1 / alpha), whatever q rules out.

    Args:
        first: [N, V] logits of p.
        second: [N, V] logits of q.
        alpha: In [0, 1).
    """
    log_p, log_q = log_probabilities(first), log_probabilities(second)
    if alpha > 0:
        log_q = torch.logaddexp(log_p + math.log(alpha), log_q + math.log(1 - alpha))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def entropy_aware_kl(student: Tensor, teacher: Tensor, threshold: float, weight: float) -> Tensor:
    """KL(p_S || p_T), plus weight * KL(p_T || p_S) where H(p_T) > threshold; [N], in nats.

    (EOPD, Jin et al. 2026, arXiv:2603.07079.)

    Args:
        student: [N, V] logits.
        teacher: [N, V] logits.
        threshold: In nats.
        weight: Of the forward divergence.
    """
    unsure = entropy_of(teacher) > threshold
    forward = generalised_jsd(student, teacher, 0.0)
    return generalised_jsd(student, teacher, 1.0) + weight * unsure * forward


def most_important(entropy: Tensor, divergence: Tensor, count: int) -> Tensor:
    """True on the `count` tokens of N with the highest u = 1 - (1 - h) (1 - d).

    h is the student's entropy and d its divergence from the teacher, each brought to [0, 1] by
    the least and the most of the N tokens (TIP's soft OR, Xu et al. 2026, arXiv:2604.14084): a
    token counts where the student is unsure, and where it is sure and wrong.

    Args:
        entropy: [N].
        divergence: [N].
        count: At most N.
    """
    h, d = _to_unit(entropy), _to_unit(divergence)
    best = (1 - (1 - h) * (1 - d)).topk(count).indices
    return torch.zeros_like(h, dtype=torch.bool).index_fill(0, best, True)


def _to_unit(values: Tensor) -> Tensor:
    """[N], from 0 at the least to 1 at the most; 0 if all are alike."""
    least, most = values.aminmax()
    return (values - least) / (most - least) if most > least else torch.zeros_like(values)


def clipped_policy_gradient(
    logprobs: Tensor,
    sampled_logprobs: Tensor,
    advantages: Tensor,
    clip: float,
    clip_high: float | None = None,
) -> Tensor:
    """Per-token loss like `policy_gradient` [N], with PPO's clipping (Schulman et al. 2017).

    max(-ratio A, -clamp(ratio, 1 - clip, 1 + clip_high) A). Two bounds are DAPO's (Yu et al. 2025,
    arXiv:2503.14476, section 3.1): with more room above, a rare token may become likelier.

    Args:
        logprobs: [N] of the sampled tokens under the current policy, with gradient.
        sampled_logprobs: [N] under the policy that sampled them.
        advantages: [N].
        clip: Ratios beyond 1 - clip and 1 + clip give no more gradient; 0 clips nothing.
        clip_high: In the place of `clip` above 1; None is the same.
    """
    ratio = ratio_of(logprobs, sampled_logprobs)
    if clip == 0:
        return -ratio * advantages
    high = 1 + (clip if clip_high is None else clip_high)
    return torch.maximum(-ratio * advantages, -ratio.clamp(1 - clip, high) * advantages)


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Estimate [N] of KL(student || reference) by sampled tokens alone, never below zero.

    k3 = r - 1 - log r with r = p_reference / p_student (Schulman 2020, Approximating KL Divergence,
    http://joschu.net/blog/kl-approx.html; the penalty of GRPO, arXiv:2402.03300, equation 4). Its
    mean over the student's own samples is the KL; the mean of its gradient there, (1 - r) times
    that of log p_student, is that of KL(reference || student) (Tang & Munos 2025,
    arXiv:2506.09477): what the reference says and the student gives up pulls the more.

    Args:
        logprobs: [N] of the sampled tokens under the student, with gradient.
        reference_logprobs: [N] under the reference.
    """
    ahead = (reference_logprobs - logprobs).clamp(-FARTHEST, FARTHEST)
    return ahead.exp() - 1 - ahead


def top_k_reverse_kl(student: Tensor, teacher: Tensor, tail: Tensor) -> Tensor:
    """KL(student || teacher) [N] over K tokens and one bucket for all others.

    Args:
        student: [N, K] log-probabilities of the teacher's K tokens, with gradient.
        teacher: [N, K] the same of the teacher.
        tail: [N] log of the teacher's mass on all other tokens; -inf where there is none.
    """
    # What either finds impossible (-inf) must give no NaN: 0 log 0 is 0, and log 0 is a floor.
    floor = math.log(torch.finfo(torch.float32).tiny)
    ours = student.clamp(min=floor)
    kept = (student.exp() * (ours - teacher.clamp(min=floor))).sum(-1)
    # The student's own mass outside; at most its rounding error where K is the vocabulary.
    left = 1 - student.exp().sum(-1)
    some = left > torch.finfo(left.dtype).eps * student.shape[1]
    safe = torch.where(some, left, torch.ones_like(left))
    rest = safe * (safe.log() - tail.clamp(min=floor))
    return kept + torch.where(some, rest, torch.zeros_like(rest))
