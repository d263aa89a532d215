"""What the command groups share: how a command is added, exit statuses, printing."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from journeyman.agents.evaluation.printing import complain, one_line, printable
from journeyman.agents.evaluation.tables import FORMATS, ResultTable, rendered

Handler = Callable[[argparse.Namespace], int]
"""Runs a subcommand; returns the exit status."""

OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: done; a check or program failed; the user's mistake; Ctrl-C."""


class Parser(argparse.ArgumentParser):
    """One-line errors that suggest the nearest command."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(choices)}"
        raise argparse.ArgumentError(None, f"no {action.metavar or action.dest} {value!r}; {hint}")

    def error(self, message: str) -> NoReturn:
        """Print one line and leave."""
        self.exit(MISUSED, f"journeyman: error: {message} (try: {self.prog} --help)\n")


Commands = Any
"""What `add_subparsers` returns: argparse gives the type no public name."""


def group(commands: Commands, name: str, help_text: str) -> Commands:
    """Add a group such as `envs`; returns what its commands are added to."""
    parser = commands.add_parser(name, help=help_text)
    return parser.add_subparsers(metavar="command", required=True)


def command(commands: Commands, name: str, handler: Handler, help_text: str) -> Parser:
    """Add a command that `handler` runs; returns its parser, for arguments."""
    parser: Parser = commands.add_parser(name, help=help_text, description=help_text)
    parser.set_defaults(handler=handler)
    return parser


def print_json(value: Any) -> None:
    """Print for programs, indented for people all the same."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def task_id(text: str) -> str:
    """A task's id, for argparse; a number alone is that of a test task."""
    return f"test/{text}" if text.isdecimal() else text


def count(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def columns(rows: Iterable[Sequence[str]]) -> str:
    """Rows as left-aligned columns."""
    listed = [tuple(map(one_line, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in listed)
    return "\n".join(lines)


def first_line(text: str | None) -> str:
    """The summary of a docstring."""
    return (text or "").strip().partition("\n")[0]


def table_options(parser: Parser) -> None:
    """Add `--format` and `--output`, for `write_tables`."""
    parser.add_argument(
        "--format", choices=FORMATS, default="text", help="of the tables (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the tables there")


def write_tables(
    tables: Sequence[ResultTable], remarks: Sequence[str], options: argparse.Namespace
) -> None:
    """Print tables as they were asked for, or write them; remarks go below, or to the terminal.

    Args:
        tables: What is shown.
        remarks: What a reader must know beside it. Where the tables are for a program or a file,
            they are printed as errors are.
        options: See `table_options`.
    """
    text = rendered(tables, options.format)
    words = [f"Mind: {remark}" for remark in remarks]
    if options.output is not None:
        options.output.write_text(f"{printable(text)}\n", encoding="utf-8")
        print("\n".join((f"tables: {options.output}", *words)))
    elif options.format == "text":
        print("\n\n".join((text, "\n".join(words)) if words else (text,)))
    else:
        print(text)
        for line in words:
            complain(line)


def print_check(name: str, passed: bool, detail: str, skipped: bool = False) -> None:
    """Print the outcome of one check on one line."""
    outcome = "skip" if skipped else "pass" if passed else "FAIL"
    print(f"  {outcome}  {name}" + (f": {detail}" if detail else ""))
