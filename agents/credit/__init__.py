"""Which steps deserve how much: token weights and advantages.

`episodes.py` needs episodes and teacher scores alone; `trees.py` adds what a search has measured.
"""

from journeyman.agents.credit.episodes import (
    Credit,
    Outcome,
    StepDecay,
    TokenCredit,
    Trace,
    Uniform,
)

__all__ = ["Credit", "Outcome", "StepDecay", "TokenCredit", "Trace", "Uniform"]
