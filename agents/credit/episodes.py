"""From episodes and teacher scores to token weights and advantages.

One algorithm is one small class with one method, and one file in `conf/credit/`. The trainer
multiplies each token's divergence by its weight and adds a policy-gradient term with its advantage.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from journeyman.agents.scoring import EpisodeScores
from journeyman.envs import Episode, StopReason


@dataclass(frozen=True)
class TokenCredit:
    """One episode's credit."""

    weights: Tensor
    """[T] factors of the divergence."""
    advantages: Tensor
    """[T] advantages of the sampled tokens; 0 means no policy-gradient term."""


class Credit(Protocol):
    """A credit algorithm."""

    needs_scores: bool
    """True if it reads teacher scores; the trainer scores episodes only then."""

    def assign(
        self, episodes: Sequence[Episode], scores: Sequence[EpisodeScores] | None
    ) -> list[TokenCredit]:
        """Credit of each episode of one batch."""


class Uniform:
    """Plain on-policy distillation: every token counts the same."""

    needs_scores = False

    def assign(
        self, episodes: Sequence[Episode], scores: Sequence[EpisodeScores] | None
    ) -> list[TokenCredit]:
        """Weights 1, advantages 0."""
        return [_constant(e, torch.ones(len(e.steps)), torch.zeros(len(e.steps))) for e in episodes]


class StepDecay:
    """SOD: steps far from the teacher, compared with the first, weigh less (arXiv:2605.07725).

    w_k = min((d_1 + eps) / (d_k + eps), 1 + delta), with d_k the mean |log ratio| of step k.
    """

    needs_scores = True

    def __init__(self, delta: float = 0.5, epsilon: float = 1e-3) -> None:
        """Cap the weight at 1 + `delta`; `epsilon`, in nats, keeps the ratio finite."""
        self.delta = delta
        self.epsilon = epsilon

    def assign(
        self, episodes: Sequence[Episode], scores: Sequence[EpisodeScores] | None
    ) -> list[TokenCredit]:
        """Weights by distance; advantages 0."""
        if scores is None:
            raise ValueError("StepDecay weighs steps by teacher scores and was given none")
        return [
            _constant(e, self._weights(s), torch.zeros(len(e.steps)))
            for e, s in zip(episodes, scores, strict=True)
        ]

    def _weights(self, scores: EpisodeScores) -> Tensor:
        distance = torch.tensor(scores.steps) + self.epsilon
        return (distance[:1] / distance).clamp(max=1 + self.delta)


class Trace:
    """Tokens weigh by how likely the teacher itself would have written what stands before them.

    w_t is the product of decay * min(1, p_teacher(x_s) / p_student(x_s)) over the tokens s < t of
    the same turn: the traces of Retrace (Munos et al. 2016, arXiv:1606.02647). A teacher can tell
    how to go on once the tools have answered a wrong call; but in the middle of a call that it
    would never have begun, what it says is noise. So the first wrong token of a turn counts in
    full, the rest of that turn next to nothing, and the next turn in full again.
    """

    needs_scores = True

    def __init__(self, decay: float = 1.0) -> None:
        """`decay`, above 0 and at most 1, is Retrace's lambda."""
        if not 0 < decay <= 1:
            raise ValueError(f"decay={decay}: expected above 0 and at most 1")
        self.decay = decay

    def assign(
        self, episodes: Sequence[Episode], scores: Sequence[EpisodeScores] | None
    ) -> list[TokenCredit]:
        """Weights by trace; advantages 0."""
        if scores is None:
            raise ValueError("Trace weighs tokens by teacher scores and was given none")
        credit = []
        for episode, score in zip(episodes, scores, strict=True):
            weights = torch.zeros(len(episode.tokens))
            for step in episode.steps:
                start, end = step.span
                factors = score.log_ratio[start : end - 1].clamp(max=0) + math.log(self.decay)
                weights[start] = 1
                weights[start + 1 : end] = factors.cumsum(0).exp()
            credit.append(TokenCredit(weights, torch.zeros(len(episode.tokens))))
        return credit


class Outcome:
    """Distillation plus reinforcement: every step of an episode gets the episode's advantage.

    Rewards are compared with the mean of their environment in the batch: the outcome broadcast of
    REINFORCE with a batch baseline.
    """

    needs_scores = False

    def __init__(self, scale: float = 1.0, weight: float = 1.0) -> None:
        """`scale` multiplies advantages; `weight` the divergence (0: no teacher at all)."""
        self.scale = scale
        self.weight = weight

    def assign(
        self, episodes: Sequence[Episode], scores: Sequence[EpisodeScores] | None
    ) -> list[TokenCredit]:
        """Constant weights; advantages from the outcome."""
        rewards: dict[str, list[float]] = defaultdict(list)
        for episode in episodes:
            if episode.stop is not StopReason.INFRA_ERROR:
                rewards[episode.env_id].append(episode.reward)
        credit = []
        for episode in episodes:
            known = rewards[episode.env_id] or [0.0]
            advantage = self.scale * (episode.reward - sum(known) / len(known))
            count = len(episode.steps)
            credit.append(
                _constant(
                    episode, torch.full((count,), self.weight), torch.full((count,), advantage)
                )
            )
        return credit


def _constant(episode: Episode, weights: Tensor, advantages: Tensor) -> TokenCredit:
    """Spread per-step values [S] over the steps' tokens."""
    token_weights, token_advantages = torch.zeros(2, len(episode.tokens)).unbind()
    for step, weight, advantage in zip(episode.steps, weights, advantages, strict=True):
        token_weights[step.span[0] : step.span[1]] = weight
        token_advantages[step.span[0] : step.span[1]] = advantage
    return TokenCredit(token_weights, token_advantages)
