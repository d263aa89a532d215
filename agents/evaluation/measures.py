"""Figures of a policy by name: what each episode adds to them, and how sure they are.

A figure is a ratio of sums over the episodes that infrastructure did not break: of its numerators
by its denominators. Whoever shows figures asks `measures` for what there is; `metrics.py` makes the
summary of an evaluation of them. Formulas and sources are in docs/evaluation.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from journeyman.agents.evaluation.intervals import Array, bootstrap, wilson
from journeyman.envs.types import Episode, StopReason
from journeyman.tools.doors import load_group
from journeyman.tools.types import CallStatus

ENTRY_POINTS = "journeyman.metrics"
"""Other packages' figures: each a `Measure`, or a plain function of episodes (see `metrics.py`)."""

VALID = frozenset({CallStatus.OK, CallStatus.TOOL_ERROR, CallStatus.TIMEOUT})
"""Statuses of calls that reached a tool; the others were malformed."""

Unit = Literal["share", "count", "tokens", "seconds", "money", "score"]
Parts = tuple[float, float]
"""Numerator and denominator."""


@dataclass(frozen=True)
class Measure:
    """One figure of a policy."""

    name: str
    """In `evaluation.metrics`, `summary.json` and on the command line."""
    title: str
    """Heads its column."""
    unit: Unit
    """Of a "share" and a "score" the figure is in 0..1; of the others it is a mean."""
    of: Callable[[Episode], Parts | None]
    """What an episode adds to numerator and denominator; None if the figure is not about it. A
    numerator of NaN is one that nobody knows: the figure is unknown then, too."""
    about: str
    """What is counted over what, on one line."""
    better: Literal["higher", "lower"] | None
    """None where neither is."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure and its 95% interval over tasks; None where there is none."""

    value: float | None
    low: float | None
    high: float | None
    tasks: int
    """Distinct tasks that it is about."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


NOTHING = Measured(None, None, None, 0)


def measures() -> Mapping[str, Measure]:
    """Every measure by its name: the built-in ones, then other packages'."""
    others = load_group(ENTRY_POINTS, objection).values()
    return MappingProxyType(_BUILT_IN | {it.name: it for it in others if isinstance(it, Measure)})


def objection(loaded: object) -> str | None:
    """What is wrong with what an entry point of `ENTRY_POINTS` names; None if nothing is."""
    if isinstance(loaded, Measure):
        return f"there is a metric {loaded.name!r} already" if loaded.name in _BUILT_IN else None
    return None if callable(loaded) else f"expected a Measure or a function, not {loaded!r}"


def estimate(measure: Measure, episodes: Iterable[Episode]) -> Measured:
    """One figure of some episodes; see `estimates`."""
    return estimates({measure.name: measure}, episodes)[measure.name]


def estimates(wanted: Mapping[str, Measure], episodes: Iterable[Episode]) -> dict[str, Measured]:
    """Figures of some episodes, each with its 95% interval over tasks.

    Shares of episodes, each of which is one or is not, have Wilson's interval with tasks as the
    trials; all else the bootstrap's over tasks (`intervals.py`). Where no draw differs from
    another, what is in 0..1 has Wilson's too; a mean over one task has none.

    Args:
        wanted: Measures by name.
        episodes: Those that infrastructure broke are passed over.
    """
    sums: dict[tuple[str, str], list[float]] = {}
    listed = list(wanted.values())
    binary = [True] * len(listed)
    for episode in episodes:
        if episode.stop is StopReason.INFRA_ERROR:
            continue
        row = sums.setdefault((episode.env_id, episode.task_id), [0.0] * (2 * len(listed)))
        for i, measure in enumerate(listed):
            if parts := measure.of(episode):
                row[2 * i] += parts[0]
                row[2 * i + 1] += parts[1]
                binary[i] = binary[i] and parts[1] == 1 and parts[0] in (0, 1)
    if not sums or not listed:
        return dict.fromkeys(wanted, NOTHING)
    table = np.array(list(sums.values()))
    return of_sums(listed, table[:, 0::2], table[:, 1::2], binary)


def of_sums(
    listed: Sequence[Measure], numerators: Array, denominators: Array, binary: Sequence[bool]
) -> dict[str, Measured]:
    """Figures by name, of what tasks add to them; see `estimates`.

    Args:
        listed: M measures.
        numerators: [T, M], T tasks.
        denominators: [T, M].
        binary: [M]; true of what says one or nothing of every episode.
    """
    bounds = bootstrap(numerators, denominators)
    return {
        measure.name: _measured(
            measure, numerators[:, i], denominators[:, i], binary[i], *map(float, bounds[:, i])
        )
        for i, measure in enumerate(listed)
    }


def _measured(
    measure: Measure, above: Any, below: Any, binary: bool, low: float, high: float
) -> Measured:
    tasks, total = int((below > 0).sum()), float(below.sum())
    value = float(above.sum()) / total if total else math.nan
    if not math.isfinite(value):
        return Measured(None, None, None, tasks)
    bounded = measure.unit in ("share", "score") and 0 <= value <= 1
    if bounded and (binary or low == high):
        low, high = wilson(min(value * tasks, tasks), tasks)
    elif tasks < 2:
        return Measured(value, None, None, tasks)
    return Measured(value, low, high, tasks)


# --- built in -------------------------------------------------------------------------------------


def _share_of_episodes(holds: Callable[[Episode], bool]) -> Callable[[Episode], Parts]:
    return lambda episode: (float(holds(episode)), 1.0)


def _share_of_calls(statuses: frozenset[CallStatus]) -> Callable[[Episode], Parts]:
    def of(episode: Episode) -> Parts:
        calls = [result.call.status for step in episode.steps for result in step.results]
        return float(sum(status in statuses for status in calls)), float(len(calls))

    return of


def _mean(amount: Callable[[Episode], float]) -> Callable[[Episode], Parts]:
    return lambda episode: (amount(episode), 1.0)


_LISTED: Sequence[Measure] = (
    Measure(
        "success",
        "success",
        "share",
        _share_of_episodes(lambda e: e.success),
        "episodes that the environment's verdict calls solved / episodes",
        "higher",
    ),
    Measure(
        "tool_call_success",
        "calls ok",
        "share",
        _share_of_calls(frozenset({CallStatus.OK})),
        "calls that ran and were not refused / attempted calls",
        "higher",
    ),
    Measure(
        "valid_calls",
        "valid calls",
        "share",
        _share_of_calls(VALID),
        "calls that reached a tool / attempted calls",
        "higher",
    ),
    Measure(
        "calls",
        "calls/task",
        "count",
        _mean(lambda e: sum(len(step.results) for step in e.steps)),
        "attempted calls / episodes",
        None,
    ),
    Measure(
        "turns",
        "turns/task",
        "count",
        _mean(lambda e: len(e.steps)),
        "turns of the student / episodes",
        None,
    ),
)
_BUILT_IN = {measure.name: measure for measure in _LISTED}
