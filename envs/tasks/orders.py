"""`journeyman/Orders-v0`: find an order among several, then read, cancel or redirect it."""

from __future__ import annotations

import random
from collections.abc import Callable

from immutables import Map

from journeyman.envs.core import Task, ToolEnv
from journeyman.envs.tasks.entities import Entities
from journeyman.envs.types import Split
from journeyman.tools import ToolCall
from journeyman.tools.apis import orders
from journeyman.tools.apis.orders import Order, OrdersState


class _Scene:
    """An order desk under construction."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng = rng
        self.draw = Entities(rng, split)
        self.orders: dict[str, Order] = {}
        for _ in range(rng.randint(1, 3)):
            self.add(self.draw.person())

    def add(self, customer: str, status: str | None = None) -> tuple[str, Order]:
        status = status or self.rng.choice(("pending", "shipped"))
        price = self.draw.number(100, 999)
        order = Order(customer, self.draw.item(), price, self.draw.city(), status)
        key = self.draw.identifier("O")
        self.orders[key] = order
        return key, order

    def several(self, customer: str, status: str | None = None) -> list[tuple[str, Order]]:
        """One to three orders of a customer, in the order `list_orders` shows them."""
        return sorted(self.add(customer, status) for _ in range(self.rng.randint(1, 3)))

    def state(self) -> OrdersState:
        items = list(self.orders.items())
        self.rng.shuffle(items)
        return OrdersState(Map(items))


def _search(customer: str, found: list[tuple[str, Order]], wanted: str) -> tuple[ToolCall, ...]:
    """List the orders, then read one after the other until the wanted one."""
    keys = [key for key, _ in found]
    read = keys[: keys.index(wanted) + 1]
    return (
        ToolCall("list_orders", {"customer": customer}),
        *(ToolCall("get_order", {"order": key}) for key in read),
    )


def _price(scene: _Scene) -> Task:
    customer = scene.draw.person()
    found = scene.several(customer)
    key, order = scene.rng.choice(found)
    prompt = scene.rng.choice(
        (
            'What did "{c}" pay for the "{i}"?',
            'What is the price of the "{i}" that "{c}" ordered?',
            'Tell me the price of the "{i}" of "{c}".',
        )
    ).format(c=customer, i=order.item)
    gold = _search(customer, found, key)
    return Task("", "price", prompt, scene.state(), gold, str(order.price))


def _status(scene: _Scene) -> Task:
    customer = scene.draw.person()
    found = scene.several(customer)
    key, order = scene.rng.choice(found)
    prompt = scene.rng.choice(
        (
            'What is the status of the "{i}" that "{c}" ordered?',
            'Tell me the status of the "{i}" of "{c}".',
        )
    ).format(c=customer, i=order.item)
    return Task("", "status", prompt, scene.state(), _search(customer, found, key), order.status)


def _call_off(scene: _Scene) -> Task:
    """Cancel if pending, refund if shipped: the item's record tells."""
    customer = scene.draw.person()
    found = scene.several(customer)
    key, order = scene.rng.choice(found)
    prompt = scene.rng.choice(
        (
            'Cancel the "{i}" of "{c}" if it is pending, or refund it if it is shipped.',
            '"{c}" gives the "{i}" back: refund it if it is shipped, cancel it if it is pending.',
        )
    ).format(c=customer, i=order.item)
    pending = order.status == "pending"
    act = ToolCall("cancel_order" if pending else "refund_order", {"order": key})
    gold = (*_search(customer, found, key), act)
    answer = "cancelled" if pending else "refunded"
    return Task("", "call_off", prompt, scene.state(), gold, answer)


def _cancel_only_order(scene: _Scene) -> Task:
    """Cancel the only order; if the desk refuses because it is shipped, refund it."""
    customer = scene.draw.person()
    key, order = scene.add(customer)
    prompt = scene.rng.choice(
        ('Cancel the only order of "{}".', 'Please call off the only order of "{}".')
    ).format(customer)
    listing = ToolCall("list_orders", {"customer": customer})
    cancel = ToolCall("cancel_order", {"order": key})
    if order.status == "pending":
        return Task("", "cancel", prompt, scene.state(), (listing, cancel), "cancelled")
    gold = (listing, cancel, ToolCall("refund_order", {"order": key}))
    return Task("", "cancel_shipped", prompt, scene.state(), gold, "refunded")


def _redirect(scene: _Scene) -> Task:
    customer = scene.draw.person()
    found = scene.several(customer, status="pending")
    key, order = scene.rng.choice(found)
    city = scene.draw.city()
    prompt = scene.rng.choice(
        (
            'Send the "{i}" of "{c}" to "{t}".',
            'The "{i}" that "{c}" ordered should go to "{t}".',
        )
    ).format(c=customer, i=order.item, t=city)
    move = ToolCall("set_city", {"order": key, "city": city})
    gold = (*_search(customer, found, key), move)
    return Task("", "redirect", prompt, scene.state(), gold, city)


_KINDS: tuple[Callable[[_Scene], Task], ...] = (
    _price,
    _status,
    _call_off,
    _cancel_only_order,
    _redirect,
)


class OrdersEnv(ToolEnv):
    """An order desk: 2 to 5 calls a task."""

    toolset = orders.TOOLS

    @classmethod
    def generate(cls, rng: random.Random, split: Split) -> Task:
        """Draw an order book and a request."""
        kind = rng.choice(_KINDS)
        return kind(_Scene(rng, split))
