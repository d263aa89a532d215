"""`journeyman compare`."""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from journeyman.agents.cli.base import OK, Commands, command, table_options, write_tables
from journeyman.agents.errors import CommandError

if TYPE_CHECKING:
    from pathlib import Path

    from journeyman.agents.evaluation.comparison import Contrast, Entry
    from journeyman.agents.evaluation.entries import RunRows
    from journeyman.agents.evaluation.measures import Measure
    from journeyman.agents.evaluation.tables import ResultTable, TableCell

SUCCESS = "success"


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
    metric_option(parser, "compare this figure; may be given several times (default: success)")
    table_options(parser)


def metric_option(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Add `--metric`, for `chosen_measures`."""
    parser.add_argument("--metric", action="append", metavar="NAME", help=help_text)


def chosen_measures(names: Sequence[str] | None) -> dict[str, Measure]:
    """Measures by name; without names the success.

    Raises:
        CommandError: There is none of a name.
    """
    from journeyman.agents.evaluation.measures import measures

    known = measures()
    for name in names or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise CommandError(f"no metric {name!r}; {hint}")
    return {name: known[name] for name in dict.fromkeys(names or (SUCCESS,))}


def _compare(options: argparse.Namespace) -> int:
    from journeyman.agents.evaluation import comparison
    from journeyman.agents.evaluation.entries import read_entries
    from journeyman.agents.evaluation.mismatches import mismatches

    wanted = chosen_measures(options.metric)
    known: dict[Path, RunRows] = {}
    arguments = [read_entries(run, wanted, known=known) for run in options.runs]
    entries = [entry for found in arguments for entry in found]
    pairs = comparison.pairs(arguments)
    tables = []
    for measure in wanted.values():
        tables.append(_figures(entries, measure))
        if pairs:
            lines = {
                f"{b.label} - {a.label}": comparison.contrast(a, b, None, measure) for a, b in pairs
            }
            tables.append(_contrasts("difference", lines, measure))
        for a, b in pairs if options.by else ():
            common = a.tasks & b.tasks
            groups = comparison.groups([a, b], options.by)
            lines = {
                name: comparison.contrast(a, b, tasks, measure)
                for name, tasks in groups.items()
                if tasks & common
            }
            tables.append(_contrasts(options.by, lines, measure, f"{b.label} - {a.label}"))
    over = "a difference is over those that both played"
    write_tables(tables, mismatches(entries, over), options)
    if not pairs and len(entries) > 1:
        raise CommandError(
            "no rows of one name to compare: name them, such as RUN:'student after' RUN:student"
        )
    return OK


def _figures(entries: Sequence[Entry], measure: Measure) -> ResultTable:
    from journeyman.agents.evaluation.tables import ResultTable, bounds, count, figure

    headers = ("run: row", "seeds", "tasks", measure.title, "95% interval")
    lines = []
    for entry in entries:
        found = entry.figure(measure)
        cells = (count(len(entry.seeds)), count(len(entry.tasks)))
        value = figure(found.value, measure.unit)
        lines.append((entry.label, *cells, value, bounds(found.low, found.high, measure.unit)))
    return ResultTable(headers, lines)


def _contrasts(
    first: str, lines: Mapping[str, Contrast], measure: Measure, title: str = ""
) -> ResultTable:
    from journeyman.agents.evaluation.tables import ResultTable, count

    points = "points" if measure.unit in ("share", "score") else "difference"
    name = points if measure.name == SUCCESS else f"{measure.title}, {points}"
    sides = ("better", "worse") if measure.better else ("more", "less")
    rows = [(label, count(it.tasks), *_difference(it, measure)) for label, it in lines.items()]
    return ResultTable((first, "tasks", name, "95% interval", *sides, "p"), rows, title)


def _difference(found: Contrast, measure: Measure) -> Sequence[TableCell]:
    from journeyman.agents.evaluation.tables import amount, bounds, count, difference

    low, high = found.interval if math.isfinite(found.interval[0]) else (None, None)
    value = None if math.isnan(found.value) else found.value
    return (
        difference(value, measure.unit),
        bounds(low, high, measure.unit, signed=True),
        count(found.better),
        count(found.worse),
        amount(found.p, ".2g"),
    )
