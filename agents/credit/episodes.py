"""Token weights and advantages from episodes and teacher scores alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from journeyman.agents.credit.interface import Credit, Experience, TokenCredit, spread
from journeyman.agents.errors import SettingError
from journeyman.agents.rollouts.job import Job
from journeyman.agents.teachers.scoring import EpisodeScores
from journeyman.envs import Episode, StopReason


class Uniform(Credit):
    """Every token counts the same; by default that is plain on-policy distillation.

    With a weight of 0 and a negative advantage it is a control: as much pressure on what the
    student says, and nothing of any teacher in it (arXiv:2608.31046).
    """

    def __init__(self, weight: float = 1.0, advantage: float = 0.0) -> None:
        """`weight` of the divergence and `advantage` of every token."""
        self.weight = weight
        self.advantage = advantage

    def assign(self, experience: Experience) -> list[TokenCredit]:
        """Constant weights and advantages."""
        return [
            spread(
                e,
                torch.full((len(e.steps),), self.weight),
                torch.full((len(e.steps),), self.advantage),
            )
            for e in experience.episodes
        ]


class GrowingHorizon(Credit):
    """TCOD, front to back: only the first turns of an episode are learned from (arXiv:2604.24005).

    Their number is start + floor(n / every) at the n-th optimiser step, n = 1, 2, …: errors add up
    over turns, and a teacher's word is worth little where the student has strayed far. The paper
    also ends rollouts there; here they are played to the end, and figures are of whole episodes.
    """

    def __init__(self, start: int = 1, every: int = 2) -> None:
        """Set the pace.

        Args:
            start: Turns before it grows (the paper's k_start).
            every: Steps in which it grows by a turn (the paper's eta).
        """
        for name, value in (("start", start), ("every", every)):
            if type(value) is not int or value < 1:
                raise SettingError(f"{name}={value}: expected a whole number, 1 or more")
        self.start = start
        self.every = every

    def assign(self, experience: Experience) -> list[TokenCredit]:
        """Weights 1 within the horizon and 0 beyond; advantages 0."""
        horizon = self.start + (experience.step + 1) // self.every
        experience.figures["horizon"] = float(horizon)
        credit = []
        for episode in experience.episodes:
            turns = torch.arange(len(episode.steps))
            credit.append(spread(episode, (turns < horizon).float(), torch.zeros(len(turns))))
        return credit


class StepDecay(Credit):
    """SOD: steps far from the teacher, compared with the first, weigh less (arXiv:2605.07725).

    w_k = min((d_1 + eps) / (d_k + eps), 1 + delta), with d_k the mean |log ratio| of step k; d_1 is
    that of the first step that the student chose (after a fork, not the episode's first).
    """

    needs_teacher = True

    def __init__(self, delta: float = 0.5, epsilon: float = 1e-3) -> None:
        """Cap the weight at 1 + `delta`; `epsilon`, in nats, keeps the ratio finite."""
        self.delta = delta
        self.epsilon = epsilon

    def assign(self, experience: Experience) -> list[TokenCredit]:
        """Weights by distance; advantages 0."""
        return [
            spread(e, self._weights(e, s), torch.zeros(len(e.steps)))
            for e, s in zip(experience.episodes, experience.scores, strict=True)
        ]

    def _weights(self, episode: Episode, scores: EpisodeScores) -> Tensor:
        distance = torch.tensor(scores.steps) + self.epsilon
        own = (k for k, step in enumerate(episode.steps) if any(episode.mask[slice(*step.span)]))
        first = next(own, 0)
        return (distance[first : first + 1] / distance).clamp(max=1 + self.delta)


class Trace(Credit):
    """Tokens weigh by how likely the teacher itself would have written what stands before them.

    w_t is the product of decay * min(1, p_teacher(x_s) / p_student(x_s)) over the tokens s < t of
    the same turn: the traces of Retrace (Munos et al. 2016, arXiv:1606.02647). A teacher can tell
    how to go on once the tools have answered a wrong call; but in the middle of a call that it
    would never have begun, what it says is noise. So the first wrong token of a turn counts in
    full, the rest of that turn next to nothing, and the next turn in full again.
    """

    needs_teacher = True

    def __init__(self, decay: float = 1.0) -> None:
        """`decay`, above 0 and at most 1, is Retrace's lambda."""
        if not 0 < decay <= 1:
            raise SettingError(f"decay={decay}: expected above 0 and at most 1")
        self.decay = decay

    def assign(self, experience: Experience) -> list[TokenCredit]:
        """Weights by trace; advantages 0."""
        credit = []
        for episode, score in zip(experience.episodes, experience.scores, strict=True):
            weights = torch.zeros(len(episode.tokens))
            for step in episode.steps:
                start, end = step.span
                factors = score.log_ratio[start : end - 1].clamp(max=0) + math.log(self.decay)
                weights[start] = 1
                weights[start + 1 : end] = factors.cumsum(0).exp()
            credit.append(TokenCredit(weights, torch.zeros(len(episode.tokens))))
        return credit


class Outcome(Credit):
    """Distillation plus reinforcement: every step of an episode gets the episode's advantage.

    Rewards are compared with the mean of their environment in the batch: the outcome broadcast of
    REINFORCE with a batch baseline.
    """

    def __init__(self, scale: float = 1.0, weight: float = 1.0) -> None:
        """`scale` multiplies advantages; `weight` the divergence (0: no teacher at all)."""
        self.scale = scale
        self.weight = weight

    def assign(self, experience: Experience) -> list[TokenCredit]:
        """Constant weights; advantages from the outcome."""
        credit = []
        advantages = outcome_advantages(experience.episodes, experience.job)
        for episode, advantage in zip(experience.episodes, advantages, strict=True):
            count = len(episode.steps)
            credit.append(
                spread(
                    episode,
                    torch.full((count,), self.weight),
                    torch.full((count,), self.scale * advantage),
                )
            )
        return credit


def outcome_advantages(
    episodes: Sequence[Episode],
    job: Job = Job(),  # noqa: B008 - frozen
) -> list[float]:
    """Each episode's reward less the mean of its environment's in the batch, that of all processes.

    Episodes that broke count for nothing in the mean; what is returned for them means nothing.
    """
    sound = [(e.env_id, e.reward) for e in episodes if e.stop is not StopReason.INFRA_ERROR]
    rewards: dict[str, list[float]] = defaultdict(list)
    for env_id, reward in job.share(sound):
        rewards[env_id].append(reward)
    means = {env_id: sum(known) / len(known) for env_id, known in rewards.items()}
    return [episode.reward - means.get(episode.env_id, 0.0) for episode in episodes]
