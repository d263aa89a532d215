"""An order desk: finding a customer's order, reading, cancelling, refunding, redirecting it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from immutables import Map

from journeyman.tools.apis.lookup import look_up
from journeyman.tools.errors import ToolError
from journeyman.tools.tool import tool


@dataclass(frozen=True, slots=True)
class Order:
    """One order."""

    customer: str
    item: str
    price: int
    """Whole currency units."""
    city: str
    status: str = "pending"
    """"pending", "shipped", "cancelled" or "refunded"."""


@dataclass(frozen=True, slots=True)
class OrdersState:
    """All orders by id."""

    orders: Map[str, Order]


def _order(state: OrdersState, order: str) -> Order:
    return look_up(state.orders, "order", order)


def _put(state: OrdersState, order: str, record: Order) -> OrdersState:
    return replace(state, orders=state.orders.set(order, record))


@tool
def find_order(state: OrdersState, customer: str, item: str) -> tuple[OrdersState, dict[str, Any]]:
    """Find a customer's order of an item.

    Args:
        customer: Full name of the customer.
        item: What was ordered.
    """
    # Sorted: which of two equal orders is found must not depend on the hash seed.
    for order, record in sorted(state.orders.items(), key=lambda entry: entry[0]):
        if record.customer == customer and record.item == item:
            return state, {"order": order}
    raise ToolError(f"no order of {customer[:40]} for {item[:40]}")


@tool
def get_order(state: OrdersState, order: str) -> tuple[OrdersState, dict[str, Any]]:
    """Read an order.

    Args:
        order: Order id.
    """
    record = _order(state, order)
    return state, {"item": record.item, "price": record.price, "status": record.status}


@tool
def cancel_order(state: OrdersState, order: str) -> tuple[OrdersState, dict[str, Any]]:
    """Cancel an order that has not been shipped. One that has been is refunded instead.

    Args:
        order: Order id.
    """
    record = _order(state, order)
    if record.status == "shipped":
        raise ToolError(f"order {order} is shipped, refund it")
    if record.status != "pending":
        raise ToolError(f"order {order} is already {record.status}")
    return _put(state, order, replace(record, status="cancelled")), {"status": "cancelled"}


@tool
def refund_order(state: OrdersState, order: str) -> tuple[OrdersState, dict[str, Any]]:
    """Refund an order that has been shipped.

    Args:
        order: Order id.
    """
    record = _order(state, order)
    if record.status == "pending":
        raise ToolError(f"order {order} is pending, cancel it")
    if record.status != "shipped":
        raise ToolError(f"order {order} is already {record.status}")
    return _put(state, order, replace(record, status="refunded")), {"status": "refunded"}


@tool
def set_city(state: OrdersState, order: str, city: str) -> tuple[OrdersState, dict[str, Any]]:
    """Send a pending order to another city.

    Args:
        order: Order id.
        city: The new destination.
    """
    record = _order(state, order)
    if record.status != "pending":
        raise ToolError(f"order {order} is already {record.status}")
    return _put(state, order, replace(record, city=city)), {"city": city}


TOOLS = (find_order, get_order, cancel_order, refund_order, set_city)
