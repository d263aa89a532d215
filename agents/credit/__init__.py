"""Which steps deserve how much: token weights and advantages, from scores or from step values.

`episodes.py` needs episodes and teacher scores alone; `steps.py` joins them with the values that a
search has measured.
"""

from journeyman.agents.credit.episodes import (
    Credit,
    Outcome,
    StepDecay,
    TokenCredit,
    Trace,
    Uniform,
)
from journeyman.agents.credit.steps import (
    StepSignals,
    additive,
    criticality,
    gated,
    policy_target,
    reliability,
    step_signals,
    target_cross_entropy,
)

__all__ = [
    "Credit",
    "Outcome",
    "StepDecay",
    "StepSignals",
    "TokenCredit",
    "Trace",
    "Uniform",
    "additive",
    "criticality",
    "gated",
    "policy_target",
    "reliability",
    "step_signals",
    "target_cross_entropy",
]
