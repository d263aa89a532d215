"""How sure a figure is: 95% intervals over tasks, of proportions and of ratios of sums.

Episodes of one task are alike, so tasks are what is drawn: twice the attempts narrow no interval
as twice the tasks do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
"""Of a bootstrap; the bounds of a share then vary by a tenth of the interval's width or less."""
_SEED = 0
_AT_ONCE = 1 << 20
"""Draws of a bootstrap that are held at once."""

Array = np.ndarray[Any, np.dtype[np.float64]]

_Z95 = 1.959963984540054  # the normal distribution's 97.5% quantile


def wilson(successes: float, total: float) -> tuple[float, float]:
    """The 95% Wilson (1927) score interval of a proportion.

    Unlike the normal approximation it stays inside 0..1 and does not collapse at 0 and 1.

    Args:
        successes: How many of `total` succeeded; a fraction is fine (see `Rate.interval`).
        total: How many independent trials.

    Returns:
        Lower and upper bound; (0, 1) if there were no trials.

    Raises:
        ValueError: `successes` is not in 0..`total`.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total}: expected 0 <= successes <= total")
    if total == 0:
        return 0.0, 1.0
    p, z2 = successes / total, _Z95**2
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z95 / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    # At p = 0 and p = 1 a bound equals p but for rounding, which must not put it beyond.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def bootstrap(numerators: Array, denominators: Array) -> Array:
    """95% percentile intervals of ratios of sums when rows are drawn anew (Efron 1979).

    Args:
        numerators: [T, M], a row a task and a column a figure.
        denominators: [T, M], 0 or more.

    Returns:
        [2, M] bounds; NaN where no draw has a denominator.
    """
    return quantiles(redrawn(numerators, denominators))


def redrawn(numerators: Array, denominators: Array) -> Array:
    """Ratios of sums of tasks that are drawn anew, with replacement.

    All ratios are of the same draws, so many cost little more than one, and their differences are
    paired. The dice are always the same: a figure's interval is too.

    Args:
        numerators: [T, M], a row a task and a column a figure.
        denominators: [T, M], 0 or more.

    Returns:
        [`RESAMPLES`, M]; no finite number where a draw has no denominator.
    """
    tasks, figures = numerators.shape
    dice = np.random.default_rng(_SEED)
    both = np.hstack([numerators, denominators])
    drawn = []
    for start in range(0, RESAMPLES, step := max(1, _AT_ONCE // max(1, tasks))):
        size = min(step, RESAMPLES - start)
        places = dice.integers(tasks, size=(size, tasks)) + tasks * np.arange(size)[:, None]
        counts = np.bincount(places.ravel(), minlength=size * tasks).reshape(size, tasks)
        drawn.append(counts @ both)
    sums = np.concatenate(drawn)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios: Array = sums[:, :figures] / sums[:, figures:]
    return ratios


def quantiles(drawn: Array) -> Array:
    """The middle 95% of what was drawn.

    Args:
        drawn: [R, M]; what is not finite is passed over.

    Returns:
        [2, M] bounds; NaN where nothing is finite.
    """
    bounds = np.full((2, drawn.shape[1]), np.nan)
    for figure, column in enumerate(drawn.T):
        if len(known := column[np.isfinite(column)]):
            bounds[:, figure] = np.quantile(known, [0.025, 0.975])
    return bounds


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure and its 95% interval over tasks; None where there is none."""

    value: float | None
    low: float | None
    high: float | None
    tasks: int
    """Distinct tasks that it is about."""
    numerator: float | None = None
    """Of which `value` is a share or a mean: the sum over all episodes."""
    denominator: float = 0.0
    """What it is a share of, or a mean over."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"value": self.value, "low": self.low, "high": self.high, "tasks": self.tasks}


NOTHING = Measured(None, None, None, 0)


def measured(
    numerators: Array, denominators: Array, bounded: Sequence[bool], binary: Sequence[bool]
) -> list[Measured]:
    """Ratios of sums with their intervals, one a column.

    Where every trial either is something or is not, it is Wilson's interval with tasks as the
    trials: exact for one trial a task, and on the wide side for more. All else has the bootstrap's;
    but where no draw differs from another, that is no sign of certainty, and what is in 0..1 has
    Wilson's too.

    Args:
        numerators: [T, M], a row a task; NaN is not known.
        denominators: [T, M], 0 or more.
        bounded: [M], True of what is in 0..1.
        binary: [M], True of what is a share of trials that are one or are not.
    """
    if not numerators.size:
        return [NOTHING] * len(bounded)
    drawn = np.array([not (b and t) for b, t in zip(bounded, binary, strict=True)])
    bounds = np.zeros((2, len(bounded)))
    if drawn.any():
        bounds[:, drawn] = bootstrap(numerators[:, drawn], denominators[:, drawn])
    found = []
    for i, (above, below) in enumerate(zip(numerators.T, denominators.T, strict=True)):
        tasks, total = int((below > 0).sum()), float(below.sum())
        value = float(above.sum()) / total if total else math.nan
        if not math.isfinite(value):
            found.append(Measured(None, None, None, tasks, denominator=total))
            continue
        low: float | None = float(bounds[0, i])
        high: float | None = float(bounds[1, i])
        if bounded[i] and 0 <= value <= 1 and (binary[i] or low == high):
            low, high = wilson(min(value * tasks, tasks), tasks)
        elif tasks < 2:
            low = high = None
        found.append(Measured(value, low, high, tasks, float(above.sum()), total))
    return found
