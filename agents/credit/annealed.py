"""From distillation to reinforcement over a run."""

from __future__ import annotations

from dataclasses import replace

from journeyman.agents.credit.interface import Credit, Experience, OnBase, TokenCredit
from journeyman.agents.errors import SettingError


class Annealed(OnBase):
    """ATOD's schedule: the teacher leads at first, the reward in the end (arXiv:2606.27814).

    Of another credit, weights of the divergence are multiplied by 1 - r and advantages by r. The
    reward's share r goes from `first` to `last` in `steps` optimiser steps, linearly, and stays.
    The paper also weighs turns by disagreement and uncertainty; that is not here.
    """

    def __init__(
        self, base: Credit, first: float = 0.0, last: float = 1.0, steps: int = 100
    ) -> None:
        """Set the pace.

        Args:
            base: Gives the weights and advantages; it must give both.
            first: The reward's share in the first rollout, 0 to 1.
            last: Its share in the end, 0 to 1.
            steps: Optimiser steps from the one to the other.

        Raises:
            SettingError: A number is out of its range.
        """
        for name, share in (("first", first), ("last", last)):
            number = isinstance(share, int | float) and not isinstance(share, bool)
            if not number or not 0 <= share <= 1:
                raise SettingError(f"{name}={share}: expected 0 to 1, the reward's share")
        if type(steps) is not int or steps < 1:
            raise SettingError(f"steps={steps}: expected a whole number, 1 or more")
        super().__init__(base)
        self._first, self._last, self._steps = first, last, steps

    def share(self, step: int) -> float:
        """The reward's, in a rollout after so many optimiser steps."""
        return self._first + (self._last - self._first) * min(1.0, step / self._steps)

    def assign(self, experience: Experience) -> list[TokenCredit]:
        """The base's, each part by its share."""
        reward = experience.figures["reward_share"] = self.share(experience.step)
        return [
            replace(it, weights=(1 - reward) * it.weights, advantages=reward * it.advantages)
            for it in self._base.assign(experience)
        ]
