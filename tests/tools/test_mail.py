"""The mailbox and the calendar beside it."""

import json

import pytest
from immutables import Map

from journeyman.tools.apis import mail
from journeyman.tools.apis.calendar import CalendarState, Event
from journeyman.tools.apis.mail import Mail, MailState

from .desk import Desk


@pytest.fixture
def desk() -> Desk:
    mails = {
        "M2": Mail("Ada Abbott", "me", "winter memo", "The number is 423.", "C1"),
        "M1": Mail("Ben Berger", "me", "red survey", "Ask Ada Abbott.", "C2"),
        "M3": Mail("Ada Abbott", "me", "blue ledger", "Old.", "C1", "archive"),
    }
    contacts = {"Ada Abbott": "ada.423@example.org"}
    events = {"E1": Event("budget review", "Ada Abbott", "Monday", 9)}
    return Desk(mail.TOOLS, MailState(Map(mails), Map(contacts), CalendarState(Map(events))))


def test_lists_and_searches(desk: Desk) -> None:
    listed = json.loads(desk.ok("list_mails", folder="inbox"))
    assert [m["mail"] for m in listed] == ["M1", "M2"]
    assert listed[0] == {
        "mail": "M1",
        "from": "Ben Berger",
        "subject": "red survey",
        "folder": "inbox",
    }
    assert desk.ok("list_mails", folder="sent") == "[]"
    refusal = desk.refused("list_mails", folder="spam")
    assert refusal == "no folder spam; there are: inbox, archive, sent"
    for text, found in (("ada abbott", ["M1", "M2", "M3"]), ("SURVEY", ["M1"]), ("423", ["M2"])):
        assert [m["mail"] for m in json.loads(desk.ok("search_mails", text=text))] == found
    assert desk.refused("search_mails", text="moon") == "no mail contains 'moon'"


def test_reads(desk: Desk) -> None:
    shown = json.loads(desk.ok("read_mail", mail="M2"))
    assert shown["text"] == "The number is 423."
    assert desk.state.mails["M2"].read
    assert not desk.state.mails["M1"].read
    assert desk.refused("read_mail", mail="M9") == "no mail M9; search_mails gives ids"
    thread = json.loads(desk.ok("read_thread", thread=shown["thread"]))
    assert [m["mail"] for m in thread] == ["M2", "M3"]
    refusal = desk.refused("read_thread", thread="C9")
    assert refusal == "no thread C9; read_mail tells the thread of a mail"


def test_sends(desk: Desk) -> None:
    assert desk.ok("reply", mail="M1", text="Yes.") == '{"sent": "S1"}'
    sent = desk.state.mails["S1"]
    assert sent == Mail("me", "Ben Berger", "red survey", "Yes.", "C2", "sent", True)
    assert desk.refused("reply", mail="S1", text="No.").startswith("mail S1 was sent from here")
    assert desk.refused("reply", mail="M1", text=" ") == "text is empty"
    address = json.loads(desk.ok("find_contact", person="Ada Abbott"))["address"]
    assert desk.refused("find_contact", person="Ben Berger") == "no contact Ben Berger"
    desk.ok("forward", mail="M1", address=address)
    assert desk.state.mails["S2"].recipient == address
    assert desk.state.mails["S2"].text == "Ask Ada Abbott."
    desk.ok("send_mail", address=address, subject="news", text="None.")
    assert desk.state.mails["S3"].thread == "S3"
    for tool, arguments in (
        ("forward", {"mail": "M1"}),
        ("send_mail", {"subject": "news", "text": "None."}),
    ):
        refusal = desk.refused(tool, address="Ada Abbott", **arguments)
        assert refusal == "'Ada Abbott' is no address; find_contact gives one"


def test_archives(desk: Desk) -> None:
    assert desk.ok("archive", mail="M1") == '{"archived": "M1"}'
    assert desk.state.mails["M1"].folder == "archive"
    refusal = desk.refused("archive", mail="M1")
    assert refusal == "mail M1 is in the folder archive, not in the inbox"


def test_the_calendar_is_part_of_the_desk(desk: Desk) -> None:
    mails = desk.state.mails
    assert desk.ok("find_event", title="budget review") == '{"event": "E1"}'
    desk.ok("move_event", event="E1", day="Friday", hour=8)
    assert desk.state.calendar.events["E1"].day == "Friday"
    refusal = desk.refused("add_event", title="sales demo", day="Friday", hour=8)
    assert refusal == "Friday 8 is taken, hour 9 is free"
    assert desk.ok("add_event", title="sales demo", day="Friday", hour=9) == '{"event": "N1"}'
    assert desk.state.calendar.events["N1"] == Event("sales demo", "me", "Friday", 9)
    refusal = desk.refused("add_event", title="x", day="Sunday", hour=9)
    assert refusal == "day must be Monday to Friday"
    desk.ok("cancel_event", event="E1")
    assert desk.refused("get_event", event="E1") == "no event E1"
    assert desk.state.mails is mails
