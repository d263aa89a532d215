"""`journeyman show`."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from journeyman.agents.cli.base import (
    OK,
    Commands,
    command,
    table_options,
    task_id,
    write_tables,
)
from journeyman.agents.errors import CommandError

if TYPE_CHECKING:
    from journeyman.agents.evaluation.records import EpisodeFile, Played
    from journeyman.agents.evaluation.tables import ResultTable

DEFAULT_LIMIT = 10


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "show", _show, "show the episodes of a run")
    parser.add_argument("run", help="a run's folder, or its name under runs/")
    parser.add_argument("--row", help='only of this row, such as "student after" or "training"')
    parser.add_argument("--failed", action="store_true", help="only what was not solved")
    parser.add_argument("--kind", help="only tasks of this kind")
    parser.add_argument("--env", metavar="ID", help="only of this environment")
    parser.add_argument("--task", metavar="ID", type=task_id, help="only this task (or number)")
    parser.add_argument(
        "--limit",
        metavar="N",
        type=_limit,
        default=DEFAULT_LIMIT,
        help="at most so many; 0 shows all (default: %(default)s)",
    )
    parser.add_argument(
        "--scores",
        action="store_true",
        help="only what has scores of teacher and credit, and print them",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--html", type=Path, metavar="FILE", help="write one page instead")
    how.add_argument(
        "--summary",
        action="store_true",
        help="tables instead: by row, environment, kind, tool",
    )
    table_options(parser)


def _limit(text: str) -> int:
    """How many, for argparse."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _show(options: argparse.Namespace) -> int:
    from journeyman.agents.evaluation.records import EpisodeFile, find_run
    from journeyman.agents.evaluation.transcript import as_html, as_text

    run = find_run(options.run)
    file = EpisodeFile(run)
    if options.scores and options.summary:
        raise CommandError("--summary shows no scores: leave out --scores or --summary")
    if not options.summary and (options.format != "text" or options.output):
        raise CommandError("--format and --output are of tables: add --summary")
    matching, limit = itertools.count(), math.inf
    if options.limit and not options.summary:
        limit = options.limit

    def wanted(line: Mapping[str, Any]) -> bool:
        # All are counted, and those that are shown are made into episodes.
        return _matches(line, options) and next(matching) < limit

    shown = file.read(wanted)
    if not shown:
        raise CommandError(_nothing(file, options))
    if options.summary:
        write_tables(_summary(shown), (), options)
        return OK
    found = next(matching)
    more = f"{len(shown)} of {found} episodes" + (
        "; --limit 0 shows all" if len(shown) < found else ""
    )
    if options.html:
        options.html.write_text(as_html(f"{run}: {_choice(options)}", shown), encoding="utf-8")
        print(f"page: {options.html} ({more})")
        return OK
    print("\n\n".join(as_text(p, options.scores) for p in shown) + f"\n\n{more}")
    return OK


def _matches(line: Mapping[str, Any], options: argparse.Namespace) -> bool:
    wanted = {
        "row": options.row,
        "kind": options.kind,
        "env_id": options.env,
        "task_id": options.task,
    }
    same = all(line[key] == value for key, value in wanted.items() if value is not None)
    if options.scores and "scores" not in line:
        return False
    return same and not (options.failed and line["success"])


def _choice(options: argparse.Namespace) -> str:
    """What was asked for, in words."""
    asked = {
        name: getattr(options, name)
        for name in ("row", "failed", "kind", "env", "task", "scores")
        if getattr(options, name)
    }
    return ", ".join(f"{n} {v}" if v is not True else n for n, v in asked.items()) or "all episodes"


def _nothing(file: EpisodeFile, options: argparse.Namespace) -> str:
    """Why nothing matches: a name that is not there, or names that do not go together."""
    keys = {"row": "row", "kind": "kind", "env": "env_id"}
    names: dict[str, set[str]] = {asked: set() for asked in keys}
    scored = False
    for line in file.lines():
        scored = scored or "scores" in line
        for asked, key in keys.items():
            names[asked].add(line[key])
    for asked in keys:
        there = sorted(names[asked])
        if getattr(options, asked) not in (None, *there):
            return f"{file.path} has no {asked} {getattr(options, asked)!r}; it has " + (
                ", ".join(there) or "no episodes yet"
            )
    if options.scores and not scored:
        return (
            f"{file.path} has no scores: `journeyman train` writes them with the first "
            f"log_episodes=… of each rollout"
        )
    return f"{file.path}: no episode matches ({_choice(options)})"


def _summary(found: Sequence[Played]) -> list[ResultTable]:
    from journeyman.agents.evaluation.records import metrics_of, rows_of
    from journeyman.agents.evaluation.report import breakdown_tables, summary_table

    rows = {row: metrics_of(played) for row, played in rows_of(found).items()}
    return [summary_table(rows), *breakdown_tables(rows)]
