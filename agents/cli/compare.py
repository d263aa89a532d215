"""`journeyman compare`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from journeyman.agents.cli.base import OK, Commands, command
from journeyman.agents.errors import CommandError

if TYPE_CHECKING:
    from journeyman.agents.evaluation.comparison import Difference, Entry


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "compare", _compare, "compare runs task by task")
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN[:ROW]",
        help="a run's or a sweep's folder, or its name under runs/; the first is compared with",
    )
    parser.add_argument("--by", choices=("env", "kind"), help="differences by group of tasks too")


def _compare(options: argparse.Namespace) -> int:
    from journeyman.agents.evaluation import comparison
    from journeyman.agents.evaluation.report import aligned

    arguments = [comparison.read_entries(run) for run in options.runs]
    entries = [entry for found in arguments for entry in found]
    print(aligned([("run: row", "seeds", "tasks", "success", "95% interval"), *_rates(entries)]))
    pairs = comparison.pairs(arguments)
    if not pairs and len(entries) > 1:
        raise CommandError(
            "no rows of one name to compare: name them, such as RUN:'student after' RUN:student"
        )
    lines = [_cells(f"{b.label} - {a.label}", comparison.difference(a, b)) for a, b in pairs]
    if lines:
        print(f"\n{aligned([_headers('difference'), *lines])}")
    for a, b in pairs if options.by else ():
        common = a.tasks & b.tasks
        lines = [
            _cells(name, comparison.difference(a, b, tasks))
            for name, tasks in comparison.groups([a, b], options.by).items()
            if tasks & common
        ]
        print(f"\n{b.label} - {a.label}\n{aligned([_headers(options.by), *lines])}")
    return OK


def _rates(entries: Iterable[Entry]) -> list[Sequence[str]]:
    lines: list[Sequence[str]] = []
    for entry in entries:
        rate, (low, high) = entry.success()
        interval = f"{100 * low:.1f} - {100 * high:.1f}"
        counts = (str(len(entry.seeds)), str(len(entry.tasks)))
        lines.append((entry.label, *counts, f"{100 * rate:.1f}%", interval))
    return lines


def _headers(title: str) -> Sequence[str]:
    return title, "tasks", "points", "95% interval", "better", "worse", "p"


def _cells(name: str, found: Difference) -> Sequence[str]:
    low, high = (f"{100 * bound:+.1f}" for bound in found.interval)
    points = f"{100 * found.value:+.1f}"
    counts = (str(found.better), str(found.worse))
    return name, str(found.tasks), points, f"{low} .. {high}", *counts, f"{found.p:.2g}"
