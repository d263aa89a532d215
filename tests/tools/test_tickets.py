"""The support desk: who may take what, and how a ticket ends."""

import json

import pytest
from immutables import Map

from journeyman.tools import CallStatus, ToolCall, execute
from journeyman.tools.apis import tickets
from journeyman.tools.apis.tickets import Agent, Ticket, TicketsState

from .desk import Desk


@pytest.fixture
def desk() -> Desk:
    held = {
        "K2": Ticket("Ada Abbott", "red memo", "billing", 300, 5),
        "K1": Ticket("Ada Abbott", "red memo", "billing", 300, 9),
        "K3": Ticket("Ben Berger", "old survey", "network", 200, 40, agent="Hugo Holm"),
    }
    agents = {
        "Cleo Castro": Agent("billing", 2, 3),
        "Dario Dumont": Agent("billing", 1, 1),
        "Hugo Holm": Agent("network", 1, 3),
    }
    return Desk(tickets.TOOLS, TicketsState(Map(held), Map(agents)))


def test_lists(desk: Desk) -> None:
    found = json.loads(desk.ok("find_tickets", customer="Ada Abbott"))
    assert found == [
        {"ticket": "K1", "subject": "red memo", "status": "open"},
        {"ticket": "K2", "subject": "red memo", "status": "open"},
    ]
    assert desk.refused("find_tickets", customer="Nobody") == "no ticket of Nobody"
    listed = json.loads(desk.ok("list_tickets", topic="network"))
    assert [(t["ticket"], t["agent"]) for t in listed] == [("K3", "Hugo Holm")]
    desk.ok("close", ticket="K3", reason="Solved.")
    assert desk.ok("list_tickets", topic="network") == "[]"
    assert json.loads(desk.ok("list_agents", skill="billing")) == [
        {"agent": "Cleo Castro", "load": 2, "limit": 3},
        {"agent": "Dario Dumont", "load": 1, "limit": 1},
    ]
    shown = json.loads(desk.ok("read_ticket", ticket="K1"))
    assert (shown["paid"], shown["days_since_purchase"], shown["agent"]) == (300, 9, None)
    assert desk.refused("read_ticket", ticket="K9").startswith("no ticket K9; find_tickets")
    call = ToolCall("list_tickets", {"topic": "moon"})
    _, result = execute(call, desk.tools, desk.state)
    assert result.call.status is CallStatus.INVALID_ARGUMENTS


def test_assigns_by_skill_and_load(desk: Desk) -> None:
    assert json.loads(desk.ok("assign", ticket="K1", agent="Cleo Castro"))["load"] == 3
    for ticket, agent, says in (
        ("K1", "Cleo Castro", "ticket K1 is already with Cleo Castro"),
        ("K2", "Cleo Castro", "Cleo Castro is full; list_agents tells who works on billing"),
        ("K2", "Dario Dumont", "Dario Dumont is full; list_agents tells who works on billing"),
        ("K2", "Hugo Holm", "Hugo Holm works on network, ticket K2 is about billing"),
        ("K2", "Nobody", "no agent Nobody; list_agents gives names"),
        ("K9", "Hugo Holm", "no ticket K9; find_tickets and list_tickets give ids"),
    ):
        assert desk.refused("assign", ticket=ticket, agent=agent) == says


def test_a_ticket_that_changes_hands_is_counted_once(desk: Desk) -> None:
    desk.ok("close", ticket="K3", reason="Solved.")
    assert desk.state.agents["Hugo Holm"].load == 0
    desk.ok("assign", ticket="K1", agent="Cleo Castro")
    agents = desk.state.agents.set("Dario Dumont", Agent("billing", 0, 1))
    desk.state = TicketsState(desk.state.tickets, agents)
    desk.ok("assign", ticket="K1", agent="Dario Dumont")
    assert {name: a.load for name, a in desk.state.agents.items()} == {
        "Cleo Castro": 2,
        "Dario Dumont": 1,
        "Hugo Holm": 0,
    }


def test_priorities(desk: Desk) -> None:
    desk.ok("set_priority", ticket="K1", priority="urgent")
    refusal = desk.refused("set_priority", ticket="K1", priority="urgent")
    assert refusal == "ticket K1 is already urgent"


def test_merges(desk: Desk) -> None:
    assert desk.refused("merge", ticket="K1", into="K1").startswith("a ticket cannot be merged")
    refusal = desk.refused("merge", ticket="K1", into="K3")
    assert refusal == "tickets K1 and K3 are of different customers"
    desk.ok("merge", ticket="K2", into="K1")
    merged = desk.state.tickets["K2"]
    assert (merged.status, merged.detail) == ("merged", "K1")
    refusal = desk.refused("merge", ticket="K1", into="K2")
    assert refusal == "ticket K2 is merged, only an open one can be changed"


@pytest.mark.parametrize(
    ("tool", "arguments", "status", "detail"),
    [
        ("escalate", {"manager": "Greta Garcia"}, "escalated", "Greta Garcia"),
        ("refund", {"amount": 200}, "refunded", "200"),
        ("close", {"reason": "Solved."}, "closed", "Solved."),
    ],
)
def test_ends(
    desk: Desk, tool: str, arguments: dict[str, object], status: str, detail: str
) -> None:
    desk.ok(tool, ticket="K3", **arguments)
    record = desk.state.tickets["K3"]
    assert (record.status, record.detail) == (status, detail)
    assert desk.state.agents["Hugo Holm"].load == 0
    refusal = desk.refused(tool, ticket="K3", **arguments)
    assert refusal == f"ticket K3 is {status}, only an open one can be changed"


def test_refunds_what_was_paid(desk: Desk) -> None:
    assert desk.refused("refund", ticket="K1", amount=0) == "amount must be above zero"
    refusal = desk.refused("refund", ticket="K1", amount=301)
    assert refusal == "the customer paid 300; no more than that can be refunded"
