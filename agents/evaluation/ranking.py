"""Many policies in one table, in the order of a figure: a leaderboard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from journeyman.agents.errors import RunDirError
from journeyman.agents.evaluation.comparison import Entry, groups
from journeyman.agents.evaluation.files import read_config
from journeyman.agents.evaluation.intervals import Measured
from journeyman.agents.evaluation.measures import Measure
from journeyman.agents.evaluation.metrics import TaskKey
from journeyman.agents.evaluation.tables import ResultTable, TableCell, bounds, count, figure

SCRIPTS = ("no-op", "oracle")
"""Rows that every evaluation has: runs that play the same tasks have the same ones."""


@dataclass(frozen=True)
class Place:
    """A policy's place."""

    entry: Entry
    found: Measured
    ranks: tuple[int, int] | None
    """The best and the worst rank that the intervals leave open; None without a figure."""


def places(
    entries: Sequence[Entry], measure: Measure, tasks: frozenset[TaskKey] | None = None
) -> list[Place]:
    """Policies in the order of a figure, the best first; those that have none come last.

    A policy ranks surely behind another if its whole 95% interval does.

    Args:
        entries: Of one that plays a script, the first is taken of those that did the same.
        measure: Which figure; if neither high nor low is better, the higher comes first.
        tasks: Only of these.
    """
    sign = -1 if measure.better == "lower" else 1
    measured = [(entry, entry.figure(measure, tasks)) for entry in _once(entries, tasks)]
    order = sorted(
        measured, key=lambda it: math.inf if it[1].value is None else -sign * it[1].value
    )
    spans = [_span(found, sign) for _, found in order]
    known = [span for span in spans if span is not None]
    ranked = []
    for (entry, found), span in zip(order, spans, strict=True):
        ranks = None
        if span is not None:
            ahead = sum(other[0] > span[1] for other in known)
            behind = sum(other[1] < span[0] for other in known)
            ranks = ahead + 1, len(known) - behind
        ranked.append(Place(entry, found, ranks))
    return ranked


def _span(found: Measured, sign: int) -> tuple[float, float] | None:
    """An interval in which more is better; one that nobody knows could be anywhere."""
    if found.value is None:
        return None
    if found.low is None or found.high is None:
        return -math.inf, math.inf
    low, high = sorted((sign * found.low, sign * found.high))
    return low, high


def _once(entries: Sequence[Entry], tasks: frozenset[TaskKey] | None) -> list[Entry]:
    kept: list[Entry] = []
    scripted: set[object] = set()
    for entry in entries:
        if entry.row in SCRIPTS:
            did = frozenset(
                (task, outcome)
                for outcomes in entry.seeds.values()
                for task, outcome in outcomes.items()
                if tasks is None or task in tasks
            )
            if (entry.row, did) in scripted:
                continue
            scripted.add((entry.row, did))
        kept.append(entry)
    return kept


def common_tasks(entries: Sequence[Entry]) -> frozenset[TaskKey]:
    """The tasks that all have played.

    Raises:
        RunDirError: There are none.
    """
    found = frozenset.intersection(*(frozenset(entry.tasks) for entry in entries))
    if not found:
        raise RunDirError(
            f"no task was played by all of {', '.join(entry.label for entry in entries)}: rank "
            f"runs of the same env= and evaluation.split=, or each by what it played (--all-tasks)"
        )
    return found


def leaderboard(
    ranked: Sequence[Place],
    measure: Measure,
    beside: Mapping[str, Measure],
    tasks: frozenset[TaskKey] | None = None,
    by_env: bool = False,
) -> ResultTable:
    """A line a policy: its rank, who it is, its figure, what that took, and when it was played.

    Args:
        ranked: See `places`.
        measure: What they are ranked by.
        beside: More figures, a column each where one is known.
        tasks: Only of these.
        by_env: The figure in each environment, too.

    Raises:
        RunFileError: A run's config is none.
    """
    entries = [place.entry for place in ranked]
    played = [entry.tasks if tasks is None else entry.tasks & tasks for entry in entries]
    columns = {}
    for it in beside.values():
        values = [entry.value(it, own) for entry, own in zip(entries, played, strict=True)]
        if any(value is not None for value in values):
            columns[it.title] = [figure(value, it.unit) for value in values]
    envs = {
        env: [
            figure(e.value(measure, own & each), measure.unit)
            for e, own in zip(entries, played, strict=True)
        ]
        for env, each in (groups(entries, "env") if by_env else {}).items()
        if any(own & each for own in played)
    }
    rows = []
    for i, place in enumerate(ranked):
        found, told = place.found, _told(place.entry)
        rows.append(
            (
                *(_rank(place.ranks), place.entry.label, told.model),
                figure(found.value, measure.unit),
                bounds(found.low, found.high, measure.unit),
                *(cells[i] for cells in envs.values()),
                count(found.tasks),
                told.attempts,
                *(cells[i] for cells in columns.values()),
                *(told.version, told.date),
            )
        )
    titles = (measure.title, "95% interval", *envs, "tasks", "attempts")
    return ResultTable(
        ("rank", "run: row", "model", *titles, *columns, "version", "date"), rows, names=3
    )


def _rank(ranks: tuple[int, int] | None) -> TableCell:
    if ranks is None:
        return TableCell("-")
    best, worst = ranks
    return TableCell(str(best) if best == worst else f"{best}-{worst}", best, worst)


@dataclass(frozen=True)
class _Told:
    """What a run folder says of a policy."""

    model: str
    attempts: TableCell
    version: str
    date: str


def _told(entry: Entry) -> _Told:
    if not entry.folders:
        return _Told("-", TableCell("-"), "-", "-")
    folder = entry.folders[0]
    config = read_config(folder)
    try:
        machine = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
        version, date = machine["versions"]["journeyman"], machine["date"][:10]
    except (OSError, ValueError, KeyError, TypeError):  # a copy without it
        version = date = "-"
    attempts = _at(config, "evaluation", "attempts")
    return _Told(
        _model(entry.row, config),
        count(attempts) if type(attempts) is int else TableCell("-"),
        str(version),
        str(date),
    )


def _model(row: str, config: Mapping[str, Any]) -> str:
    """Who plays a row: the name of its model, or what kind of player it is where it has none."""
    if row in SCRIPTS:
        return row
    part = "teacher" if row == "teacher" else "student"
    model = _at(config, part, "model")
    if isinstance(model, str):
        return model
    server = _at(config, part, "base_url")
    if isinstance(server, list) and server:  # replicas
        server = server[0]
    if isinstance(server, str):  # its only model
        return urlsplit(server).netloc.rpartition("@")[2]
    target = str(_at(config, part, "_target_"))
    return target.rpartition(".")[2].removeprefix("load_")


def _at(config: Mapping[str, Any], *keys: str) -> Any:
    found: Any = config
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found
