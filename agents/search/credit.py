"""Credit from evidence: where to distil, where not, and what to reinforce.

These algorithms read what trees know of each step (`Evidence`), on top of another algorithm's
weights; where nothing is known they leave its weights as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from journeyman.agents.credit import Credit, TokenCredit
from journeyman.agents.scoring import EpisodeScores
from journeyman.agents.search.backup import shrink
from journeyman.agents.search.evidence import Advantage, Evidence
from journeyman.envs import Episode

_NORMAL = NormalDist()


class Additive:
    """Distillation plus the measured advantage of each step (form i)."""

    def __init__(self, base: Credit, reinforce: float = 1.0, kappa: float = 1.0) -> None:
        """Add to `base`.

        Args:
            base: Gives the weights of the divergence.
            reinforce: Multiplies the advantages (lambda).
            kappa: Samples at which an advantage is believed by half.
        """
        self.needs_scores = base.needs_scores
        self._base = base
        self._reinforce = reinforce
        self._kappa = kappa
        self.log: dict[str, float] = {}
        """Figures of the last batch."""

    def assign(
        self,
        episodes: Sequence[Episode],
        scores: Sequence[EpisodeScores] | None,
        evidence: Sequence[Sequence[Evidence | None]],
    ) -> list[TokenCredit]:
        """The base's weights, times what `_factors` says; advantages from evidence."""
        factors = self._factors(evidence)
        credit = self._base.assign(episodes, scores)
        return [
            self._spread(*parts) for parts in zip(episodes, credit, evidence, factors, strict=True)
        ]

    def _factors(self, evidence: Sequence[Sequence[Evidence | None]]) -> list[list[float]]:
        return [[1.0] * len(steps) for steps in evidence]

    def _advantage(self, known: Evidence) -> float:
        return self._reinforce * shrink(known.advantage[0], known.samples, self._kappa)

    def _spread(
        self,
        episode: Episode,
        credit: TokenCredit,
        evidence: Sequence[Evidence | None],
        factors: Sequence[float],
    ) -> TokenCredit:
        weights, advantages = credit.weights.clone(), credit.advantages.clone()
        for step, known, factor in zip(episode.steps, evidence, factors, strict=True):
            start, end = step.span
            weights[start:end] *= factor
            if known is not None:
                advantages[start:end] += self._advantage(known)
        return TokenCredit(weights, advantages)


class Gated(Additive):
    """Distils where a step decides the outcome, and not where the teacher is the worse (form ii).

    A step's weights are multiplied by w g. The criticality w is epsilon + SD of Q over the
    student's choices, divided by its mean over the batch. The gate g is how surely the teacher's
    own call is no worse than the student's choices: min(1, 2 Phi(A_T / SE)), the one-sided p-value
    doubled, so that it stays open until evidence speaks against the teacher. (Phi alone would be
    half closed where both do equally well.)

    Where the gate closes, nothing would hold the student to what it does right there, while what it
    learns from the teacher elsewhere spills over. So its own call takes the place of the teacher's:
    correct (1 - g) (Q - Q_T) is added to the step's advantage.
    """

    def __init__(
        self,
        base: Credit,
        reinforce: float = 1.0,
        kappa: float = 1.0,
        epsilon: float = 1.0,
        doubt: float = 0.1,
        correct: float = 1.0,
    ) -> None:
        """Multiply the weights of `base`.

        Args:
            base: See `Additive`.
            reinforce: See `Additive`.
            kappa: See `Additive`.
            epsilon: Weight, before normalising, of a step that decides nothing; the larger, the
                more alike all steps.
            doubt: Standard error added to each measured one: few samples look surer than they are.
            correct: Strength of the student's own call where the teacher's is found worse.
        """
        super().__init__(base, reinforce, kappa)
        if epsilon <= 0 or doubt <= 0:
            raise ValueError(f"epsilon={epsilon}, doubt={doubt}: expected above 0")
        self._epsilon = epsilon
        self._doubt = doubt
        self._correct = correct

    def _factors(self, evidence: Sequence[Sequence[Evidence | None]]) -> list[list[float]]:
        known = [e for steps in evidence for e in steps if e is not None]
        if not known:
            return super()._factors(evidence)
        mean = sum(self._epsilon + e.influence for e in known) / len(known)
        gates = [self.gate(e.teacher) for e in known if e.teacher is not None]
        self.log = {
            "gate/mean": sum(gates) / len(gates) if gates else 1.0,
            "gate/closed": sum(g < 0.5 for g in gates) / len(gates) if gates else 0.0,
            "gate/known": len(gates) / len(known),
        }
        return [
            [
                1.0 if e is None else (self._epsilon + e.influence) / mean * self.gate(e.teacher)
                for e in steps
            ]
            for steps in evidence
        ]

    def _advantage(self, known: Evidence) -> float:
        advantage = super()._advantage(known)
        if known.teacher is not None:
            better = known.advantage[0] - known.teacher[0]
            advantage += self._correct * (1 - self.gate(known.teacher)) * better
        return advantage

    def gate(self, teacher: Advantage | None) -> float:
        """1 where nothing speaks against the teacher, towards 0 where its call is worse."""
        if teacher is None:
            return 1.0
        advantage, variance = teacher
        return min(1.0, 2 * _NORMAL.cdf(advantage / math.sqrt(variance + self._doubt**2)))
