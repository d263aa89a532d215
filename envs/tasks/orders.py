"""`journeyman/Orders-v0`: find an order among several, then read, cancel or redirect it."""

from __future__ import annotations

import random
from collections.abc import Callable

from immutables import Map

from journeyman.envs.core import Task, ToolEnv
from journeyman.envs.tasks.entities import Entities
from journeyman.envs.types import Level, Split
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

    def state(self) -> OrdersState:
        items = list(self.orders.items())
        self.rng.shuffle(items)
        return OrdersState(Map(items))


def _find(order: Order) -> ToolCall:
    return ToolCall("find_order", {"customer": order.customer, "item": order.item})


def _on(name: str, key: str) -> ToolCall:
    return ToolCall(name, {"order": key})


def _read(scene: _Scene) -> Task:
    key, order = scene.add(scene.draw.person())
    what, answer = scene.rng.choice((("price", str(order.price)), ("status", order.status)))
    prompt = scene.rng.choice(
        (
            'What is the {w} of the "{i}" that "{c}" ordered?',
            'Tell me the {w} of the "{i}" of "{c}".',
        )
    ).format(w=what, i=order.item, c=order.customer)
    return Task("", what, prompt, scene.state(), (_find(order), _on("get_order", key)), answer)


def _call_off(scene: _Scene) -> Task:
    """Cancel if pending, refund if shipped: the record tells."""
    key, order = scene.add(scene.draw.person())
    prompt = scene.rng.choice(
        (
            'Look at the "{i}" of "{c}": cancel it if it is pending, refund it if it is shipped.',
            'If the "{i}" of "{c}" is shipped, refund it; if it is pending, cancel it.',
        )
    ).format(i=order.item, c=order.customer)
    pending = order.status == "pending"
    act, answer = ("cancel_order", "cancelled") if pending else ("refund_order", "refunded")
    gold = (_find(order), _on("get_order", key), _on(act, key))
    return Task("", "call_off", prompt, scene.state(), gold, answer)


def _cancel(scene: _Scene) -> Task:
    """Cancel; if the desk refuses because the order is shipped, refund."""
    key, order = scene.add(scene.draw.person())
    prompt = scene.rng.choice(
        ('Cancel the "{i}" of "{c}".', 'Please call off the "{i}" that "{c}" ordered.')
    ).format(i=order.item, c=order.customer)
    gold: tuple[ToolCall, ...] = (_find(order), _on("cancel_order", key))
    if order.status == "pending":
        return Task("", "cancel", prompt, scene.state(), gold, "cancelled")
    gold = (*gold, _on("refund_order", key))
    return Task("", "cancel_shipped", prompt, scene.state(), gold, "refunded")


def _cancel_two(scene: _Scene) -> Task:
    customer = scene.draw.person()
    one, first = scene.add(customer, "pending")
    other, second = scene.add(customer, "pending")
    prompt = scene.rng.choice(
        (
            'Cancel the "{i}" and the "{j}" of "{c}".',
            'Cancel both the "{i}" and the "{j}" of "{c}".',
        )
    ).format(i=first.item, j=second.item, c=customer)
    gold = (
        _find(first),
        _on("cancel_order", one),
        _find(second),
        _on("cancel_order", other),
    )
    return Task("", "cancel_two", prompt, scene.state(), gold, "cancelled")


def _redirect(scene: _Scene) -> Task:
    """Send elsewhere; if the desk refuses because the order is shipped, refund."""
    key, order = scene.add(scene.draw.person())
    city = scene.draw.city()
    prompt = scene.rng.choice(
        (
            'Send the "{i}" of "{c}" to "{t}", or refund it if it is shipped.',
            'The "{i}" of "{c}" should go to "{t}"; refund it if it is shipped.',
        )
    ).format(i=order.item, c=order.customer, t=city)
    gold: tuple[ToolCall, ...] = (
        _find(order),
        ToolCall("set_city", {"order": key, "city": city}),
    )
    if order.status == "pending":
        return Task("", "redirect", prompt, scene.state(), gold, city)
    gold = (*gold, _on("refund_order", key))
    return Task("", "redirect_shipped", prompt, scene.state(), gold, "refunded")


_KINDS: tuple[Callable[[_Scene], Task], ...] = (
    _read,
    _call_off,
    _cancel,
    _cancel_two,
    _redirect,
)


class OrdersEnv(ToolEnv):
    """An order desk: 2 to 4 calls a task."""

    toolset = orders.TOOLS

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw an order book and a request."""
        kind = rng.choice(_KINDS)
        return kind(_Scene(rng, split))
