"""A loss on spans of text: all that a teacher with another tokenizer can be asked about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from journeyman.agents.learning.losses.functions import clipped_policy_gradient
from journeyman.agents.learning.losses.loss import Loss, Predictions, TeacherView, check_number
from journeyman.agents.teachers import Detail


class SpanReverseKL(Loss):
    """KL(student || teacher) by the sampled span: `SampledReverseKL` with spans for tokens.

    Every token of a span has the advantage log p_teacher - log p_student of the whole span: the
    score function of a span is the sum over its tokens, so the gradient is that of the reverse KL
    between the two models' spans. Where each span is one token it is `SampledReverseKL`.
    """

    needs: ClassVar[Detail | None] = Detail.SPANS
    on_policy: ClassVar[bool] = True

    def __init__(self, clip: float = 0.2, most: float = 10.0) -> None:
        """Bound the steps.

        Args:
            clip: Ratios of a token beyond 1 - clip and 1 + clip give no more gradient; 0 clips
                nothing.
            most: Advantages of a span are kept within -most and most, in nats.
        """
        check_number("clip", clip, 0, 1)
        check_number("most", most, 1e-3, 1e6)
        self._clip = float(clip)
        self._most = float(most)

    def __call__(
        self, student: Predictions, teacher: TeacherView | None, batch: Mapping[str, Tensor]
    ) -> Tensor:
        """[N]; zero for tokens of no span."""
        assert teacher is not None and teacher.spans is not None  # `needs` saw to it
        sampled = batch["sampled_logprobs"]
        ratios = span_sums(teacher.logprobs - sampled, teacher.spans)
        advantages = ratios.clamp(-self._most, self._most).to(sampled.dtype)
        return clipped_policy_gradient(student.logprobs, sampled, advantages, self._clip)


def span_sums(values: Tensor, spans: Tensor) -> Tensor:
    """[N] sums of values [N] over the span of each, by their numbers [N]; 0 where that is -1."""
    places = spans + 1
    sums = values.new_zeros(int(places.max()) + 1 if len(places) else 1)
    sums = sums.index_add(0, places, values)
    sums[0] = 0
    return sums[places]
