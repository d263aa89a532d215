"""Student against teacher on chosen tokens, without all logits in memory.

Dense: all logits at once; fast for small products of tokens and vocabulary, and exact in float64.
Tiled: TRL's kernels, which never hold the logits, and form them in float32 whatever the models'
precision: rounded to bfloat16 they would drown the divergence of two models that nearly agree.
Sliced, for what these kernels do not know: a few tokens at a time, in float32, formed again for the
backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from journeyman.agents.learning.losses.functions import (
    IMPOSSIBLE,
    checked,
    entropy_of,
    generalised_jsd,
    log_probabilities,
)
from journeyman.agents.networks.heads import DENSE_LIMIT, Head

VOCABULARY_TILE = 32_768

Measure = Callable[[Tensor, Tensor], Tensor]
"""Of a student's and a teacher's logits [N, V]: a value a token [N], in nats."""


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


def compare_by(
    measure: Measure,
    student: Tensor,
    student_head: Head,
    teacher: Tensor,
    teacher_head: Head,
    temperature: float = 1.0,
    targets: Tensor | None = None,
) -> Comparison:
    """Any divergence of next-token distributions; at most `DENSE_LIMIT` logits at once.

    Args:
        measure: Of logits that have been divided by the temperature.
        student: [N, H_s] hidden states, with gradient.
        student_head: Its head.
        teacher: [N, H_t] hidden states.
        teacher_head: Its head.
        temperature: Divides both logits before the divergence.
        targets: [N] chosen tokens, if their log-probabilities are wanted.
    """
    with torch.autocast(student.device.type, enabled=False):  # which would round logits
        ours, theirs = _exact(student_head, student), _exact(teacher_head, teacher)

        def piece(states: Tensor, others: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits = ours(states)
            with torch.no_grad():
                teacher_logits = theirs(others) / temperature
                entropy = entropy_of(logits / temperature)
            chosen = logits.new_zeros(tokens.shape)
            if targets is not None:
                chosen = log_probabilities(logits).gather(1, tokens)
            return measure(logits / temperature, teacher_logits), entropy, chosen

        none = student.new_zeros(len(student), 0, dtype=torch.long)
        tokens = none if targets is None else targets[:, None]
        if _is_dense(student_head, student, teacher):
            value, entropy, chosen = piece(student, teacher, tokens)
        else:
            size = max(1, DENSE_LIMIT // student_head.projection.weight.shape[0])
            parts = zip(student.split(size), teacher.split(size), tokens.split(size), strict=True)
            found = [checkpoint(piece, *part, use_reentrant=False) for part in parts]
            value, entropy, chosen = map(torch.cat, zip(*found, strict=True))
    return Comparison(checked(value), entropy, chosen[:, 0] if targets is not None else None)


def _exact(head: Head, states: Tensor) -> Callable[[Tensor], Tensor]:
    """From states [N, H] to logits [N, V], in float32 at least; weights are brought there once."""
    dtype = torch.promote_types(states.dtype, torch.float32)
    weight = head.projection.weight.to(dtype)
    bias: Tensor | None = head.projection.bias
    if bias is not None:
        bias = bias.to(dtype)
    return lambda some: _capped(nn.functional.linear(some.to(dtype), weight, bias), head)


def _capped(logits: Tensor, head: Head) -> Tensor:
    """What a projection gave, as logits."""
    logits = logits * head.scale
    return logits if head.cap is None else head.cap * torch.tanh(logits / head.cap)


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
        logp = log_probabilities(head.logits(states))
        entropy = -(logp.detach().exp() * logp.detach()).sum(-1)
        return logp.gather(1, targets[:, None])[:, 0], entropy
    return _tiled_logprobs(states, head, targets, ("entropy",))


def logprobs_of(states: Tensor, head: Head, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [N, K] of tokens ids [N, K] at states [N, H], with gradient."""
    if _is_dense(head, states):
        return log_probabilities(head.logits(states) / temperature).gather(1, ids)
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
            logits = logits + projection.bias[ids].float().clamp(min=IMPOSSIBLE)
    return _capped(logits, head)


def _bias(head: Head, temperature: float = 1.0) -> Tensor | None:
    """A projection's, finite: the kernels multiply what a model rules out by its probability.

    It stands for log 0 once it is scaled and divided by the temperature: a hundredth of it would
    not.
    """
    bias: Tensor | None = head.projection.bias
    return None if bias is None else bias.clamp(min=IMPOSSIBLE * max(1, temperature / head.scale))


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
            _bias(head, temperature),
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
        entropy = entropy_of(logits / temperature)
    divergence = generalised_jsd(logits / temperature, teacher_logits / temperature, beta)
    logprobs = None
    if targets is not None:
        logprobs = log_probabilities(logits).gather(1, targets[:, None])[:, 0]
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
        _bias(student_head, temperature),
        teacher,
        theirs.weight,
        _bias(teacher_head, temperature),
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
    return Comparison(checked(divergence), entropy.detach(), logprobs)
