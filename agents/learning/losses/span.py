"""A loss on spans of text: all that a teacher with another tokenizer can be asked about."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from journeyman.agents.learning.losses.distillation import SampledReverseKL
from journeyman.agents.learning.losses.loss import TeacherView
from journeyman.agents.teachers import Detail


class SpanReverseKL(SampledReverseKL):
    """KL(student || teacher) by the sampled span: `SampledReverseKL` with spans for tokens.

    Every token of a span has the advantage log p_teacher - log p_student of the whole span: the
    score function of a span is the sum over its tokens, so the gradient is that of the reverse KL
    between the two models' spans. Where each span is one token it is `SampledReverseKL`. Ratios are
    clipped token by token, advantages span by span; tokens of no span have a value of zero.
    """

    needs: ClassVar[Detail | None] = Detail.SPANS

    def _ratios(self, teacher: TeacherView, sampled: Tensor) -> Tensor:
        assert teacher.spans is not None  # `needs` saw to it
        return span_sums(teacher.logprobs - sampled, teacher.spans)


def span_sums(values: Tensor, spans: Tensor) -> Tensor:
    """[N] sums of values [N] over the span of each, by their numbers [N]; 0 where that is -1."""
    places = spans + 1
    sums = values.new_zeros(int(places.max()) + 1 if len(places) else 1)
    sums = sums.index_add(0, places, values)
    sums[0] = 0
    return sums[places]
