"""An order desk: a customer's orders, their contents, cancelling, refunding, redirecting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from immutables import Map

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
    try:
        return state.orders[order]
    except KeyError:
        raise ToolError(f"no order {order[:40]}") from None


def _put(state: OrdersState, order: str, record: Order) -> OrdersState:
    return replace(state, orders=state.orders.set(order, record))


@tool
def list_orders(state: OrdersState, customer: str) -> tuple[OrdersState, dict[str, Any]]:
    """List the ids of a customer's orders.

    Args:
        customer: Full name of the customer.
    """
    orders = sorted(key for key, record in state.orders.items() if record.customer == customer)
    if not orders:
        raise ToolError(f"no customer {customer[:40]}")
    return state, {"orders": orders}


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
    """Cancel an order that has not been shipped.

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


TOOLS = (list_orders, get_order, cancel_order, refund_order, set_city)
