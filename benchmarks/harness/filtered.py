"""A control that no preset has: what succeeded is imitated, and nothing else is learned from."""

from __future__ import annotations

import torch

from journeyman.agents.credit import Outcome
from journeyman.agents.credit.interface import Experience, TokenCredit, spread


class Successes(Outcome):
    """Success-filtered supervised training on the student's own episodes, rollout by rollout.

    Every token of an episode that solved its task has the same advantage, every other none. The
    policy gradient is then that of the likelihood of what succeeded: rejection sampling with a
    fresh sample each rollout (STaR, arXiv:2203.14465; RFT, arXiv:2308.01825).
    """

    def assign(self, experience: Experience) -> list[TokenCredit]:
        """Advantages of mean 1 over the episodes; 0 where none succeeded."""
        won = [float(episode.success) for episode in experience.episodes]
        share = sum(won) / max(len(won), 1)
        return [
            spread(
                episode,
                torch.full((len(episode.steps),), self.weight),
                torch.full((len(episode.steps),), self.scale * one / share if share else 0.0),
            )
            for episode, one in zip(experience.episodes, won, strict=True)
        ]


FILTERED = (
    *("teacher=none", "loss=none", "credit=outcome", "credit.weight=0"),
    f"credit._target_={__name__}.{Successes.__name__}",
    "trainer.kl=0",  # it imitates: nothing is pushed away that would have to be held
)
"""For `journeyman train`."""
