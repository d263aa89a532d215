"""Runs side by side: success of each, and differences over the tasks that both played.

Two policies that play the same tasks are compared task by task: most of the chance in a success
rate is which tasks there were, and it is the same for both.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from journeyman.agents.errors import RunDirError
from journeyman.agents.evaluation.files import folder_text, read_config
from journeyman.agents.evaluation.intervals import wilson
from journeyman.agents.evaluation.metrics import TaskKey
from journeyman.agents.evaluation.records import TRAINING, EpisodeFile, find_runs
from journeyman.envs import StopReason

UNASKED = ("no-op", "oracle", TRAINING)
"""Rows that are compared only if they are named."""
Group = Literal["env", "kind"]

Outcomes = Mapping[TaskKey, float]
"""Share of successful episodes, by task; tasks that only broke are not in it."""
Interval = tuple[float, float]
Array = np.ndarray[Any, np.dtype[np.float64]]

_Z95 = 1.959963984540054  # the normal distribution's 97.5% quantile
# The t distribution's 97.5% quantiles, for 1, 2, ... degrees of freedom.
_T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Entry:
    """A row of a run, or of runs that differ by their seeds alone."""

    run: str
    row: str
    seeds: Mapping[int, Outcomes]
    """By the run's seed: what became of each task."""
    kinds: Mapping[TaskKey, str]

    @property
    def label(self) -> str:
        """Names it in tables."""
        return f"{self.run}: {self.row}"

    @property
    def tasks(self) -> set[TaskKey]:
        """Played under every seed."""
        return set.intersection(*(set(outcomes) for outcomes in self.seeds.values()))

    def success(self) -> tuple[float, Interval]:
        """Share in 0..1 of the tasks that all seeds played, and its 95% interval.

        Of the interval over seeds and the one over tasks (Wilson's) it is the wider: seeds that
        happen to agree do not make up for few tasks, nor many tasks for few seeds.
        """
        rates = _matrix(self, sorted(self.tasks)).mean(1)
        value, total = float(rates.mean()), len(self.tasks)
        return value, _wider(wilson(min(value * total, total), total), _over_seeds(rates), 0.0)


@dataclass(frozen=True)
class Difference:
    """How much more often the second of two solves the tasks that both played."""

    tasks: int
    value: float
    """In -1..1."""
    interval: Interval
    """95%, over tasks; if both have the same seeds, the wider of that and the one over seeds."""
    better: int
    """Tasks that the second solves more often."""
    worse: int
    p: float
    """Exact two-sided sign test on those; McNemar's where a task is played once."""


def difference(first: Entry, second: Entry, tasks: Iterable[TaskKey] | None = None) -> Difference:
    """Compare two policies task by task.

    Args:
        first: What is compared with.
        second: What is compared.
        tasks: Only of these; by default all that both played.

    Raises:
        RunDirError: They have no task in common.
    """
    common = sorted((first.tasks & second.tasks).intersection(tasks or first.tasks))
    if not common:
        raise RunDirError(f"{first.label} and {second.label} have no task in common")
    a, b = _matrix(first, common), _matrix(second, common)
    each = b.mean(0) - a.mean(0)
    same_seeds = first.seeds.keys() == second.seeds.keys()
    seeds = _over_seeds(b.mean(1) - a.mean(1)) if same_seeds else None
    better, worse = int((each > 0).sum()), int((each < 0).sum())
    return Difference(
        tasks=len(common),
        value=float(each.mean()),
        interval=_wider(_over_tasks(each), seeds, -1.0),
        better=better,
        worse=worse,
        p=sign_test(better, worse),
    )


def _matrix(entry: Entry, tasks: Sequence[TaskKey]) -> Array:
    """Success by seed, in the order of the seeds, and task."""
    return np.array([[entry.seeds[seed][t] for t in tasks] for seed in sorted(entry.seeds)])


def _over_seeds(values: Array) -> Interval | None:
    """Student's 95% interval of the mean; None for a single value."""
    if len(values) < 2:
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


def _wider(tasks: Interval, seeds: Interval | None, least: float) -> Interval:
    """The wider of two intervals, within `least`..1."""
    low, high = max(tasks, seeds or tasks, key=lambda interval: interval[1] - interval[0])
    return max(least, low), min(1.0, high)


def sign_test(better: int, worse: int) -> float:
    """Exact two-sided p of as uneven a split if either side were as likely."""
    total = better + worse
    tail = sum(math.comb(total, i) for i in range(min(better, worse) + 1))
    return float(min(1.0, 2 * tail / 2**total))


# --- from run folders -----------------------------------------------------------------------------


def read_entries(argument: str) -> list[Entry]:
    """The rows of a run folder, or of the runs in a sweep's folder.

    Args:
        argument: `RUN` (all rows but `UNASKED`) or `RUN:ROW`.

    Raises:
        RunDirError: No such run or row.
    """
    name, found, row = (argument, "", "") if Path(argument).is_dir() else argument.partition(":")
    name = name.rstrip("/")
    entries = []
    for label, runs in _seed_groups(name).items():
        read = {seed: _read(run) for seed, run in runs.items()}
        rows = list(dict.fromkeys(r for outcomes, _ in read.values() for r in outcomes))
        if found and row not in rows:
            raise RunDirError(f"{label} has no row {row!r}; it has {', '.join(rows)}")
        kinds = {task: kind for _, known in read.values() for task, kind in known.items()}
        for r in [row] if found else [r for r in rows if r not in UNASKED]:
            seeds = {seed: outcomes[r] for seed, (outcomes, _) in read.items() if outcomes.get(r)}
            if not seeds:
                continue
            entry = Entry(label, r, seeds, kinds)
            if not entry.tasks:
                raise RunDirError(
                    f"{entry.label}: its {len(seeds)} seeds have no task in common: name one run"
                )
            entries.append(entry)
    if not entries:
        raise RunDirError(f"{argument}: nothing was evaluated there yet")
    return entries


def _seed_groups(name: str) -> dict[str, dict[int, Path]]:
    """Runs by label and seed: those whose configs differ by the seed alone are together."""
    groups: defaultdict[str, dict[int, Path]] = defaultdict(dict)
    for run in find_runs(name):
        config = read_config(run)
        groups[repr(_settings(config))][config["seed"]] = run
    if len(groups) == 1:
        return dict(zip([name], groups.values(), strict=True))
    # A sweep's folders are named after what their runs override, such as `credit=trace,seed=1`.
    runs = list(groups.values())
    names = [_overrides(name, next(iter(of_seeds.values()))) for of_seeds in runs]
    shared = set.intersection(*map(set, names))
    labels = [",".join(part for part in parts if part not in shared) for parts in names]
    if len(set(labels)) < len(labels):  # names of the user's own, say
        labels = [",".join(parts) for parts in names]
    return {f"{name}/{label}": of_seeds for label, of_seeds in zip(labels, runs, strict=True)}


def _overrides(sweep: str, run: Path) -> list[str]:
    """What a run of a sweep overrides, beside its seed, by the name of its folder."""
    folder = next(f for f in (Path(sweep), Path("runs") / sweep) if run.is_relative_to(f))
    parts = folder_text(str(run.relative_to(folder))).split(",")
    return [part for part in parts if not part.startswith("seed=")]


def _settings(config: Any) -> Any:
    """A config without what differs between seeds."""
    if isinstance(config, dict):
        varying = ("seed", "run_dir", "output_dir")
        return {k: _settings(v) for k, v in config.items() if k not in varying}
    return config


def _read(run: Path) -> tuple[dict[str, Outcomes], dict[TaskKey, str]]:
    """Outcomes by row, and the tasks' kinds; episodes that infrastructure broke do not count."""
    last: defaultdict[str, dict[tuple[TaskKey, int], bool]] = defaultdict(dict)
    weights: dict[str, str] = {}
    kinds = {}
    for line in EpisodeFile(run).lines():
        task = line["env_id"], line["task_id"]
        kinds[task] = line["kind"]
        if line["step"] is not None:
            continue
        row = line["row"]
        if weights.setdefault(row, line["weights"]) != line["weights"]:
            last[row].clear()  # another model's: what it solved is not this one's
            weights[row] = line["weights"]
        if line["stop"] != StopReason.INFRA_ERROR:
            last[row][task, line["attempt"]] = line["success"]
    rows: dict[str, Outcomes] = {}
    for row, played in last.items():
        outcomes: defaultdict[TaskKey, list[bool]] = defaultdict(list)
        for (task, _), success in played.items():
            outcomes[task].append(success)
        rows[row] = {task: fmean(known) for task, known in outcomes.items()}
    return rows, kinds


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
