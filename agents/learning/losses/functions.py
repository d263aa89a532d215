"""Pure tensor functions: what is minimised. Shapes: N chosen tokens, V vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def weighted_mean(values: Tensor, weights: Tensor, count: Tensor | float) -> Tensor:
    """Sum of weights * values over the batch, divided by the global count of chosen tokens.

    Args:
        values: [N] per-token losses.
        weights: [N].
        count: Chosen tokens of the whole batch, over all microbatches and processes.
    """
    return (values * weights).sum() / count


def policy_gradient(logprobs: Tensor, sampled_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Per-token loss -ratio * advantage [N] whose gradient is that of the expected advantage.

    The ratio to the sampling policy is 1 at the first update after a rollout; it corrects later
    ones. (Williams 1992; with importance weights as in Thinking Machines' OPD, 2025.)

    Args:
        logprobs: [N] of the sampled tokens under the current policy, with gradient.
        sampled_logprobs: [N] under the policy that sampled them.
        advantages: [N].
    """
    return -(logprobs - sampled_logprobs).exp() * advantages


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
        [N], in nats.
    """
    log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
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


def clipped_policy_gradient(
    logprobs: Tensor, sampled_logprobs: Tensor, advantages: Tensor, clip: float
) -> Tensor:
    """Per-token loss [N] like `policy_gradient`, with PPO's clipping (Schulman et al. 2017).

    Args:
        logprobs: [N] of the sampled tokens under the current policy, with gradient.
        sampled_logprobs: [N] under the policy that sampled them.
        advantages: [N].
        clip: Ratios beyond 1 - clip and 1 + clip give no more gradient; 0 clips nothing.
    """
    loss = policy_gradient(logprobs, sampled_logprobs, advantages)
    if clip == 0:
        return loss
    ratio = (logprobs - sampled_logprobs).exp().clamp(1 - clip, 1 + clip)
    return torch.maximum(loss, -ratio * advantages)


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
