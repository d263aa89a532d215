"""What is minimised: one class a loss, one file each in `conf/loss/`.

`loss.py` says what a loss is given and gives; `functions.py` are the formulas on plain tensors;
`divergence.py` computes on a student's states without holding all its logits.
"""

from journeyman.agents.learning.losses.distillation import (
    JSD,
    EntropyAwareKL,
    ImportantTokens,
    NoLoss,
    SampledReverseKL,
    SkewedKL,
    TopKReverseKL,
)
from journeyman.agents.learning.losses.loss import Loss, Predictions, TeacherView
from journeyman.agents.learning.losses.span import SpanReverseKL

__all__ = [
    "JSD",
    "EntropyAwareKL",
    "ImportantTokens",
    "Loss",
    "NoLoss",
    "Predictions",
    "SampledReverseKL",
    "SkewedKL",
    "SpanReverseKL",
    "TeacherView",
    "TopKReverseKL",
]
