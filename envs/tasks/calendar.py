"""`journeyman/Calendar-v0`: when is it, move it (perhaps the hour is taken), invite, rearrange."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from immutables import Map

from journeyman.envs.core import Task, ToolEnv
from journeyman.envs.tasks.entities import Entities
from journeyman.envs.tasks.script import Script
from journeyman.envs.types import LEVELS, Level, Split
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


# Medium: events to compare, refusals to get around, rules that forbid the obvious call


def _start(scene: _Scene) -> Script:
    return Script(scene.state(), calendar.TOOLS)


def _key_of(script: Script, title: str) -> str:
    return str(script.call("find_event", title=title)["event"])


def _put(script: Script, event: str, day: str, hour: int) -> int:
    """Move an event; if the hour is taken, to the one that the calendar offers."""
    said = script.call("move_event", event=event, day=day, hour=hour)
    if "error" in said:
        free = int(said["error"].split("hour ")[1].split()[0])
        said = script.call("move_event", event=event, day=day, hour=free)
    return int(said["hour"])


def _confirmed_stays(scene: _Scene) -> Task:
    """What is settled may not be moved."""
    title = scene.draw.title()
    key = scene.add(title)
    day = scene.rng.choice([d for d in DAYS if d != scene.events[key].day])
    hour = scene.rng.choice(HOURS[:-1])
    script = _start(scene)
    script.user(f'Move "{title}" to "{day}" {hour}, or to the free hour if it is taken.')
    event = _key_of(script, title)
    fixed = script.call("get_event", event=event)["status"] == "confirmed"
    script.answer("fixed" if fixed else _put(script, event, day, hour))
    policy = "Never move a confirmed event: leave it, and answer: fixed"
    return script.task("confirmed_stays" if fixed else "tentative_moves", policy)


def _host_only(scene: _Scene) -> Task:
    """Who asks decides, and who may ask must be looked up."""
    title = scene.draw.title()
    key = scene.add(title)
    host = scene.rng.random() < 0.5
    asker = scene.events[key].host if host else scene.draw.person()
    script = _start(scene)
    script.user(
        scene.rng.choice(
            ('"{p}" wants "{t}" cancelled.', 'This is "{p}". Please cancel "{t}".')
        ).format(p=asker, t=title)
    )
    event = _key_of(script, title)
    if script.call("get_event", event=event)["host"] == asker:
        script.call("cancel_event", event=event)
    script.answer("cancelled" if host else "refused")
    policy = "Only its host may have an event cancelled; to anyone else answer: refused"
    return script.task("host_only" if host else "host_only_refused", policy)


def _opening_hours(scene: _Scene) -> Task:
    """The request alone shows that it may not be done."""
    title = scene.draw.title()
    key = scene.add(title)
    day = scene.rng.choice([d for d in DAYS if d != scene.events[key].day])
    hour, last = scene.rng.choice(HOURS[2:]), scene.rng.choice(HOURS[5:9])
    script = _start(scene)
    script.user(f'Put "{title}" on "{day}" at {hour}, or at the free hour if it is taken.')
    late = hour > last
    script.answer("late" if late else _put(script, _key_of(script, title), day, hour))
    policy = f"Never move an event to a start after {last} that is asked for; answer instead: late"
    return script.task("opening_hours_late" if late else "opening_hours", policy)


def _same_day(scene: _Scene) -> Task:
    """The day is that of another event, the hour may be taken."""
    title, other = scene.draw.title(), scene.draw.title()
    scene.add(title)
    key = scene.add(other)
    taken = scene.rng.random() < 0.7
    hour = scene.events[key].hour if taken else scene.rng.choice(HOURS[:-1])
    script = _start(scene)
    script.user(
        f'Move "{title}" to the day of "{other}" at {hour}, or to the free hour if it is taken.'
    )
    event, guide = _key_of(script, title), _key_of(script, other)
    day = str(script.call("get_event", event=guide)["day"])
    script.answer(_put(script, event, day, hour))
    return script.task("same_day")


def _each_other(scene: _Scene) -> Task:
    """Two hosts are invited to each other's event: six calls."""
    titles = [scene.draw.title() for _ in range(2)]
    for title in titles:
        scene.add(title)
    script = _start(scene)
    script.user(
        f'Invite the host of "{titles[0]}" to "{titles[1]}" and the other way round. '
        f'Who is the host of "{titles[0]}"?'
    )
    one, other = (_key_of(script, title) for title in titles)
    hosts = [str(script.call("get_event", event=event)["host"]) for event in (one, other)]
    script.call("invite", event=other, person=hosts[0])
    script.call("invite", event=one, person=hosts[1])
    script.answer(hosts[0])
    return script.task("each_other")


# Hard: two or three things to do, the later ones about the earlier


def _move_and_go_on(scene: _Scene) -> Task:
    """An event is moved, perhaps elsewhere than asked; then a guest, a question, or its end."""
    title, person = scene.draw.title(), scene.draw.person()
    key = scene.add(title)
    day = scene.rng.choice([d for d in DAYS if d != scene.events[key].day])
    hour = scene.rng.choice(HOURS[:-1])
    if scene.free(day, hour) and scene.rng.random() < 0.5:
        scene.add(scene.draw.title(), day, hour)
    script = _start(scene)
    script.user(f'Move "{title}" to "{day}" {hour}, or to the free hour if it is taken.')
    event = _key_of(script, title)
    start = _put(script, event, day, hour)
    script.answer(start)
    script.user(f'Invite "{person}" to it.')
    script.call("invite", event=event, person=person)
    script.answer(person)
    last = scene.rng.choice(("cancel", "when", "host"))
    if last == "cancel":
        script.user("Too many things at once: cancel it.")
        script.call("cancel_event", event=event)
        script.answer("cancelled")
    elif last == "when":
        script.user("At which hour does it start now?")
        script.answer(start)
    else:
        script.user("And who is the host of it?")
        script.answer(script.call("get_event", event=event)["host"])
    return script.task(f"move_then_{last}")


def _host_after_all(scene: _Scene) -> Task:
    """A stranger's event stays, the asker's own goes."""
    own, other = scene.draw.title(), scene.draw.title()
    key = scene.add(own)
    scene.add(other)
    script = _start(scene)
    script.user(f'This is "{scene.events[key].host}". Please cancel "{other}".')
    script.call("get_event", event=_key_of(script, other))
    script.answer("refused")
    script.user(f'Then cancel "{own}".')
    event = _key_of(script, own)
    script.call("get_event", event=event)
    script.call("cancel_event", event=event)
    script.answer("cancelled")
    policy = "Only its host may have an event cancelled; to anyone else answer: refused"
    return script.task("host_after_all", policy)


def _both(scene: _Scene) -> Task:
    """Two hosts are asked for, then invited to each other's event."""
    one, other = scene.draw.title(), scene.draw.title()
    for title in (one, other):
        scene.add(title)
    script = _start(scene)
    events, hosts = [], []
    for wording, title in (('Who is the host of "{}"?', one), ('And of "{}"?', other)):
        script.user(wording.format(title))
        events.append(_key_of(script, title))
        hosts.append(script.call("get_event", event=events[-1])["host"])
        script.answer(hosts[-1])
    script.user("Invite each of them to the event of the other.")
    for event, host in zip(events, reversed(hosts), strict=True):
        script.call("invite", event=event, person=host)
    script.answer(None)
    return script.task("both")


_KINDS: Mapping[Level, tuple[Callable[[_Scene], Task], ...]] = {
    "easy": (_when, _reschedule, _invite_host, _by_status),
    "medium": (_confirmed_stays, _host_only, _opening_hours, _same_day, _each_other),
    "hard": (_move_and_go_on, _host_after_all, _both),
}


class CalendarEnv(ToolEnv):
    """A calendar: 2 to 4 calls a task; above easy, rules, up to 6 calls a turn, several turns."""

    toolset = calendar.TOOLS
    levels = LEVELS

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw a calendar and a request."""
        kind = rng.choice(_KINDS[level])
        return kind(_Scene(rng, split))
