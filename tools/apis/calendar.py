"""A calendar: events found by title, moving them around each other, inviting people."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from immutables import Map

from journeyman.tools.apis.lookup import look_up
from journeyman.tools.errors import ToolError
from journeyman.tools.tool import tool

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
HOURS = range(8, 19)


@dataclass(frozen=True, slots=True)
class Event:
    """One event."""

    title: str
    host: str
    day: str
    """One of `DAYS`."""
    hour: int
    """Start, one of `HOURS`; an event takes one hour."""
    status: str = "confirmed"
    """"confirmed" or "tentative"."""
    guests: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class CalendarState:
    """All events by id. No two events share a day and an hour."""

    events: Map[str, Event]


def _event(state: CalendarState, event: str) -> Event:
    return look_up(state.events, "event", event)


def check_free(state: CalendarState, day: str, hour: int, moving: str | None = None) -> None:
    """Refuse a slot that is none or taken; an event that is moved does not stand in its own way.

    Raises:
        ToolError: The message says which hour of the day is free.
    """
    if day not in DAYS:
        raise ToolError("day must be Monday to Friday")
    if hour not in HOURS:
        raise ToolError("hour must be 8 to 18")
    taken = {e.hour for key, e in state.events.items() if e.day == day and key != moving}
    if hour in taken:
        free = next((h for h in (*range(hour, 19), *HOURS) if h not in taken), None)
        hint = f"hour {free} is free" if free is not None else "the day is full"
        raise ToolError(f"{day} {hour} is taken, {hint}")


@tool
def find_event(state: CalendarState, title: str) -> tuple[CalendarState, dict[str, Any]]:
    """Find an event by its title.

    Args:
        title: The exact title.
    """
    # The smallest id: the order of a Map depends on the process's hash seed.
    event = min((key for key, e in state.events.items() if e.title == title), default=None)
    if event is None:
        raise ToolError(f"no event {title[:40]}")
    return state, {"event": event}


@tool
def get_event(state: CalendarState, event: str) -> tuple[CalendarState, dict[str, Any]]:
    """Read an event.

    Args:
        event: Event id.
    """
    record = _event(state, event)
    return state, {
        "host": record.host,
        "day": record.day,
        "hour": record.hour,
        "status": record.status,
    }


@tool
def move_event(
    state: CalendarState, event: str, day: str, hour: int
) -> tuple[CalendarState, dict[str, Any]]:
    """Move an event to a free hour.

    Args:
        event: Event id.
        day: Monday to Friday.
        hour: Start, 8 to 18.
    """
    record = _event(state, event)
    check_free(state, day, hour, event)
    events = state.events.set(event, replace(record, day=day, hour=hour))
    return replace(state, events=events), {"day": day, "hour": hour}


@tool
def invite(state: CalendarState, event: str, person: str) -> tuple[CalendarState, dict[str, Any]]:
    """Add a guest to an event.

    Args:
        event: Event id.
        person: Full name of the guest.
    """
    record = _event(state, event)
    if person in record.guests or person == record.host:
        raise ToolError(f"{person[:40]} already takes part")
    guests = record.guests | {person}
    events = state.events.set(event, replace(record, guests=guests))
    return replace(state, events=events), {"guests": len(guests)}


@tool
def cancel_event(state: CalendarState, event: str) -> tuple[CalendarState, dict[str, Any]]:
    """Remove an event.

    Args:
        event: Event id.
    """
    _event(state, event)
    return replace(state, events=state.events.delete(event)), {"cancelled": event}


TOOLS = (find_event, get_event, move_event, invite, cancel_event)
