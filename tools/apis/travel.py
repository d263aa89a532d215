"""A travel desk: trips and hotels searched, held, paid, cancelled for a fee; cards and vouchers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from immutables import Map

from journeyman.tools.apis.lookup import look_up
from journeyman.tools.errors import ToolError
from journeyman.tools.tool import tool


@dataclass(frozen=True, slots=True)
class Offer:
    """A trip or a hotel room that can be booked."""

    kind: str
    """"flight", "train" or "hotel"."""
    origin: str
    """Empty for a hotel."""
    city: str
    """Where it goes, or where the hotel is."""
    day: str
    price: int
    """Whole currency units."""
    fee: int
    """Kept when a paid booking is cancelled."""
    seats: int
    """How many are left; rooms of a hotel."""


@dataclass(frozen=True, slots=True)
class Booking:
    """One booking."""

    traveller: str
    offer: str
    status: str = "held"
    """"held", "paid" or "cancelled"."""
    paid_with: str = ""
    """"card" or a voucher."""
    payer: str = ""
    """Whose card paid, whoever travels; empty if none did."""


@dataclass(frozen=True, slots=True)
class Voucher:
    """Pays one booking, once."""

    owner: str
    amount: int
    spent: bool = False


@dataclass(frozen=True, slots=True)
class TravelState:
    """Offers, bookings and vouchers by id, and what each traveller's card can still pay."""

    offers: Map[str, Offer]
    bookings: Map[str, Booking] = Map()  # noqa: RUF009 - Map is immutable
    vouchers: Map[str, Voucher] = Map()  # noqa: RUF009
    cards: Map[str, int] = Map()  # noqa: RUF009


def _offer(state: TravelState, offer: str) -> Offer:
    return look_up(state.offers, "offer", offer, "search_trips and search_hotels give ids")


def _booking(state: TravelState, booking: str) -> Booking:
    return look_up(state.bookings, "booking", booking, "find_bookings gives ids")


def _found(state: TravelState, kind: str, origin: str, city: str) -> list[dict[str, Any]]:
    """Offers by price, then by id: the order of a Map depends on the process's hash seed."""
    rows = [
        (o.price, key, o.day)
        for key, o in state.offers.items()
        if (o.kind, o.origin, o.city) == (kind, origin, city)
    ]
    return [{"offer": key, "day": day, "price": price} for price, key, day in sorted(rows)]


def _put(state: TravelState, key: str, booking: Booking, seats: int) -> TravelState:
    """The state with this booking, and as many more seats of its offer."""
    offer = state.offers[booking.offer]
    offers = state.offers.set(booking.offer, replace(offer, seats=offer.seats + seats))
    return replace(state, offers=offers, bookings=state.bookings.set(key, booking))


@tool
def search_trips(
    state: TravelState, mode: Literal["flight", "train"], origin: str, destination: str
) -> tuple[TravelState, list[dict[str, Any]]]:
    """Find trips between two cities, cheapest first.

    Args:
        mode: flight or train.
        origin: City where the trip begins.
        destination: City where it ends.
    """
    found = _found(state, mode, origin, destination)
    if not found:
        raise ToolError(f"no {mode} from {origin[:40]} to {destination[:40]}")
    return state, found


@tool
def search_hotels(state: TravelState, city: str) -> tuple[TravelState, list[dict[str, Any]]]:
    """Find hotels in a city, cheapest first.

    Args:
        city: The city.
    """
    found = _found(state, "hotel", "", city)
    if not found:
        raise ToolError(f"no hotel in {city[:40]}")
    return state, found


@tool
def get_offer(state: TravelState, offer: str) -> tuple[TravelState, dict[str, Any]]:
    """Read an offer: what it is, its price, and the fee if it is cancelled once paid.

    Args:
        offer: Offer id.
    """
    record = _offer(state, offer)
    route = {"from": record.origin} if record.origin else {}
    return state, {
        "kind": record.kind,
        **route,
        "city": record.city,
        "day": record.day,
        "price": record.price,
        "fee": record.fee,
    }


@tool
def hold(state: TravelState, offer: str, traveller: str) -> tuple[TravelState, dict[str, Any]]:
    """Hold an offer for somebody; it is booked once it is paid.

    Args:
        offer: Offer id.
        traveller: Full name.
    """
    record = _offer(state, offer)
    if record.seats < 1:
        raise ToolError(f"offer {offer} is sold out")
    number = 1
    while (key := f"B{number}") in state.bookings:
        number += 1
    state = _put(state, key, Booking(traveller, offer), -1)
    return state, {"booking": key, "price": record.price, "status": "held"}


@tool
def find_bookings(state: TravelState, traveller: str) -> tuple[TravelState, list[dict[str, Any]]]:
    """List somebody's bookings.

    Args:
        traveller: Full name.
    """
    found = [
        {"booking": key, "offer": b.offer, "status": b.status}
        for key, b in sorted(state.bookings.items(), key=lambda entry: entry[0])
        if b.traveller == traveller
    ]
    if not found:
        raise ToolError(f"no booking of {traveller[:40]}")
    return state, found


@tool
def pay_by_card(state: TravelState, booking: str) -> tuple[TravelState, dict[str, Any]]:
    """Pay a held booking with the traveller's card.

    Args:
        booking: Booking id.
    """
    record = _booking(state, booking)
    price = _due(state, booking, record)
    left = state.cards.get(record.traveller, 0)
    if left < price:
        raise ToolError(f"the card of {record.traveller} is declined: {price} is above its limit")
    state = replace(state, cards=state.cards.set(record.traveller, left - price))
    paid = replace(record, status="paid", paid_with="card", payer=record.traveller)
    state = _put(state, booking, paid, 0)
    return state, {"booking": booking, "status": "paid"}


@tool
def find_vouchers(state: TravelState, traveller: str) -> tuple[TravelState, list[dict[str, Any]]]:
    """List somebody's vouchers that are not spent.

    Args:
        traveller: Full name.
    """
    found = [
        {"voucher": key, "amount": v.amount}
        for key, v in sorted(state.vouchers.items(), key=lambda entry: entry[0])
        if v.owner == traveller and not v.spent
    ]
    if not found:
        raise ToolError(f"no voucher of {traveller[:40]}")
    return state, found


@tool
def pay_by_voucher(
    state: TravelState, booking: str, voucher: str
) -> tuple[TravelState, dict[str, Any]]:
    """Pay a held booking with a voucher, which is spent then; what is left of it is lost.

    Args:
        booking: Booking id.
        voucher: Voucher id, of the traveller.
    """
    record = _booking(state, booking)
    price = _due(state, booking, record)
    paper = state.vouchers.get(voucher)
    if paper is None or paper.owner != record.traveller:
        raise ToolError(f"{record.traveller} has no voucher {voucher[:40]}; try find_vouchers")
    if paper.spent:
        raise ToolError(f"voucher {voucher} is spent")
    if paper.amount < price:
        raise ToolError(f"voucher {voucher} of {paper.amount} does not cover {price}")
    state = replace(state, vouchers=state.vouchers.set(voucher, replace(paper, spent=True)))
    state = _put(state, booking, replace(record, status="paid", paid_with=voucher), 0)
    return state, {"booking": booking, "status": "paid"}


def _due(state: TravelState, booking: str, record: Booking) -> int:
    if record.status != "held":
        raise ToolError(f"booking {booking} is {record.status}, only a held one can be paid")
    return state.offers[record.offer].price


@tool
def cancel_booking(state: TravelState, booking: str) -> tuple[TravelState, dict[str, Any]]:
    """Cancel a booking.

    A held one costs nothing. Of one paid by card, the price less the offer's fee goes back to the
    card that paid. Of one paid by voucher nothing is paid back.

    Args:
        booking: Booking id.
    """
    record = _booking(state, booking)
    if record.status == "cancelled":
        raise ToolError(f"booking {booking} is already cancelled")
    offer = state.offers[record.offer]
    refund = max(0, offer.price - offer.fee) if record.payer else 0
    if refund:
        left = state.cards.get(record.payer, 0)
        state = replace(state, cards=state.cards.set(record.payer, left + refund))
    state = _put(state, booking, replace(record, status="cancelled"), 1)
    return state, {"booking": booking, "status": "cancelled", "refund": refund}


@tool
def change_traveller(
    state: TravelState, booking: str, traveller: str
) -> tuple[TravelState, dict[str, Any]]:
    """Pass a booking on to somebody else.

    Args:
        booking: Booking id.
        traveller: Full name of who travels instead.
    """
    record = _booking(state, booking)
    if record.status == "cancelled":
        raise ToolError(f"booking {booking} is cancelled")
    if record.traveller == traveller:
        raise ToolError(f"booking {booking} is already of {traveller[:40]}")
    state = _put(state, booking, replace(record, traveller=traveller), 0)
    return state, {"booking": booking, "traveller": traveller}


TOOLS = (
    search_trips,
    search_hotels,
    get_offer,
    hold,
    find_bookings,
    pay_by_card,
    find_vouchers,
    pay_by_voucher,
    cancel_booking,
    change_traveller,
)
