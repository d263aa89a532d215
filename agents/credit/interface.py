"""What a credit algorithm is: what it is given, what it gives, and what it may keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from journeyman.agents.networks.reading import step_states
from journeyman.agents.rollouts.job import Job
from journeyman.agents.search.evidence import Evidence
from journeyman.agents.students.player import Trainable
from journeyman.agents.teachers import Annotations
from journeyman.agents.teachers.scoring import EpisodeScores, score_episodes
from journeyman.envs import Episode


@dataclass(frozen=True)
class Experience:
    """A batch of episodes, and what may be asked about them; nothing is computed before it is."""

    episodes: Sequence[Episode]
    evidence: Sequence[Sequence[Evidence | None]] | None = None
    """What a search knows of each step of each episode; None without a search."""
    annotations: Annotations | None = None
    """What the teacher says of the episodes, if there is one."""
    student: PreTrainedModel | None = None
    """The network that played the episodes, in evaluation mode."""
    step: int = 0
    """Optimiser steps of the run before these episodes: the same after a resume."""
    figures: dict[str, float] = field(default_factory=dict)
    """What a credit has to log of this batch."""
    job: Job = Job()  # noqa: RUF009 - frozen
    """Its processes have the other episodes of the rollout: what is said of a whole batch, and what
    is learned from it, is shared with them (`job.share`, in every process)."""

    @cached_property
    def scores(self) -> list[EpisodeScores]:
        """The teacher's view of each episode.

        Raises:
            ValueError: There is no teacher.
        """
        if self.annotations is None or not self.annotations.taught:
            raise ValueError("this credit reads teacher scores and was given no teacher")
        return score_episodes(self.annotations, self.episodes)

    @cached_property
    def states(self) -> list[Tensor]:
        """[S, H] of each episode: the student's last hidden state before each of its S steps.

        Raises:
            ValueError: There is no student.
        """
        return step_states(self.network, self.episodes)

    @property
    def network(self) -> PreTrainedModel:
        """The student.

        Raises:
            ValueError: There is none.
        """
        if self.student is None:
            raise ValueError("this credit reads the student's network and was given no student")
        return self.student


@dataclass(frozen=True)
class TokenCredit:
    """One episode's credit."""

    weights: Tensor
    """[T] factors of the divergence."""
    advantages: Tensor
    """[T] advantages of the sampled tokens; 0 means no policy-gradient term."""
    grades: tuple[float, ...] | None = None
    """[S] what a judge gave each step; None if none was asked."""


class Credit(ABC):
    """A credit algorithm."""

    needs_search: bool = False
    """True if it reads evidence: a run without a search is refused."""
    needs_teacher: bool = False
    """True if it reads teacher scores: a run without a teacher is refused."""

    @abstractmethod
    def assign(self, experience: Experience) -> list[TokenCredit]:
        """Credit of each episode of one batch; figures go to `experience.figures`."""

    def check(self, student: Trainable) -> None:  # noqa: B027 - most have nothing to check
        """See, before anything is played, whether what it needs is there and goes with the student.

        Raises:
            AgentError: It is not, or does not.
        """

    def learn(self, experience: Experience) -> None:  # noqa: B027 - most learn nothing
        """Get better by a batch whose credit has been assigned; called in training only.

        What learns here and not in `assign` cannot let an episode's outcome into its own credit.
        """

    def state_dict(self) -> dict[str, Any]:
        """What was learned, for checkpoints: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError: The state is another algorithm's.
        """
        if state:
            raise ValueError(f"{type(self).__name__} learns nothing and was given {sorted(state)}")


class OnBase(Credit):
    """A credit that changes what another one gives: what that needs and learns is the other's."""

    def __init__(self, base: Credit) -> None:
        """Stand on `base`."""
        self._base = base
        self.needs_search = type(self).needs_search or base.needs_search
        self.needs_teacher = type(self).needs_teacher or base.needs_teacher

    def check(self, student: Trainable) -> None:
        """See `Credit.check`: the base does."""
        self._base.check(student)

    def learn(self, experience: Experience) -> None:
        """The base learns."""
        self._base.learn(experience)

    def state_dict(self) -> dict[str, Any]:
        """The base's."""
        return self._base.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The base's."""
        self._base.load_state_dict(state)


def spread(episode: Episode, weights: Tensor, advantages: Tensor) -> TokenCredit:
    """Give each step's weight and advantage to all its tokens.

    Args:
        episode: Of S steps and T tokens.
        weights: [S].
        advantages: [S].
    """
    token_weights, token_advantages = torch.zeros(2, len(episode.tokens)).unbind()
    for step, weight, advantage in zip(episode.steps, weights, advantages, strict=True):
        token_weights[step.span[0] : step.span[1]] = weight
        token_advantages[step.span[0] : step.span[1]] = advantage
    return TokenCredit(token_weights, token_advantages)
