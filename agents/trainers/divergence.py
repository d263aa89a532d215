"""Student against teacher on chosen tokens: one function, two ways to compute it.

Dense: all logits at once, in the model's own precision; fast for small products of tokens and
vocabulary, and exact in float64. Tiled: TRL's kernels, which never hold the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from journeyman.agents.losses import generalised_jsd

DENSE_LIMIT = 1 << 24
"""Most logits (tokens times vocabulary) computed at once."""
VOCABULARY_TILE = 32_768


@dataclass(frozen=True)
class Head:
    """A model's way from hidden states to logits."""

    projection: nn.Linear
    """Linear, without or with bias."""
    scale: float = 1.0
    """Factor of the logits (Cohere, Granite, Falcon-H1)."""
    cap: float | None = None
    """Soft cap: cap * tanh(logits / cap) (Gemma)."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """The head of a model, read from its configuration."""
        config = model.config.get_text_config()
        cap = getattr(config, "final_logit_softcapping", None)
        projection = model.get_output_embeddings()
        for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
            if (scale := getattr(config, name, None)) is not None:
                return cls(projection, float(scale), cap)
        if (divisor := getattr(config, "logits_scaling", None)) is not None:
            scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
            return cls(projection, float(scale), cap)
        return cls(projection, cap=cap)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, H]."""
        logits: Tensor = self.projection(hidden) * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


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
    run = _dense if small or student.dtype == torch.float64 else _tiled
    return run(student, student_head, teacher, teacher_head, beta, temperature, targets)


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
