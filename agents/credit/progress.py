"""What reinforcement has taught a teacher of each step, as the step's advantage."""

from __future__ import annotations

import torch

from journeyman.agents.credit.interface import Credit, Experience, TokenCredit, spread
from journeyman.agents.errors import SettingError
from journeyman.agents.students.player import Trainable
from journeyman.agents.teachers import Annotations, Teacher
from journeyman.envs import Episode, StopReason


class ProgressAdvantage(Credit):
    """Log-ratio of a reinforced teacher to the model that it was before (arXiv:2606.26080).

    A policy that maximises reward within a KL of its reference is the reference times
    exp(A / beta): so beta times the log-ratio of a whole turn is the turn's advantage, with no
    search and no critic. The teacher of the run is the reinforced one.
    """

    needs_teacher = True

    def __init__(self, reference: Teacher, scale: float = 0.1, most: float = 1.0) -> None:
        """Compare with the model before its reinforcement.

        Args:
            reference: That model; it reads each row once a rollout.
            scale: Beta of the teacher's own reinforcement, in units of reward a nat.
            most: Bound of an advantage, either way: a turn that one of the two finds impossible
                would outweigh all others.

        Raises:
            SettingError: A number is not above zero.
        """
        for name, value in (("scale", scale), ("most", most)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < float("inf"):
                raise SettingError(f"{name}={value}: expected a number above 0")
        self._reference = reference
        self._scale, self._most = scale, most

    def check(self, student: Trainable) -> None:
        """See `Credit.check`: a token must mean the same to the reference, too."""
        self._reference.check(student)

    def assign(self, experience: Experience) -> list[TokenCredit]:
        """Weights 0; the advantage of a step is that of each of its tokens.

        Raises:
            ValueError: There is no teacher.
        """
        if experience.annotations is None or not experience.annotations.taught:
            raise ValueError("this credit reads teacher scores and was given no teacher")
        episodes = [e for e in experience.episodes if e.stop is not StopReason.INFRA_ERROR]
        read = (experience.annotations, Annotations(self._reference))
        pairs = iter(list(zip(*(it.of(episodes) for it in read), strict=True)))
        return [
            spread(e, *torch.zeros(2, len(e.steps)))
            if e.stop is StopReason.INFRA_ERROR
            else self._of(e, [(it.logprobs, it.spoken) for it in next(pairs)])
            for e in experience.episodes
        ]

    def _of(
        self, episode: Episode, told: list[tuple[torch.Tensor, torch.Tensor | None]]
    ) -> TokenCredit:
        (reinforced, _), (before, _) = told
        heard = torch.tensor(episode.mask, dtype=torch.bool)
        for _, spoken in told:
            heard = heard if spoken is None else heard & spoken
        ratio = (reinforced - before).masked_fill(~heard, 0.0)
        sums = [float(ratio[slice(*step.span)].sum()) for step in episode.steps]
        advantages = (self._scale * torch.tensor(sums)).clamp(-self._most, self._most)
        return spread(episode, torch.zeros(len(sums)), advantages)
