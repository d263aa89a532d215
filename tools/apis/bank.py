"""A bank: accounts found by owner, transfers between them, freezing."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

from immutables import Map

from journeyman.tools.apis.lookup import look_up
from journeyman.tools.errors import ToolError
from journeyman.tools.tool import tool


@dataclass(frozen=True, slots=True)
class Account:
    """One account."""

    owner: str
    balance: int
    """Whole currency units."""
    status: str = "active"
    """"active" or "frozen"."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One executed transfer."""

    source: str
    target: str
    amount: int


@dataclass(frozen=True, slots=True)
class BankState:
    """The whole bank. Account ids and transfer ids are keys."""

    accounts: Map[str, Account]
    transfers: Map[str, Transfer] = Map()  # noqa: RUF009 - Map is immutable
    salt: int = 0
    """Makes transfer ids differ between tasks."""


def _account(state: BankState, account: str) -> Account:
    return look_up(state.accounts, "account", account)


@tool
def find_account(state: BankState, owner: str) -> tuple[BankState, dict[str, Any]]:
    """Find the account of a person.

    Args:
        owner: Full name of the account's owner.
    """
    # The smallest id: the order of a Map depends on the process's hash seed.
    account = min((key for key, r in state.accounts.items() if r.owner == owner), default=None)
    if account is None:
        raise ToolError(f"no account of {owner[:40]}")
    return state, {"account": account}


@tool
def get_account(state: BankState, account: str) -> tuple[BankState, dict[str, Any]]:
    """Read an account.

    Args:
        account: Account id.
    """
    record = _account(state, account)
    return state, {"owner": record.owner, "balance": record.balance, "status": record.status}


@tool
def transfer(
    state: BankState, source: str, target: str, amount: int
) -> tuple[BankState, dict[str, Any]]:
    """Move money between two accounts. If one of them is frozen, unfreeze it first.

    Args:
        source: Account id that pays.
        target: Account id that receives.
        amount: Whole currency units, above zero.
    """
    payer, payee = _account(state, source), _account(state, target)
    if amount <= 0:
        raise ToolError("amount must be above zero")
    if source == target:
        raise ToolError("source and target are the same account")
    for account, record in ((source, payer), (target, payee)):
        if record.status == "frozen":
            raise ToolError(f"account {account} is frozen")
    if payer.balance < amount:
        raise ToolError(f"account {source} lacks the funds")
    accounts = state.accounts.update(
        {
            source: replace(payer, balance=payer.balance - amount),
            target: replace(payee, balance=payee.balance + amount),
        }
    )
    number = zlib.crc32(f"{state.salt}/{len(state.transfers)}".encode()) % 9000
    while (reference := f"T{number % 9000 + 1000}") in state.transfers:
        number += 1
    transfers = state.transfers.set(reference, Transfer(source, target, amount))
    return replace(state, accounts=accounts, transfers=transfers), {"transfer": reference}


def _set_status(state: BankState, account: str, status: str) -> tuple[BankState, dict[str, Any]]:
    record = _account(state, account)
    if record.status == status:
        raise ToolError(f"account {account} is already {status}")
    accounts = state.accounts.set(account, replace(record, status=status))
    return replace(state, accounts=accounts), {"account": account, "status": status}


@tool
def freeze(state: BankState, account: str) -> tuple[BankState, dict[str, Any]]:
    """Freeze an account: no transfers until it is unfrozen.

    Args:
        account: Account id.
    """
    return _set_status(state, account, "frozen")


@tool
def unfreeze(state: BankState, account: str) -> tuple[BankState, dict[str, Any]]:
    """Make a frozen account active again.

    Args:
        account: Account id.
    """
    return _set_status(state, account, "active")


TOOLS = (find_account, get_account, transfer, freeze, unfreeze)
