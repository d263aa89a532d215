"""What of an episode the student plays, and how that changes over a run.

Everything here is a function of the optimiser step and of a row's seed, so that a run that was
killed goes on as it would have. What counts how much is not decided here but by the credit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from journeyman.agents.errors import SettingError
from journeyman.agents.learning.losses.loss import check_number

_BEGINS = 5
"""Beside a row's seed: whether it begins inside an earlier episode."""


@dataclass(frozen=True)
class Curriculum:
    """Teacher turns that fade, episodes that get longer, and beginnings in the middle.

    By default there is nothing of it: the student plays whole episodes.
    """

    guidance: float = 0.0
    """Chance of a turn of the first rollout to be the teacher's (Guided-OPD, arXiv:2606.15912)."""
    guidance_steps: int = 100
    """Optimiser steps in which that fades to 0, linearly."""
    turns: int = 0
    """Turns that an episode of the first rollout may have (TurnOPD, arXiv:2607.05804); 0: all that
    its environment allows."""
    turns_every: int = 2
    """Optimiser steps after which an episode may have a turn more."""
    replay: float = 0.0
    """Chance of a row to begin inside an episode of an earlier rollout (ReOPD, arXiv:2607.04763).
    """
    replay_kept: int = 256
    """Episodes that such rows begin in: the latest."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            SettingError: Naming the value and what was expected.
        """
        for name in ("guidance", "replay"):
            check_number(name, getattr(self, name), 0, 1)
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise SettingError(f"{name}={value}: expected a whole number, {least} or more")

    @property
    def changes(self) -> list[str]:
        """The settings by which the student does not play whole episodes alone."""
        return [name for name in ("guidance", "turns", "replay") if getattr(self, name)]

    def guided(self, step: int) -> float:
        """Chance of a turn to be the teacher's in a rollout after so many optimiser steps."""
        return self.guidance * max(0.0, 1 - step / self.guidance_steps)

    def most_turns(self, step: int) -> int | None:
        """Turns that an episode may have in a rollout after so many optimiser steps."""
        return self.turns + step // self.turns_every if self.turns else None

    def replays(self, seed: int) -> bool:
        """Whether the row of this seed begins inside an earlier episode."""
        return bool(np.random.default_rng((seed, _BEGINS)).random() < self.replay)


_COUNTS = {"guidance_steps": 1, "turns": 0, "turns_every": 1, "replay_kept": 1}
"""The least of each."""
