"""`journeyman/Mail-v0`: mails and the calendar on one desk; what one says, the other follows."""

from __future__ import annotations

import random
from types import MappingProxyType
from typing import Any

from journeyman.envs.core import ToolEnv
from journeyman.envs.hashing import canonical
from journeyman.envs.task import Task
from journeyman.envs.tasks.scene import Kinds, Plan, Scene, rules
from journeyman.envs.types import LEVELS, Level, Split
from journeyman.tools.apis import mail
from journeyman.tools.apis.calendar import DAYS, HOURS, CalendarState, Event
from journeyman.tools.apis.mail import Mail, MailState


class _Scene(Scene):
    """A mailbox under construction: strangers' mails and events first, then the task's own."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        super().__init__(rng, split)
        self.mails: dict[str, Mail] = {}
        self.contacts: dict[str, str] = {}
        self.events: dict[str, Event] = {}
        for _ in range(rng.randint(1, 3)):
            self.receive(self.person(), f"The number is {self.draw.number(100, 999)}.")
        for _ in range(rng.randint(1, 2)):
            self.event()

    def person(self, known: bool = True) -> str:
        name = self.draw.person()
        if known:
            first = name.partition(" ")[0].lower()
            self.contacts[name] = f"{first}.{self.draw.number(100, 999)}@example.org"
        return name

    def receive(self, sender: str, text: str) -> str:
        """A mail in the inbox; returns its subject."""
        subject = self.draw.document()
        key = self.draw.identifier("M")
        self.mails[key] = Mail(sender, "me", subject, text, self.draw.identifier("C"))
        return subject

    def slot(self, but_not: str = "") -> tuple[str, int]:
        taken = {(e.day, e.hour) for e in self.events.values()}
        days = [d for d in DAYS if d != but_not]
        return self.rng.choice([(d, h) for d in days for h in HOURS[1:-1] if (d, h) not in taken])

    def event(self, slot: tuple[str, int] | None = None, status: str = "confirmed") -> str:
        """An event of the calendar; returns its title."""
        title = self.draw.title()
        day, hour = slot or self.slot()
        self.events[self.draw.identifier("E")] = Event(title, self.person(), day, hour, status)
        return title

    def plan(self) -> Plan:
        calendar = CalendarState(self.table(self.events))
        state = MailState(self.table(self.mails), self.table(self.contacts), calendar)
        return Plan(self, mail.TOOLS, state)


def _search(plan: Plan, subject: str) -> str:
    """The id of the mail with that subject."""
    found: list[dict[str, Any]] = plan.call("search_mails", text=subject)
    return next(str(m["mail"]) for m in found if m["subject"] == subject)


def _event_id(plan: Plan, title: str) -> str:
    return str(plan.call("find_event", title=title)["event"])


def _address(plan: Plan, person: str) -> str:
    return str(plan.call("find_contact", person=person)["address"])


# Easy: two or three calls in a row


def _fact(scene: _Scene) -> Task:
    number = scene.draw.number(100, 999)
    subject = scene.receive(scene.person(), f"For your files: the number is {number}.")
    plan = scene.plan()
    plan.user(
        'Which number is in the mail "{s}"?', 'What number does the mail "{s}" give?', s=subject
    )
    plan.call("read_mail", mail=_search(plan, subject))
    plan.answer(number)
    return plan.task("fact")


def _archive(scene: _Scene) -> Task:
    sender = scene.person()
    subjects = [scene.receive(sender, "Please keep this.") for _ in range(2)]
    plan = scene.plan()
    plan.user(
        'Archive the mail "{s}" of "{p}".',
        'Put the mail "{s}" that "{p}" sent into the archive.',
        s=subjects[0],
        p=sender,
    )
    plan.call("archive", mail=_search(plan, subjects[0]))
    plan.done()
    return plan.task("archive")


def _reply(scene: _Scene) -> Task:
    subject = scene.receive(scene.person(), "How many do you need?")
    text = f"We need {scene.draw.number(100, 999)}."
    plan = scene.plan()
    plan.user('Reply "{t}" to the mail "{s}".', 'Answer the mail "{s}": "{t}"', s=subject, t=text)
    plan.call("reply", mail=_search(plan, subject), text=text)
    plan.done()
    return plan.task("reply")


def _forward(scene: _Scene) -> Task:
    subject, person = scene.receive(scene.person(), "See below."), scene.person()
    plan = scene.plan()
    plan.user('Forward the mail "{s}" to "{p}".', 'Send "{p}" the mail "{s}".', s=subject, p=person)
    key = _search(plan, subject)
    plan.call("forward", mail=key, address=_address(plan, person))
    plan.done()
    return plan.task("forward")


# Medium: what is found decides, or a tool refuses


def _asked_by_mail(scene: _Scene) -> Task:
    """The mail says whether to cancel the event or to move it, and where to."""
    title = scene.event()
    old = next(e for e in scene.events.values() if e.title == title)
    day, hour = scene.slot(but_not=old.day)
    cancel = scene.toss()
    wish = f'Please cancel "{title}".' if cancel else f'Please move "{title}" to {day} at {hour}.'
    subject = scene.receive(scene.person(), wish)
    plan = scene.plan()
    plan.user(
        'Do with the event what the mail "{s}" asks for.',
        'The mail "{s}" asks to move or cancel an event: do it.',
        s=subject,
    )
    plan.call("read_mail", mail=_search(plan, subject))
    event = _event_id(plan, title)
    if cancel:
        plan.call("cancel_event", event=event)
    else:
        plan.call("move_event", event=event, day=day, hour=hour)
    plan.done()
    return plan.task("asked_to_cancel" if cancel else "asked_to_move")


def _tell_host(scene: _Scene) -> Task:
    """Two lookups, one in each half of the desk, meet in the last call."""
    title, text = scene.event(), f"We are {scene.draw.number(100, 999)} people."
    subject = scene.draw.document()
    plan = scene.plan()
    plan.user(
        'Mail the host of "{e}", subject "{s}", text "{t}".',
        'Send the host of "{e}" a mail with the subject "{s}" and the text "{t}".',
        e=title,
        s=subject,
        t=text,
    )
    host = plan.call("get_event", event=_event_id(plan, title))["host"]
    plan.call("send_mail", address=_address(plan, host), subject=subject, text=text)
    plan.done()
    return plan.task("tell_host")


def _no_contact(scene: _Scene) -> Task:
    """One time in two the first person has no address."""
    known = scene.toss()
    first, second = scene.person(known), scene.person()
    subject = scene.receive(scene.person(), "To be shared.")
    plan = scene.plan()
    plan.user(
        'Forward the mail "{s}" to "{p}", or to "{q}" if "{p}" is no contact.',
        'Pass the mail "{s}" on to "{p}"; if there is no such contact, to "{q}".',
        s=subject,
        p=first,
        q=second,
    )
    key = _search(plan, subject)
    if not known:
        plan.refused("find_contact", person=first)
    plan.call("forward", mail=key, address=_address(plan, first if known else second))
    plan.done()
    return plan.task("contact" if known else "no_contact")


def _invitation(scene: _Scene) -> Task:
    """The hour that a mail proposes may be taken: then the calendar offers another."""
    day, hour = scene.slot()
    taken = scene.toss()
    if taken:
        scene.event((day, hour))
    title = scene.draw.title()
    subject = scene.receive(scene.person(), f'Let us do "{title}" on {day} at {hour}.')
    plan = scene.plan()
    plan.user(
        'Add the event that the mail "{s}" proposes; if the hour is taken, at the free hour. '
        "At which hour is it?",
        'Put what the mail "{s}" proposes into the calendar, at the free hour if the one it '
        "names is taken, and tell me the hour.",
        s=subject,
    )
    plan.call("read_mail", mail=_search(plan, subject))
    if taken:
        error = plan.refused("add_event", title=title, day=day, hour=hour)
        hour = int(error.split("hour ")[1].split()[0])
    plan.call("add_event", title=title, day=day, hour=hour)
    plan.answer(hour)
    return plan.task("hour_taken" if taken else "hour_free")


# Hard: rules, requests that need no call, users who come back, long programs


def _confidential(scene: _Scene) -> Task:
    """A rule forbids to forward some mails, and says what to write instead."""
    secret = scene.toss()
    text = "This is confidential." if secret else "This is for everybody."
    subject, person = scene.receive(scene.person(), text), scene.person()
    refusal = f"Ask desk {scene.draw.number(100, 999)}."
    policy = rules(
        scene,
        "Read a mail before you forward it. One whose text says confidential is not forwarded: "
        f'reply "{refusal}" to it instead.',
        "Mails in the archive stay there.",
    )
    plan = scene.plan()
    plan.user('Forward the mail "{s}" to "{p}".', 'Send "{p}" the mail "{s}".', s=subject, p=person)
    key = _search(plan, subject)
    plan.call("read_mail", mail=key)
    if secret:
        plan.call("reply", mail=key, text=refusal)
    else:
        plan.call("forward", mail=key, address=_address(plan, person))
    plan.done()
    return plan.task("confidential" if secret else "not_confidential", policy)


def _confirmed(scene: _Scene) -> Task:
    """A rule forbids to cancel confirmed events: their host is asked by mail."""
    confirmed = scene.toss()
    title = scene.event(status="confirmed" if confirmed else "tentative")
    request = f"Case {scene.draw.number(100, 999)}: please cancel."
    policy = rules(
        scene,
        "Tentative events may be cancelled, confirmed ones not: mail the host instead, the "
        f'event\'s title as subject, "{request}" as text.',
        "Events are not moved to Friday.",
    )
    plan = scene.plan()
    plan.user('Cancel "{e}".', 'The event "{e}" is off: cancel it.', e=title)
    event = _event_id(plan, title)
    host = plan.call("get_event", event=event)["host"]
    if confirmed:
        plan.call("send_mail", address=_address(plan, host), subject=title, text=request)
    else:
        plan.call("cancel_event", event=event)
    plan.done()
    return plan.task("cancel_confirmed" if confirmed else "cancel_tentative", policy)


def _no_call(scene: _Scene) -> Task:
    """The answer is in the question, or a rule says to refuse."""
    person, other, number = scene.person(), scene.person(), scene.draw.number(100, 999)
    word = scene.rng.choice(("refused", "declined"))
    policy = rules(
        scene,
        f"Passwords are neither looked up nor sent: call no tool and answer: {word}",
        "What the question itself tells is answered without a call.",
    )
    refuse = scene.toss()
    plan = scene.plan()
    if refuse:
        subject = scene.receive(person, f"The password is {number}.")
        wordings = (
            'Mail the password in "{s}" of "{p}" to "{q}".',
            'Which password did "{p}" send in "{s}"? Forward it to "{q}".',
        )
        plan.user(*wordings, s=subject, p=person, q=other)
        plan.answer(word)
        return plan.task("refuse", policy)
    title = scene.draw.title()
    wordings = (
        '"{p}" told me on the phone: "{e}" is in room {n}, with "{q}". Which room was that again?',
        'In which room is "{e}"? I noted: "{p}" and "{q}" meet there, room {n}.',
    )
    plan.user(*wordings, p=person, q=other, e=title, n=number)
    plan.answer(number)
    return plan.task("in_the_question", policy)


def _conversation(scene: _Scene) -> Task:
    """Three user turns about one event and its host."""
    title = scene.event()
    event = next(e for e in scene.events.values() if e.title == title)
    text = f"See you in room {scene.draw.number(100, 999)}."
    subject = scene.receive(event.host, "Where do we meet?")
    day, hour = scene.slot(but_not=event.day)
    plan = scene.plan()
    plan.user('Who hosts "{e}"?', 'Who is the host of "{e}"?', e=title)
    key = _event_id(plan, title)
    plan.call("get_event", event=key)
    plan.answer(event.host)
    plan.user(
        'Move it to "{d}" {h}, and invite "{p}".',
        'Please put it on "{d}" at {h} and invite "{p}".',
        d=day,
        h=hour,
        p=(guest := scene.draw.person()),
    )
    plan.call("move_event", event=key, day=day, hour=hour)
    plan.call("invite", event=key, person=guest)
    plan.done()
    plan.user('Reply "{t}" to the mail of the host and archive it.', t=text)
    found = plan.call("search_mails", text=event.host)
    received = next(m["mail"] for m in found if m["subject"] == subject)
    plan.call("reply", mail=received, text=text)
    plan.call("archive", mail=received)
    plan.done()
    return plan.task("conversation")


def _clear(scene: _Scene) -> Task:
    """Every mail of one person, one of which is to be answered as well."""
    sender, text = scene.person(), f"Thanks, {scene.draw.number(100, 999)} will do."
    subjects = [
        scene.receive(sender, "For your information.") for _ in range(scene.rng.randint(2, 4))
    ]
    answered = scene.rng.choice(subjects)
    plan = scene.plan()
    plan.user(
        'Reply "{t}" to the mail "{s}", then archive all mails of "{p}".',
        'Archive all mails of "{p}" and reply "{t}" to "{s}".',
        t=text,
        s=answered,
        p=sender,
    )
    found = plan.call("search_mails", text=sender)
    plan.call("reply", mail=next(m["mail"] for m in found if m["subject"] == answered), text=text)
    for heading in found:
        plan.call("archive", mail=heading["mail"])
    plan.done()
    return plan.task("clear")


_KINDS: Kinds[_Scene] = {
    "easy": (_fact, _archive, _reply, _forward),
    "medium": (_asked_by_mail, _tell_host, _no_contact, _invitation),
    "hard": (_confidential, _confirmed, _no_call, _conversation, _clear),
}


class MailEnv(ToolEnv):
    """A desk with mail and calendar: 2 to 7 calls a task, none where none is called for."""

    toolset = mail.TOOLS
    levels = LEVELS
    harmless = MappingProxyType({"read_mail": "it only marks a mail as read"})

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw a desk and a request."""
        kind = rng.choice(_KINDS[level])
        return kind(_Scene(rng, split))

    @classmethod
    def outcome(cls, state: MailState) -> Any:
        """Mails and events; not which mails were read, nor in which order some were sent."""
        received = {k: (m.folder, m.text) for k, m in state.mails.items() if m.folder != "sent"}
        sent = [
            (m.recipient, m.subject, m.text) for m in state.mails.values() if m.folder == "sent"
        ]
        events = list(state.calendar.events.values())
        events.sort(key=canonical)
        return {"mails": received, "sent": sorted(sent), "events": events}
