"""How much a query may do, to the row: counted here by SQLite itself, on a database of our own."""

import sqlite3
from bisect import bisect_left
from contextlib import closing

import pytest

from journeyman.tools import ToolError, ToolTimeout
from journeyman.tools.sql import MAX_CHARS, MAX_ROWS, MAX_STEPS, Rows, Table, select

# Written out: a test that reads the limit from the code lets any limit pass.
LIMIT = 1_000_000
STRIDE = 1_000
ROWS = 50
CHARS = 10_000
COUNTING = "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t WHERE x < {}) "
ENDLESS = "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t) "
TOO_LONG = "the query takes too long; select less"
HUNDRED = Table("hundred", ("x",), tuple((i,) for i in range(100)))


def counting(rows: int) -> str:
    """A query that takes a fixed number of steps a row."""
    return COUNTING.format(rows) + "SELECT MAX(x) FROM t"


def looks(query: str) -> int:
    """Times that SQLite finishes another `STRIDE` steps of its virtual machine."""
    count = 0

    def look() -> None:
        nonlocal count
        count += 1

    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE hundred (x)")
        connection.executemany("INSERT INTO hundred VALUES (?)", HUNDRED.rows)
        connection.commit()
        connection.set_progress_handler(look, STRIDE)
        connection.execute(query).fetchall()
    return count


def refused(query: str) -> str:
    with pytest.raises(ToolTimeout) as caught:
        select((HUNDRED,), query)
    return str(caught.value)


def test_the_limit_to_the_row() -> None:
    """The last look within the limit lets a query go on, the next one ends it."""
    within = LIMIT // STRIDE
    edge = bisect_left(range(100_000), within + 1, key=lambda rows: looks(counting(rows)))
    assert (looks(counting(edge - 1)), looks(counting(edge))) == (within, within + 1)
    for _ in range(2):  # the same query always ends alike, and leaves nothing to the next one
        assert refused(counting(edge)) == TOO_LONG
        assert select((HUNDRED,), counting(edge - 1)) == Rows(("MAX(x)",), ((edge - 1,),), False)


def test_work_on_tables_counts() -> None:
    """A million rows of three tables are too many, twice ten thousand are not."""
    join = "SELECT COUNT(*) FROM hundred a, hundred b"
    assert select((HUNDRED,), f"{join} UNION ALL {join}").rows == ((10_000,), (10_000,))
    cube = f"{join}, hundred c WHERE a.x + b.x + c.x >= 0"
    assert LIMIT + STRIDE < STRIDE * looks(cube) < 100 * LIMIT
    assert refused(cube) == TOO_LONG


def test_rows_that_come_late_count() -> None:
    """The first row is there at once; the work begins when the next ones are asked for."""
    rare = "SELECT x FROM t WHERE x % {} = 1"
    assert refused(COUNTING.format(200_000) + rare.format(1_000_000)) == TOO_LONG
    assert select((HUNDRED,), COUNTING.format(20_000) + rare.format(10_000)).rows == (
        (1,),
        (10_001,),
    )


def test_rows_that_nobody_sees_are_not_worked_for() -> None:
    """However many there are: one more than is shown tells that there are more."""
    found = select((HUNDRED,), f"{ENDLESS}SELECT x FROM t")
    assert found == Rows(("x",), tuple((i + 1,) for i in range(ROWS)), True)
    assert refused(f"{ENDLESS}SELECT x FROM t ORDER BY x DESC") == TOO_LONG
    for rows in (ROWS - 1, ROWS, ROWS + 1):
        found = select((HUNDRED,), f"SELECT x FROM hundred WHERE x < {rows}")
        assert (len(found.rows), found.more) == (min(rows, ROWS), rows > ROWS)


def test_the_longest_string() -> None:
    doubled = "SELECT length(replace('{}', 'x', 'yy')) AS n"
    assert select((HUNDRED,), doubled.format("x" * (CHARS // 2))).rows == ((CHARS,),)
    with pytest.raises(ToolError, match="too big"):
        select((HUNDRED,), doubled.format("x" * (CHARS // 2) + "z"))


def test_the_limits_have_names() -> None:
    assert (MAX_STEPS, MAX_ROWS, MAX_CHARS) == (LIMIT, ROWS, CHARS)
