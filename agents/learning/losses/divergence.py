"""Student against teacher on chosen tokens: one function, two ways to compute it.

Dense: all logits at once; fast for small products of tokens and vocabulary, and exact in float64.
Tiled: TRL's kernels, which never hold the logits, and form them in float32 whatever the models'
precision: rounded to bfloat16 they would drown the divergence of two models that nearly agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from journeyman.agents.learning.losses.functions import generalised_jsd
from journeyman.agents.networks.heads import DENSE_LIMIT, Head

VOCABULARY_TILE = 32_768


@dataclass(frozen=True)
class Comparison:
    """What is known of N chosen tokens."""

    divergence: Tensor
    """[N], in nats, with gradient to the student."""
    entropy: Tensor
    """[N] of the student, at the temperature of the divergence."""
    logprobs: Tensor | None
    """[N] of the chosen tokens under the student, with gradient; None unless asked for."""


def compare(
    student: Tensor,
    student_head: Head,
    teacher: Tensor,
    teacher_head: Head,
    beta: float,
    temperature: float = 1.0,
    targets: Tensor | None = None,
) -> Comparison:
    """Generalised Jensen-Shannon divergence of next-token distributions.

    Args:
        student: [N, H_s] hidden states, with gradient.
        student_head: Its head.
        teacher: [N, H_t] hidden states.
        teacher_head: Its head.
        beta: 0 is KL(teacher || student), 1 is KL(student || teacher).
        temperature: Divides both logits before the divergence.
        targets: [N] chosen tokens, if their log-probabilities are wanted.
    """
    vocabulary = student_head.projection.weight.shape[0]
    small = student.shape[0] * vocabulary <= DENSE_LIMIT
    dense = student.dtype == torch.float64 or (small and _in_float32(student, teacher))
    run = _dense if dense else _tiled
    return run(student, student_head, teacher, teacher_head, beta, temperature, targets)


def _in_float32(student: Tensor, teacher: Tensor) -> bool:
    """True if plain products of these are: neither they nor autocast say otherwise."""
    autocast = torch.is_autocast_enabled(student.device.type)
    return student.dtype == teacher.dtype == torch.float32 and not autocast


def _dense(
    student: Tensor,
    student_head: Head,
    teacher: Tensor,
    teacher_head: Head,
    beta: float,
    temperature: float,
    targets: Tensor | None,
) -> Comparison:
    logits = student_head.logits(student)
    with torch.no_grad():
        teacher_logits = teacher_head.logits(teacher)
        logp = (logits / temperature).log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
    divergence = generalised_jsd(logits / temperature, teacher_logits / temperature, beta)
    logprobs = None
    if targets is not None:
        logprobs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return Comparison(divergence, entropy, logprobs)


def _tiled(
    student: Tensor,
    student_head: Head,
    teacher: Tensor,
    teacher_head: Head,
    beta: float,
    temperature: float,
    targets: Tensor | None,
) -> Comparison:
    ours, theirs = student_head.projection, teacher_head.projection
    divergence, entropy = ChunkedDivergenceFunction.apply(
        student,
        ours.weight,
        ours.bias,
        teacher,
        theirs.weight,
        theirs.bias,
        beta,
        temperature,
        student_head.scale,
        student_head.cap,
        teacher_head.scale,
        teacher_head.cap,
    )
    logprobs = None
    if targets is not None:
        logprobs, *_ = ChunkedLogProbFunction.apply(
            student,
            ours.weight,
            ours.bias,
            targets,
            1.0,
            VOCABULARY_TILE,
            student_head.cap,
            student_head.scale,
        )
    return Comparison(divergence, entropy.detach(), logprobs)
