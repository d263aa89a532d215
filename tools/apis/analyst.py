"""An analyst's desk: a database to query, rates and targets to look up, a report to file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from immutables import Map

from journeyman.tools.cells import Cell, Cells
from journeyman.tools.errors import ToolError
from journeyman.tools.sql import Table, select
from journeyman.tools.tool import tool


@dataclass(frozen=True, slots=True)
class AnalystState:
    """The desk and what was done at it."""

    tables: tuple[Table, ...]
    rates: Map[str, int]
    """Home units per unit of a currency."""
    targets: Map[str, int]
    """Sales a city is to reach."""
    cells: Cells = Cells()  # noqa: RUF009 - Cells is immutable
    """What the interpreter beside the desk has run (see `journeyman.tools.cells`)."""
    reports: Map[str, int] = Map()  # noqa: RUF009 - Map is immutable
    """Figures by name."""


def _look_up(values: Map[str, int], key: str, what: str) -> int:
    if key not in values:
        raise ToolError(f"no {what} of {key[:40]}; there are: {', '.join(sorted(values))}")
    return values[key]


@tool
def describe(state: AnalystState, table: str) -> tuple[AnalystState, dict[str, Any]]:
    """Tell the columns of a table and how many rows it has.

    Args:
        table: Name of the table.
    """
    for known in state.tables:
        if known.name == table:
            return state, {"columns": list(known.columns), "rows": len(known.rows)}
    names = ", ".join(t.name for t in state.tables)
    raise ToolError(f"no table {table[:40]}; there are: {names}")


@tool
def sql(state: AnalystState, query: str) -> tuple[AnalystState, dict[str, Any]]:
    """Query the database (SQLite). The rows are also in the interpreter, as the list `rows`.

    Args:
        query: One SELECT.
    """
    found = select(state.tables, query)
    rows = [list(row) for row in found.rows]
    cells = state.cells.then(Cell(f"rows = {rows!r}"))
    shown = {"columns": list(found.columns), "rows": rows}
    return replace(state, cells=cells), shown | ({"more": True} if found.more else {})


@tool
def get_rate(state: AnalystState, currency: str) -> tuple[AnalystState, dict[str, Any]]:
    """Tell how many home units one unit of a currency is worth.

    Args:
        currency: Three letters.
    """
    return state, {"rate": _look_up(state.rates, currency, "rate")}


@tool
def get_target(state: AnalystState, city: str) -> tuple[AnalystState, dict[str, Any]]:
    """Tell which sales a city is to reach.

    Args:
        city: The city.
    """
    return state, {"target": _look_up(state.targets, city, "target")}


@tool
def report(state: AnalystState, name: str, value: int) -> tuple[AnalystState, dict[str, Any]]:
    """File a figure; one of the same name is replaced.

    Args:
        name: What it is called.
        value: The figure, a whole number.
    """
    if not name.strip():
        raise ToolError("name is empty")
    return replace(state, reports=state.reports.set(name, value)), {"reported": name}


TOOLS = (describe, sql, get_rate, get_target, report)
