"""What teacher and credit said of an episode, as a run folder keeps it and people look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from journeyman.agents.evaluation.files import misfit
from journeyman.envs.types import pack, unpack


class PartScore(NamedTuple):
    """A teacher's view of some tokens that the student chose."""

    log_ratio: float
    """Mean of log p_teacher - log p_student, in nats: below 0 the teacher would rather not."""
    distance: float
    """Mean of its absolute value."""
    tokens: int
    """How many."""


@dataclass(frozen=True, slots=True)
class StepScores:
    """What was said of one turn."""

    weight: float = 0.0
    """Mean factor of its tokens' divergence."""
    advantage: float = 0.0
    """Mean advantage of its tokens."""
    parts: Mapping[str, PartScore] = field(default_factory=dict)
    """By part: "turn" (all of it), "reasoning", "call 1", "call 1 tool", "call 1 argument amount",
    "answer", "stop". A part of which the student chose nothing, or the teacher says nothing, is
    left out; all are without a teacher that was asked."""
    grade: float | None = None
    """What a judge gave it; None if none was asked."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What was said of one episode of T tokens."""

    steps: tuple[StepScores, ...]
    """One a turn."""
    weights: tuple[float, ...]
    """[T] factors of the divergence; 0 on tokens that the student did not choose."""
    advantages: tuple[float, ...]
    """[T]; 0 there too."""
    widths: tuple[int, ...]
    """[T] characters of its turn's text that each token adds; 0 outside turns."""
    log_ratio: tuple[float, ...] | None = None
    """[T] log p_teacher - log p_student; 0 on tokens that the student did not choose, or of which
    the teacher says nothing. None if no teacher was asked."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, numbers of every token packed as an episode's."""
        packed = {} if self.log_ratio is None else {"log_ratio": pack("f", self.log_ratio)}
        return {
            "steps": [
                {
                    "weight": step.weight,
                    "advantage": step.advantage,
                    "parts": {name: list(score) for name, score in step.parts.items()},
                    **({} if step.grade is None else {"grade": step.grade}),
                }
                for step in self.steps
            ],
            "weights": pack("f", self.weights),
            "advantages": pack("f", self.advantages),
            "widths": pack("I", self.widths),
            **packed,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], turns: int, tokens: int) -> Scores:
        """Read what `to_dict` wrote.

        Args:
            data: As JSON gave it, of `SHAPE`.
            turns: Of the episode.
            tokens: Likewise.

        Raises:
            ValueError: A value is none that `to_dict` writes, or the episode is another.
        """
        told = data.get("log_ratio")
        found = cls(
            tuple(map(_step, data["steps"])),
            tuple(unpack("f", data["weights"])),
            tuple(unpack("f", data["advantages"])),
            tuple(unpack("I", data["widths"])),
            None if told is None else tuple(unpack("f", told)),
        )
        rows = [found.weights, found.advantages, found.widths]
        rows += [] if found.log_ratio is None else [found.log_ratio]
        if len(found.steps) != turns or any(len(row) != tokens for row in rows):
            raise ValueError(
                f"scores of {len(found.steps)} turns and {sorted({len(row) for row in rows})} "
                f"tokens for an episode of {turns} and {tokens}"
            )
        return found


SHAPE = {
    "steps": [{"weight": float, "advantage": float, "parts": {}, "grade?": float}],
    "weights": str,
    "advantages": str,
    "widths": str,
    "log_ratio?": str,
}
"""Of what `Scores.to_dict` writes, as far as it is looked at (see `files.misfit`)."""


def _step(data: Mapping[str, Any]) -> StepScores:
    parts = {name: _part(name, score) for name, score in data["parts"].items()}
    return StepScores(data["weight"], data["advantage"], parts, data.get("grade"))


def _part(name: str, score: Any) -> PartScore:
    if misfit(score, [float]) or len(score) != 3 or type(score[2]) is not int:
        raise ValueError(f"the score of {name!r} is not [log-ratio, distance, tokens]")
    return PartScore(*score)
