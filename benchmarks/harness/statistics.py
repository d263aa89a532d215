"""How sure a mean over seeds and tasks is.

Two sources of chance cross: every seed plays the same tasks. The bootstrap draws seeds and tasks
anew, each with replacement and independently of the other (Owen 2007, "The pigeonhole bootstrap"),
which is never too sure by much; differences are taken within each draw, so that what two arms have
in common falls out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
DRAWS = 2000


class Figure(NamedTuple):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of a mean over seeds, by Student's t; all of the line for a single one."""
    if len(values) < 2:
        return -math.inf, math.inf
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - half, mean + half


def ratio(above: Sequence[float], below: Sequence[float]) -> Figure:
    """What one is in terms of the other, by pairs: their geometric mean, its 95% interval."""
    logs = [math.log(a / b) for a, b in zip(above, below, strict=True)]
    low, high = interval(logs)
    return Figure(*map(math.exp, (statistics.fmean(logs), low, high)))


def drawn(arms: Mapping[str, Array], draws: int = DRAWS) -> dict[str, Array]:
    """Means of each arm in draws of seeds and tasks; the same draws for all of them.

    Args:
        arms: Outcomes by arm, [seeds, tasks] each: the same seeds and tasks in the same order.
        draws: How many.

    Returns:
        [draws] of each.

    Raises:
        ValueError: Arms differ in their seeds or tasks, or have none.
    """
    shapes = {name: values.shape for name, values in arms.items()}
    if len(set(shapes.values())) != 1 or not all(next(iter(shapes.values()))):
        raise ValueError(f"[seeds, tasks] of arms: {shapes}: expected the same of all, not empty")
    rows, columns = _weights(*next(iter(shapes.values())), draws)
    return {name: ((rows @ values) * columns).sum(1) for name, values in arms.items()}


@lru_cache(maxsize=16)
def _weights(seeds: int, tasks: int, draws: int) -> tuple[Array, Array]:
    """How much each seed and each task counts in every draw: [draws, seeds], [draws, tasks]."""
    rng = np.random.default_rng(0)
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    columns = rng.multinomial(tasks, np.full(tasks, 1 / tasks), draws) / tasks
    return rows, columns


def mean(values: Array) -> Figure:
    """The mean of outcomes [seeds, tasks]."""
    return _figure(float(values.mean()), drawn({"": values})[""])


def lead(ours: Array, rivals: Mapping[str, Array]) -> Figure:
    """By how much an arm is ahead of the best of others, [seeds, tasks] each.

    Which of them is the best is asked anew in every draw, so that the interval knows that the best
    of several is partly lucky.
    """
    found = drawn({"": ours, **rivals})
    best = np.max([found[name] for name in rivals], axis=0)
    value = float(ours.mean()) - max(float(it.mean()) for it in rivals.values())
    return _figure(value, found[""] - best)


def _figure(value: float, draws: Array) -> Figure:
    low, high = np.quantile(draws, (0.025, 0.975))
    return Figure(value, float(low), float(high))
