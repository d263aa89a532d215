"""Runs side by side: figures of each, and differences over the tasks that both played.

Two policies that play the same tasks are compared task by task: most of the chance in a success
rate is which tasks there were, and it is the same for both. `entries.py` reads what is compared.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from journeyman.agents.errors import RunDirError
from journeyman.agents.evaluation.counting import Parts
from journeyman.agents.evaluation.intervals import Measured, measured, quantiles, redrawn, wilson
from journeyman.agents.evaluation.measures import Measure
from journeyman.agents.evaluation.metrics import TaskKey

Group = Literal["env", "kind"]

Outcomes = Mapping[TaskKey, float]
"""Share of successful episodes, by task; tasks that only broke are not in it."""
Interval = tuple[float, float]
UNKNOWN: Interval = (-math.inf, math.inf)
"""Of a difference over one task, which says nothing about others."""
Array = np.ndarray[Any, np.dtype[np.float64]]

_Z95 = 1.959963984540054  # the normal distribution's 97.5% quantile
# The t distribution's 97.5% quantiles, for 1, 2, ... degrees of freedom.
_T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
SUCCESS = "success"
"""The measure whose intervals are analytic."""


@dataclass(frozen=True)
class Amounts:
    """What tasks add to one measure."""

    seeds: Mapping[int, Mapping[TaskKey, Parts]]
    """By the run's seed; a task that the figure is not about is not in it."""
    binary: bool
    """True if it says one or nothing of every episode."""


@dataclass(frozen=True)
class Entry:
    """A row of a run, or of runs that differ by their seeds alone."""

    run: str
    row: str
    seeds: Mapping[int, Outcomes]
    """By the run's seed: what became of each task."""
    kinds: Mapping[TaskKey, str]
    amounts: Mapping[str, Amounts] = field(default_factory=dict)
    """By the measure's name, of those that were asked for."""
    folders: tuple[Path, ...] = ()
    """Of the runs, by seed."""
    broken: frozenset[TaskKey] = frozenset()
    """Tasks that were played too, but that infrastructure broke under some seed."""

    @property
    def label(self) -> str:
        """Names it in tables."""
        return f"{self.run}: {self.row}"

    @property
    def tasks(self) -> set[TaskKey]:
        """Played under every seed."""
        return set.intersection(*(set(outcomes) for outcomes in self.seeds.values()))

    def success(self, tasks: Iterable[TaskKey] | None = None) -> tuple[float, Interval]:
        """Share in 0..1 of the tasks that all seeds played, and its 95% interval.

        Of the interval over seeds and the one over tasks (Wilson's) it is the wider: seeds that
        happen to agree do not make up for few tasks, nor many tasks for few seeds.

        Args:
            tasks: Only of these; by default all that every seed played.
        """
        chosen = sorted(self.tasks if tasks is None else self.tasks.intersection(tasks))
        rates = _matrix(self, chosen).mean(1)
        value, total = float(rates.mean()), len(chosen)
        return value, _wider(wilson(min(value * total, total), total), _over_seeds(rates), 0.0)

    def value(self, measure: Measure, tasks: Iterable[TaskKey]) -> float | None:
        """What `figure` finds, without an interval."""
        chosen = sorted(self.tasks.intersection(tasks))
        if not chosen:
            return None
        if measure.name == SUCCESS:
            return self.success(chosen)[0]
        found = float(_ratios(_sums(self, measure, chosen).sum((0, 1))[None])[0])
        return found if math.isfinite(found) else None

    def figure(self, measure: Measure, tasks: Iterable[TaskKey] | None = None) -> Measured:
        """One of `amounts` or the success, over the tasks that all seeds played.

        Args:
            measure: Which.
            tasks: Only of these.
        """
        chosen = sorted(self.tasks if tasks is None else self.tasks.intersection(tasks))
        if not chosen:
            return Measured(None, None, None, 0)
        if measure.name == SUCCESS:
            rate, (low, high) = self.success(chosen)
            return Measured(rate, low, high, len(chosen))
        sums = _sums(self, measure, chosen)
        pooled, binary = sums.sum(0), self.amounts[measure.name].binary
        bounded = measure.unit in ("share", "score")
        (found,) = measured(pooled[:, :1], pooled[:, 1:], [bounded], [binary])
        seeds = _over_seeds(_ratios(sums.sum(1)))
        if found.low is None or found.high is None or seeds is None:
            return found
        least, most = _range(measure)
        return Measured(
            found.value, *_wider((found.low, found.high), seeds, least, most), found.tasks
        )


@dataclass(frozen=True)
class Contrast:
    """By how much the second of two differs on the tasks that both played."""

    tasks: int
    value: float
    """Of the success: in -1..1. NaN where a figure is not known."""
    interval: Interval
    """95%, over tasks; if both have the same seeds, the wider of that and the one over seeds."""
    better: int
    """Tasks on which the second is better; of a measure where neither is, has more."""
    worse: int
    p: float
    """Exact two-sided sign test on those; McNemar's where a task is played once."""


def contrast(
    first: Entry,
    second: Entry,
    tasks: Iterable[TaskKey] | None = None,
    measure: Measure | None = None,
) -> Contrast:
    """Compare two policies task by task.

    Args:
        first: What is compared with.
        second: What is compared.
        tasks: Only of these; by default all that both played.
        measure: By which figure; by default the success.

    Raises:
        RunDirError: They have no task in common.
    """
    common = sorted((first.tasks & second.tasks).intersection(tasks or first.tasks))
    if not common:
        raise RunDirError(f"{first.label} and {second.label} have no task in common")
    same_seeds = first.seeds.keys() == second.seeds.keys()
    if measure is not None and measure.name != SUCCESS:
        return _by_measure(first, second, common, measure, same_seeds)
    a, b = _matrix(first, common), _matrix(second, common)
    each = b.mean(0) - a.mean(0)
    seeds = _over_seeds(b.mean(1) - a.mean(1)) if same_seeds else None
    better, worse = int((each > 0).sum()), int((each < 0).sum())
    return Contrast(
        tasks=len(common),
        value=float(each.mean()),
        interval=_wider(_over_tasks(each), seeds, -1.0),
        better=better,
        worse=worse,
        p=sign_test(better, worse),
    )


def _by_measure(
    first: Entry, second: Entry, common: Sequence[TaskKey], measure: Measure, same_seeds: bool
) -> Contrast:
    """The difference of two ratios of sums, over the tasks that both ratios are about.

    Its interval is the paired bootstrap's: both ratios are of the same draws of tasks.
    """
    sums = [_sums(entry, measure, common) for entry in (first, second)]
    both = (sums[0].sum(0)[:, 1] > 0) & (sums[1].sum(0)[:, 1] > 0)
    a, b = (found[:, both] for found in sums)
    tasks = int(both.sum())
    if not tasks:
        return Contrast(0, math.nan, UNKNOWN, 0, 0, 1.0)
    above, below = (np.stack([a.sum(0)[:, i], b.sum(0)[:, i]], 1) for i in (0, 1))
    value = above.sum(0) / below.sum(0)
    drawn = redrawn(above, below)
    low, high = map(float, quantiles(drawn[:, 1:] - drawn[:, :1])[:, 0])
    each = np.diff(above / below)[:, 0]
    _, most = _range(measure)
    if tasks < 2:
        low, high = UNKNOWN
    elif low == high and math.isfinite(most):
        low, high = _over_tasks(each)
    seeds = _over_seeds(_ratios(b.sum(1)) - _ratios(a.sum(1))) if same_seeds else None
    sign = -1 if measure.better == "lower" else 1
    better, worse = int((sign * each > 0).sum()), int((sign * each < 0).sum())
    return Contrast(
        tasks=tasks,
        value=float(value[1] - value[0]),
        interval=_wider((low, high), seeds, -most, most),
        better=better,
        worse=worse,
        p=sign_test(better, worse),
    )


def _sums(entry: Entry, measure: Measure, tasks: Sequence[TaskKey]) -> Array:
    """[S, T, 2] numerators and denominators by seed, in the order of the seeds, and task."""
    seeds = entry.amounts[measure.name].seeds
    return np.array([[seeds[seed].get(t, (0.0, 0.0)) for t in tasks] for seed in sorted(seeds)])


def _ratios(sums: Array) -> Array:
    """[S] figures of [S, 2] sums; NaN where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = sums[:, 0] / sums[:, 1]
    return found


def _range(measure: Measure) -> Interval:
    """Least and most that a figure can be."""
    return (0.0, 1.0) if measure.unit in ("share", "score") else (-math.inf, math.inf)


def _matrix(entry: Entry, tasks: Sequence[TaskKey]) -> Array:
    """Success by seed, in the order of the seeds, and task."""
    return np.array([[entry.seeds[seed][t] for t in tasks] for seed in sorted(entry.seeds)])


def _over_seeds(values: Array) -> Interval | None:
    """Student's 95% interval of the mean; None for a single value, or one that is not known."""
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    quantile = _T975[min(len(values) - 1, len(_T975)) - 1]
    half = quantile * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def _over_tasks(differences: Array) -> Interval:
    """95% interval of a mean of paired differences in -1..1.

    Agresti and Min's (2005): the normal one after two pairs are added, half in each of the four
    cells. It does not collapse where all pairs agree, as a bootstrap does.
    """
    total = len(differences) + 2
    mean = float(differences.sum()) / total
    spread = (float((differences**2).sum()) + 1) / total - mean**2
    half = _Z95 * math.sqrt(spread / total)
    return mean - half, mean + half


def _wider(tasks: Interval, seeds: Interval | None, least: float, most: float = 1.0) -> Interval:
    """The wider of two intervals, within `least`..`most`."""
    low, high = max(tasks, seeds or tasks, key=lambda interval: interval[1] - interval[0])
    return max(least, low), min(most, high)


def sign_test(better: int, worse: int) -> float:
    """Exact two-sided p of as uneven a split if either side were as likely."""
    total = better + worse
    tail = sum(math.comb(total, i) for i in range(min(better, worse) + 1))
    return float(min(1.0, 2 * tail / 2**total))


def pairs(arguments: Sequence[Sequence[Entry]]) -> list[tuple[Entry, Entry]]:
    """What is compared with what.

    Rows of later arguments are compared with the first one's row of that name, or with its only
    row. One argument alone: its rows with its first one, or its runs with its first run likewise.

    Args:
        arguments: What `read_entries` found for each.
    """
    first, *others = arguments
    if not others:
        by_run: list[Sequence[Entry]]
        by_run = [list(g) for _, g in itertools.groupby(first, key=lambda entry: entry.run)]
        if len(by_run) == 1:
            return [(first[0], entry) for entry in first[1:]]
        first, *others = by_run
    rows = {entry.row: entry for entry in first}
    only = first[0] if len(first) == 1 else None
    matched = ((rows.get(entry.row, only), entry) for entry in itertools.chain(*others))
    return [(base, entry) for base, entry in matched if base is not None]


def groups(entries: Sequence[Entry], by: Group) -> dict[str, set[TaskKey]]:
    """Tasks by environment or kind, in alphabetical order."""
    found: defaultdict[str, set[TaskKey]] = defaultdict(set)
    for entry in entries:
        for task in entry.tasks:
            found[task[0] if by == "env" else entry.kinds[task]].add(task)
    return dict(sorted(found.items()))
