"""`journeyman why`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from journeyman.agents.cli.base import OK, Commands, columns, command, count, task_id
from journeyman.agents.errors import CommandError

if TYPE_CHECKING:
    from journeyman.agents.evaluation.lost import Lost
    from journeyman.agents.evaluation.records import Played

DEFAULT_LIMIT = 10
OWN_ROWS = ("student after", "student")
"""Whose episodes are taken where nobody says; the first that there is."""
TEXT = 60
"""Characters of a turn that are shown."""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands, "why", _why, "at which turn failed episodes of a run were lost, by playing on"
    )
    parser.add_argument("run", help="a run's folder, or its name under runs/")
    parser.add_argument(
        "student",
        nargs="*",
        metavar="student.…=…",
        help="who plays on, where that is not the run's own student: student=hf student.model=DIR",
    )
    parser.add_argument(
        "--row", help=f"whose episodes (default: {' or '.join(map(repr, OWN_ROWS))})"
    )
    parser.add_argument("--kind", help="only tasks of this kind")
    parser.add_argument("--env", metavar="ID", help="only of this environment")
    parser.add_argument("--task", metavar="ID", type=task_id, help="only this task (or number)")
    parser.add_argument(
        "--limit",
        metavar="N",
        type=count,
        default=DEFAULT_LIMIT,
        help="at most so many; 0 takes all (default: %(default)s)",
    )
    parser.add_argument(
        "--player",
        choices=("student", "oracle"),
        default="student",
        help="who plays on: the student, or the gold calls (default: %(default)s)",
    )
    parser.add_argument(
        "--tries",
        metavar="K",
        type=count,
        default=16,
        help="times that the student plays on from each place (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of the student (default: %(default)s)"
    )
    parser.add_argument(
        "--bisect",
        action="store_true",
        help="try about log2 of the places: it is taken that where no try wins, none later does",
    )
    parser.add_argument("--seed", type=count, default=0, help="default: %(default)s")
    parser.add_argument(
        "--summary",
        action="store_true",
        help="play nothing: at which turns and calls those searched so far were lost",
    )


def _why(options: argparse.Namespace) -> int:
    from journeyman.agents.evaluation.lost import in_words
    from journeyman.agents.evaluation.records import EpisodeFile, find_run

    run = find_run(options.run)
    rows = list(dict.fromkeys(line["row"] for line in _evaluated(EpisodeFile(run).lines())))
    row = options.row or next((it for it in OWN_ROWS if it in rows), None)
    if row is None or row not in rows:
        raise CommandError(
            f"{run} has no row {row or OWN_ROWS[-1]!r} of an evaluation; --row names one: "
            f"{', '.join(rows) or 'there is none yet'}"
        )
    chosen = _failed(run, row, options)
    if options.summary:
        print(_summary(row, chosen, options.player))
        return OK
    if options.tries < 1:
        raise CommandError(f"--tries {options.tries}: expected 1 or more")
    if options.player == "student" and not options.temperature > 0:
        raise CommandError(
            f"--temperature {options.temperature:g}: expected above 0; without dice the student "
            f"would do again what it did"
        )
    shown = chosen[: options.limit or None]

    from journeyman.agents.runs.explaining import Question, explain

    question = Question(
        options.player,
        options.tries,
        options.temperature,
        options.bisect,
        options.seed,
        tuple(options.student),
    )
    found = explain(run, shown, question)
    for p in found:
        (lost,) = (it for it in p.lost if it.player == options.player)
        print(f"{_told(p, lost)}\n{in_words(lost, p.episode)}\n")
    more = "" if len(shown) == len(chosen) else "; --limit 0 takes all"
    print(f"{len(found)} of {len(chosen)} failed episodes of {row!r}{more}")
    return OK


def _evaluated(lines: Any) -> Any:
    """Lines of evaluations: those of training have scores of their own search."""
    return (line for line in lines if line["step"] is None)


def _failed(run: Path, row: str, options: argparse.Namespace) -> list[Played]:
    """The row's failed episodes that are asked for.

    Raises:
        CommandError: There are none.
    """
    from journeyman.agents.evaluation.records import EpisodeFile, rows_of

    wanted = {"kind": options.kind, "env_id": options.env, "task_id": options.task}

    def matches(line: Mapping[str, Any]) -> bool:
        same = all(line[key] == value for key, value in wanted.items() if value is not None)
        return same and line["row"] == row and line["step"] is None

    played = rows_of(EpisodeFile(run).read(matches)).get(row, [])
    failed = [p for p in played if not p.episode.success and not p.broken and p.episode.steps]
    if not failed:
        asked = ", ".join(f"{n} {v}" for n, v in wanted.items() if v is not None)
        raise CommandError(
            f"{run}: no failed episode of row {row!r}" + (f" ({asked})" if asked else "")
        )
    return failed


def _told(p: Played, lost: Lost) -> str:
    """An episode's places one a line, with what came of playing on from each."""
    from journeyman.agents.evaluation.lost import chance_cells
    from journeyman.agents.evaluation.transcript import heading

    rows = [("turn", "wins", "value", "95% interval", "what was done")]
    for turn, step in enumerate(p.episode.steps):
        chance = lost.at(turn)
        cells = ("", "", "") if chance is None else chance_cells(chance, lost.player)
        mark = ""
        if turn == lost.turn:
            mark = "  <== lost here"
        elif turn == lost.deciding(len(p.episode.steps)):
            mark = "  <== fell most"
        calls = [f"{it.call.name or 'malformed call'}: {it.call.status}" for it in step.results]
        text = " ".join(step.said.split())
        done = ", ".join(calls) or (text if len(text) <= TEXT else f"{text[: TEXT - 1]}…")
        rows.append((str(turn + 1), *cells, f"{done}{mark}"))
    return f"{heading(p)}\n{columns(rows)}"


def _summary(row: str, failed: Sequence[Played], player: str) -> str:
    from journeyman.agents.evaluation.lost import breakdown

    known = [(p.episode, it) for p in failed for it in p.lost if it.player == player]
    if not known:
        raise CommandError(
            f"none of {len(failed)} failed episodes of row {row!r} was searched yet with --player "
            f"{player}: leave out --summary first"
        )
    return f"{len(known)} of {len(failed)} failed episodes of {row!r}\n\n{breakdown(known)}"
