"""The travel desk: what it sells, what it refuses, what it pays back."""

import json
from dataclasses import replace

import pytest
from immutables import Map

from journeyman.tools import CallStatus, ToolCall, execute
from journeyman.tools.apis import travel
from journeyman.tools.apis.travel import Booking, Offer, TravelState, Voucher

from .desk import Desk


@pytest.fixture
def desk() -> Desk:
    offers = {
        "F1": Offer("flight", "Oslo", "Rome", "Monday", 300, 40, 2),
        "F2": Offer("flight", "Oslo", "Rome", "Friday", 200, 250, 1),
        "R1": Offer("train", "Oslo", "Rome", "Monday", 100, 10, 0),
        "H1": Offer("hotel", "", "Rome", "Monday", 150, 20, 5),
    }
    bookings = {
        "B7": Booking("Ada Abbott", "F1"),
        "B6": Booking("Ada Abbott", "F2", "paid", "card", payer="Ada Abbott"),
    }
    vouchers = {"V1": Voucher("Ada Abbott", 400), "V2": Voucher("Ada Abbott", 90)}
    cards = {"Ada Abbott": 250, "Ben Berger": 1000}
    return Desk(travel.TOOLS, TravelState(Map(offers), Map(bookings), Map(vouchers), Map(cards)))


def test_searches(desk: Desk) -> None:
    found = json.loads(desk.ok("search_trips", mode="flight", origin="Oslo", destination="Rome"))
    assert found == [
        {"offer": "F2", "day": "Friday", "price": 200},
        {"offer": "F1", "day": "Monday", "price": 300},
    ]
    refusal = desk.refused("search_trips", mode="train", origin="Rome", destination="Oslo")
    assert refusal == "no train from Rome to Oslo"
    boat = {"mode": "boat", "origin": "Oslo", "destination": "Rome"}
    _, result = execute(ToolCall("search_trips", boat), desk.tools, desk.state)
    assert result.call.status is CallStatus.INVALID_ARGUMENTS
    assert [h["offer"] for h in json.loads(desk.ok("search_hotels", city="Rome"))] == ["H1"]
    assert desk.refused("search_hotels", city="Lima") == "no hotel in Lima"
    shown = json.loads(desk.ok("get_offer", offer="F1"))
    assert (shown["from"], shown["city"], shown["fee"]) == ("Oslo", "Rome", 40)
    assert "from" not in json.loads(desk.ok("get_offer", offer="H1"))
    assert desk.refused("get_offer", offer="F9").startswith("no offer F9; search_trips")


def test_holds_while_there_are_seats(desk: Desk) -> None:
    assert json.loads(desk.ok("hold", offer="F2", traveller="Ben Berger")) == {
        "booking": "B1",
        "price": 200,
        "status": "held",
    }
    assert desk.refused("hold", offer="F2", traveller="Cleo Castro") == "offer F2 is sold out"
    assert desk.refused("hold", offer="R1", traveller="Cleo Castro") == "offer R1 is sold out"
    desk.ok("cancel_booking", booking="B1")
    assert json.loads(desk.ok("hold", offer="F2", traveller="Cleo Castro"))["booking"] == "B2"
    listed = json.loads(desk.ok("find_bookings", traveller="Ada Abbott"))
    assert [b["booking"] for b in listed] == ["B6", "B7"]
    assert desk.refused("find_bookings", traveller="Nobody") == "no booking of Nobody"


def test_cards_have_limits(desk: Desk) -> None:
    refusal = desk.refused("pay_by_card", booking="B7")
    assert refusal == "the card of Ada Abbott is declined: 300 is above its limit"
    desk.ok("hold", offer="H1", traveller="Ben Berger")
    desk.ok("pay_by_card", booking="B1")
    assert desk.state.cards["Ben Berger"] == 850
    refusal = desk.refused("pay_by_card", booking="B1")
    assert refusal == "booking B1 is paid, only a held one can be paid"
    assert desk.refused("pay_by_card", booking="B9").startswith("no booking B9")
    assert json.loads(desk.ok("cancel_booking", booking="B1"))["refund"] == 130
    assert desk.state.cards["Ben Berger"] == 980


def test_vouchers_pay_once(desk: Desk) -> None:
    listed = json.loads(desk.ok("find_vouchers", traveller="Ada Abbott"))
    assert listed == [{"voucher": "V1", "amount": 400}, {"voucher": "V2", "amount": 90}]
    refusal = desk.refused("pay_by_voucher", booking="B7", voucher="V2")
    assert refusal == "voucher V2 of 90 does not cover 300"
    refusal = desk.refused("pay_by_voucher", booking="B7", voucher="V9")
    assert refusal == "Ada Abbott has no voucher V9; try find_vouchers"
    desk.ok("pay_by_voucher", booking="B7", voucher="V1")
    assert desk.state.bookings["B7"].paid_with == "V1"
    desk.ok("hold", offer="H1", traveller="Ada Abbott")
    refusal = desk.refused("pay_by_voucher", booking="B1", voucher="V1")
    assert refusal == "voucher V1 is spent"
    assert [v["voucher"] for v in json.loads(desk.ok("find_vouchers", traveller="Ada Abbott"))] == [
        "V2"
    ]
    assert desk.refused("find_vouchers", traveller="Ben Berger") == "no voucher of Ben Berger"


def test_cancelling_costs_the_fee_once_it_is_paid(desk: Desk) -> None:
    assert json.loads(desk.ok("cancel_booking", booking="B7"))["refund"] == 0
    seats = desk.state.offers["F1"].seats
    assert seats == 3
    # The fee is above the price: nothing comes back, and nothing more is taken.
    assert json.loads(desk.ok("cancel_booking", booking="B6"))["refund"] == 0
    assert desk.state.cards["Ada Abbott"] == 250
    assert desk.refused("cancel_booking", booking="B6") == "booking B6 is already cancelled"


def test_a_refund_goes_to_the_card_that_paid(desk: Desk) -> None:
    desk.ok("hold", offer="H1", traveller="Ben Berger")
    desk.ok("pay_by_card", booking="B1")
    desk.ok("change_traveller", booking="B1", traveller="Ada Abbott")
    assert json.loads(desk.ok("cancel_booking", booking="B1"))["refund"] == 130
    assert desk.state.cards == Map({"Ada Abbott": 250, "Ben Berger": 980})


def test_a_voucher_is_not_refunded(desk: Desk) -> None:
    desk.ok("pay_by_voucher", booking="B7", voucher="V1")
    cards = desk.state.cards
    assert json.loads(desk.ok("cancel_booking", booking="B7"))["refund"] == 0
    assert desk.state.cards == cards
    assert desk.refused("pay_by_voucher", booking="B7", voucher="V1").startswith("booking B7 is")


def test_bookings_are_passed_on(desk: Desk) -> None:
    desk.ok("change_traveller", booking="B7", traveller="Ben Berger")
    assert desk.state.bookings["B7"] == replace(Booking("Ada Abbott", "F1"), traveller="Ben Berger")
    refusal = desk.refused("change_traveller", booking="B7", traveller="Ben Berger")
    assert refusal == "booking B7 is already of Ben Berger"
    desk.ok("cancel_booking", booking="B7")
    refusal = desk.refused("change_traveller", booking="B7", traveller="Cleo Castro")
    assert refusal == "booking B7 is cancelled"
