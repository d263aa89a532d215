"""`journeyman/Calendar-v0`: when is it, move it (perhaps the hour is taken), invite, rearrange."""

from __future__ import annotations

import random

from journeyman.envs.core import ToolEnv
from journeyman.envs.task import Task
from journeyman.envs.tasks.scene import Kinds, Plan, Scene
from journeyman.envs.types import LEVELS, Level, Split
from journeyman.tools.apis import calendar
from journeyman.tools.apis.calendar import DAYS, HOURS, CalendarState, Event


class _Scene(Scene):
    """A calendar under construction; no two events share a slot."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        super().__init__(rng, split)
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

    def plan(self) -> Plan:
        return Plan(self, calendar.TOOLS, CalendarState(self.table(self.events)))


def _key_of(plan: Plan, title: str) -> str:
    return str(plan.call("find_event", title=title)["event"])


def _put(plan: Plan, event: str, day: str, hour: int) -> int:
    """Move an event; if the hour is taken, to the one that the calendar offers."""
    said = plan.attempt("move_event", event=event, day=day, hour=hour)
    if "error" in said:
        free = int(said["error"].split("hour ")[1].split()[0])
        said = plan.call("move_event", event=event, day=day, hour=free)
    return int(said["hour"])


def _when(scene: _Scene) -> Task:
    title = scene.draw.title()
    scene.add(title)
    what = scene.rng.choice(("day", "hour", "host"))
    prompt = scene.ask(
        'What is the {w} of "{t}"?',
        'Tell me the {w} of "{t}".',
        'Look up the {w} of "{t}".',
        w=what,
        t=title,
    )
    plan = scene.plan()
    plan.user_says(prompt)
    plan.answer(plan.call("get_event", event=_key_of(plan, title))[what])
    return plan.task("when")


def _reschedule(scene: _Scene) -> Task:
    """Move an event; one time in two the hour is taken and the calendar offers another."""
    title = scene.draw.title()
    key = scene.add(title)
    day = scene.rng.choice([d for d in DAYS if d != scene.events[key].day])
    hour = scene.rng.choice(HOURS[:-1])
    taken = scene.toss()
    if taken and scene.free(day, hour):
        scene.add(scene.draw.title(), day, hour)
    prompt = scene.ask(
        'Move "{t}" to "{d}" {h}, or to the free hour if it is taken.',
        'Put "{t}" on "{d}" at {h}, or at the free hour if it is taken.',
        t=title,
        d=day,
        h=hour,
    )
    plan = scene.plan()
    plan.user_says(prompt)
    plan.done(_put(plan, _key_of(plan, title), day, hour))
    return plan.task("move" if scene.free(day, hour) else "move_taken")


def _invite_host(scene: _Scene) -> Task:
    one, other = scene.draw.title(), scene.draw.title()
    for title in (one, other):
        scene.add(title)
    prompt = scene.ask(
        'Invite the host of "{a}" to "{b}".',
        'The host of "{a}" should be invited to "{b}".',
        a=one,
        b=other,
    )
    plan = scene.plan()
    plan.user_says(prompt)
    host = plan.call("get_event", event=_key_of(plan, one))["host"]
    plan.call("invite", event=_key_of(plan, other), person=host)
    plan.done(host)
    return plan.task("invite_host")


def _by_status(scene: _Scene) -> Task:
    """Cancel a tentative event; invite somebody to a confirmed one."""
    title, person = scene.draw.title(), scene.draw.person()
    scene.add(title)
    prompt = scene.ask(
        'If "{t}" is tentative, cancel it; if it is confirmed, invite "{p}" to it.',
        'Invite "{p}" to "{t}" if it is confirmed, or cancel it if it is tentative.',
        t=title,
        p=person,
    )
    plan = scene.plan()
    plan.user_says(prompt)
    event = _key_of(plan, title)
    tentative = plan.call("get_event", event=event)["status"] == "tentative"
    if tentative:
        plan.call("cancel_event", event=event)
        plan.done("cancelled")
    else:
        plan.call("invite", event=event, person=person)
        plan.done(person)
    return plan.task("by_status_cancel" if tentative else "by_status_invite")


# Medium: events to compare, refusals to get around, rules that forbid the obvious call


def _confirmed_stays(scene: _Scene) -> Task:
    """What is settled may not be moved."""
    title = scene.draw.title()
    key = scene.add(title)
    day = scene.rng.choice([d for d in DAYS if d != scene.events[key].day])
    hour = scene.rng.choice(HOURS[:-1])
    plan = scene.plan()
    plan.user_says(f'Move "{title}" to "{day}" {hour}, or to the free hour if it is taken.')
    event = _key_of(plan, title)
    record = plan.call("get_event", event=event)
    fixed = record["status"] == "confirmed"
    if fixed:
        plan.answer(record["host"])
    else:
        plan.done(_put(plan, event, day, hour))
    policy = "Never move a confirmed event: leave it, and answer with the name of its host"
    return plan.task("confirmed_stays" if fixed else "tentative_moves", policy)


def _host_only(scene: _Scene) -> Task:
    """Who asks decides, and who may ask must be looked up."""
    title = scene.draw.title()
    key = scene.add(title)
    host = scene.toss()
    asker = scene.events[key].host if host else scene.draw.person()
    plan = scene.plan()
    plan.user(
        '"{p}" wants "{t}" cancelled.',
        'This is "{p}". Please cancel "{t}".',
        p=asker,
        t=title,
    )
    event = _key_of(plan, title)
    found = plan.call("get_event", event=event)["host"]
    if found == asker:
        plan.call("cancel_event", event=event)
        plan.done("cancelled")
    else:
        plan.answer(found)
    return plan.task("host_only" if host else "host_only_refused", _HOST_ONLY)


_HOST_ONLY = (
    "Only its host may have an event cancelled; to anyone else answer with the name of the host"
)


def _opening_hours(scene: _Scene) -> Task:
    """The request alone shows that it may not be done."""
    title = scene.draw.title()
    key = scene.add(title)
    day = scene.rng.choice([d for d in DAYS if d != scene.events[key].day])
    hour, last = scene.rng.choice(HOURS[2:]), scene.rng.choice(HOURS[5:9])
    plan = scene.plan()
    plan.user_says(f'Put "{title}" on "{day}" at {hour}, or at the free hour if it is taken.')
    late = hour > last
    if late:
        plan.answer("late")
    else:
        plan.done(_put(plan, _key_of(plan, title), day, hour))
    policy = f"Never move an event to a start after {last} that is asked for; answer instead: late"
    return plan.task("opening_hours_late" if late else "opening_hours", policy)


def _same_day(scene: _Scene) -> Task:
    """The day is that of another event, the hour may be taken."""
    title, other = scene.draw.title(), scene.draw.title()
    day = scene.events[scene.add(title)].day
    # Of another day than the event: that one could be where it is wanted already.
    key = scene.add(other, scene.rng.choice([d for d in DAYS if d != day]))
    taken = scene.rng.random() < 0.7
    hour = scene.events[key].hour if taken else scene.rng.choice(HOURS[:-1])
    plan = scene.plan()
    plan.user_says(
        f'Move "{title}" to the day of "{other}" at {hour}, or to the free hour if it is taken.'
    )
    event, guide = _key_of(plan, title), _key_of(plan, other)
    day = str(plan.call("get_event", event=guide)["day"])
    plan.done(_put(plan, event, day, hour))
    return plan.task("same_day")


def _each_other(scene: _Scene) -> Task:
    """Two hosts are invited to each other's event: six calls."""
    titles = [scene.draw.title() for _ in range(2)]
    for title in titles:
        scene.add(title)
    plan = scene.plan()
    plan.user_says(
        f'Invite the host of "{titles[0]}" to "{titles[1]}" and the other way round. '
        f'Who is the host of "{titles[0]}"?'
    )
    one, other = (_key_of(plan, title) for title in titles)
    hosts = [str(plan.call("get_event", event=event)["host"]) for event in (one, other)]
    plan.call("invite", event=other, person=hosts[0])
    plan.call("invite", event=one, person=hosts[1])
    plan.answer(hosts[0])
    return plan.task("each_other")


# Hard: two or three things to do, the later ones about the earlier


def _move_and_go_on(scene: _Scene) -> Task:
    """An event is moved, perhaps elsewhere than asked; then a guest, a question, or its end."""
    title, person = scene.draw.title(), scene.draw.person()
    key = scene.add(title)
    day = scene.rng.choice([d for d in DAYS if d != scene.events[key].day])
    hour = scene.rng.choice(HOURS[:-1])
    if scene.free(day, hour) and scene.toss():
        scene.add(scene.draw.title(), day, hour)
    plan = scene.plan()
    plan.user_says(f'Move "{title}" to "{day}" {hour}, or to the free hour if it is taken.')
    event = _key_of(plan, title)
    start = _put(plan, event, day, hour)
    plan.done(start)
    plan.user_says(f'Invite "{person}" to it.')
    plan.call("invite", event=event, person=person)
    plan.done(person)
    last = scene.rng.choice(("cancel", "when", "host"))
    if last == "cancel":
        plan.user_says("Too many things at once: cancel it.")
        plan.call("cancel_event", event=event)
        plan.done("cancelled")
    elif last == "when":
        plan.user_says("At which hour does it start now?")
        plan.answer(start)
    else:
        plan.user_says("And who is the host of it?")
        plan.answer(plan.call("get_event", event=event)["host"])
    return plan.task(f"move_then_{last}")


def _host_after_all(scene: _Scene) -> Task:
    """A stranger's event stays, the asker's own goes."""
    own, other = scene.draw.title(), scene.draw.title()
    key = scene.add(own)
    scene.add(other)
    plan = scene.plan()
    plan.user_says(f'This is "{scene.events[key].host}". Please cancel "{other}".')
    plan.answer(plan.call("get_event", event=_key_of(plan, other))["host"])
    plan.user_says(f'Then cancel "{own}".')
    event = _key_of(plan, own)
    plan.call("get_event", event=event)
    plan.call("cancel_event", event=event)
    plan.done("cancelled")
    return plan.task("host_after_all", _HOST_ONLY)


def _both(scene: _Scene) -> Task:
    """Two hosts are asked for, then invited to each other's event."""
    one, other = scene.draw.title(), scene.draw.title()
    for title in (one, other):
        scene.add(title)
    plan = scene.plan()
    events, hosts = [], []
    for wording, title in (('Who is the host of "{}"?', one), ('And of "{}"?', other)):
        plan.user_says(wording.format(title))
        events.append(_key_of(plan, title))
        hosts.append(plan.call("get_event", event=events[-1])["host"])
        plan.answer(hosts[-1])
    plan.user_says("Invite each of them to the event of the other.")
    for event, host in zip(events, reversed(hosts), strict=True):
        plan.call("invite", event=event, person=host)
    plan.done()
    return plan.task("both")


_KINDS: Kinds[_Scene] = {
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
