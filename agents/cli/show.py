"""`journeyman show`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from journeyman.agents.cli.base import OK, Commands, command, count, task_id
from journeyman.agents.errors import CommandError

if TYPE_CHECKING:
    from journeyman.agents.evaluation.records import EpisodeFile, Played

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
        type=count,
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


def _show(options: argparse.Namespace) -> int:
    from journeyman.agents.evaluation.records import EpisodeFile, find_run
    from journeyman.agents.evaluation.transcript import as_html, as_text

    run = find_run(options.run)
    file = EpisodeFile(run)
    found = file.read(lambda line: _matches(line, options))
    if not found:
        raise CommandError(_nothing(file, options))
    if options.scores and options.summary:
        raise CommandError("--summary shows no scores: leave out --scores or --summary")
    if options.summary:
        print(_summary(found))
        return OK
    shown = found[: options.limit or None]
    more = f"{len(shown)} of {len(found)} episodes" + (
        "; --limit 0 shows all" if len(shown) < len(found) else ""
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
    lines = list(file.lines())
    for asked, key in (("row", "row"), ("kind", "kind"), ("env", "env_id")):
        there = sorted({line[key] for line in lines})
        if getattr(options, asked) not in (None, *there):
            return f"{file.path} has no {asked} {getattr(options, asked)!r}; it has " + (
                ", ".join(there) or "no episodes yet"
            )
    if options.scores and not any("scores" in line for line in lines):
        return (
            f"{file.path} has no scores: `journeyman train` writes them with the first "
            f"log_episodes=… of each rollout"
        )
    return f"{file.path}: no episode matches ({_choice(options)})"


def _summary(found: Sequence[Played]) -> str:
    from journeyman.agents.evaluation.records import metrics_of, rows_of
    from journeyman.agents.evaluation.report import breakdown, table

    rows = {row: metrics_of(played) for row, played in rows_of(found).items()}
    return f"{table(rows)}\n\n{breakdown(rows)}"
