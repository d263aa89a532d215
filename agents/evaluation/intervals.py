"""How sure a figure is: 95% intervals over tasks, of proportions and of ratios of sums.

Episodes of one task are alike, so tasks are what is drawn: twice the attempts narrow no interval
as twice the tasks do.
"""

from __future__ import annotations

import math
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
