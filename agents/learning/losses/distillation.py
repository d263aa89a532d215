"""Losses that move the student towards its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from journeyman.agents.learning.losses.functions import clipped_policy_gradient, top_k_reverse_kl
from journeyman.agents.learning.losses.loss import Loss, Predictions, TeacherView, check_number
from journeyman.agents.teachers import Detail

HOTTEST = 100.0


class JSD(Loss):
    """Generalised Jensen-Shannon divergence of whole distributions (GKD, arXiv:2306.13649)."""

    needs: ClassVar[Detail | None] = Detail.FULL

    def __init__(self, beta: float = 1.0, temperature: float = 1.0) -> None:
        """Choose the divergence.

        Args:
            beta: 0 is KL(teacher || student), 1 is KL(student || teacher).
            temperature: Divides both logits before the divergence.
        """
        check_number("beta", beta, 0, 1)
        check_number("temperature", temperature, 1e-3, HOTTEST)
        self._beta = float(beta)
        self._temperature = float(temperature)

    def __call__(
        self, student: Predictions, teacher: TeacherView | None, batch: Mapping[str, Tensor]
    ) -> Tensor:
        """[N], in nats."""
        assert teacher is not None and teacher.full is not None  # `needs` saw to it
        return student.divergence(teacher.full, self._beta, self._temperature)


class TopKReverseKL(Loss):
    """KL(student || teacher) over the teacher's most probable tokens and one bucket for the rest.

    With as many tokens as the vocabulary has it is the whole reverse KL; with fewer, a lower bound
    of it. What a served teacher can give (Revisiting On-Policy Distillation, arXiv:2603.25562).
    """

    needs: ClassVar[Detail | None] = Detail.TOP_K

    def __call__(
        self, student: Predictions, teacher: TeacherView | None, batch: Mapping[str, Tensor]
    ) -> Tensor:
        """[N], in nats."""
        assert teacher is not None and teacher.top is not None  # `needs` saw to it
        ours = student.logprobs_at(teacher.top.ids)
        return top_k_reverse_kl(ours, teacher.top.logprobs, teacher.top.tail)


class SampledReverseKL(Loss):
    """KL(student || teacher) by the sampled token alone, as a policy gradient.

    The advantage of a token is log p_teacher - log p_student when it was sampled; importance ratios
    carry it over the steps that a rollout is learned from, clipped as in PPO (Thinking Machines,
    On-Policy Distillation, 2025). Its gradient is that of the reverse KL; its value is not.
    """

    needs: ClassVar[Detail | None] = Detail.SAMPLED
    on_policy: ClassVar[bool] = True

    def __init__(self, clip: float = 0.2, most: float = 10.0) -> None:
        """Bound the steps.

        Args:
            clip: Ratios beyond 1 - clip and 1 + clip give no more gradient; 0 clips nothing.
            most: Advantages are kept within -most and most, in nats.
        """
        check_number("clip", clip, 0, 1)
        check_number("most", most, 1e-3, 1e6)
        self._clip = float(clip)
        self._most = float(most)

    def __call__(
        self, student: Predictions, teacher: TeacherView | None, batch: Mapping[str, Tensor]
    ) -> Tensor:
        """[N]."""
        assert teacher is not None  # `needs` saw to it
        sampled = batch["sampled_logprobs"]
        advantages = (teacher.logprobs - sampled).clamp(-self._most, self._most)
        return clipped_policy_gradient(student.logprobs, sampled, advantages, self._clip)


class NoLoss(Loss):
    """`loss=none`: nothing to distil; what is learned comes from advantages alone."""

    needs: ClassVar[Detail | None] = None

    def __call__(
        self, student: Predictions, teacher: TeacherView | None, batch: Mapping[str, Tensor]
    ) -> Tensor:
        """[N] zeros."""
        return torch.zeros(len(student.targets), device=student.states.device)
