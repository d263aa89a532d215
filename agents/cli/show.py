"""`journeyman show`."""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from journeyman.agents.cli.base import (
    OK,
    Commands,
    Parser,
    command,
    count,
    table_options,
    task_id,
    write_tables,
)
from journeyman.agents.errors import CommandError

if TYPE_CHECKING:
    from journeyman.agents.evaluation.measures import Measure
    from journeyman.agents.evaluation.records import EpisodeFile, Played
    from journeyman.agents.evaluation.tables import ResultTable

DEFAULT_LIMIT = 10
NO_OP = "no-op"
"""The row that does nothing: it fails by that alone."""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "show", _show, "show the episodes of a run")
    parser.add_argument("run", help="a run's folder, or its name under runs/")
    add_choices(parser)
    parser.add_argument(
        "--failure",
        metavar="NAME",
        help='only what failed by this, such as "wrong argument" (see --summary); the no-op last',
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=count,
        default=DEFAULT_LIMIT,
        help="at most so many; 0 shows all (default: %(default)s)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--html", type=Path, metavar="FILE", help="write one page instead")
    how.add_argument(
        "--inspect", type=Path, metavar="FOLDER", help="write a log of inspect-ai for each row"
    )
    how.add_argument(
        "--summary",
        action="store_true",
        help="tables instead: by row, environment, kind, level, failure, tool",
    )
    parser.add_argument(
        "--metrics",
        metavar="NAMES",
        type=lambda text: text.split(","),
        help="with --summary: further figures, such as call_recall,recovery (see `metrics list`)",
    )
    table_options(parser)


def add_choices(parser: Parser) -> None:
    """Add the arguments that choose episodes (see `matches`)."""
    parser.add_argument("--row", help='only of this row, such as "student after" or "training"')
    parser.add_argument(
        "--failed", action="store_true", help="only what was not solved; the no-op's last"
    )
    parser.add_argument("--kind", help="only tasks of this kind")
    parser.add_argument("--env", metavar="ID", help="only of this environment")
    parser.add_argument("--task", metavar="ID", type=task_id, help="only this task (or number)")
    parser.add_argument(
        "--scores",
        action="store_true",
        help="only what has scores of teacher and credit, which are shown",
    )


def _show(options: argparse.Namespace) -> int:
    from journeyman.agents.evaluation.measures import chosen
    from journeyman.agents.evaluation.records import EpisodeFile, find_run
    from journeyman.agents.evaluation.transcript import as_text

    if options.metrics and not options.summary:
        raise CommandError("--metrics goes with --summary")
    metrics = chosen(options.metrics or ())
    run = find_run(options.run)
    file = EpisodeFile(run)
    if options.scores and options.summary:
        raise CommandError("--summary shows no scores: leave out --scores or --summary")
    if not options.summary and (options.format != "text" or options.output):
        raise CommandError("--format and --output are of tables: add --summary")
    numbered, found = _chosen(file, options)
    shown = [played for _, played in numbered]
    if not shown:
        raise CommandError(nothing(file, options))
    if options.summary:
        write_tables(_summary(shown, metrics), (), options)
        return OK
    more = f"{len(shown)} of {found} episodes" + (
        "; --limit 0 shows all" if len(shown) < found else ""
    )
    if options.html:
        _write_page(options.html, run, numbered)
        print(f"page: {options.html} ({more})")
        return OK
    if options.inspect:
        from journeyman.agents.evaluation.inspect_log import write_logs

        for log in write_logs(options.inspect, shown, _about(run)):
            print(f"log: {log}")
        print(more)
        return OK
    print("\n\n".join(as_text(p, options.scores) for p in shown) + f"\n\n{more}")
    return OK


def _chosen(file: EpisodeFile, options: argparse.Namespace) -> tuple[list[tuple[int, Played]], int]:
    """What is shown, with the numbers of the lines, and how much there is to show."""
    from journeyman.agents.evaluation.failures import failure

    most = None if options.summary else options.limit or None
    if options.failed or options.failure is not None:
        numbered = [
            (number, played)
            for number, played in file.numbered(lambda line: matches(line, options))
            if options.failure in (None, failure(played.episode))
        ]
        numbered.sort(key=lambda it: it[1].row == NO_OP)  # what doing nothing fails by, is known
        return numbered[:most], len(numbered)
    matching = itertools.count()
    # All are counted, and those that are shown are made into episodes.
    numbered = list(
        file.numbered(lambda line: matches(line, options) and (next(matching) < (most or math.inf)))
    )
    return numbered, next(matching)


def _about(run: Path) -> dict[str, Any]:
    """A run's config and machine, as far as they are there."""
    from journeyman.agents.evaluation.files import read_config

    machine = run / "machine.json"
    return {
        "config": read_config(run) if (run / "config.yaml").exists() else None,
        "machine": json.loads(machine.read_text()) if machine.exists() else None,
    }


def _write_page(path: Path, run: Path, numbered: Sequence[tuple[int, Played]]) -> None:
    from journeyman.agents.evaluation.viewer.document import RunEpisodes, page, page_data

    data = page_data([RunEpisodes(run.resolve().name, run, numbered)])
    path.write_text(page(data), encoding="utf-8")


def matches(line: Mapping[str, Any], options: argparse.Namespace) -> bool:
    """Whether a line of `episodes.jsonl` is what was asked for."""
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
        for name in ("row", "failed", "failure", "kind", "env", "task", "scores")
        if getattr(options, name, None)
    }
    return ", ".join(f"{n} {v}" if v is not True else n for n, v in asked.items()) or "all episodes"


def nothing(file: EpisodeFile, options: argparse.Namespace) -> str:
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
    wanted = getattr(options, "failure", None)
    if wanted is not None:
        from journeyman.agents.evaluation.failures import failure

        found = {name for _, p in file.numbered() if (name := failure(p.episode)) is not None}
        if wanted not in found:
            return f"{file.path} has no failure {wanted!r}; it has " + (
                ", ".join(sorted(found)) or "none"
            )
    if options.scores and not scored:
        return (
            f"{file.path} has no scores: `journeyman train` writes them with the first "
            f"log_episodes=… of each rollout"
        )
    return f"{file.path}: no episode matches ({_choice(options)})"


def _summary(found: Sequence[Played], chosen: Mapping[str, Measure]) -> list[ResultTable]:
    from journeyman.agents.evaluation.records import metrics_of, rows_of
    from journeyman.agents.evaluation.results import all_tables

    rows = {row: metrics_of(played, chosen) for row, played in rows_of(found).items()}
    return all_tables(rows, details=True, chosen=chosen)
