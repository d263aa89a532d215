"""`journeyman metrics …`."""

from __future__ import annotations

import argparse

from journeyman.agents.cli.base import OK, Commands, columns, command, first_line, print_json


def add(commands: Commands) -> None:
    """Add the commands of the group."""
    listing = command(commands, "list", _metrics_list, "list the figures that can be asked for")
    listing.add_argument("--json", action="store_true", help="for programs")


def _metrics_list(options: argparse.Namespace) -> int:
    from journeyman.agents.evaluation.measures import functions, measures
    from journeyman.agents.evaluation.passes import FORMULAS

    rows = [("name", "unit", "better", "source", "figure")]
    rows += [(m.name, m.unit, m.better or "", m.source, m.about) for m in measures().values()]
    rows += [(name, "share", "higher", source, about) for name, about, source in FORMULAS]
    rows += [(name, "", "", "", first_line(it.__doc__)) for name, it in functions().items()]
    if options.json:
        names, *found = rows
        print_json([dict(zip(names, row, strict=True)) for row in found])
    else:
        print(columns(rows))
    return OK
