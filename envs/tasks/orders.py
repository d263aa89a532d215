"""`journeyman/Orders-v0`: find an order among several, then read, cancel or redirect it."""

from __future__ import annotations

import random

from journeyman.envs.core import ToolEnv
from journeyman.envs.task import Task
from journeyman.envs.tasks.scene import Kinds, Plan, Scene
from journeyman.envs.types import LEVELS, Level, Split
from journeyman.tools.apis import orders
from journeyman.tools.apis.orders import Order, OrdersState

_LIMITS = (300, 400, 500, 600, 700)
_CANCEL = ('Cancel the "{i}" of "{c}".', 'Please call off the "{i}" that "{c}" ordered.')


class _Scene(Scene):
    """An order desk under construction."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        super().__init__(rng, split)
        self.orders: dict[str, Order] = {}
        for _ in range(rng.randint(1, 3)):
            self.add(self.draw.person())

    def add(self, customer: str, status: str | None = None) -> Order:
        status = status or self.rng.choice(("pending", "shipped"))
        price = self.draw.number(100, 999)
        order = Order(customer, self.draw.item(), price, self.draw.city(), status)
        self.orders[self.draw.identifier("O")] = order
        return order

    def plan(self) -> Plan:
        return Plan(self, orders.TOOLS, OrdersState(self.table(self.orders)))


def _key_of(plan: Plan, order: Order) -> str:
    found = plan.call("find_order", customer=order.customer, item=order.item)
    return str(found["order"])


def _end(plan: Plan, key: str) -> str:
    """Cancel; if the desk refuses because the order is shipped, refund."""
    said = plan.attempt("cancel_order", order=key)
    return str((said if "status" in said else plan.call("refund_order", order=key))["status"])


def _read(scene: _Scene) -> Task:
    order = scene.add(scene.draw.person())
    what = scene.rng.choice(("price", "status"))
    prompt = scene.ask(
        'What is the {w} of the "{i}" that "{c}" ordered?',
        'Tell me the {w} of the "{i}" of "{c}".',
        w=what,
        i=order.item,
        c=order.customer,
    )
    plan = scene.plan()
    plan.user_says(prompt)
    plan.answer(plan.call("get_order", order=_key_of(plan, order))[what])
    return plan.task(what)


def _call_off(scene: _Scene) -> Task:
    """Cancel if pending, refund if shipped: the record tells."""
    order = scene.add(scene.draw.person())
    prompt = scene.ask(
        'Look at the "{i}" of "{c}": cancel it if it is pending, refund it if it is shipped.',
        'If the "{i}" of "{c}" is shipped, refund it; if it is pending, cancel it.',
        i=order.item,
        c=order.customer,
    )
    plan = scene.plan()
    plan.user_says(prompt)
    key = _key_of(plan, order)
    pending = plan.call("get_order", order=key)["status"] == "pending"
    plan.done(plan.call("cancel_order" if pending else "refund_order", order=key)["status"])
    return plan.task("call_off")


def _cancel(scene: _Scene) -> Task:
    order = scene.add(scene.draw.person())
    prompt = scene.ask(*_CANCEL, i=order.item, c=order.customer)
    plan = scene.plan()
    plan.user_says(prompt)
    plan.done(_end(plan, _key_of(plan, order)))
    return plan.task("cancel" if order.status == "pending" else "cancel_shipped")


def _cancel_two(scene: _Scene) -> Task:
    customer = scene.draw.person()
    pair = [scene.add(customer, "pending") for _ in range(2)]
    prompt = scene.ask(
        'Cancel the "{i}" and the "{j}" of "{c}".',
        'Cancel both the "{i}" and the "{j}" of "{c}".',
        i=pair[0].item,
        j=pair[1].item,
        c=customer,
    )
    plan = scene.plan()
    plan.user_says(prompt)
    for order in pair:
        plan.call("cancel_order", order=_key_of(plan, order))
    plan.done("cancelled")
    return plan.task("cancel_two")


def _redirect(scene: _Scene) -> Task:
    """Send elsewhere; if the desk refuses because the order is shipped, refund."""
    order = scene.add(scene.draw.person())
    city = scene.draw.city()
    prompt = scene.ask(
        'Send the "{i}" of "{c}" to "{t}", or refund it if it is shipped.',
        'The "{i}" of "{c}" should go to "{t}"; refund it if it is shipped.',
        i=order.item,
        c=order.customer,
        t=city,
    )
    plan = scene.plan()
    plan.user_says(prompt)
    key = _key_of(plan, order)
    if order.status == "pending":
        plan.done(plan.call("set_city", order=key, city=city)["city"])
        return plan.task("redirect")
    plan.refused("set_city", order=key, city=city)
    plan.done(plan.call("refund_order", order=key)["status"])
    return plan.task("redirect_shipped")


# Medium: orders to compare, refusals to get around, rules that forbid the obvious call


def _dear(scene: _Scene) -> Task:
    """What costs much is not for the student to call off."""
    order = scene.add(scene.draw.person())
    limit = scene.rng.choice(_LIMITS)
    plan = scene.plan()
    plan.user(
        *_CANCEL,
        i=order.item,
        c=order.customer,
    )
    key = _key_of(plan, order)
    price = int(plan.call("get_order", order=key)["price"])
    dear = price > limit
    if dear:
        plan.answer(price)
    else:
        plan.done(_end(plan, key))
    policy = f"Never cancel or refund an order above {limit}: leave it, and answer with its price"
    return plan.task("dear_left" if dear else "dear_ended", policy)


def _dearer(scene: _Scene) -> Task:
    """Of two orders the dearer: both must be read, and the desk may refuse."""
    customer = scene.draw.person()
    first = scene.add(customer)
    second = scene.add(customer)
    plan = scene.plan()
    plan.user(
        'Of the "{i}" and the "{j}" of "{c}", cancel the dearer; refund it if shipped.',
        '"{c}" wants the dearer of "{i}" and "{j}" cancelled, or refunded if shipped.',
        i=first.item,
        j=second.item,
        c=customer,
    )
    keys = [_key_of(plan, order) for order in (first, second)]
    records = {key: plan.call("get_order", order=key) for key in keys}
    dearer = max(keys, key=lambda key: int(records[key]["price"]))
    act = "refund_order" if records[dearer]["status"] == "shipped" else "cancel_order"
    plan.done(plan.call(act, order=dearer)["status"])
    return plan.task("dearer")


def _both_off(scene: _Scene) -> Task:
    """Two orders off, the shipped one by another way."""
    customer = scene.draw.person()
    shipped = scene.rng.randrange(2)
    pair = [scene.add(customer, "shipped" if i == shipped else "pending") for i in range(2)]
    plan = scene.plan()
    plan.user_says(
        f'Cancel the "{pair[0].item}" and the "{pair[1].item}" of "{customer}"; refund what is '
        "shipped. Which one was shipped?"
    )
    for order in pair:
        _end(plan, _key_of(plan, order))
    plan.answer(pair[shipped].item)
    return plan.task("both_off")


def _only_theirs(scene: _Scene) -> Task:
    """Who asks decides: for a stranger there is nothing to look up."""
    order = scene.add(scene.draw.person())
    theirs = scene.rng.random() < 0.4
    asker = order.customer if theirs else scene.draw.person()
    plan = scene.plan()
    plan.user(
        'This is "{a}". Cancel the "{i}" that "{c}" ordered.',
        '"{a}" asks to cancel the "{i}" of "{c}".',
        a=asker,
        i=order.item,
        c=order.customer,
    )
    if theirs:
        plan.done(_end(plan, _key_of(plan, order)))
    else:
        plan.answer("refused")
    return plan.task("only_theirs" if theirs else "only_theirs_refused", _ONLY_THEIRS)


_ONLY_THEIRS = "An order is changed only for who made it; to anyone else answer: refused"


def _until_shipped(scene: _Scene) -> Task:
    """The obvious way around a refusal is forbidden."""
    order = scene.add(scene.draw.person())
    city = scene.draw.city()
    plan = scene.plan()
    plan.user(
        'Send the "{i}" of "{c}" to "{t}".',
        'The "{i}" of "{c}" should go to "{t}".',
        i=order.item,
        c=order.customer,
        t=city,
    )
    key = _key_of(plan, order)
    sent = "city" in plan.attempt("set_city", order=key, city=city)
    if sent:
        plan.done(city)
    else:
        plan.answer(key)
    policy = "Never refund: if an order is shipped, leave it, and answer with its id"
    return plan.task("until_shipped" if sent else "until_shipped_left", policy)


# Hard: two or three things to do, the later ones about the earlier


def _send_and_go_on(scene: _Scene) -> Task:
    """An order is looked up, redirected, and called off, or asked about, after all."""
    order = scene.add(scene.draw.person(), "pending")
    city, second = scene.draw.city(), scene.draw.city()
    plan = scene.plan()
    plan.user_says(f'What does the "{order.item}" of "{order.customer}" cost?')
    key = _key_of(plan, order)
    price = plan.call("get_order", order=key)["price"]
    plan.answer(price)
    plan.user_says(f'Send it to "{city}".')
    plan.done(plan.call("set_city", order=key, city=city)["city"])
    last = scene.rng.choice(("elsewhere", "off", "price"))
    if last == "elsewhere":
        plan.user_says(f'No, send it to "{second}" after all.')
        plan.done(plan.call("set_city", order=key, city=second)["city"])
    elif last == "off":
        plan.user_says("I have changed my mind: cancel it.")
        plan.done(plan.call("cancel_order", order=key)["status"])
    else:
        plan.user_says("What did you say it costs?")
        plan.answer(price)
    return plan.task(f"send_then_{last}")


def _stranger_after_all(scene: _Scene) -> Task:
    """What is somebody else's, then what is the asker's own."""
    own = scene.add(scene.draw.person())
    strange = scene.add(scene.draw.person())
    plan = scene.plan()
    plan.user_says(
        f'This is "{own.customer}". Cancel the "{strange.item}" of "{strange.customer}".'
    )
    plan.answer("refused")
    plan.user_says(f'Then cancel my "{own.item}", or refund it if it is shipped.')
    plan.done(_end(plan, _key_of(plan, own)))
    return plan.task("stranger_after_all", _ONLY_THEIRS)


def _compare(scene: _Scene) -> Task:
    """Which costs more, then one act on the one and another on the other."""
    customer, city = scene.draw.person(), scene.draw.city()
    pair = [scene.add(customer, "pending") for _ in range(2)]
    plan = scene.plan()
    plan.user_says(f'Which costs "{customer}" more, the "{pair[0].item}" or the "{pair[1].item}"?')
    keys = {order.item: _key_of(plan, order) for order in pair}
    prices = {item: plan.call("get_order", order=key)["price"] for item, key in keys.items()}
    dear, cheap = sorted(prices, key=prices.__getitem__, reverse=True)
    plan.answer(dear)
    plan.user_says("Cancel that one.")
    plan.done(plan.call("cancel_order", order=keys[dear])["status"])
    plan.user_says(f'And send the other to "{city}".')
    plan.done(plan.call("set_city", order=keys[cheap], city=city)["city"])
    return plan.task("compare")


_KINDS: Kinds[_Scene] = {
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
