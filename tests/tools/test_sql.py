"""SQL on tables that are a value: what it answers, what it refuses, what stops it."""

import time

import pytest

from journeyman.tools import ToolError, ToolTimeout
from journeyman.tools.sql import MAX_CHARS, MAX_ROWS, Rows, Table, select

SALES = Table("sales", ("buyer", "price"), (("Ada", 3), ("Ben", 4), ("Ada", 5)))
TABLES = (SALES, Table('odd "name"', ("a b",), ((None,), (1.5,))))


def refused(query: str) -> str:
    with pytest.raises(ToolError) as caught:
        select(TABLES, query)
    return str(caught.value)


def test_selects() -> None:
    query = "SELECT buyer, SUM(price) AS total FROM sales GROUP BY buyer ORDER BY total DESC"
    assert select(TABLES, query) == Rows(("buyer", "total"), (("Ada", 8), ("Ben", 4)), False)
    assert select(TABLES, 'SELECT "a b" FROM "odd ""name"""').rows == ((None,), (1.5,))
    assert select(TABLES, "SELECT * FROM sales").rows == SALES.rows
    assert select(TABLES, "SELECT price FROM sales WHERE price > 9").rows == ()
    assert select(TABLES, "WITH t AS (SELECT 1 AS x) SELECT x + 1 FROM t").rows == ((2,),)


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM sales",
        "UPDATE sales SET price = 0",
        "INSERT INTO sales VALUES ('Cleo', 1)",
        "DROP TABLE sales",
        "CREATE TEMP TABLE t (x)",
        "ATTACH DATABASE '/tmp/other.db' AS other",
        "PRAGMA query_only = OFF",
        "PRAGMA table_info(sales)",
        "VACUUM INTO '/tmp/other.db'",
        "BEGIN",
        "SELECT random()",
        "SELECT load_extension('x')",
        "SELECT date('now')",
        "SELECT CURRENT_TIMESTAMP",
        "SELECT sqlite_version()",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE sales",
    ],
)
def test_only_reads(query: str) -> None:
    says = refused(query)
    assert says == "only one SELECT at a time is allowed, on the tables as they are"
    assert select(TABLES, "SELECT COUNT(*) FROM sales").rows == ((3,),)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELECT * FROM orders", 'no such table: orders; there are: sales, odd "name"'),
        ("SELECT cost FROM sales", "no such column: cost; describe tells the columns of a table"),
        ("SELEC 1", 'near "SELEC": syntax error'),
        ("", "the query is empty; write one SELECT"),
        ("-- nothing", "the query is empty; write one SELECT"),
        ("SELECT x'00'", "the result holds a blob or an infinite number"),
        ("SELECT 9e999", "the result holds a blob or an infinite number"),
        ("SELECT CAST(x'ff' AS TEXT)", "Could not decode"),
        ("SELECT '\ud800'", "surrogates not allowed"),
    ],
)
def test_says_what_is_wrong(query: str, says: str) -> None:
    assert says in refused(query)


def test_limits() -> None:
    many = Table("many", ("x",), tuple((i,) for i in range(MAX_ROWS + 1)))
    found = select((many,), "SELECT x FROM many")
    assert len(found.rows) == MAX_ROWS
    assert found.more
    assert not select((many,), f"SELECT x FROM many LIMIT {MAX_ROWS}").more
    endless = "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t) SELECT MAX(x) FROM t"
    started = time.perf_counter()
    with pytest.raises(ToolTimeout, match="takes too long"):
        select(TABLES, endless)
    assert time.perf_counter() - started < 20
    big = f"SELECT replace('{'x' * 200}', 'x', '{'y' * (MAX_CHARS // 100)}')"
    assert "too big" in refused(big)
