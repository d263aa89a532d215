"""Which steps deserve how much: token weights and advantages.

One algorithm is one small class (`interface.py` says what it is given and gives) and one file in
`conf/credit/`. The trainer multiplies each token's divergence by its weight and adds a
policy-gradient term with its advantage. `episodes.py` needs episodes and teacher scores alone;
`annealed.py` shares them out anew over a run; `learned.py` reads the student's network; `judge.py`
asks a chat model; `trees.py` adds what a search has measured, `progress.py` what a second model
says.
"""

from journeyman.agents.credit.annealed import Annealed
from journeyman.agents.credit.episodes import (
    GrowingHorizon,
    Outcome,
    StepDecay,
    Trace,
    Uniform,
)
from journeyman.agents.credit.interface import Credit, Experience, TokenCredit
from journeyman.agents.credit.judge import Judge
from journeyman.agents.credit.learned import GAE, Attention, Critic
from journeyman.agents.credit.progress import ProgressAdvantage

__all__ = [
    "GAE",
    "Annealed",
    "Attention",
    "Credit",
    "Critic",
    "Experience",
    "GrowingHorizon",
    "Judge",
    "Outcome",
    "ProgressAdvantage",
    "StepDecay",
    "TokenCredit",
    "Trace",
    "Uniform",
]
