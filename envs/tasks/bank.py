"""`journeyman/Bank-v0`: balances, transfers (a payee may be frozen, a payer poor), freezing."""

from __future__ import annotations

import random
from collections.abc import Callable

from immutables import Map

from journeyman.envs.core import Task, ToolEnv
from journeyman.envs.tasks.entities import Entities
from journeyman.envs.types import Level, Split
from journeyman.tools import ToolCall, execute
from journeyman.tools.apis import bank
from journeyman.tools.apis.bank import Account, BankState

_TOOLS = {t.name: t for t in bank.TOOLS}


class _Scene:
    """One bank under construction, with the two ids and names a task speaks of."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng = rng
        self.draw = Entities(rng, split)
        self.accounts: dict[str, Account] = {}
        for _ in range(rng.randint(2, 5)):
            self.open(self.draw.person())

    def open(self, owner: str, balance: int | None = None, status: str | None = None) -> str:
        account = self.draw.identifier("A")
        balance = self.draw.number(1000, 9999) if balance is None else balance
        status = status or self.rng.choice(("active", "active", "frozen"))
        self.accounts[account] = Account(owner, balance, status)
        return account

    def state(self) -> BankState:
        items = list(self.accounts.items())
        self.rng.shuffle(items)
        return BankState(Map(items), salt=self.rng.randrange(2**31))


def _find(owner: str) -> ToolCall:
    return ToolCall("find_account", {"owner": owner})


def _on(name: str, account: str) -> ToolCall:
    return ToolCall(name, {"account": account})


def _balance(scene: _Scene) -> Task:
    owner = scene.draw.person()
    account = scene.open(owner)
    prompt = scene.rng.choice(
        (
            'What is the balance of "{}"?',
            'How much money does "{}" have?',
            'Tell me the balance of "{}".',
        )
    ).format(owner)
    gold = (_find(owner), _on("get_account", account))
    answer = str(scene.accounts[account].balance)
    return Task("", "balance", prompt, scene.state(), gold, answer)


def _transfer(scene: _Scene) -> Task:
    """A plain transfer; one time in two the receiving account turns out to be frozen."""
    payer, payee = scene.draw.person(), scene.draw.person()
    frozen = scene.rng.random() < 0.5
    source = scene.open(payer, status="active")
    target = scene.open(payee, status="frozen" if frozen else "active")
    amount = scene.draw.number(100, 999)
    prompt = scene.rng.choice(
        (
            'Send {n} from "{a}" to "{b}".',
            'Move {n} from "{a}" to "{b}".',
            'Let "{a}" pay {n} to "{b}".',
        )
    ).format(n=amount, a=payer, b=payee)
    pay = ToolCall("transfer", {"source": source, "target": target, "amount": amount})
    recovery = (pay, _on("unfreeze", target)) if frozen else ()
    gold = (_find(payer), _find(payee), *recovery, pay)
    state = scene.state()
    kind = "transfer_frozen" if frozen else "transfer"
    return Task("", kind, prompt, state, gold, _transfer_id(state, gold))


def _second_payer(scene: _Scene) -> Task:
    """Pay from a second account if the first lacks the funds."""
    first, second, payee = (scene.draw.person() for _ in range(3))
    amount = scene.draw.number(100, 999)
    poor = scene.rng.random() < 0.5
    source = scene.open(first, scene.draw.number(10, 99) if poor else None, "active")
    backup = scene.open(second, status="active")
    target = scene.open(payee, status="active")
    prompt = scene.rng.choice(
        (
            'Send {n} to "{c}" from "{a}", or from "{b}" if the funds are short.',
            'Pay {n} to "{c}" from "{a}", or from "{b}" if the money is short.',
        )
    ).format(n=amount, a=first, b=second, c=payee)
    pay = ToolCall("transfer", {"source": source, "target": target, "amount": amount})
    gold: tuple[ToolCall, ...] = (_find(payee), _find(first), pay)
    if poor:
        gold += (
            _find(second),
            ToolCall("transfer", {"source": backup, "target": target, "amount": amount}),
        )
    state = scene.state()
    kind = "second_payer_used" if poor else "second_payer"
    return Task("", kind, prompt, state, gold, _transfer_id(state, gold))


def _toggle(scene: _Scene) -> Task:
    """Freeze or unfreeze, by what the account turns out to be."""
    owner = scene.draw.person()
    status = scene.rng.choice(("active", "frozen"))
    account = scene.open(owner, status=status)
    prompt = scene.rng.choice(
        (
            'If the account of "{}" is active, freeze it; if it is frozen, unfreeze it.',
            'Unfreeze the account of "{}" if it is frozen, or else freeze it.',
        )
    ).format(owner)
    act, answer = ("freeze", "frozen") if status == "active" else ("unfreeze", "active")
    gold = (_find(owner), _on("get_account", account), _on(act, account))
    return Task("", "toggle", prompt, scene.state(), gold, answer)


def _transfer_id(state: BankState, gold: tuple[ToolCall, ...]) -> str:
    """Run the gold calls for the one id that only the bank knows."""
    final = state
    for call in gold:
        final, _ = execute(call, _TOOLS, final)
    (reference,) = final.transfers
    return reference


_KINDS: tuple[Callable[[_Scene], Task], ...] = (_balance, _transfer, _second_payer, _toggle)


class BankEnv(ToolEnv):
    """A bank desk: 2 to 5 calls a task."""

    toolset = bank.TOOLS

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw a bank and a request."""
        kind = rng.choice(_KINDS)
        return kind(_Scene(rng, split))
