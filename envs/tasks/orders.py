"""`journeyman/Orders-v0`: find an order among several, then read, cancel or redirect it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from immutables import Map

from journeyman.envs.core import Task, ToolEnv
from journeyman.envs.tasks.entities import Entities
from journeyman.envs.tasks.script import Script
from journeyman.envs.types import LEVELS, Level, Split
from journeyman.tools import ToolCall
from journeyman.tools.apis import orders
from journeyman.tools.apis.orders import Order, OrdersState

_LIMITS = (300, 400, 500, 600, 700)


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


# Medium: orders to compare, refusals to get around, rules that forbid the obvious call


def _start(scene: _Scene) -> Script:
    return Script(scene.state(), orders.TOOLS)


def _key_of(script: Script, order: Order) -> str:
    said = script.call("find_order", customer=order.customer, item=order.item)
    return str(said["order"])


def _end(script: Script, key: str) -> str:
    """Cancel; if the desk refuses because the order is shipped, refund."""
    said = script.call("cancel_order", order=key)
    return str((said if "status" in said else script.call("refund_order", order=key))["status"])


def _dear(scene: _Scene) -> Task:
    """What costs much is not for the student to call off."""
    _, order = scene.add(scene.draw.person())
    limit = scene.rng.choice(_LIMITS)
    script = _start(scene)
    script.user(
        scene.rng.choice(
            ('Cancel the "{i}" of "{c}".', 'Please call off the "{i}" that "{c}" ordered.')
        ).format(i=order.item, c=order.customer)
    )
    key = _key_of(script, order)
    dear = int(script.call("get_order", order=key)["price"]) > limit
    script.answer("manager" if dear else _end(script, key))
    policy = f"Never cancel or refund an order above {limit}: leave it, and answer: manager"
    return script.task("dear_left" if dear else "dear_ended", policy)


def _dearer(scene: _Scene) -> Task:
    """Of two orders the dearer: both must be read, and the desk may refuse."""
    customer = scene.draw.person()
    _, first = scene.add(customer)
    _, second = scene.add(customer)
    script = _start(scene)
    script.user(
        scene.rng.choice(
            (
                'Of the "{i}" and the "{j}" of "{c}", cancel the dearer; refund it if shipped.',
                '"{c}" wants the dearer of "{i}" and "{j}" cancelled, or refunded if shipped.',
            )
        ).format(i=first.item, j=second.item, c=customer)
    )
    keys = [_key_of(script, order) for order in (first, second)]
    records = {key: script.call("get_order", order=key) for key in keys}
    dearer = max(keys, key=lambda key: int(records[key]["price"]))
    act = "refund_order" if records[dearer]["status"] == "shipped" else "cancel_order"
    script.answer(script.call(act, order=dearer)["status"])
    return script.task("dearer")


def _both_off(scene: _Scene) -> Task:
    """Two orders off, the shipped one by another way."""
    customer = scene.draw.person()
    shipped = scene.rng.randrange(2)
    pair = [scene.add(customer, "shipped" if i == shipped else "pending")[1] for i in range(2)]
    script = _start(scene)
    script.user(
        f'Cancel the "{pair[0].item}" and the "{pair[1].item}" of "{customer}"; refund what is '
        "shipped. Which one was shipped?"
    )
    for order in pair:
        _end(script, _key_of(script, order))
    script.answer(pair[shipped].item)
    return script.task("both_off")


def _only_theirs(scene: _Scene) -> Task:
    """Who asks decides: for a stranger there is nothing to look up."""
    _, order = scene.add(scene.draw.person())
    theirs = scene.rng.random() < 0.4
    asker = order.customer if theirs else scene.draw.person()
    script = _start(scene)
    script.user(
        scene.rng.choice(
            (
                'This is "{a}". Cancel the "{i}" that "{c}" ordered.',
                '"{a}" asks to cancel the "{i}" of "{c}".',
            )
        ).format(a=asker, i=order.item, c=order.customer)
    )
    script.answer(_end(script, _key_of(script, order)) if theirs else "refused")
    return script.task("only_theirs" if theirs else "only_theirs_refused", _ONLY_THEIRS)


_ONLY_THEIRS = "An order is changed only for who made it; to anyone else answer: refused"


def _until_shipped(scene: _Scene) -> Task:
    """The obvious way around a refusal is forbidden."""
    _, order = scene.add(scene.draw.person())
    city = scene.draw.city()
    script = _start(scene)
    script.user(
        scene.rng.choice(
            ('Send the "{i}" of "{c}" to "{t}".', 'The "{i}" of "{c}" should go to "{t}".')
        ).format(i=order.item, c=order.customer, t=city)
    )
    said = script.call("set_city", order=_key_of(script, order), city=city)
    script.answer(said.get("city", "shipped"))
    policy = "Never refund: if an order is shipped, leave it, and answer: shipped"
    return script.task("until_shipped" if "city" in said else "until_shipped_left", policy)


# Hard: two or three things to do, the later ones about the earlier


def _send_and_go_on(scene: _Scene) -> Task:
    """An order is looked up, redirected, and called off, or asked about, after all."""
    _, order = scene.add(scene.draw.person(), "pending")
    city, second = scene.draw.city(), scene.draw.city()
    script = _start(scene)
    script.user(f'What does the "{order.item}" of "{order.customer}" cost?')
    key = _key_of(script, order)
    price = script.call("get_order", order=key)["price"]
    script.answer(price)
    script.user(f'Send it to "{city}".')
    script.answer(script.call("set_city", order=key, city=city)["city"])
    last = scene.rng.choice(("elsewhere", "off", "price"))
    if last == "elsewhere":
        script.user(f'No, send it to "{second}" after all.')
        script.answer(script.call("set_city", order=key, city=second)["city"])
    elif last == "off":
        script.user("I have changed my mind: cancel it.")
        script.answer(script.call("cancel_order", order=key)["status"])
    else:
        script.user("What did you say it costs?")
        script.answer(price)
    return script.task(f"send_then_{last}")


def _stranger_after_all(scene: _Scene) -> Task:
    """What is somebody else's, then what is the asker's own."""
    _, own = scene.add(scene.draw.person())
    _, strange = scene.add(scene.draw.person())
    script = _start(scene)
    script.user(f'This is "{own.customer}". Cancel the "{strange.item}" of "{strange.customer}".')
    script.answer("refused")
    script.user(f'Then cancel my "{own.item}", or refund it if it is shipped.')
    script.answer(_end(script, _key_of(script, own)))
    return script.task("stranger_after_all", _ONLY_THEIRS)


def _compare(scene: _Scene) -> Task:
    """Which costs more, then one act on the one and another on the other."""
    customer, city = scene.draw.person(), scene.draw.city()
    pair = [scene.add(customer, "pending")[1] for _ in range(2)]
    script = _start(scene)
    script.user(f'Which costs "{customer}" more, the "{pair[0].item}" or the "{pair[1].item}"?')
    keys = {order.item: _key_of(script, order) for order in pair}
    prices = {item: script.call("get_order", order=key)["price"] for item, key in keys.items()}
    dear, cheap = sorted(prices, key=prices.__getitem__, reverse=True)
    script.answer(dear)
    script.user("Cancel that one.")
    script.answer(script.call("cancel_order", order=keys[dear])["status"])
    script.user(f'And send the other to "{city}".')
    script.answer(script.call("set_city", order=keys[cheap], city=city)["city"])
    return script.task("compare")


_KINDS: Mapping[Level, tuple[Callable[[_Scene], Task], ...]] = {
    "easy": (_read, _call_off, _cancel, _cancel_two, _redirect),
    "medium": (_dear, _dearer, _both_off, _only_theirs, _until_shipped),
    "hard": (_send_and_go_on, _stranger_after_all, _compare),
}


class OrdersEnv(ToolEnv):
    """An order desk: 2 to 4 calls a task; above easy, rules, 5 calls a turn, several turns."""

    toolset = orders.TOOLS
    levels = LEVELS

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw an order book and a request."""
        kind = rng.choice(_KINDS[level])
        return kind(_Scene(rng, split))
