"""Figures of a policy by name: what each episode adds to them, and how sure they are.

A figure is a ratio of sums over the episodes that infrastructure did not break: of its numerators
by its denominators. Whoever shows figures asks `measures` for what there is; `metrics.py` makes the
summary of an evaluation of them. Formulas and sources are in docs/evaluation.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from journeyman.agents.errors import SettingError
from journeyman.agents.evaluation import counting
from journeyman.agents.evaluation.counting import VALID, Count
from journeyman.agents.evaluation.intervals import Array, Measured, measured
from journeyman.envs.types import Episode, StopReason
from journeyman.tools.doors import load_group
from journeyman.tools.types import CallStatus

ENTRY_POINTS = "journeyman.metrics"
"""Other packages' figures: each a `Measure`, or a plain function of episodes (see `metrics.py`)."""

Unit = Literal["share", "count", "tokens", "seconds", "money", "score"]


@dataclass(frozen=True)
class Measure:
    """One figure of a policy."""

    name: str
    """In `evaluation.metrics`, `summary.json` and on the command line."""
    title: str
    """Heads its column."""
    unit: Unit
    """Of a "share" and a "score" the figure is in 0..1; of the others it is a mean."""
    of: Count
    """What an episode adds to numerator and denominator; None if the figure is not about it. A
    numerator of NaN is one that nobody knows: the figure is unknown then, too."""
    about: str
    """What is counted over what, on one line."""
    better: Literal["higher", "lower"] | None
    """None where neither is."""
    source: str = ""
    """Who defines it so, or nearly so; empty where we do."""


NO_MEASURES: Mapping[str, Measure] = MappingProxyType({})


def measures() -> Mapping[str, Measure]:
    """Every measure by its name: the built-in ones, then other packages'."""
    return MappingProxyType(_BUILT_IN | _others())


def functions() -> Mapping[str, Callable[[Sequence[Episode]], float | None]]:
    """Other packages' figures that are plain functions of episodes, by their entry points' names.

    They are asked with the episodes that infrastructure did not break; None is no figure.
    """
    found = load_group(ENTRY_POINTS, _objection)
    return {name: it for name, it in found.items() if not isinstance(it, Measure)}


def _others() -> dict[str, Measure]:
    found = load_group(ENTRY_POINTS, _objection).values()
    return {it.name: it for it in found if isinstance(it, Measure)}


def _objection(loaded: object) -> str | None:
    """What is wrong with what an entry point names; None if nothing is."""
    if isinstance(loaded, Measure):
        return f"there is a metric {loaded.name!r} already" if loaded.name in _BUILT_IN else None
    return None if callable(loaded) else f"expected a Measure or a function, not {loaded!r}"


def chosen(names: Sequence[str] = ()) -> dict[str, Measure]:
    """Measures that have a column of their own: those that are named, then other packages'.

    Args:
        names: Of measures; one of a plain function, which has a column anyway, is passed over.

    Raises:
        SettingError: No metric has one of the names; the message says what may be meant.
    """
    known, plain = measures(), functions()
    for name in names:
        if name not in known and name not in plain:
            near = difflib.get_close_matches(str(name), [*known, *plain], n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise SettingError(f"no metric {name!r}: {hint}`journeyman metrics list` has all")
    return {name: known[name] for name in names if name in known} | _others()


def estimate(measure: Measure, episodes: Iterable[Episode]) -> Measured:
    """One figure of some episodes; see `estimates`."""
    return estimates({measure.name: measure}, episodes)[measure.name]


def estimates(wanted: Mapping[str, Measure], episodes: Iterable[Episode]) -> dict[str, Measured]:
    """Figures of some episodes, each with its 95% interval over tasks (see `intervals.measured`).

    Args:
        wanted: Measures by name.
        episodes: Those that infrastructure broke are passed over.
    """
    return Contributions.of(wanted, episodes).figures()


@dataclass(frozen=True)
class Contributions:
    """What each of E episodes adds to each of M figures."""

    measures: Mapping[str, Measure]
    tasks: np.ndarray[Any, np.dtype[np.intp]]
    """[E] numbers of the episodes' tasks."""
    above: Array
    """[E, M] numerators."""
    below: Array
    """[E, M] denominators; 0 where the figure is not about the episode."""

    @classmethod
    def of(cls, wanted: Mapping[str, Measure], episodes: Iterable[Episode]) -> Contributions:
        """Ask every measure about every episode, but those that infrastructure broke."""
        tasks: dict[tuple[str, str], int] = {}
        numbers, parts = [], []
        counts = [measure.of for measure in wanted.values()]
        for episode in episodes:
            if episode.stop is StopReason.INFRA_ERROR:
                continue
            numbers.append(tasks.setdefault((episode.env_id, episode.task_id), len(tasks)))
            parts.append([count(episode) or (0.0, 0.0) for count in counts])
        table = np.array(parts, dtype=float).reshape(len(parts), len(counts), 2)
        return cls(wanted, np.array(numbers, dtype=np.intp), table[:, :, 0], table[:, :, 1])

    def figures(
        self, names: Iterable[str] | None = None, rows: Sequence[int] | None = None
    ) -> dict[str, Measured]:
        """Figures and their intervals.

        Args:
            names: Of which measures; by default of all.
            rows: Of which episodes, by their places among those that were asked about.
        """
        listed = list(self.measures if names is None else names)
        columns = [place for place, name in enumerate(self.measures) if name in listed]
        taken = slice(None) if rows is None else np.array(rows, dtype=np.intp)
        tasks, place = np.unique(self.tasks[taken], return_inverse=True)
        above, below = self.above[taken][:, columns], self.below[taken][:, columns]
        sums = np.zeros((2, len(tasks), len(columns)))
        np.add.at(sums[0], place, above)
        np.add.at(sums[1], place, below)
        binary = ((below == 0) | ((below == 1) & ((above == 0) | (above == 1)))).all(0)
        found = [name for name in self.measures if name in listed]
        bounded = [self.measures[name].unit in ("share", "score") for name in found]
        return dict(zip(found, measured(sums[0], sums[1], bounded, binary.tolist()), strict=True))


# --- built in -------------------------------------------------------------------------------------

_BFCL = "Patil et al. 2025 (BFCL)"
_TASKBENCH = "Shen et al. 2024 (TaskBench)"


def _levels() -> Iterator[Measure]:
    """Precision, recall and exact match on each level on which two calls may be the same."""
    for level, pairs, words in (
        ("tool", "tools", "tool"),
        ("signature", "names", "tool and argument names"),
        ("call", "values", "tool, argument names and values"),
    ):
        pair = f"pairs of a call and a gold call with the same {words}"
        whole = f"episodes whose calls and gold calls pair off with the same {words} / episodes"
        for name, count, about, source in (
            ("precision", counting.against_gold(pairs, "made"), f"{pair} / calls", _TASKBENCH),
            ("recall", counting.against_gold(pairs, "wanted"), f"{pair} / gold calls", _TASKBENCH),
            ("exact", counting.exact(pairs), whole, _BFCL),
        ):
            title = f"{level} {name}"
            yield Measure(f"{level}_{name}", title, "share", count, about, "higher", source)


_LISTED = (
    Measure(
        "success",
        "success",
        "share",
        counting.episodes(lambda e: e.success),
        "episodes that the environment's verdict calls solved / episodes",
        "higher",
        "Yao et al. 2024 (tau-bench)",
    ),
    Measure(
        "score",
        "score",
        "score",
        counting.score,
        "sum of the environment's scores in 0..1 (by default the verdict) / episodes that have one",
        "higher",
        "Ma et al. 2024 (AgentBoard)",
    ),
    Measure(
        "tool_call_success",
        "calls ok",
        "share",
        counting.calls(frozenset({CallStatus.OK})),
        "calls that ran and were not refused (status ok) / calls",
        "higher",
    ),
    Measure(
        "valid_calls",
        "valid calls",
        "share",
        counting.calls(VALID),
        "calls that reached a tool (ok, tool_error, timeout) / calls",
        "higher",
    ),
    *_levels(),
    Measure(
        "argument_recall",
        "argument recall",
        "share",
        counting.against_gold("arguments", "wanted_arguments"),
        "gold arguments that the paired call gives with their value, calls of one tool being "
        "paired so that these are most / gold arguments",
        "higher",
        "Chen et al. 2024 (T-Eval)",
    ),
    Measure(
        "needless_calls",
        "needless calls",
        "share",
        counting.against_gold("needless", "made"),
        "calls that ran beyond as many as gold has of their tool / calls",
        "lower",
    ),
    Measure(
        "missing_calls",
        "missing calls",
        "share",
        counting.against_gold("missing", "wanted"),
        "gold calls beyond as many as were attempted of their tool / gold calls",
        "lower",
    ),
    Measure(
        "recovery",
        "recovery",
        "share",
        counting.recovery,
        "failed calls after which a later turn, before the user speaks again, has a call of the "
        "tool (of any, if the failed one names none) that runs / failed calls",
        "higher",
        "Vuddanti et al. 2025 (PALADIN)",
    ),
    Measure(
        "irrelevance",
        "irrelevance",
        "share",
        counting.irrelevance,
        "episodes without a readable call / episodes whose gold has no call",
        "higher",
        _BFCL,
    ),
    Measure(
        "relevance",
        "relevance",
        "share",
        counting.relevance,
        "episodes with a readable call / episodes whose gold has a call",
        "higher",
        _BFCL,
    ),
    Measure(
        "turns",
        "turns/task",
        "count",
        counting.mean(lambda e: len(e.steps)),
        "turns of the student / episodes",
        None,
    ),
    Measure(
        "calls",
        "calls/task",
        "count",
        counting.mean(counting.attempted),
        "calls / episodes",
        None,
    ),
    Measure(
        "tokens",
        "tokens/task",
        "tokens",
        counting.mean(counting.tokens),
        "tokens that the student chose, or by its server's count that it wrote / episodes",
        "lower",
    ),
    Measure(
        "prompt_tokens",
        "prompt tokens/task",
        "tokens",
        counting.billed(lambda usage: usage.prompt),
        "tokens that the server read, by its count / episodes with a turn by a server",
        "lower",
    ),
    Measure(
        "completion_tokens",
        "completion tokens/task",
        "tokens",
        counting.billed(lambda usage: usage.completion),
        "tokens that the server wrote, by its count / episodes with a turn by a server",
        "lower",
    ),
    Measure(
        "cost",
        "cost/task",
        "money",
        counting.billed(lambda usage: usage.cost),
        "money by `student.prices` / episodes with a turn by a server",
        "lower",
    ),
    Measure(
        "tool_seconds",
        "tool seconds/task",
        "seconds",
        counting.mean(counting.tool_seconds),
        "seconds spent in tools / episodes",
        "lower",
    ),
    Measure(
        "truncated_turns",
        "truncated turns",
        "share",
        counting.truncated,
        "turns that hit their token limit / turns of the student",
        "lower",
    ),
    Measure(
        "answered",
        "answered",
        "share",
        counting.ended(StopReason.ANSWERED),
        "episodes that the student ended by an answer / episodes",
        None,
    ),
    Measure(
        "max_turns",
        "turn limit",
        "share",
        counting.ended(StopReason.MAX_TURNS),
        "episodes that the turn limit ended / episodes",
        "lower",
    ),
    Measure(
        "context_full",
        "full context",
        "share",
        counting.ended(StopReason.CONTEXT_FULL),
        "episodes that a full context ended / episodes",
        "lower",
    ),
    Measure(
        "unplayed",
        "unplayed",
        "share",
        counting.episodes(counting.unplayed),
        "episodes whose prompt left no room for a turn / episodes",
        "lower",
    ),
)
_BUILT_IN = {measure.name: measure for measure in _LISTED}
