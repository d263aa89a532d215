"""A support desk: tickets that agents of one skill each take, merge, escalate, refund and close."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from immutables import Map

from journeyman.tools.apis.lookup import look_up
from journeyman.tools.errors import ToolError
from journeyman.tools.tool import tool

Topic = Literal["billing", "delivery", "network", "hardware"]
TOPICS: tuple[Topic, ...] = ("billing", "delivery", "network", "hardware")
Priority = Literal["low", "normal", "high", "urgent"]


@dataclass(frozen=True, slots=True)
class Ticket:
    """One ticket."""

    customer: str
    subject: str
    topic: Topic
    """What it is about: the skill it takes."""
    paid: int
    """What the customer paid, in whole currency units."""
    days: int
    """Days since the purchase."""
    status: str = "open"
    """"open", "merged", "escalated", "refunded" or "closed"."""
    priority: Priority = "normal"
    agent: str = ""
    """Who works on it; empty if nobody does."""
    detail: str = ""
    """The ticket it was merged into, who it was escalated to, the sum paid back, or the reason."""


@dataclass(frozen=True, slots=True)
class Agent:
    """Somebody who works on tickets of one topic."""

    skill: Topic
    load: int
    """Tickets at the moment."""
    limit: int
    """Most tickets at a time."""


@dataclass(frozen=True, slots=True)
class TicketsState:
    """Tickets by id and agents by full name."""

    tickets: Map[str, Ticket]
    agents: Map[str, Agent]


def _ticket(state: TicketsState, ticket: str) -> Ticket:
    return look_up(state.tickets, "ticket", ticket, "find_tickets and list_tickets give ids")


def _open(state: TicketsState, ticket: str) -> Ticket:
    record = _ticket(state, ticket)
    if record.status != "open":
        raise ToolError(f"ticket {ticket} is {record.status}, only an open one can be changed")
    return record


def _put(state: TicketsState, key: str, ticket: Ticket) -> TicketsState:
    return replace(state, tickets=state.tickets.set(key, ticket))


def _end(
    state: TicketsState, key: str, status: str, detail: str
) -> tuple[TicketsState, dict[str, Any]]:
    """End an open ticket; its agent is free for another one."""
    record = _open(state, key)
    if record.agent:
        agent = state.agents[record.agent]
        agents = state.agents.set(record.agent, replace(agent, load=agent.load - 1))
        state = replace(state, agents=agents)
    state = _put(state, key, replace(record, status=status, detail=detail))
    return state, {"ticket": key, "status": status}


def _ordered(state: TicketsState) -> list[tuple[str, Ticket]]:
    # By id: the order of a Map depends on the process's hash seed.
    return sorted(state.tickets.items(), key=lambda entry: entry[0])


@tool
def find_tickets(state: TicketsState, customer: str) -> tuple[TicketsState, list[dict[str, Any]]]:
    """List a customer's tickets by id.

    Args:
        customer: Full name.
    """
    found = [
        {"ticket": key, "subject": t.subject, "status": t.status}
        for key, t in _ordered(state)
        if t.customer == customer
    ]
    if not found:
        raise ToolError(f"no ticket of {customer[:40]}")
    return state, found


@tool
def list_tickets(state: TicketsState, topic: Topic) -> tuple[TicketsState, list[dict[str, Any]]]:
    """List the open tickets on a topic by id.

    Args:
        topic: What they are about.
    """
    return state, [
        {"ticket": key, "customer": t.customer, "subject": t.subject, "agent": t.agent or None}
        for key, t in _ordered(state)
        if t.topic == topic and t.status == "open"
    ]


@tool
def read_ticket(state: TicketsState, ticket: str) -> tuple[TicketsState, dict[str, Any]]:
    """Read a ticket.

    Args:
        ticket: Ticket id.
    """
    record = _ticket(state, ticket)
    return state, {
        "customer": record.customer,
        "subject": record.subject,
        "topic": record.topic,
        "paid": record.paid,
        "days_since_purchase": record.days,
        "status": record.status,
        "priority": record.priority,
        "agent": record.agent or None,
    }


@tool
def list_agents(state: TicketsState, skill: Topic) -> tuple[TicketsState, list[dict[str, Any]]]:
    """List who works on a topic, with how many tickets each has.

    Args:
        skill: The topic.
    """
    return state, [
        {"agent": name, "load": a.load, "limit": a.limit}
        for name, a in sorted(state.agents.items(), key=lambda entry: entry[0])
        if a.skill == skill
    ]


@tool
def assign(state: TicketsState, ticket: str, agent: str) -> tuple[TicketsState, dict[str, Any]]:
    """Give an open ticket to an agent who has its topic as skill and room for it.

    Args:
        ticket: Ticket id.
        agent: Full name of the agent.
    """
    record = _open(state, ticket)
    taker = look_up(state.agents, "agent", agent, "list_agents gives names")
    if record.agent == agent:
        raise ToolError(f"ticket {ticket} is already with {agent}")
    if taker.skill != record.topic:
        raise ToolError(f"{agent} works on {taker.skill}, ticket {ticket} is about {record.topic}")
    if taker.load >= taker.limit:
        raise ToolError(f"{agent} is full; list_agents tells who works on {record.topic}")
    agents = state.agents.set(agent, replace(taker, load=taker.load + 1))
    if record.agent:
        giver = agents[record.agent]
        agents = agents.set(record.agent, replace(giver, load=giver.load - 1))
    state = replace(_put(state, ticket, replace(record, agent=agent)), agents=agents)
    return state, {"ticket": ticket, "agent": agent, "load": taker.load + 1}


@tool
def set_priority(
    state: TicketsState, ticket: str, priority: Priority
) -> tuple[TicketsState, dict[str, Any]]:
    """Say how soon an open ticket needs work.

    Args:
        ticket: Ticket id.
        priority: How soon.
    """
    record = _open(state, ticket)
    if record.priority == priority:
        raise ToolError(f"ticket {ticket} is already {priority}")
    return _put(state, ticket, replace(record, priority=priority)), {"priority": priority}


@tool
def merge(state: TicketsState, ticket: str, into: str) -> tuple[TicketsState, dict[str, Any]]:
    """End an open ticket as a duplicate of another open one of the same customer.

    Args:
        ticket: Ticket id of the duplicate.
        into: Ticket id of the one that stays.
    """
    if ticket == into:
        raise ToolError("a ticket cannot be merged into itself")
    if _open(state, ticket).customer != _open(state, into).customer:
        raise ToolError(f"tickets {ticket} and {into} are of different customers")
    return _end(state, ticket, "merged", into)


@tool
def escalate(state: TicketsState, ticket: str, manager: str) -> tuple[TicketsState, dict[str, Any]]:
    """Hand an open ticket over to a manager.

    Args:
        ticket: Ticket id.
        manager: Full name.
    """
    return _end(state, ticket, "escalated", manager)


@tool
def refund(state: TicketsState, ticket: str, amount: int) -> tuple[TicketsState, dict[str, Any]]:
    """Pay back what a customer paid, or a part of it; that ends the ticket.

    Args:
        ticket: Ticket id.
        amount: Whole currency units, above zero.
    """
    record = _open(state, ticket)
    if amount <= 0:
        raise ToolError("amount must be above zero")
    if amount > record.paid:
        raise ToolError(f"the customer paid {record.paid}; no more than that can be refunded")
    return _end(state, ticket, "refunded", str(amount))


@tool
def close(state: TicketsState, ticket: str, reason: str) -> tuple[TicketsState, dict[str, Any]]:
    """End an open ticket without a refund.

    Args:
        ticket: Ticket id.
        reason: What the customer is told.
    """
    return _end(state, ticket, "closed", reason)


TOOLS = (
    find_tickets,
    list_tickets,
    read_ticket,
    list_agents,
    assign,
    set_priority,
    merge,
    escalate,
    refund,
    close,
)
