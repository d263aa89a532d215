"""How full the places of a rollout are: what `journeyman.agents.rollouts.rollout` can count."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Occupancy:
    """How many places of a rollout were taken, counted at each `Stream.advance`."""

    ticks: int = 0
    """How often the player was asked to go on."""
    taken: int = 0
    """Places taken, summed over the ticks."""
    places: int = 0
    """Places that there were, summed over the ticks."""
    early_taken: int = 0
    """The same of the ticks before the last task had begun."""
    early_places: int = 0

    def note(self, taken: int, places: int, more: bool) -> None:
        """Count a tick.

        Args:
            taken: Episodes under way.
            places: That there are.
            more: Tasks are left to begin.
        """
        self.ticks += 1
        self.taken += taken
        self.places += places
        if more:
            self.early_taken += taken
            self.early_places += places

    @property
    def share(self) -> float:
        """Mean share of places taken while there were tasks left to begin; NaN of no such tick."""
        return self.early_taken / self.early_places if self.early_places else math.nan

    @property
    def overall(self) -> float:
        """The same to the end of the last episode, when places stay empty."""
        return self.taken / self.places if self.places else math.nan
