"""What a study is made of, before anything runs: arms, regimes, comparisons, sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.cells import Exam
from harness.ingredients import Shaken, Taught, Window
from harness.planted import OFFICE


@dataclass(frozen=True)
class Arm:
    """One way to learn."""

    what: str
    overrides: tuple[str, ...]
    family: str
    """A key of `RATES`."""
    teacher: bool = True
    """Whether it asks the regime's teacher."""
    plays: bool = True
    """Whether there are rollouts."""
    tokens: float = 84.0
    """That a row costs on the easy level, until that is measured."""
    seconds: float = 0.8
    """CPU seconds that a thousand tokens take; see `planning.py`."""
    reads_hints: bool = False
    """It begins with a student that was taught to read hints, at the cost of half its budget."""


@dataclass(frozen=True)
class Regime:
    """Where the arms meet: a student, a teacher, tasks, and what may be spent."""

    what: str
    student: str
    """A model, or one of `INGREDIENTS`."""
    teacher: str | None
    arms: tuple[str, ...]
    """Those that are played in it; without a teacher none that asks one."""
    ids: tuple[str, ...] = OFFICE
    level: str = ""
    """Of tasks: "" or "/hard"."""
    families: tuple[tuple[str, str], ...] = ()
    """Kinds of task that the teacher gets wrong: half of the exam."""
    max_turns: int = 8
    max_context: int = 640
    budget: float = 28_000
    """Tokens of a run."""
    seeds: int = 5
    longer: float = 1.0
    """Tokens of a row, by those of the easy level."""
    exam_seconds: float = 0.03
    """CPU seconds of an exam, by task."""

    def exam(self, split: str, tasks: int, looked: int = 0) -> Exam:
        """An exam of this regime's tasks."""
        limits = (self.max_turns, self.max_context, self.families)
        return Exam(self.ids, f"{split}{self.level}", tasks, looked, *limits)


@dataclass(frozen=True)
class Comparison:
    """What is asked of a regime: by how much an arm is ahead of the best of its rivals."""

    ours: str
    rivals: tuple[str, ...]
    least: float
    """Expected of the difference."""
    why: str


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    share: float = 1.0
    """Of the budgets."""
    tasks: int = 600
    looked: int = 60
    """Tasks of the looks on the way."""
    looks: int = 3
    making: float = 1.0
    """Of the steps that make the ingredients."""
    strict: bool = True
    """Refuse ingredients that are not as weak, or as strong, as they should be."""

    def steps(self, count: int) -> int:
        """Of a recipe."""
        return max(1, round(count * self.making))

    def window(self, window: Window) -> Window:
        """What is asked of a model."""
        return window if self.strict else Window()


@dataclass(frozen=True)
class Design:
    """All that is fixed before a study runs."""

    arms: Mapping[str, Arm]
    regimes: Mapping[str, Regime]
    rates: Mapping[str, tuple[float, float, float]]
    """Candidates by family of losses; the middle one stands until they are tuned."""
    primary: Mapping[str, Comparison]
    """One a regime."""
    ingredients: Callable[[Scale], Mapping[str, Taught | Shaken]]
    """Models that regimes need beside those that are there."""
    making: Mapping[str, float]
    """CPU seconds that each is expected to take."""
