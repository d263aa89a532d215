"""A mailbox with contacts and the calendar beside it: one state, so that a mail can move a meeting.

The calendar's tools are the calendar's own (`journeyman.tools.apis.calendar`), run on its part of
the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

from immutables import Map

from journeyman.tools.apis import calendar
from journeyman.tools.apis.calendar import CalendarState, Event, check_free
from journeyman.tools.apis.lookup import look_up
from journeyman.tools.errors import ToolError
from journeyman.tools.tool import Tool, tool

FOLDERS = ("inbox", "archive", "sent")


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail."""

    sender: str
    """Full name; "me" if it was sent from here."""
    recipient: str
    """Address; "me" if it was received."""
    subject: str
    text: str
    thread: str
    """Mails that answer one another share it."""
    folder: str = "inbox"
    """One of `FOLDERS`."""
    read: bool = False


@dataclass(frozen=True, slots=True)
class MailState:
    """Mailbox, contacts and calendar."""

    mails: Map[str, Mail]
    """By id."""
    contacts: Map[str, str]
    """Address by full name."""
    calendar: CalendarState


def _mail(state: MailState, mail: str) -> Mail:
    return look_up(state.mails, "mail", mail, "search_mails gives ids")


def _heading(key: str, mail: Mail) -> dict[str, Any]:
    return {"mail": key, "from": mail.sender, "subject": mail.subject, "folder": mail.folder}


def _ordered(state: MailState) -> list[tuple[str, Mail]]:
    # By id: the order of a Map depends on the process's hash seed.
    return sorted(state.mails.items(), key=lambda entry: entry[0])


def _free_id(prefix: str, taken: Map[str, Any]) -> str:
    number = 1
    while (key := f"{prefix}{number}") in taken:
        number += 1
    return key


def _send(state: MailState, mail: Mail) -> tuple[MailState, dict[str, Any]]:
    if not mail.text.strip():
        raise ToolError("text is empty")
    key = _free_id("S", state.mails)
    mail = replace(mail, thread=mail.thread or key)
    return replace(state, mails=state.mails.set(key, mail)), {"sent": key}


@tool
def list_mails(state: MailState, folder: str) -> tuple[MailState, list[dict[str, Any]]]:
    """List the mails of a folder.

    Args:
        folder: inbox, archive or sent.
    """
    if folder not in FOLDERS:
        raise ToolError(f"no folder {folder[:40]}; there are: {', '.join(FOLDERS)}")
    return state, [_heading(key, m) for key, m in _ordered(state) if m.folder == folder]


@tool
def search_mails(state: MailState, text: str) -> tuple[MailState, list[dict[str, Any]]]:
    """Find mails by sender, subject or a word of the text, in all folders.

    Args:
        text: What sender, subject or text must contain.
    """
    wanted = text.casefold()
    found = [
        _heading(key, m)
        for key, m in _ordered(state)
        if any(wanted in part.casefold() for part in (m.sender, m.subject, m.text))
    ]
    if not found:
        raise ToolError(f"no mail contains {text[:40]!r}")
    return state, found


@tool
def read_mail(state: MailState, mail: str) -> tuple[MailState, dict[str, Any]]:
    """Read a mail.

    Args:
        mail: Mail id.
    """
    record = _mail(state, mail)
    shown = {
        "from": record.sender,
        "to": record.recipient,
        "subject": record.subject,
        "text": record.text,
        "thread": record.thread,
    }
    return replace(state, mails=state.mails.set(mail, replace(record, read=True))), shown


@tool
def read_thread(state: MailState, thread: str) -> tuple[MailState, list[dict[str, Any]]]:
    """Read all mails of a thread, oldest first.

    Args:
        thread: Thread id.
    """
    mails = [(key, m) for key, m in _ordered(state) if m.thread == thread]
    if not mails:
        raise ToolError(f"no thread {thread[:40]}; read_mail tells the thread of a mail")
    return state, [{"mail": key, "from": m.sender, "text": m.text} for key, m in mails]


@tool
def send_mail(
    state: MailState, address: str, subject: str, text: str
) -> tuple[MailState, dict[str, Any]]:
    """Send a new mail.

    Args:
        address: Address of the recipient.
        subject: Subject line.
        text: What to write.
    """
    _check_address(address)
    return _send(state, Mail("me", address, subject, text, "", "sent", True))


@tool
def reply(state: MailState, mail: str, text: str) -> tuple[MailState, dict[str, Any]]:
    """Answer the sender of a mail, in its thread.

    Args:
        mail: Mail id.
        text: What to write.
    """
    record = _mail(state, mail)
    if record.folder == "sent":
        raise ToolError(f"mail {mail} was sent from here; reply to one that was received")
    answer = Mail("me", record.sender, record.subject, text, record.thread, "sent", True)
    return _send(state, answer)


@tool
def forward(state: MailState, mail: str, address: str) -> tuple[MailState, dict[str, Any]]:
    """Send a mail on to somebody else.

    Args:
        mail: Mail id.
        address: Address of the recipient.
    """
    record = _mail(state, mail)
    _check_address(address)
    copy = replace(record, sender="me", recipient=address, folder="sent", read=True)
    return _send(state, copy)


def _check_address(address: str) -> None:
    if "@" not in address:
        raise ToolError(f"{address[:40]!r} is no address; find_contact gives one")


@tool
def archive(state: MailState, mail: str) -> tuple[MailState, dict[str, Any]]:
    """Move a mail from the inbox to the archive.

    Args:
        mail: Mail id.
    """
    record = _mail(state, mail)
    if record.folder != "inbox":
        raise ToolError(f"mail {mail} is in the folder {record.folder}, not in the inbox")
    mails = state.mails.set(mail, replace(record, folder="archive"))
    return replace(state, mails=mails), {"archived": mail}


@tool
def find_contact(state: MailState, person: str) -> tuple[MailState, dict[str, Any]]:
    """Look up somebody's address.

    Args:
        person: Full name.
    """
    return state, {"address": look_up(state.contacts, "contact", person)}


@tool
def add_event(
    state: MailState, title: str, day: str, hour: int
) -> tuple[MailState, dict[str, Any]]:
    """Put a new event into the calendar; it takes one hour.

    Args:
        title: The title.
        day: Monday to Friday.
        hour: Start, 8 to 18.
    """
    check_free(state.calendar, day, hour)
    events = state.calendar.events
    key = _free_id("N", events)
    events = events.set(key, Event(title, "me", day, hour))
    return replace(state, calendar=replace(state.calendar, events=events)), {"event": key}


def _on_calendar(of_calendar: Tool) -> Tool:
    """A tool of the calendar as a tool of the whole state."""
    function: Callable[..., Any] = of_calendar.function

    @wraps(function)
    def on_part(state: MailState, **arguments: Any) -> tuple[MailState, Any]:
        part, result = function(state=state.calendar, **arguments)
        return replace(state, calendar=part), result

    return Tool(on_part, of_calendar.name, stateful=True)


TOOLS = (
    list_mails,
    search_mails,
    read_mail,
    read_thread,
    send_mail,
    reply,
    forward,
    archive,
    find_contact,
    add_event,
    *map(_on_calendar, calendar.TOOLS),
)
