"""The analyst's desk; its SQL is tested in test_sql.py."""

import json

import pytest
from immutables import Map

from journeyman.tools.apis import analyst
from journeyman.tools.apis.analyst import AnalystState
from journeyman.tools.python import Cell
from journeyman.tools.sql import Table

from .desk import Desk


@pytest.fixture
def desk() -> Desk:
    sales = Table("sales", ("buyer", "price"), tuple(("Ada", i) for i in range(60)))
    return Desk(analyst.TOOLS, AnalystState((sales,), Map(USD=423, EUR=512), Map(Oslo=7000)))


def test_looks_up(desk: Desk) -> None:
    shown = json.loads(desk.ok("describe", table="sales"))
    assert shown == {"columns": ["buyer", "price"], "rows": 60}
    assert desk.refused("describe", table="orders") == "no table orders; there are: sales"
    assert desk.ok("get_rate", currency="USD") == '{"rate": 423}'
    assert desk.refused("get_rate", currency="usd") == "no rate of usd; there are: EUR, USD"
    assert desk.ok("get_target", city="Oslo") == '{"target": 7000}'
    assert desk.refused("get_target", city="Rome") == "no target of Rome; there are: Oslo"


def test_a_query_leaves_its_rows_to_the_interpreter(desk: Desk) -> None:
    shown = json.loads(desk.ok("sql", query="SELECT buyer, SUM(price) FROM sales"))
    assert shown == {"columns": ["buyer", "SUM(price)"], "rows": [["Ada", 1770]]}
    assert desk.state.cells == (Cell("rows = [['Ada', 1770]]"),)
    assert json.loads(desk.ok("sql", query="SELECT price FROM sales"))["more"]
    assert len(desk.state.cells) == 2
    assert "no such column: cost" in desk.refused("sql", query="SELECT cost FROM sales")


def test_reports(desk: Desk) -> None:
    assert desk.ok("report", name="red memo", value=5) == '{"reported": "red memo"}'
    desk.ok("report", name="red memo", value=6)
    desk.ok("report", name="old memo", value=7)
    assert desk.state.reports == Map({"red memo": 6, "old memo": 7})
    assert desk.refused("report", name=" ", value=1) == "name is empty"
