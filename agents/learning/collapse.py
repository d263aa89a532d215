"""Curves of a training that tell whether the student unlearns what it could do.

Pure arithmetic; `trainers/watching.py` brings it the figures that a run logs anyway:
`rollout/success`, `rollout/turns` and `entropy` of each rollout, and `eval/success` of each look at
validation tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate
from statistics import fmean, variance
from typing import Any

SUCCESS, TURNS, ENTROPY, VALIDATED = "rollout/success", "rollout/turns", "entropy", "eval/success"
ENOUGH = 16
"""Tasks that say how good a student is."""
SURE = math.log(1e5)
"""How unlikely, in nats, what is seen must be of a student that is still as good as it was."""
CLEAR = 5.0
"""Standard errors by which other figures must have fallen."""
Z = 4.0
"""Standard errors that the best is taken less."""
WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Rollouts in a row that are looked at, the latest last."""
LEAST = {TURNS: 0.5, ENTROPY: 0.1}
"""Parts of what they were at first below which these figures tell of a collapse, where the student
has not become the better for it."""


class Curve:
    """Shares of successes, in order, each over so many tasks."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._seen: list[tuple[float, float]] = []
        self.best, self.sure = 0.0, 0.0
        """The share over some rollouts in a row, and what the student surely had then: the lower
        end of its interval, where that was highest."""
        self._since = 0
        """Rollouts until then: what came before the best is no fall from it."""

    def add(self, share: float, tasks: float) -> bool:
        """Go on; true if the student is now far below its best.

        Far is at most half, over at least two rollouts (or one look at more than `ENOUGH` tasks),
        and so that a student which still had what it surely had would show it with a chance of one
        in a hundred thousand: by Chernoff's bound exp(-n KL(share || sure)) over n tasks. Rows of
        one task count as one: they may be no more independent than that.

        Args:
            share: Of successes.
            tasks: Different tasks that it is over.
        """
        self._seen.append((share, tasks))
        sums = [*accumulate(n * x for x, n in reversed(self._seen[-WINDOWS[-1] :]))]
        counts = [*accumulate(n for _, n in reversed(self._seen[-WINDOWS[-1] :]))]
        ends = [(sums[w - 1] / counts[w - 1], counts[w - 1]) for w in WINDOWS if w <= len(sums)]
        for mean, count in ends:
            if count >= ENOUGH and (low := _lower(mean, count)) > self.sure:
                self.best, self.sure, self._since = mean, low, len(self._seen)
        since = sum(w <= len(self._seen) - self._since for w in WINDOWS)
        return any(self._far(*it) for it in ends[0 if tasks > ENOUGH else 1 : since])

    def _far(self, share: float, tasks: float) -> bool:
        return (
            share <= self.sure / 2
            and self.sure > 0
            and tasks * _divergence(share, self.sure) >= SURE
        )

    def recent(self) -> float:
        """The share over the last `ENOUGH` tasks."""
        total = count = 0.0
        for share, tasks in reversed(self._seen):
            total, count = total + share * tasks, count + tasks
            if count >= ENOUGH:
                break
        return total / count if count else 0.0


def _lower(share: float, tasks: float) -> float:
    """Lower end of Wilson's (1927) interval at `Z` standard errors: the best of many is lucky."""
    square = Z**2 / tasks
    error = Z * math.sqrt(max(0.0, share * (1 - share)) / tasks + square / (4 * tasks))
    return (share + square / 2 - error) / (1 + square)


def _divergence(x: float, p: float) -> float:
    """KL in nats of a coin of `x` from one of `p`, 0 < p < 1."""
    rest = (1 - x) * math.log((1 - x) / (1 - p)) if x < 1 else 0.0
    return rest + (x * math.log(x / p) if x > 0 else 0.0)


class Detector:
    """Hears figures in order; says in words, once, that a run collapses."""

    def __init__(self, tasks: float) -> None:
        """Of rollouts over so many different tasks."""
        self._tasks = tasks
        self._curves = {SUCCESS: Curve(), VALIDATED: Curve()}
        self._begun: dict[str, list[float]] = {TURNS: [], ENTROPY: []}
        self._latest: dict[str, list[float]] = {TURNS: [], ENTROPY: []}
        self._first: list[float] = []
        self._span = max(8, math.ceil(ENOUGH / tasks))
        self.told = False

    def hear(self, figures: Mapping[str, Any]) -> str | None:
        """Take a line of figures; words, where it is the first that shows a collapse."""
        if figures.get("rollout/guided_turns"):
            return None  # partly the teacher's success, and less so from rollout to rollout
        found = None
        for name, curve in self._curves.items():
            share = _number(figures.get(name))
            if share is None:
                continue
            tasks = self._tasks if name == SUCCESS else float(figures.get("eval/tasks", ENOUGH))
            if curve.add(share, tasks):
                what = "success" if name == SUCCESS else "success on validation tasks"
                found = f"{what} is {curve.recent():.0%} and was {curve.best:.0%}"
        if _number(figures.get(SUCCESS)) is not None:
            found = found or self._less(figures)
        if found is None or self.told:
            return None
        self.told = True
        return found

    def _less(self, figures: Mapping[str, Any]) -> str | None:
        """What has become of the other figures since the run began."""
        first = len(self._first) < self._span
        if first:
            self._first.append(float(figures[SUCCESS]))
        for name in LEAST:
            if (value := _number(figures.get(name))) is not None:
                (self._begun if first else self._latest)[name].append(value)
        began = fmean(self._first)
        if first or began >= 0.9 or self._curves[SUCCESS].recent() > began:
            return None  # who can do nearly all, or ever more, may well be brief and sure
        for name, least in LEAST.items():
            latest = self._latest[name][-self._span :]
            if len(latest) == self._span == len(self._begun[name]):
                then, now = fmean(self._begun[name]), fmean(latest)
                noise = math.sqrt((variance(self._begun[name]) + variance(latest)) / self._span)
                if now < least * then and then - now > CLEAR * noise:
                    word = name.rpartition("/")[2]
                    return f"{word} fell from {then:.3g} to {now:.3g} and success did not rise"
        return None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
