"""Read-only SQL over tables that are a value: every query runs on a database of its own, in memory.

Nothing a query does can reach the next one, so the tables are all the state there is. Limits are
counted, not timed (virtual-machine steps, rows, characters): the same query always ends alike.
"""

from __future__ import annotations

import functools
import itertools
import math
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeAlias

from journeyman.tools.errors import ToolError, ToolTimeout

Cell: TypeAlias = str | int | float | None

MAX_ROWS = 50
"""Rows that are shown of a result."""
MAX_CHARS = 10_000
"""Longest string a query may make."""
MAX_STEPS = 1_000_000
"""Steps of SQLite's virtual machine a query may take: about 30 ms."""

_STRIDE = 1_000  # steps between two looks at the count
# What else there is draws at random, reads the clock or depends on the SQLite that runs.
_FUNCTIONS = frozenset(
    (
        *("abs", "avg", "coalesce", "count", "dense_rank", "first_value", "group_concat", "hex"),
        *("ifnull", "iif", "instr", "last_value", "length", "like", "lower", "ltrim", "max", "min"),
        *("nullif", "quote", "rank", "replace", "round", "row_number", "rtrim", "sign", "substr"),
        *("substring", "sum", "total", "trim", "typeof", "upper"),
    )
)
_ACTIONS = frozenset(
    (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
)
# SQLite's words for what the authorizer turns down, and Python's for a second statement.
_FORBIDDEN = ("not authorized", "authorization denied", "You can only execute one")


@dataclass(frozen=True, slots=True)
class Table:
    """One table."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    """In the order in which a query without ORDER BY finds them."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What a query gave."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    more: bool
    """True if there were more than `MAX_ROWS`."""


def select(tables: tuple[Table, ...], query: str) -> Rows:
    """Run one SELECT.

    Args:
        tables: The database.
        query: One statement of SQLite's SQL.

    Raises:
        ToolError: It is no SELECT, is wrong, or makes what is too large; the message says what.
        ToolTimeout: It took more than `MAX_STEPS`.
    """
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(_image(tables))
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CHARS)
        connection.set_authorizer(_authorize)
        looks = itertools.count(1)
        connection.set_progress_handler(lambda: next(looks) * _STRIDE > MAX_STEPS, _STRIDE)
        try:
            cursor = connection.execute(query)
            found = cursor.fetchmany(MAX_ROWS + 1)
        except (sqlite3.Error, sqlite3.Warning, UnicodeError) as error:
            raise _refusal(error, tables) from error
        if cursor.description is None:
            raise ToolError("the query is empty; write one SELECT")
        columns = tuple(str(column[0]) for column in cursor.description)
    shown = tuple(tuple(_plain(value) for value in row) for row in found[:MAX_ROWS])
    return Rows(columns, shown, len(found) > MAX_ROWS)


@functools.lru_cache(maxsize=256)
def _image(tables: tuple[Table, ...]) -> bytes:
    """The database as SQLite writes it to a file."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for table in tables:
            columns = ", ".join(_quoted(column) for column in table.columns)
            connection.execute(f"CREATE TABLE {_quoted(table.name)} ({columns})")
            marks = ", ".join("?" for _ in table.columns)
            connection.executemany(
                f"INSERT INTO {_quoted(table.name)} VALUES ({marks})", table.rows
            )
        connection.commit()
        return connection.serialize()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _authorize(action: int, _: str | None, name: str | None, *__: str | None) -> int:
    allowed = action in _ACTIONS
    if action == sqlite3.SQLITE_FUNCTION:
        allowed = (name or "").lower() in _FUNCTIONS
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _refusal(error: Exception, tables: Sequence[Table]) -> ToolError:
    """SQLite's words, with what helps to mend the query."""
    message = str(error)
    if message == "interrupted":
        return ToolTimeout("the query takes too long; select less")
    if message.startswith(_FORBIDDEN):
        return ToolError("only one SELECT at a time is allowed, on the tables as they are")
    hint = ""
    if message.startswith("no such table"):
        hint = f"; there are: {', '.join(t.name for t in tables)}"
    elif message.startswith("no such column"):
        hint = "; describe tells the columns of a table"
    return ToolError(f"{message[:200]}{hint}")


def _plain(value: object) -> Cell:
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ToolError("the result holds a blob or an infinite number; select text and numbers")
