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


class StepWorth(NamedTuple):
    """What a search found a turn to be worth, in units of reward."""

    before: float
    """V of the place that it was played in: what the student comes to from there."""
    before_error: float
    """Standard error of it."""
    after: float
    """Q of what was done there: what the student comes to once it has done that."""
    error: float
    """Standard error of `after - before`."""
    samples: float
    """Effective samples behind that difference."""
    credit: float
    """The advantage that the estimator (`values=`) made of it."""

    @property
    def gain(self) -> float:
        """What the turn gained: below 0 it made success less likely."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A place that a search came to, and what was played on from there."""

    turn: int
    """Turns before it; 0 is the root, where the task begins."""
    value: float | None
    """V there, and what was earned on the way; None if nothing that was played on from there came
    to its end."""
    error: float
    """Standard error of the value."""
    visits: int
    """How often something was played on from here; where an episode ends, how often it came."""
    success: float | None
    """Share of those that solved the task, among what came from here to its end."""
    text: str = ""
    """The turn that led here, as the first to come wrote it; its first `MOST_TEXT` characters."""
    calls: tuple[str, ...] = ()
    """How its calls went: a status each."""
    stop: str | None = None
    """Why the episode ended here; None where it goes on."""
    by: str = "student"
    """Who wrote that turn: "student", "teacher", or "search" where a search forced it alone."""
    own: bool = False
    """True on the way of the episode whose record this is."""
    children: tuple[TreeNode, ...] = ()
    """What was played from here, in the order that it was first played."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form: what says nothing is left out."""
        told: dict[str, Any] = {
            "turn": self.turn,
            "value": self.value,
            "error": self.error,
            "visits": self.visits,
            "success": self.success,
        }
        if self.text:
            told["text"] = self.text
        if self.calls:
            told["calls"] = list(self.calls)
        if self.stop is not None:
            told["stop"] = self.stop
        if self.by != "student":
            told["by"] = self.by
        if self.own:
            told["own"] = True
        if self.children:
            told["children"] = [child.to_dict() for child in self.children]
        return told

    @classmethod
    def from_dict(cls, data: Any) -> TreeNode:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: It is another's.
        """
        if problem := misfit(data, _NODE, "tree"):
            raise ValueError(problem)
        return cls(
            data["turn"],
            data["value"],
            data["error"],
            data["visits"],
            data["success"],
            data.get("text", ""),
            tuple(data.get("calls", ())),
            data.get("stop"),
            data.get("by", "student"),
            data.get("own", False),
            tuple(map(cls.from_dict, data.get("children", ()))),
        )


_NO_GAIN = 1e-3
"""What rounding leaves of no difference."""
MOST_TEXT = 200
"""Characters of a turn that a tree keeps."""
MOST_NODES = 400
"""Nodes that are kept of a tree: those nearest to its root, and all of the episode's own."""


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
    value: StepWorth | None = None
    """What a search found it to be worth; None if none did."""


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
    tree: TreeNode | None = None
    """What a search played, from the task's beginning; None without a search."""

    def deciding(self, solved: bool) -> int | None:
        """The turn that gained most (index), or of an episode that failed, lost most.

        None where no search valued the turns, or none of them made a difference that way.
        """
        sign = 1 if solved else -1
        gains = [(sign * it.value.gain, -k) for k, it in enumerate(self.steps) if it.value]
        gain, turn = max(gains, default=(0.0, 0))
        return -turn if gain > _NO_GAIN else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, numbers of every token packed as an episode's."""
        packed: dict[str, Any] = {}
        if self.log_ratio is not None:
            packed["log_ratio"] = pack("f", self.log_ratio)
        if self.tree is not None:
            packed["tree"] = self.tree.to_dict()
        return {
            "steps": [
                {
                    "weight": step.weight,
                    "advantage": step.advantage,
                    "parts": {name: list(score) for name, score in step.parts.items()},
                    **({} if step.grade is None else {"grade": step.grade}),
                    **({} if step.value is None else {"value": step.value._asdict()}),
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
            TreeNode.from_dict(data["tree"]) if "tree" in data else None,
        )
        rows = [found.weights, found.advantages, found.widths]
        rows += [] if found.log_ratio is None else [found.log_ratio]
        if len(found.steps) != turns or any(len(row) != tokens for row in rows):
            raise ValueError(
                f"scores of {len(found.steps)} turns and {sorted({len(row) for row in rows})} "
                f"tokens for an episode of {turns} and {tokens}"
            )
        return found


_WORTH = dict.fromkeys(StepWorth._fields, float)
SHAPE = {
    "steps": [
        {"weight": float, "advantage": float, "parts": {}, "grade?": float, "value?": _WORTH}
    ],
    "weights": str,
    "advantages": str,
    "widths": str,
    "log_ratio?": str,
    "tree?": {},
}
"""Of what `Scores.to_dict` writes, as far as it is looked at (see `files.misfit`)."""
_NODE = {
    "turn": int,
    "value": (float, None),
    "error": float,
    "visits": int,
    "success": (float, None),
    "text?": str,
    "calls?": [str],
    "stop?": (str, None),
    "by?": str,
    "own?": bool,
    "children?": [{}],
}


def _step(data: Mapping[str, Any]) -> StepScores:
    parts = {name: _part(name, score) for name, score in data["parts"].items()}
    worth = StepWorth(**data["value"]) if "value" in data else None
    return StepScores(data["weight"], data["advantage"], parts, data.get("grade"), worth)


def _part(name: str, score: Any) -> PartScore:
    if misfit(score, [float]) or len(score) != 3 or type(score[2]) is not int:
        raise ValueError(f"the score of {name!r} is not [log-ratio, distance, tokens]")
    return PartScore(*score)
