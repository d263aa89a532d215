"""`journeyman leaderboard`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from journeyman.agents.cli.base import OK, Commands, command, table_options, write_tables
from journeyman.agents.cli.compare import chosen_measures, metric_option

if TYPE_CHECKING:
    from pathlib import Path

    from journeyman.agents.evaluation.entries import RunRows

BESIDE = ("tokens", "cost")
"""Measures that stand beside the one that ranks."""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "leaderboard", _leaderboard, "rank the policies of many runs")
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN[:ROW]",
        help="a run's or a sweep's folder, or its name under runs/; without ROW all of its rows",
    )
    metric_option(parser, "rank by this figure; of several, the others are columns beside it")
    parser.add_argument("--by", choices=("env",), help="a column for each environment too")
    parser.add_argument(
        "--all-tasks",
        action="store_true",
        help="each by all tasks that it played; by default those that all played",
    )
    table_options(parser)


def _leaderboard(options: argparse.Namespace) -> int:
    from journeyman.agents.evaluation.entries import read_entries
    from journeyman.agents.evaluation.measures import measures
    from journeyman.agents.evaluation.mismatches import mismatches
    from journeyman.agents.evaluation.ranking import common_tasks, leaderboard, places

    chosen = chosen_measures(options.metric)
    first, *others = chosen.values()
    known = measures()
    beside = {it.name: it for it in others} | {n: known[n] for n in BESIDE if n in known}
    beside.pop(first.name, None)
    read: dict[Path, RunRows] = {}
    entries = [
        entry
        for run in dict.fromkeys(options.runs)
        for entry in read_entries(run, chosen | beside, every_row=True, known=read)
    ]
    tasks = None if options.all_tasks else common_tasks(entries)
    over = (
        "each is ranked by its own"
        if tasks is None
        else f"ranked by the {len(tasks)} that all played (--all-tasks takes the others too)"
    )
    table = leaderboard(places(entries, first, tasks), first, beside, tasks, bool(options.by))
    write_tables([table], mismatches(entries, over), options)
    return OK
