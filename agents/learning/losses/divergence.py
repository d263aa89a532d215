"""Student against teacher on chosen tokens: one function, two ways to compute it.

Dense: all logits at once; fast for small products of tokens and vocabulary, and exact in float64.
Tiled: TRL's kernels, which never hold the logits, and form them in float32 whatever the models'
precision: rounded to bfloat16 they would drown the divergence of two models that nearly agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
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
    run = _dense if _is_dense(student_head, student, teacher) else _tiled
    return run(student, student_head, teacher, teacher_head, beta, temperature, targets)


def _in_float32(*states: Tensor) -> bool:
    """True if plain products of these are: neither they nor autocast say otherwise."""
    autocast = torch.is_autocast_enabled(states[0].device.type)
    return all(some.dtype == torch.float32 for some in states) and not autocast


def chosen_logprobs(states: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of chosen tokens, and the entropy there.

    Args:
        states: [N, H] hidden states, with gradient.
        head: Their head.
        targets: [N] chosen tokens.

    Returns:
        [N] with gradient, and [N] without, in nats.
    """
    if _is_dense(head, states):
        logp = head.logits(states).log_softmax(-1)
        entropy = -(logp.detach().exp() * logp.detach()).sum(-1)
        return logp.gather(1, targets[:, None])[:, 0], entropy
    return _tiled_logprobs(states, head, targets, ("entropy",))


def logprobs_of(states: Tensor, head: Head, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [N, K] of tokens ids [N, K] at states [N, H], with gradient."""
    if _is_dense(head, states):
        logprobs: Tensor = (head.logits(states) / temperature).log_softmax(-1)
        return logprobs.gather(1, ids)
    # One token's log-probability says by how much all its row's logits are too large.
    first, _ = _tiled_logprobs(states, head, ids[:, 0].contiguous(), (), temperature)
    size = max(1, DENSE_LIMIT // (ids.shape[1] * states.shape[1]))
    pieces = [
        # Formed again for the backward pass: kept, the rows of the head would be gigabytes.
        checkpoint(_some_logits, some, head, tokens, use_reentrant=False) / temperature
        for some, tokens in zip(states.split(size), ids.split(size), strict=True)
    ]
    logits = torch.cat(pieces)
    return logits - (logits[:, :1] - first[:, None])


def _some_logits(states: Tensor, head: Head, ids: Tensor) -> Tensor:
    """Logits [N, K] of tokens ids [N, K] at states [N, H], in float32."""
    projection = head.projection
    with torch.autocast(states.device.type, enabled=False):  # which would round them again
        logits = torch.einsum("nh,nkh->nk", states.float(), projection.weight[ids].float())
        if projection.bias is not None:
            logits = logits + projection.bias[ids].float()
    logits = logits * head.scale
    return logits if head.cap is None else head.cap * torch.tanh(logits / head.cap)


def _tiled_logprobs(
    states: Tensor,
    head: Head,
    targets: Tensor,
    outputs: tuple[str, ...] = (),
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of targets [N] with gradient, and the entropy [N] if it is in `outputs`."""
    # Unlike TRL's divergence this kernel rounds logits to the states' type, or to autocast's.
    with torch.autocast(states.device.type, enabled=False):
        logprobs, entropy, *_ = ChunkedLogProbFunction.apply(
            states.float(),
            head.projection.weight,
            head.projection.bias,
            targets,
            temperature,
            VOCABULARY_TILE,
            head.cap,
            head.scale,
            outputs,
        )
    return logprobs, logprobs.detach() if entropy is None else entropy.detach()


def _is_dense(head: Head, *states: Tensor) -> bool:
    """True if all logits at once are exact enough, and not too many."""
    small = states[0].shape[0] * head.projection.weight.shape[0] <= DENSE_LIMIT
    return states[0].dtype == torch.float64 or (small and _in_float32(*states))


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
        logprobs, _ = _tiled_logprobs(student, student_head, targets)
    return Comparison(divergence, entropy.detach(), logprobs)
