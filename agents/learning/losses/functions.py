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
