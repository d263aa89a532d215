"""Losses that move the student towards its teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from journeyman.agents.learning.losses.functions import (
    clipped_policy_gradient,
    entropy_aware_kl,
    most_important,
    skewed_kl,
    top_k_reverse_kl,
)
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


class SkewedKL(Loss):
    """KL to a mixture that holds a little of the distribution itself (DistiLLM, arXiv:2402.03898).

    KL(p || alpha p + (1 - alpha) q), p the teacher and q the student; reversed, p the student and
    q the teacher. It is at most log(1 / alpha) where one of the two rules out what the other says.
    """

    needs: ClassVar[Detail | None] = Detail.FULL

    def __init__(self, alpha: float = 0.1, reverse: bool = False, temperature: float = 1.0) -> None:
        """Choose the divergence.

        Args:
            alpha: Share of p in the mixture; 0 is KL(p || q), 0.1 the paper's.
            reverse: p is the student.
            temperature: Divides both logits before the divergence.
        """
        check_number("alpha", alpha, 0, 0.999)
        check_number("temperature", temperature, 1e-3, HOTTEST)
        self._alpha = float(alpha)
        self._reverse = reverse
        self._temperature = float(temperature)

    def __call__(
        self, student: Predictions, teacher: TeacherView | None, batch: Mapping[str, Tensor]
    ) -> Tensor:
        """[N], in nats."""
        assert teacher is not None and teacher.full is not None  # `needs` saw to it
        return student.measured(self._of, teacher.full, self._temperature)

    def _of(self, student: Tensor, teacher: Tensor) -> Tensor:
        first, second = (student, teacher) if self._reverse else (teacher, student)
        return skewed_kl(first, second, self._alpha)


class EntropyAwareKL(Loss):
    """Reverse KL, joined by forward KL where the teacher is unsure (EOPD, arXiv:2603.07079).

    KL(student || teacher) + weight * KL(teacher || student) where the teacher's entropy is above
    the threshold. The paper's own code estimates the first by the sampled token and the second
    over the teacher's 16 most probable ones; here both are whole.
    """

    needs: ClassVar[Detail | None] = Detail.FULL

    def __init__(self, threshold: float = 0.8, weight: float = 1.0) -> None:
        """Say when a teacher is unsure; the defaults are the paper's.

        Args:
            threshold: Entropy, in nats.
            weight: Of the forward divergence (the paper's alpha).
        """
        check_number("threshold", threshold, 0, 1e6)
        check_number("weight", weight, 0, 1e6)
        self._measure = partial(entropy_aware_kl, threshold=threshold, weight=weight)

    def __call__(
        self, student: Predictions, teacher: TeacherView | None, batch: Mapping[str, Tensor]
    ) -> Tensor:
        """[N], in nats."""
        assert teacher is not None and teacher.full is not None  # `needs` saw to it
        return student.measured(self._measure, teacher.full, 1.0)


class ImportantTokens(JSD):
    """A divergence of the most important tokens alone (TIP, arXiv:2604.14084).

    Important is where the student is unsure or far from the teacher, see `most_important`. The
    mean is over the tokens kept, as in the paper: their values are multiplied by N / ceil(share N).
    N are the chosen tokens of the microbatch that have a weight: one that the teacher is silent of,
    or that lies beyond a horizon, takes no place of another.
    """

    def __init__(self, share: float = 0.5, beta: float = 1.0, temperature: float = 1.0) -> None:
        """Choose the share and the divergence.

        Args:
            share: Of the tokens that are kept (the paper's rho).
            beta: See `JSD`; the paper's is the reverse KL.
            temperature: See `JSD`.
        """
        super().__init__(beta, temperature)
        check_number("share", share, 1e-3, 1)
        self._share = float(share)

    def __call__(
        self, student: Predictions, teacher: TeacherView | None, batch: Mapping[str, Tensor]
    ) -> Tensor:
        """[N], 0 for tokens that are left out."""
        values = super().__call__(student, teacher, batch)
        (weighing,) = batch["weights"].nonzero(as_tuple=True)
        if not len(weighing):
            return 0 * values
        count = math.ceil(self._share * len(weighing))
        best = most_important(student.entropy[weighing], values.detach()[weighing], count)
        kept = torch.zeros_like(values).index_fill(0, weighing[best], 1.0)
        return values * kept * (len(weighing) / count)


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
        ratios = self._ratios(teacher, sampled)
        advantages = ratios.clamp(-self._most, self._most).to(sampled.dtype)
        return clipped_policy_gradient(student.logprobs, sampled, advantages, self._clip)

    def _ratios(self, teacher: TeacherView, sampled: Tensor) -> Tensor:
        """[N] log p_teacher - log p_student of what each token is judged by, in nats."""
        return teacher.logprobs - sampled


class NoLoss(Loss):
    """`loss=none`: nothing to distil; what is learned comes from advantages alone."""

    needs: ClassVar[Detail | None] = None

    def __call__(
        self, student: Predictions, teacher: TeacherView | None, batch: Mapping[str, Tensor]
    ) -> Tensor:
        """[N] zeros."""
        return torch.zeros(len(student.targets), device=student.states.device)
