"""`journeyman/Calendar-v0`: when is it, move it (perhaps the hour is taken), invite, rearrange."""

from __future__ import annotations

import random
from collections.abc import Callable

from immutables import Map

from journeyman.envs.core import Task, ToolEnv
from journeyman.envs.tasks.entities import Entities
from journeyman.envs.types import Level, Split
from journeyman.tools import ToolCall
from journeyman.tools.apis import calendar
from journeyman.tools.apis.calendar import DAYS, HOURS, CalendarState, Event


class _Scene:
    """A calendar under construction; no two events share a slot."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng = rng
        self.draw = Entities(rng, split)
        self.events: dict[str, Event] = {}
        for _ in range(rng.randint(2, 4)):
            self.add(self.draw.title())

    def add(self, title: str, day: str | None = None, hour: int | None = None) -> str:
        if day is None or hour is None:
            free = [(d, h) for d in DAYS for h in HOURS if self.free(d, h)]
            day, hour = self.rng.choice([(d, h) for d, h in free if day in (None, d)])
        key = self.draw.identifier("E")
        status = self.rng.choice(("confirmed", "tentative"))
        self.events[key] = Event(title, self.draw.person(), day, hour, status)
        return key

    def free(self, day: str, hour: int) -> bool:
        return all((e.day, e.hour) != (day, hour) for e in self.events.values())

    def state(self) -> CalendarState:
        items = list(self.events.items())
        self.rng.shuffle(items)
        return CalendarState(Map(items))


def _find(title: str) -> ToolCall:
    return ToolCall("find_event", {"title": title})


def _get(event: str) -> ToolCall:
    return ToolCall("get_event", {"event": event})


def _move(event: str, day: str, hour: int) -> ToolCall:
    return ToolCall("move_event", {"event": event, "day": day, "hour": hour})


def _when(scene: _Scene) -> Task:
    title = scene.draw.title()
    key = scene.add(title)
    event = scene.events[key]
    what, answer = scene.rng.choice(
        (("day", event.day), ("hour", str(event.hour)), ("host", event.host))
    )
    prompt = scene.rng.choice(
        ('What is the {w} of "{t}"?', 'Tell me the {w} of "{t}".', 'Look up the {w} of "{t}".')
    ).format(w=what, t=title)
    gold = (_find(title), _get(key))
    return Task("", "when", prompt, scene.state(), gold, answer)


def _reschedule(scene: _Scene) -> Task:
    """Move an event; one time in two the hour is taken and the calendar offers another."""
    title = scene.draw.title()
    key = scene.add(title)
    day = scene.rng.choice([d for d in DAYS if d != scene.events[key].day])
    hour = scene.rng.choice(HOURS[:-1])
    taken = scene.rng.random() < 0.5
    if taken and scene.free(day, hour):
        scene.add(scene.draw.title(), day, hour)
    prompt = scene.rng.choice(
        (
            'Move "{t}" to "{d}" {h}, or to the free hour if it is taken.',
            'Put "{t}" on "{d}" at {h}, or at the free hour if it is taken.',
        )
    ).format(t=title, d=day, h=hour)
    if scene.free(day, hour):
        plain = (_find(title), _move(key, day, hour))
        return Task("", "move", prompt, scene.state(), plain, str(hour))
    later = next(h for h in (*range(hour, 19), *HOURS) if scene.free(day, h))
    gold = (_find(title), _move(key, day, hour), _move(key, day, later))
    return Task("", "move_taken", prompt, scene.state(), gold, str(later))


def _invite_host(scene: _Scene) -> Task:
    one, other = scene.draw.title(), scene.draw.title()
    source, target = scene.add(one), scene.add(other)
    host = scene.events[source].host
    prompt = scene.rng.choice(
        (
            'Invite the host of "{a}" to "{b}".',
            'The host of "{a}" should be invited to "{b}".',
        )
    ).format(a=one, b=other)
    gold = (
        _find(one),
        _get(source),
        _find(other),
        ToolCall("invite", {"event": target, "person": host}),
    )
    return Task("", "invite_host", prompt, scene.state(), gold, host)


def _by_status(scene: _Scene) -> Task:
    """Cancel a tentative event; invite somebody to a confirmed one."""
    title, person = scene.draw.title(), scene.draw.person()
    key = scene.add(title)
    prompt = scene.rng.choice(
        (
            'If "{t}" is tentative, cancel it; if it is confirmed, invite "{p}" to it.',
            'Invite "{p}" to "{t}" if it is confirmed, or cancel it if it is tentative.',
        )
    ).format(t=title, p=person)
    tentative = scene.events[key].status == "tentative"
    act = (
        ToolCall("cancel_event", {"event": key})
        if tentative
        else ToolCall("invite", {"event": key, "person": person})
    )
    gold = (_find(title), _get(key), act)
    kind = "by_status_cancel" if tentative else "by_status_invite"
    return Task("", kind, prompt, scene.state(), gold, "cancelled" if tentative else person)


_KINDS: tuple[Callable[[_Scene], Task], ...] = (_when, _reschedule, _invite_host, _by_status)


class CalendarEnv(ToolEnv):
    """A shared calendar: 2 to 4 calls a task."""

    toolset = calendar.TOOLS

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw a calendar and a request."""
        kind = rng.choice(_KINDS)
        return kind(_Scene(rng, split))
