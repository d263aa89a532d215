"""Credit from evidence: where to distil, where not, and what to reinforce.

These algorithms read what trees know of each step (`Evidence`), on top of another algorithm's
weights; where nothing is known they leave its weights as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

from journeyman.agents.credit.interface import Credit, Experience, OnBase, TokenCredit
from journeyman.agents.errors import SettingError
from journeyman.agents.rollouts.job import Job
from journeyman.agents.search.evidence import Evidence
from journeyman.envs import Episode, StopReason

_NORMAL = NormalDist()
_ROUNDING = 1e-9
_LARGEST = 80.0
"""Of a log-ratio: e^80 is the most that is a number in float32 with room to be multiplied."""


def _settled(value: float, among: Sequence[float]) -> float:
    """A value as it stands among others, but for rounding; and never above them."""
    near = min(among, key=lambda it: abs(it - value))
    return near if abs(near - value) < _ROUNDING else min(value, max(among))


class Additive(OnBase):
    """Distillation plus the measured advantage of each step (form i).

    Rows that a search played on from inside come to late states more often than the student does.
    With `reach` each advantage is weighted so that all rows together sum to the policy gradient,
    every task counting the same (`agents/search/reach.py`); the weights have mean 1 over the batch.
    Weights of the divergence stay as they are.
    """

    needs_search = True

    def __init__(self, base: Credit, reinforce: float = 1.0, reach: bool = True) -> None:
        """Add to `base`.

        Args:
            base: Gives the weights of the divergence.
            reinforce: Multiplies the estimator's advantages (lambda).
            reach: Weigh advantages by how likely the student comes to the step; False takes all
                rows as they were played.
        """
        super().__init__(base)
        self._reinforce = reinforce
        self._reach = reach

    def assign(self, experience: Experience) -> list[TokenCredit]:
        """The base's weights, times what `_factors` says; advantages from evidence.

        Raises:
            ValueError: There is no evidence.
        """
        episodes, evidence = experience.episodes, experience.evidence
        if evidence is None:
            raise ValueError("this credit reads what a search finds and was given no evidence")
        credit = self._base.assign(experience)
        experience.figures.update(self._figures(evidence))
        factors = self._factors(evidence, experience.job)
        scale = self._scale(episodes, evidence, experience.job)
        return [
            self._join(*parts, scale)
            for parts in zip(episodes, credit, evidence, factors, strict=True)
        ]

    def _scale(
        self, episodes: Sequence[Episode], evidence: Sequence[Sequence[Evidence | None]], job: Job
    ) -> float:
        """Brings the weights of the student's own steps, of all processes, to a mean of 1."""
        own = [
            known.reach
            for episode, steps in zip(episodes, evidence, strict=True)
            if episode.stop is not StopReason.INFRA_ERROR
            for step, known in zip(episode.steps, steps, strict=True)
            if known is not None and any(episode.mask[slice(*step.span)])
        ]
        own = job.share(own)
        return len(own) / sum(own) if any(own) else 1.0

    def _figures(self, evidence: Sequence[Sequence[Evidence | None]]) -> dict[str, float]:
        return {}

    def _factors(
        self, evidence: Sequence[Sequence[Evidence | None]], job: Job
    ) -> list[list[float]]:
        return [[1.0] * len(steps) for steps in evidence]

    def _advantage(self, known: Evidence) -> float:
        return self._reinforce * known.credit

    def _join(
        self,
        episode: Episode,
        credit: TokenCredit,
        evidence: Sequence[Evidence | None],
        factors: Sequence[float],
        scale: float,
    ) -> TokenCredit:
        weights, advantages = credit.weights.clone(), credit.advantages.clone()
        for step, known, factor in zip(episode.steps, evidence, factors, strict=True):
            start, end = step.span
            weights[start:end] *= factor
            if known is not None:
                weight = known.reach * scale if self._reach else 1.0
                advantages[start:end] += weight * self._advantage(known)
        return replace(credit, weights=weights, advantages=advantages)


class PolicyTarget(Additive):
    """Moves the student to a better policy over its own choices (form iii).

    The target is p exp(Q / temperature) over what the student chose in the node, p its own
    frequencies: the best policy within a KL of it. Cross-entropy to the target, estimated on the
    student's samples and less its mean over them, is a policy gradient with the advantage
    exp(Q / temperature) / sum p exp(Q / temperature) - 1.
    """

    def __init__(
        self,
        base: Credit,
        reinforce: float = 1.0,
        temperature: float = 1.0,
        reach: bool = True,
    ) -> None:
        """Add to `base`.

        Args:
            base: See `Additive`.
            reinforce: See `Additive`.
            temperature: In units of reward; the smaller, the farther from the student.
            reach: See `Additive`.
        """
        super().__init__(base, reinforce, reach)
        if not 0 < temperature < math.inf:
            raise SettingError(f"temperature={temperature}: expected above 0")
        self._temperature = temperature

    def _advantage(self, known: Evidence) -> float:
        # In log space, measured from the best choice: none overflows, none vanishes, and what is
        # next to 0 is not lost beside 1. With little temperature the target is the best choice
        # alone, with much of it the student itself.
        chosen = [(p, q) for p, q in known.choices if p > 0]
        if not chosen:
            return 0.0  # nothing that the student would do is known
        best = max(q for _, q in chosen)
        own = _settled(known.value.mean + known.advantage.mean, [q for _, q in chosen])
        total = math.fsum(p for p, _ in chosen)
        lost = math.fsum(p * math.expm1((q - best) / self._temperature) for p, q in chosen) / total
        if lost > -0.5:
            mean = math.log1p(lost)
        else:
            mean = math.log(
                math.fsum(p * math.exp((q - best) / self._temperature) for p, q in chosen) / total
            )
        return self._reinforce * math.expm1(min((own - best) / self._temperature - mean, _LARGEST))


class Gated(Additive):
    """Distils where a step decides the outcome, and not where the teacher is the worse (form ii).

    A step's weights are multiplied by w g. The criticality w is epsilon + SD of Q over the
    student's choices, divided by its mean over the batch. The gate g is how surely following the
    teacher is no worse than what the student comes to, or than `bar` if that is more:
    min(1, 2 Phi((V_T - max(V, bar)) / SE)). (Phi alone would be half closed where both do equally
    well. Without the bar a teacher that fails would be followed wherever the student fails too,
    until it fails everywhere.)

    Where the gate closes, nothing would hold the student to what it does right there, while what it
    learns from the teacher elsewhere spills over. So its own call takes the place of the teacher's:
    correct (1 - g) (Q - V_T) is added to the step's advantage.
    """

    def __init__(
        self,
        base: Credit,
        reinforce: float = 1.0,
        epsilon: float = 1.0,
        doubt: float = 0.1,
        correct: float = 1.0,
        bar: float = 0.5,
        reach: bool = True,
    ) -> None:
        """Multiply the weights of `base`.

        Args:
            base: See `Additive`.
            reinforce: See `Additive`.
            epsilon: Weight, before normalising, of a step that decides nothing; the larger, the
                more alike all steps.
            doubt: Standard error added to each measured one: few samples look surer than they are.
            correct: Strength of the student's own call where the teacher's is found worse.
            bar: Success that a teacher must come to for being followed at all.
            reach: See `Additive`.
        """
        super().__init__(base, reinforce, reach)
        if epsilon <= 0 or doubt <= 0:
            raise SettingError(f"epsilon={epsilon}, doubt={doubt}: expected above 0")
        self._epsilon = epsilon
        self._doubt = doubt
        self._correct = correct
        self._bar = bar

    def _figures(self, evidence: Sequence[Sequence[Evidence | None]]) -> dict[str, float]:
        known = [e for steps in evidence for e in steps if e is not None]
        if not known:
            return {}
        gates = [self.gate(e) for e in known if e.teacher is not None]
        return {
            "gate/mean": sum(gates) / len(gates) if gates else 1.0,
            "gate/closed": sum(g < 0.5 for g in gates) / len(gates) if gates else 0.0,
            "gate/known": len(gates) / len(known),
        }

    def _factors(
        self, evidence: Sequence[Sequence[Evidence | None]], job: Job
    ) -> list[list[float]]:
        known = job.share([e.influence for steps in evidence for e in steps if e is not None])
        if not known:
            return super()._factors(evidence, job)
        mean = sum(self._epsilon + it for it in known) / len(known)
        return [
            [
                1.0 if e is None else (self._epsilon + e.influence) / mean * self.gate(e)
                for e in steps
            ]
            for steps in evidence
        ]

    def _advantage(self, known: Evidence) -> float:
        advantage = super()._advantage(known)
        if known.teacher is not None:
            better = known.value.mean + known.advantage.mean - known.teacher.mean
            advantage += self._correct * (1 - self.gate(known)) * better
        return advantage

    def gate(self, known: Evidence) -> float:
        """1 where nothing speaks against the teacher, towards 0 where following it is worse."""
        teacher, value = known.teacher, known.value
        if teacher is None:
            return 1.0
        error = math.sqrt(teacher.variance + value.variance + self._doubt**2)
        return min(1.0, 2 * _NORMAL.cdf((teacher.mean - max(value.mean, self._bar)) / error))
