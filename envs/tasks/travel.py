"""`journeyman/Travel-v0`: trips and hotels; sold out, declined, dear to cancel, or not allowed."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from journeyman.envs.core import ToolEnv
from journeyman.envs.task import Task
from journeyman.envs.tasks.scene import Kinds, Plan, Scene, rules
from journeyman.envs.types import LEVELS, Level, Split
from journeyman.tools.apis import travel
from journeyman.tools.apis.calendar import DAYS
from journeyman.tools.apis.travel import Booking, Offer, TravelState, Voucher

_PREFIX = {"flight": "F", "train": "R", "hotel": "H"}
_ROOM = 3  # seats of an offer that is not sold out
# A rich card and any voucher cover any price, a poor card covers none.
_FEE, _POOR, _PRICE, _RICH = (100, 999), (1000, 3999), (4000, 9999), (10_000, 99_999)


class _Scene(Scene):
    """A travel desk under construction: two cities, and what a stranger has booked."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        super().__init__(rng, split)
        self.offers: dict[str, Offer] = {}
        self.bookings: dict[str, Booking] = {}
        self.vouchers: dict[str, Voucher] = {}
        self.cards: dict[str, int] = {}
        self.home, self.away = self.draw.city(), self.draw.city()
        self.mode = rng.choice(("flight", "train"))
        stranger = self.traveller()
        self.book(stranger, self.offer(self.mode, self.away, self.home))

    def traveller(self, poor: bool = False) -> str:
        """Somebody with a card; that of a poor one is declined for anything."""
        name = self.draw.person()
        self.cards[name] = self.draw.number(*(_POOR if poor else _RICH))
        return name

    def offer(
        self, kind: str, origin: str, city: str, day: str | None = None, seats: int = _ROOM
    ) -> str:
        key = self.draw.identifier(_PREFIX[kind])
        price, fee = self.draw.number(*_PRICE), self.draw.number(*_FEE)
        day = day or self.rng.choice(DAYS)
        self.offers[key] = Offer(kind, origin, city, day, price, fee, seats)
        return key

    def trips(self, mode: str, count: int = 2) -> list[str]:
        """That many trips from home to away on different days; ids, the cheapest first."""
        days = self.rng.sample(DAYS, count)
        keys = [self.offer(mode, self.home, self.away, day) for day in days]
        return sorted(keys, key=lambda key: self.offers[key].price)

    def hotels(self) -> None:
        for _ in range(2):
            self.offer("hotel", "", self.away)

    def book(self, traveller: str, offer: str, paid_by_card: bool = False) -> str:
        """A booking, held or, if `paid_by_card`, paid with the traveller's card; returns its id."""
        key = self.draw.identifier("B")
        booking = Booking(traveller, offer)
        if paid_by_card:
            booking = replace(booking, status="paid", paid_with="card", payer=traveller)
        self.bookings[key] = booking
        return key

    def voucher(self, owner: str) -> str:
        key = self.draw.identifier("V")
        self.vouchers[key] = Voucher(owner, self.draw.number(*_RICH))
        return key

    def plan(self) -> Plan:
        state = TravelState(
            self.table(self.offers),
            self.table(self.bookings),
            self.table(self.vouchers),
            self.table(self.cards),
        )
        return Plan(self, travel.TOOLS, state)

    def ask(self, *wordings: str, **values: object) -> str:
        """A wording, with the cities and the way of travelling filled in as well."""
        return super().ask(*wordings, a=self.home, b=self.away, m=self.mode, **values)


def _trips(plan: Plan, scene: _Scene, mode: str | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = plan.call(
        "search_trips", mode=mode or scene.mode, origin=scene.home, destination=scene.away
    )
    return found


def _hold(plan: Plan, offer: dict[str, Any], traveller: str) -> str:
    return str(plan.call("hold", offer=offer["offer"], traveller=traveller)["booking"])


def _booked(plan: Plan, traveller: str) -> dict[str, Any]:
    """The one booking of somebody."""
    (found,) = plan.call("find_bookings", traveller=traveller)
    return dict(found)


# Easy: two or three calls in a row


def _fee(scene: _Scene) -> Task:
    person = scene.traveller()
    cheapest, *_ = scene.trips(scene.mode)
    plan = scene.plan()
    plan.user(
        '"{p}" goes from "{a}" to "{b}" by the cheapest {m}. What does cancelling cost?',
        'What is the cancellation fee of the cheapest {m} from "{a}" to "{b}"? "{p}" asks.',
        p=person,
    )
    plan.call("get_offer", offer=_trips(plan, scene)[0]["offer"])
    plan.answer(scene.offers[cheapest].fee)
    return plan.task("fee")


def _book_hotel(scene: _Scene) -> Task:
    person = scene.traveller()
    scene.hotels()
    plan = scene.plan()
    plan.user(
        'Hold the cheapest hotel in "{b}" for "{p}" and pay it by card.',
        'Book "{p}" the cheapest hotel in "{b}": hold it, then pay by card.',
        p=person,
    )
    plan.call("pay_by_card", booking=_hold(plan, _hotels(plan, scene)[0], person))
    plan.done()
    return plan.task("book_hotel")


def _hotels(plan: Plan, scene: _Scene) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = plan.call("search_hotels", city=scene.away)
    return found


def _where(scene: _Scene) -> Task:
    person = scene.traveller()
    offer = scene.offers[scene.trips(scene.mode)[0]]
    scene.book(person, next(k for k, o in scene.offers.items() if o is offer))
    word, answer = scene.rng.choice(
        (("to which city", offer.city), ("on which day", offer.day), ("at what price", offer.price))
    )
    plan = scene.plan()
    plan.user('Tell me {w} "{p}" travels.', 'I want to know {w} "{p}" travels.', w=word, p=person)
    plan.call("get_offer", offer=_booked(plan, person)["offer"])
    plan.answer(answer)
    return plan.task("where")


def _call_off(scene: _Scene) -> Task:
    person = scene.traveller()
    scene.book(person, scene.trips(scene.mode)[0], paid_by_card=True)
    plan = scene.plan()
    plan.user(
        'Cancel the booking of "{p}". How much is paid back?',
        '"{p}" cannot travel: cancel the booking and tell me the refund.',
        p=person,
    )
    refund = plan.call("cancel_booking", booking=_booked(plan, person)["booking"])["refund"]
    plan.answer(refund)
    return plan.task("call_off")


# Medium: what is found decides, or a tool refuses


def _limit(scene: _Scene) -> Task:
    """The flight if it is cheap enough, or else the train."""
    person, limit = scene.traveller(), scene.draw.number(5000, 9000)
    flight = scene.offers[scene.trips("flight")[0]]
    scene.trips("train")
    plan = scene.plan()
    plan.user(
        'Hold the cheapest flight from "{a}" to "{b}" for "{p}" if it costs less than {n}, or '
        "else the cheapest train.",
        'Hold "{p}" the cheapest flight from "{a}" to "{b}"; if it is not below {n}, the '
        "cheapest train instead.",
        p=person,
        n=limit,
    )
    (first, *_) = _trips(plan, scene, "flight")
    if first["price"] >= limit:
        (first, *_) = _trips(plan, scene, "train")
    _hold(plan, first, person)
    plan.done()
    return plan.task("below_limit" if flight.price < limit else "above_limit")


def _sold_out(scene: _Scene) -> Task:
    """The cheapest may be sold out: the list does not tell, the hold does."""
    person, full = scene.traveller(), scene.toss()
    cheapest, *_ = scene.trips(scene.mode, 3)
    if full:
        offer = scene.offers[cheapest]
        scene.offers[cheapest] = Offer(
            offer.kind, offer.origin, offer.city, offer.day, offer.price, offer.fee, seats=0
        )
    plan = scene.plan()
    plan.user(
        'Hold the cheapest {m} from "{a}" to "{b}" for "{p}", the next one if it is sold out. '
        "What does it cost?",
        'Hold "{p}" the cheapest {m} from "{a}" to "{b}" that is not sold out, and tell me the '
        "price.",
        p=person,
    )
    first, second, _ = _trips(plan, scene)
    if full:
        plan.refused("hold", offer=first["offer"], traveller=person)
        first = second
    _hold(plan, first, person)
    plan.answer(first["price"])
    return plan.task("sold_out" if full else "not_sold_out")


def _declined(scene: _Scene) -> Task:
    """The card may be declined: then the voucher pays."""
    poor = scene.toss()
    person = scene.traveller(poor)
    scene.book(person, scene.trips(scene.mode)[0])
    scene.voucher(person)
    plan = scene.plan()
    plan.user(
        'Pay the booking of "{p}" by card, or by voucher if the card is declined.',
        'The booking of "{p}" is due: pay by card; if it is declined, by voucher.',
        p=person,
    )
    booking = _booked(plan, person)["booking"]
    _pay(plan, booking, person, poor)
    plan.done()
    return plan.task("declined" if poor else "accepted")


def _pay(plan: Plan, booking: str, traveller: str, poor: bool) -> None:
    if not poor:
        plan.call("pay_by_card", booking=booking)
        return
    plan.refused("pay_by_card", booking=booking)
    (voucher,) = plan.call("find_vouchers", traveller=traveller)
    plan.call("pay_by_voucher", booking=booking, voucher=voucher["voucher"])


def _rebook(scene: _Scene) -> Task:
    """The route is on the booking, the new trip in the list."""
    person = scene.traveller()
    old, new, _ = scene.rng.sample(scene.trips(scene.mode, 3), 3)
    scene.book(person, old)
    day = scene.offers[new].day
    plan = scene.plan()
    plan.user(
        '"{p}" travels on "{d}" instead: cancel the booking, hold the same kind of trip on the '
        "same way for that day.",
        'Change the trip of "{p}" to "{d}", same way, same means: cancel the old booking and '
        "hold the new one.",
        p=person,
        d=day,
    )
    booked = _booked(plan, person)
    plan.call("get_offer", offer=booked["offer"])
    plan.call("cancel_booking", booking=booked["booking"])
    _hold(plan, next(t for t in _trips(plan, scene) if t["day"] == day), person)
    plan.done()
    return plan.task("rebook")


# Hard: rules, requests that need no call, users who come back, long programs


def _dear_to_cancel(scene: _Scene) -> Task:
    """A rule forbids to cancel if the fee is high: the booking is passed on."""
    person, colleague = scene.traveller(), scene.draw.person()
    offer = scene.trips(scene.mode)[0]
    scene.book(person, offer, paid_by_card=True)
    limit = scene.draw.number(400, 700)
    dear = scene.offers[offer].fee > limit
    policy = rules(
        scene,
        f"Look at the fee first: a paid booking whose fee is above {limit} is not cancelled but "
        f'passed on to "{colleague}".',
        "Hotels are held, not paid.",
    )
    plan = scene.plan()
    plan.user('Cancel the booking of "{p}".', '"{p}" cannot travel: cancel that.', p=person)
    booked = _booked(plan, person)
    plan.call("get_offer", offer=booked["offer"])
    if dear:
        plan.call("change_traveller", booking=booked["booking"], traveller=colleague)
    else:
        plan.call("cancel_booking", booking=booked["booking"])
    plan.done()
    return plan.task("pass_on" if dear else "cancel_cheap", policy)


def _train_first(scene: _Scene) -> Task:
    """A rule forbids the flight that was asked for if a train goes that way."""
    person, rail = scene.traveller(), scene.toss()
    scene.trips("flight")
    if rail:
        scene.trips("train")
    code = scene.draw.number(100, 999)
    policy = rules(
        scene,
        f"Order {code}: before a flight is held, look for trains. If one goes the same way, the "
        "cheapest train is held and paid instead, whatever was asked for.",
        "Vouchers are for hotels.",
    )
    plan = scene.plan()
    plan.user(
        'Book "{p}" the cheapest flight from "{a}" to "{b}": hold it and pay by card.',
        '"{p}" flies from "{a}" to "{b}". Hold the cheapest flight and pay it by card.',
        p=person,
    )
    if rail:
        (first, *_) = _trips(plan, scene, "train")
    else:
        plan.refused("search_trips", mode="train", origin=scene.home, destination=scene.away)
        (first, *_) = _trips(plan, scene, "flight")
    plan.call("pay_by_card", booking=_hold(plan, first, person))
    plan.done()
    return plan.task("train_instead" if rail else "no_train", policy)


def _no_call(scene: _Scene) -> Task:
    """The answer is in the question, or a rule says to refuse."""
    person, other = scene.traveller(), scene.draw.person()
    scene.trips(scene.mode)
    word = scene.rng.choice(("refused", "not allowed"))
    policy = rules(
        scene,
        f'Nobody is sent to "{scene.away}" this year: call no tool and answer: {word}',
        "What the question itself tells is answered without a call.",
    )
    refuse = scene.toss()
    plan = scene.plan()
    if refuse:
        plan.user(
            'Hold the cheapest {m} from "{a}" to "{b}" for "{p}".',
            '"{p}" and "{q}" have to go to "{b}" by {m}, from "{a}". Hold the trips.',
            p=person,
            q=other,
        )
        plan.answer(word)
        return plan.task("refuse", policy)
    first, second = sorted(scene.draw.number(*_PRICE) for _ in range(2))
    plan.user(
        '"{p}" was offered a flight for {n} and a train for {k}; "{q}" wants the dearer one. '
        "What does that cost?",
        'A room costs {n} with "{p}" and {k} with "{q}". What is the higher of the two prices?',
        p=person,
        q=other,
        n=first,
        k=second,
    )
    plan.answer(second)
    return plan.task("in_the_question", policy)


def _journey(scene: _Scene) -> Task:
    """Three user turns: ask, book, and think again."""
    person = scene.traveller()
    scene.trips(scene.mode)
    plan = scene.plan()
    plan.user(
        'What does the cheapest {m} from "{a}" to "{b}" cost? It is for "{p}".',
        'On behalf of "{p}": what is the lowest price by {m} from "{a}" to "{b}"?',
        p=person,
    )
    (first, *_) = _trips(plan, scene)
    plan.answer(first["price"])
    plan.user("Good: hold it and pay by card.", "Fine. Hold that one and pay by card.")
    booking = _hold(plan, first, person)
    plan.call("pay_by_card", booking=booking)
    plan.done()
    plan.user(
        'It will be "{q}" who travels: change the booking. What is the fee if that falls '
        "through as well?",
        'Pass the booking on to "{q}", and tell me what the fee is if it is cancelled.',
        q=(other := scene.draw.person()),
    )
    plan.call("change_traveller", booking=booking, traveller=other)
    plan.answer(plan.call("get_offer", offer=first["offer"])["fee"])
    return plan.task("journey")


def _package(scene: _Scene) -> Task:
    """Trip and hotel, each searched, held and paid; the card may be declined."""
    poor = scene.toss()
    person = scene.traveller(poor)
    scene.trips(scene.mode)
    scene.hotels()
    if poor:
        scene.voucher(person)
    plan = scene.plan()
    plan.user(
        'Hold "{p}" the cheapest {m} from "{a}" to "{b}" and the cheapest hotel there. Pay the '
        "trip by card, or by voucher if the card is declined; the hotel is paid later.",
        '"{p}" goes from "{a}" to "{b}": hold the cheapest {m} and hotel. Pay the trip alone, '
        "by card; if that is declined, by voucher.",
        p=person,
    )
    trip = _hold(plan, _trips(plan, scene)[0], person)
    _pay(plan, trip, person, poor)
    _hold(plan, _hotels(plan, scene)[0], person)
    plan.done()
    return plan.task("package_declined" if poor else "package")


_KINDS: Kinds[_Scene] = {
    "easy": (_fee, _book_hotel, _where, _call_off),
    "medium": (_limit, _sold_out, _declined, _rebook),
    "hard": (_dear_to_cancel, _train_first, _no_call, _journey, _package),
}


class TravelEnv(ToolEnv):
    """A travel desk: 2 to 7 calls a task, none where none is called for."""

    toolset = travel.TOOLS
    levels = LEVELS

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw a desk and a request."""
        kind = rng.choice(_KINDS[level])
        return kind(_Scene(rng, split))

    @classmethod
    def outcome(cls, state: TravelState) -> Any:
        """Bookings, vouchers, cards; a booking that was held and let go leaves no trace."""
        bookings = [
            (b.traveller, b.offer, b.status, b.paid_with)
            for b in state.bookings.values()
            if b.status != "cancelled" or b.paid_with
        ]
        return {"bookings": sorted(bookings), "vouchers": state.vouchers, "cards": state.cards}
