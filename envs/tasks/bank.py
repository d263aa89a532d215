"""`journeyman/Bank-v0`: balances, transfers (a payee may be frozen, a payer poor), freezing."""

from __future__ import annotations

import random

from journeyman.envs.core import ToolEnv
from journeyman.envs.task import Task
from journeyman.envs.tasks.scene import Kinds, Plan, Scene
from journeyman.envs.types import LEVELS, Level, Split
from journeyman.tools.apis import bank
from journeyman.tools.apis.bank import Account, BankState

_LIMITS = (300, 400, 500, 600, 700)
_SEND = ('Send {n} from "{a}" to "{b}".', 'Move {n} from "{a}" to "{b}".')


class _Scene(Scene):
    """A bank under construction."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        super().__init__(rng, split)
        self.accounts: dict[str, Account] = {}
        for _ in range(rng.randint(2, 5)):
            self.open(self.draw.person())

    def open(self, owner: str, balance: int | None = None, status: str | None = None) -> str:
        account = self.draw.identifier("A")
        balance = self.draw.number(1000, 9999) if balance is None else balance
        status = status or self.rng.choice(("active", "active", "frozen"))
        self.accounts[account] = Account(owner, balance, status)
        return account

    def plan(self) -> Plan:
        state = BankState(self.table(self.accounts), salt=self.rng.randrange(2**31))
        return Plan(self, bank.TOOLS, state)


def _account_of(plan: Plan, owner: str) -> str:
    return str(plan.call("find_account", owner=owner)["account"])


def _pay(plan: Plan, source: str, target: str, amount: int) -> None:
    """Transfer; a demonstration says the id, which nobody asks for."""
    plan.done(plan.call("transfer", source=source, target=target, amount=amount)["transfer"])


def _balance(scene: _Scene) -> Task:
    owner = scene.draw.person()
    scene.open(owner)
    prompt = scene.ask(
        'What is the balance of "{a}"?',
        'How much money does "{a}" have?',
        'Tell me the balance of "{a}".',
        a=owner,
    )
    plan = scene.plan()
    plan.user_says(prompt)
    plan.answer(plan.call("get_account", account=_account_of(plan, owner))["balance"])
    return plan.task("balance")


def _transfer(scene: _Scene) -> Task:
    """A plain transfer; one time in two the receiving account turns out to be frozen."""
    payer, payee = scene.draw.person(), scene.draw.person()
    frozen = scene.toss()
    scene.open(payer, status="active")
    scene.open(payee, status="frozen" if frozen else "active")
    amount = scene.draw.number(100, 999)
    prompt = scene.ask(*_SEND, 'Let "{a}" pay {n} to "{b}".', n=amount, a=payer, b=payee)
    plan = scene.plan()
    plan.user_says(prompt)
    source, target = _account_of(plan, payer), _account_of(plan, payee)
    if frozen:
        plan.refused("transfer", source=source, target=target, amount=amount)
        plan.call("unfreeze", account=target)
    _pay(plan, source, target, amount)
    return plan.task("transfer_frozen" if frozen else "transfer")


def _second_payer(scene: _Scene) -> Task:
    """Pay from a second account if the first lacks the funds."""
    first, second, payee = (scene.draw.person() for _ in range(3))
    amount = scene.draw.number(100, 999)
    poor = scene.toss()
    scene.open(first, scene.draw.number(10, 99) if poor else None, "active")
    scene.open(second, status="active")
    scene.open(payee, status="active")
    prompt = scene.ask(
        'Send {n} to "{c}" from "{a}", or from "{b}" if the funds are short.',
        'Pay {n} to "{c}" from "{a}", or from "{b}" if the money is short.',
        n=amount,
        a=first,
        b=second,
        c=payee,
    )
    plan = scene.plan()
    plan.user_says(prompt)
    target, source = _account_of(plan, payee), _account_of(plan, first)
    if poor:
        plan.refused("transfer", source=source, target=target, amount=amount)
        source = _account_of(plan, second)
    _pay(plan, source, target, amount)
    return plan.task("second_payer_used" if poor else "second_payer")


def _toggle(scene: _Scene) -> Task:
    """Freeze or unfreeze, by what the account turns out to be."""
    owner = scene.draw.person()
    scene.open(owner, status=scene.rng.choice(("active", "frozen")))
    prompt = scene.ask(
        'If the account of "{a}" is active, freeze it; if it is frozen, unfreeze it.',
        'Unfreeze the account of "{a}" if it is frozen, or else freeze it.',
        a=owner,
    )
    plan = scene.plan()
    plan.user_says(prompt)
    account = _account_of(plan, owner)
    active = plan.call("get_account", account=account)["status"] == "active"
    plan.done(plan.call("freeze" if active else "unfreeze", account=account)["status"])
    return plan.task("toggle")


# Medium: six calls, two accounts to compare, rules that forbid the obvious call, requests to refuse


def _limit(scene: _Scene) -> Task:
    """Too much is not sent: the paying account is frozen instead."""
    payer, payee = scene.draw.person(), scene.draw.person()
    scene.open(payer, status="active")
    scene.open(payee, status="active")
    amount, limit = scene.draw.number(100, 999), scene.rng.choice(_LIMITS)
    plan = scene.plan()
    plan.user(*_SEND, n=amount, a=payer, b=payee)
    source = _account_of(plan, payer)
    if amount > limit:
        plan.call("freeze", account=source)
        plan.answer("held")
    else:
        _pay(plan, source, _account_of(plan, payee), amount)
    policy = (
        f"Never transfer more than {limit}: freeze the account that should pay, and answer: held"
    )
    return plan.task("limit_held" if amount > limit else "limit_paid", policy)


def _keep_frozen(scene: _Scene) -> Task:
    """What a transfer needs may not be done: a frozen account stays frozen."""
    payer, payee = scene.draw.person(), scene.draw.person()
    frozen = scene.toss()
    scene.open(payer, status="active")
    scene.open(payee, status="frozen" if frozen else "active")
    amount = scene.draw.number(100, 999)
    plan = scene.plan()
    plan.user(*_SEND, n=amount, a=payer, b=payee)
    source, target = _account_of(plan, payer), _account_of(plan, payee)
    said = plan.attempt("transfer", source=source, target=target, amount=amount)
    if frozen:
        plan.answer(target)
    else:
        plan.done(said["transfer"])
    policy = (
        "Never unfreeze an account: if one is frozen, nothing is sent; "
        "answer with the id of the frozen account"
    )
    return plan.task("keep_frozen" if frozen else "keep_frozen_paid", policy)


def _freeze_again(scene: _Scene) -> Task:
    """An account that is unfrozen for a transfer is frozen again after it."""
    payer, payee = scene.draw.person(), scene.draw.person()
    which = scene.rng.choice(("payer", "payee", "none"))
    scene.open(payer, status="frozen" if which == "payer" else "active")
    scene.open(payee, status="frozen" if which == "payee" else "active")
    amount = scene.draw.number(100, 999)
    plan = scene.plan()
    plan.user(*_SEND, n=amount, a=payer, b=payee)
    source, target = _account_of(plan, payer), _account_of(plan, payee)
    _pay_through(plan, source, target, amount)
    return plan.task("freeze_again" if which != "none" else "freeze_again_paid", _AGAIN)


_AGAIN = (
    "If a transfer is refused because an account is frozen, unfreeze it, transfer, "
    "and freeze it again."
)


def _pay_through(plan: Plan, source: str, target: str, amount: int) -> str:
    """Transfer under the rule above, at most one account being frozen; returns the id."""
    arguments = {"source": source, "target": target, "amount": amount}
    said = plan.attempt("transfer", **arguments)
    if "error" in said:
        account = source if source in said["error"] else target
        plan.call("unfreeze", account=account)
        said = plan.call("transfer", **arguments)
        plan.call("freeze", account=account)
    plan.done(said["transfer"])
    return str(said["transfer"])


def _richer(scene: _Scene) -> Task:
    """Whoever has more pays: both accounts must be read."""
    one, other, payee = (scene.draw.person() for _ in range(3))
    for owner in (one, other, payee):
        scene.open(owner, status="active")
    amount = scene.draw.number(100, 999)
    plan = scene.plan()
    plan.user(
        'Send {n} to "{c}" from "{a}" or "{b}", whoever has more.',
        'Whoever of "{a}" and "{b}" has more should pay {n} to "{c}".',
        n=amount,
        a=one,
        b=other,
        c=payee,
    )
    accounts = [_account_of(plan, owner) for owner in (one, other)]
    balances = {a: int(plan.call("get_account", account=a)["balance"]) for a in accounts}
    source = max(accounts, key=balances.__getitem__)
    _pay(plan, source, _account_of(plan, payee), amount)
    return plan.task("richer")


def _alike(scene: _Scene) -> Task:
    """One account is to be as another: what to do shows when both are read."""
    one, other = scene.draw.person(), scene.draw.person()
    scene.open(one)
    scene.open(other)
    plan = scene.plan()
    # What is asked for must be read: the two may be alike already, and then nothing is done.
    plan.user(
        'Give the account of "{b}" the status that the account of "{a}" has. What is the balance '
        'of "{b}"?',
        'The account of "{b}" should get the same status as that of "{a}". Tell me the balance '
        'of "{b}", too.',
        a=one,
        b=other,
    )
    wanted = plan.call("get_account", account=_account_of(plan, one))["status"]
    account = _account_of(plan, other)
    record = plan.call("get_account", account=account)
    same = record["status"] == wanted
    if not same:
        plan.call("freeze" if wanted == "frozen" else "unfreeze", account=account)
    plan.answer(record["balance"])
    return plan.task("alike_already" if same else "alike")


def _own_only(scene: _Scene) -> Task:
    """Who asks decides: without a right to know there is nothing to look up."""
    asker, owner = scene.draw.person(), scene.draw.person()
    own = scene.rng.random() < 0.4
    scene.open(asker)
    scene.open(owner)
    asked = asker if own else owner
    plan = scene.plan()
    plan.user(
        '"{a}" asks for the balance of "{b}".',
        'This is "{a}". How much money does "{b}" have?',
        a=asker,
        b=asked,
    )
    if own:
        plan.answer(plan.call("get_account", account=_account_of(plan, asked))["balance"])
    else:
        plan.answer("refused")
    return plan.task("own_only" if own else "own_only_refused", _OWN_ONLY)


_OWN_ONLY = "Balances are told to the owner of the account only; to anyone else answer: refused"


# Hard: two or three things to do, the later ones about the earlier


def _pay_and_go_on(scene: _Scene) -> Task:
    """A transfer under two rules, what becomes of it, and a question or an order about it."""
    payer, payee, third = (scene.draw.person() for _ in range(3))
    amount, limit = scene.draw.number(100, 999), scene.rng.choice(_LIMITS)
    less, held = scene.draw.number(100, limit), amount > limit
    # A frozen payer who pays twice would leave few turns to err.
    frozen = scene.rng.choice(("payer", "payee", "none") if held else ("payee", "none"))
    balance = scene.draw.number(2000, 9999)  # enough for both payments
    scene.open(payer, balance, "frozen" if frozen == "payer" else "active")
    scene.open(payee, status="frozen" if frozen == "payee" else "active")
    scene.open(third, status="active")
    plan = scene.plan()
    plan.user(*_SEND, n=amount, a=payer, b=payee)
    if held:
        plan.answer("held")
        plan.user_says(f"Then send {less} instead.")
    source, target = _account_of(plan, payer), _account_of(plan, payee)
    reference = _pay_through(plan, source, target, less if held else amount)
    if not held:
        plan.user_says(f'Send {less} to "{third}" as well.')
        reference = _pay_through(plan, source, _account_of(plan, third), less)
    last = scene.rng.choice(("none", "balance", "number"))
    if last == "balance":
        plan.user_says(f'What is the balance of "{payer}" now?')
        plan.answer(plan.call("get_account", account=source)["balance"])
    elif last == "number":
        plan.user_says("What is the number of that transfer?")
        plan.answer(reference)
    policy = f"Never transfer more than {limit}: answer instead: held\n{_AGAIN}"
    return plan.task("pay_held" if held else "pay_twice", policy)


def _compare(scene: _Scene) -> Task:
    """Who has more, then orders to the one and to the other."""
    one, other, payee = (scene.draw.person() for _ in range(3))
    for owner in (one, other, payee):
        scene.open(owner, status="active")
    amount = scene.draw.number(100, 999)
    plan = scene.plan()
    plan.user_says(f'Who has more money, "{one}" or "{other}"?')
    accounts = {owner: _account_of(plan, owner) for owner in (one, other)}
    balances = {
        owner: int(plan.call("get_account", account=account)["balance"])
        for owner, account in accounts.items()
    }
    richer, poorer = sorted(accounts, key=balances.__getitem__, reverse=True)
    plan.answer(richer)
    plan.user_says(f'Let that person pay {amount} to "{payee}".')
    _pay(plan, accounts[richer], _account_of(plan, payee), amount)
    third = scene.toss()
    if third:
        plan.user_says("And freeze the account of the other.")
        plan.done(plan.call("freeze", account=accounts[poorer])["status"])
    return plan.task("compare_freeze" if third else "compare")


def _own_after_all(scene: _Scene) -> Task:
    """What is nobody's business, then what is the asker's own."""
    asker, owner = scene.draw.person(), scene.draw.person()
    scene.open(asker)
    scene.open(owner)
    plan = scene.plan()
    plan.user_says(f'This is "{asker}". How much money does "{owner}" have?')
    plan.answer("refused")
    plan.user_says("Then tell me my own balance.")
    account = _account_of(plan, asker)
    record = plan.call("get_account", account=account)
    plan.answer(record["balance"])
    status = scene.rng.choice(("active", "frozen"))
    plan.user_says(f"See to it that my account is {status}.")
    if record["status"] != status:
        plan.call("freeze" if status == "frozen" else "unfreeze", account=account)
    plan.done(status)
    return plan.task("own_after_all", _OWN_ONLY)


_KINDS: Kinds[_Scene] = {
    "easy": (_balance, _transfer, _second_payer, _toggle),
    "medium": (_limit, _keep_frozen, _freeze_again, _richer, _alike, _own_only),
    "hard": (_pay_and_go_on, _compare, _own_after_all),
}


class BankEnv(ToolEnv):
    """A bank desk: 2 to 5 calls a task; above easy, rules, up to 6 calls a turn, several turns."""

    toolset = bank.TOOLS
    levels = LEVELS

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw a bank and a request."""
        kind = rng.choice(_KINDS[level])
        return kind(_Scene(rng, split))
