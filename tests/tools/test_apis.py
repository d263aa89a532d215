"""The rules of the first three mock APIs: what they allow, what they refuse and in which words."""

import json
from types import ModuleType

import pytest
from immutables import Map

from journeyman.tools import ToolCall, execute
from journeyman.tools.apis import analyst, bank, calendar, files, mail, orders, tickets, travel
from journeyman.tools.apis.bank import Account, BankState
from journeyman.tools.apis.calendar import DAYS, HOURS, CalendarState, Event
from journeyman.tools.apis.orders import Order, OrdersState

from .desk import Desk


@pytest.mark.parametrize("api", [analyst, bank, calendar, files, mail, orders, tickets, travel])
def test_every_tool_has_a_schema_without_state(api: ModuleType) -> None:
    for tool in api.TOOLS:
        assert tool.stateful
        assert tool.spec.description
        properties = tool.spec.parameters["properties"]
        assert properties
        assert "state" not in properties
        assert all(p["description"] for p in properties.values())
        assert set(tool.spec.parameters["required"]) == set(properties)


# Bank


@pytest.fixture
def teller() -> Desk:
    accounts = {
        "A1": Account("Ada Abbott", 500),
        "A2": Account("Ben Berger", 20),
        "A3": Account("Cleo Castro", 900, "frozen"),
    }
    return Desk(bank.TOOLS, BankState(Map(accounts), salt=5))


def test_bank_find(teller: Desk) -> None:
    assert teller.ok("find_account", owner="Ben Berger") == '{"account": "A2"}'
    assert teller.refused("find_account", owner="Ben") == "no account of Ben"
    assert teller.refused("find_account", owner="ben berger") == "no account of ben berger"
    assert len(teller.refused("find_account", owner="x" * 9999)) < 100


def test_bank_find_is_certain_among_namesakes() -> None:
    accounts = {f"A{i}": Account("Ada Abbott", i) for i in range(100, 200)}
    desk = Desk(bank.TOOLS, BankState(Map(accounts)))
    assert desk.ok("find_account", owner="Ada Abbott") == '{"account": "A100"}'


def test_bank_get(teller: Desk) -> None:
    content = teller.ok("get_account", account="A3")
    assert content == '{"owner": "Cleo Castro", "balance": 900, "status": "frozen"}'
    assert teller.refused("get_account", account="A9") == "no account A9"


def test_bank_transfer(teller: Desk) -> None:
    teller.ok("transfer", source="A1", target="A2", amount=500)
    assert [teller.state.accounts[a].balance for a in ("A1", "A2", "A3")] == [0, 520, 900]
    ((reference, transfer),) = teller.state.transfers.items()
    assert transfer == bank.Transfer("A1", "A2", 500)
    assert reference.startswith("T")


@pytest.mark.parametrize(
    ("source", "target", "amount", "says"),
    [
        ("A9", "A2", 1, "no account A9"),
        ("A1", "A9", 1, "no account A9"),
        ("A1", "A2", 0, "amount must be above zero"),
        ("A1", "A2", -5, "amount must be above zero"),
        ("A1", "A1", 5, "source and target are the same account"),
        ("A3", "A1", 5, "account A3 is frozen"),
        ("A1", "A3", 5, "account A3 is frozen"),
        ("A1", "A2", 501, "account A1 lacks the funds"),
        ("A2", "A1", 10**30, "account A2 lacks the funds"),
    ],
)
def test_bank_refuses_a_transfer(
    teller: Desk, source: str, target: str, amount: int, says: str
) -> None:
    assert teller.refused("transfer", source=source, target=target, amount=amount) == says


def test_bank_references_never_clash(teller: Desk) -> None:
    # 200 of 9,000 numbers: by the hash alone two would be equal sooner or later.
    total = sum(a.balance for a in teller.state.accounts.values())
    for _ in range(100):
        teller.ok("transfer", source="A1", target="A2", amount=1)
        teller.ok("transfer", source="A2", target="A1", amount=1)
    assert len(teller.state.transfers) == 200
    assert sum(a.balance for a in teller.state.accounts.values()) == total


def test_bank_references_differ_between_tasks() -> None:
    references = set()
    for salt in range(20):
        accounts = Map({"A1": Account("Ada Abbott", 9), "A2": Account("Ben Berger", 9)})
        desk = Desk(bank.TOOLS, BankState(accounts, salt=salt))
        references.add(desk.ok("transfer", source="A1", target="A2", amount=1))
    assert len(references) > 15


def test_bank_freezing(teller: Desk) -> None:
    assert teller.ok("freeze", account="A1") == '{"account": "A1", "status": "frozen"}'
    assert teller.refused("freeze", account="A1") == "account A1 is already frozen"
    assert teller.refused("transfer", source="A1", target="A2", amount=1) == "account A1 is frozen"
    assert teller.ok("unfreeze", account="A1") == '{"account": "A1", "status": "active"}'
    assert teller.refused("unfreeze", account="A1") == "account A1 is already active"
    assert teller.refused("unfreeze", account="A9") == "no account A9"
    assert teller.refused("freeze", account="A9") == "no account A9"
    teller.ok("transfer", source="A1", target="A2", amount=1)


# Calendar


@pytest.fixture
def secretary() -> Desk:
    events = {
        "E1": Event("budget review", "Ada Abbott", "Monday", 9),
        "E2": Event("design lunch", "Ben Berger", "Monday", 10),
        "E3": Event("sales demo", "Cleo Castro", "Friday", 18),
    }
    return Desk(calendar.TOOLS, CalendarState(Map(events)))


def test_calendar_find_and_get(secretary: Desk) -> None:
    assert secretary.ok("find_event", title="sales demo") == '{"event": "E3"}'
    assert secretary.refused("find_event", title="sales") == "no event sales"
    content = secretary.ok("get_event", event="E3")
    assert json.loads(content) == {
        "host": "Cleo Castro",
        "day": "Friday",
        "hour": 18,
        "status": "confirmed",
    }
    assert secretary.refused("get_event", event="E9") == "no event E9"


def test_calendar_find_is_certain_among_equal_titles() -> None:
    events = {f"E{i}": Event("sales demo", "Ada", "Monday", 9) for i in range(100, 200)}
    desk = Desk(calendar.TOOLS, CalendarState(Map(events)))
    assert desk.ok("find_event", title="sales demo") == '{"event": "E100"}'


def test_calendar_move(secretary: Desk) -> None:
    assert secretary.ok("move_event", event="E1", day="Tuesday", hour=8) == (
        '{"day": "Tuesday", "hour": 8}'
    )
    event = secretary.state.events["E1"]
    assert (event.title, event.day, event.hour) == ("budget review", "Tuesday", 8)
    secretary.ok("move_event", event="E1", day="Tuesday", hour=8)  # its own hour is free to it


@pytest.mark.parametrize(
    ("event", "day", "hour", "says"),
    [
        ("E9", "Monday", 9, "no event E9"),
        ("E1", "Sunday", 9, "day must be Monday to Friday"),
        ("E1", "monday", 9, "day must be Monday to Friday"),
        ("E1", "Monday", 7, "hour must be 8 to 18"),
        ("E1", "Monday", 19, "hour must be 8 to 18"),
        ("E3", "Monday", 9, "Monday 9 is taken, hour 11 is free"),
        ("E1", "Friday", 18, "Friday 18 is taken, hour 8 is free"),
    ],
)
def test_calendar_refuses_a_move(
    secretary: Desk, event: str, day: str, hour: int, says: str
) -> None:
    assert secretary.refused("move_event", event=event, day=day, hour=hour) == says


def test_calendar_full_day() -> None:
    events = {f"E{h}": Event(f"t{h}", "Ada", "Monday", h) for h in HOURS}
    events["E99"] = Event("other", "Ada", "Tuesday", 9)
    desk = Desk(calendar.TOOLS, CalendarState(Map(events)))
    refusal = desk.refused("move_event", event="E99", day="Monday", hour=9)
    assert refusal == "Monday 9 is taken, the day is full"


def test_calendar_hint_holds(secretary: Desk) -> None:
    hints = 0
    for day in DAYS:
        for hour in HOURS:
            call = ToolCall("move_event", {"event": "E2", "day": day, "hour": hour})
            _, result = execute(call, secretary.tools, secretary.state)
            if not result.ok:
                hint = int(result.content.split("hour ")[1].split()[0])
                secretary.ok("move_event", event="E2", day=day, hour=hint)
                hints += 1
    assert hints


def test_calendar_invite(secretary: Desk) -> None:
    assert secretary.ok("invite", event="E1", person="Dario Dumont") == '{"guests": 1}'
    assert secretary.ok("invite", event="E1", person="Edith Eriksen") == '{"guests": 2}'
    for person in ("Dario Dumont", "Ada Abbott"):  # a guest, the host
        refusal = secretary.refused("invite", event="E1", person=person)
        assert refusal == f"{person} already takes part"
    assert secretary.refused("invite", event="E9", person="Ada Abbott") == "no event E9"


def test_calendar_cancel(secretary: Desk) -> None:
    assert secretary.ok("cancel_event", event="E1") == '{"cancelled": "E1"}'
    assert sorted(secretary.state.events) == ["E2", "E3"]
    assert secretary.refused("cancel_event", event="E1") == "no event E1"
    assert secretary.refused("invite", event="E1", person="Ada Abbott") == "no event E1"


# Orders


@pytest.fixture
def clerk() -> Desk:
    book = {
        "O2": Order("Ada Abbott", "lamp", 100, "Oslo"),
        "O1": Order("Ada Abbott", "desk", 200, "Oslo", "shipped"),
        "O3": Order("Ben Berger", "sofa", 300, "Rome", "cancelled"),
        "O4": Order("Cleo Castro", "tent", 400, "Lima", "refunded"),
    }
    return Desk(orders.TOOLS, OrdersState(Map(book)))


def test_orders_find_and_get(clerk: Desk) -> None:
    assert clerk.ok("find_order", customer="Ada Abbott", item="lamp") == '{"order": "O2"}'
    refusal = clerk.refused("find_order", customer="Ada Abbott", item="tent")
    assert refusal == "no order of Ada Abbott for tent"
    content = clerk.ok("get_order", order="O1")
    assert content == '{"item": "desk", "price": 200, "status": "shipped"}'
    assert clerk.refused("get_order", order="O9") == "no order O9"


def test_orders_cancel(clerk: Desk) -> None:
    assert clerk.ok("cancel_order", order="O2") == '{"status": "cancelled"}'
    assert clerk.state.orders["O2"].status == "cancelled"
    assert clerk.refused("cancel_order", order="O2") == "order O2 is already cancelled"
    assert clerk.refused("cancel_order", order="O1") == "order O1 is shipped, refund it"
    assert clerk.refused("cancel_order", order="O4") == "order O4 is already refunded"
    assert clerk.refused("cancel_order", order="O9") == "no order O9"


def test_orders_refund(clerk: Desk) -> None:
    assert clerk.ok("refund_order", order="O1") == '{"status": "refunded"}'
    assert clerk.refused("refund_order", order="O1") == "order O1 is already refunded"
    assert clerk.refused("refund_order", order="O2") == "order O2 is pending, cancel it"
    assert clerk.refused("refund_order", order="O3") == "order O3 is already cancelled"
    assert clerk.refused("refund_order", order="O9") == "no order O9"


def test_orders_set_city(clerk: Desk) -> None:
    assert clerk.ok("set_city", order="O2", city="Cairo") == '{"city": "Cairo"}'
    assert clerk.state.orders["O2"] == Order("Ada Abbott", "lamp", 100, "Cairo")
    assert clerk.refused("set_city", order="O1", city="Rome") == "order O1 is already shipped"
    assert clerk.refused("set_city", order="O9", city="Rome") == "no order O9"
