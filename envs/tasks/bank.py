"""`journeyman/Bank-v0`: balances, transfers (a payee may be frozen, a payer poor), freezing."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from immutables import Map

from journeyman.envs.core import Task, ToolEnv
from journeyman.envs.tasks.entities import Entities
from journeyman.envs.tasks.script import Script
from journeyman.envs.types import LEVELS, Level, Split
from journeyman.tools import ToolCall, execute
from journeyman.tools.apis import bank
from journeyman.tools.apis.bank import Account, BankState

_TOOLS = {t.name: t for t in bank.TOOLS}
_LIMITS = (300, 400, 500, 600, 700)


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


# Medium: six calls, two accounts to compare, rules that forbid the obvious call, requests to refuse


def _start(scene: _Scene) -> Script:
    return Script(scene.state(), bank.TOOLS)


def _account_of(script: Script, owner: str) -> str:
    return str(script.call("find_account", owner=owner)["account"])


def _send(scene: _Scene, amount: int, payer: str, payee: str) -> str:
    return scene.rng.choice(
        ('Send {n} from "{a}" to "{b}".', 'Move {n} from "{a}" to "{b}".')
    ).format(n=amount, a=payer, b=payee)


def _limit(scene: _Scene) -> Task:
    """Too much is not sent: the paying account is frozen instead."""
    payer, payee = scene.draw.person(), scene.draw.person()
    scene.open(payer, status="active")
    scene.open(payee, status="active")
    amount, limit = scene.draw.number(100, 999), scene.rng.choice(_LIMITS)
    script = _start(scene)
    script.user(_send(scene, amount, payer, payee))
    source = _account_of(script, payer)
    if amount > limit:
        script.call("freeze", account=source)
        script.answer("held")
    else:
        _pay(script, source, _account_of(script, payee), amount)
    policy = (
        f"Never transfer more than {limit}: freeze the account that should pay, and answer: held"
    )
    return script.task("limit_held" if amount > limit else "limit_paid", policy)


def _pay(script: Script, source: str, target: str, amount: int) -> None:
    script.answer(script.call("transfer", source=source, target=target, amount=amount)["transfer"])


def _keep_frozen(scene: _Scene) -> Task:
    """What a transfer needs may not be done: a frozen account stays frozen."""
    payer, payee = scene.draw.person(), scene.draw.person()
    frozen = scene.rng.random() < 0.5
    scene.open(payer, status="active")
    scene.open(payee, status="frozen" if frozen else "active")
    amount = scene.draw.number(100, 999)
    script = _start(scene)
    script.user(_send(scene, amount, payer, payee))
    source, target = _account_of(script, payer), _account_of(script, payee)
    said = script.call("transfer", source=source, target=target, amount=amount)
    script.answer(said.get("transfer", "frozen"))
    policy = "Never unfreeze an account: if one is frozen, nothing is sent; answer: frozen"
    return script.task("keep_frozen" if frozen else "keep_frozen_paid", policy)


def _freeze_again(scene: _Scene) -> Task:
    """An account that is unfrozen for a transfer is frozen again after it."""
    payer, payee = scene.draw.person(), scene.draw.person()
    which = scene.rng.choice(("payer", "payee", "none"))
    scene.open(payer, status="frozen" if which == "payer" else "active")
    scene.open(payee, status="frozen" if which == "payee" else "active")
    amount = scene.draw.number(100, 999)
    script = _start(scene)
    script.user(_send(scene, amount, payer, payee))
    source, target = _account_of(script, payer), _account_of(script, payee)
    _pay_through(script, source, target, amount)
    return script.task("freeze_again" if which != "none" else "freeze_again_paid", _AGAIN)


_AGAIN = (
    "If a transfer is refused because an account is frozen, unfreeze it, transfer, "
    "and freeze it again."
)


def _pay_through(script: Script, source: str, target: str, amount: int) -> str:
    """Transfer under the rule above, at most one account being frozen; answers with the id."""
    arguments = {"source": source, "target": target, "amount": amount}
    said = script.call("transfer", **arguments)
    if "error" in said:
        account = source if source in said["error"] else target
        script.call("unfreeze", account=account)
        said = script.call("transfer", **arguments)
        script.call("freeze", account=account)
    script.answer(said["transfer"])
    return str(said["transfer"])


def _richer(scene: _Scene) -> Task:
    """Whoever has more pays: both accounts must be read."""
    one, other, payee = (scene.draw.person() for _ in range(3))
    for owner in (one, other, payee):
        scene.open(owner, status="active")
    amount = scene.draw.number(100, 999)
    script = _start(scene)
    script.user(
        scene.rng.choice(
            (
                'Send {n} to "{c}" from "{a}" or "{b}", whoever has more.',
                'Whoever of "{a}" and "{b}" has more should pay {n} to "{c}".',
            )
        ).format(n=amount, a=one, b=other, c=payee)
    )
    accounts = [_account_of(script, owner) for owner in (one, other)]
    balances = {a: int(script.call("get_account", account=a)["balance"]) for a in accounts}
    source = max(accounts, key=balances.__getitem__)
    _pay(script, source, _account_of(script, payee), amount)
    return script.task("richer")


def _alike(scene: _Scene) -> Task:
    """One account is to be as another: what to do shows when both are read."""
    one, other = scene.draw.person(), scene.draw.person()
    scene.open(one)
    scene.open(other)
    script = _start(scene)
    script.user(
        scene.rng.choice(
            (
                'Give the account of "{b}" the status that the account of "{a}" has.',
                'The account of "{b}" should get the same status as that of "{a}".',
            )
        ).format(a=one, b=other)
    )
    wanted = script.call("get_account", account=_account_of(script, one))["status"]
    account = _account_of(script, other)
    same = script.call("get_account", account=account)["status"] == wanted
    if not same:
        script.call("freeze" if wanted == "frozen" else "unfreeze", account=account)
    script.answer(wanted)
    return script.task("alike_already" if same else "alike")


def _own_only(scene: _Scene) -> Task:
    """Who asks decides: without a right to know there is nothing to look up."""
    asker, owner = scene.draw.person(), scene.draw.person()
    own = scene.rng.random() < 0.4
    scene.open(asker)
    scene.open(owner)
    asked = asker if own else owner
    script = _start(scene)
    script.user(
        scene.rng.choice(
            (
                '"{a}" asks for the balance of "{b}".',
                'This is "{a}". How much money does "{b}" have?',
            )
        ).format(a=asker, b=asked)
    )
    if own:
        script.answer(script.call("get_account", account=_account_of(script, asked))["balance"])
    else:
        script.answer("refused")
    return script.task("own_only" if own else "own_only_refused", _OWN_ONLY)


_OWN_ONLY = "Balances are told to the owner of the account only; to anyone else answer: refused"


# Hard: two or three things to do, the later ones about the earlier


def _pay_and_go_on(scene: _Scene) -> Task:
    """A transfer under two rules, what becomes of it, and a question or an order about it."""
    payer, payee, third = (scene.draw.person() for _ in range(3))
    amount, limit = scene.draw.number(100, 999), scene.rng.choice(_LIMITS)
    less, held = scene.draw.number(100, limit), amount > limit
    # A frozen payer who pays twice would take more turns than an episode has.
    frozen = scene.rng.choice(("payer", "payee", "none") if held else ("payee", "none"))
    scene.open(payer, status="frozen" if frozen == "payer" else "active")
    scene.open(payee, status="frozen" if frozen == "payee" else "active")
    scene.open(third, status="active")
    script = _start(scene)
    script.user(_send(scene, amount, payer, payee))
    if held:
        script.answer("held")
        script.user(f"Then send {less} instead.")
    source, target = _account_of(script, payer), _account_of(script, payee)
    reference = _pay_through(script, source, target, less if held else amount)
    if not held:
        script.user(f'Send {less} to "{third}" as well.')
        reference = _pay_through(script, source, _account_of(script, third), less)
    last = scene.rng.choice(("none", "balance", "number"))
    if last == "balance":
        script.user(f'What is the balance of "{payer}" now?')
        script.answer(script.call("get_account", account=source)["balance"])
    elif last == "number":
        script.user("What is the number of that transfer?")
        script.answer(reference)
    policy = f"Never transfer more than {limit}: answer instead: held\n{_AGAIN}"
    return script.task("pay_held" if held else "pay_twice", policy)


def _compare(scene: _Scene) -> Task:
    """Who has more, then orders to the one and to the other."""
    one, other, payee = (scene.draw.person() for _ in range(3))
    for owner in (one, other, payee):
        scene.open(owner, status="active")
    amount = scene.draw.number(100, 999)
    script = _start(scene)
    script.user(f'Who has more money, "{one}" or "{other}"?')
    accounts = {owner: _account_of(script, owner) for owner in (one, other)}
    balances = {
        owner: int(script.call("get_account", account=account)["balance"])
        for owner, account in accounts.items()
    }
    richer, poorer = sorted(accounts, key=balances.__getitem__, reverse=True)
    script.answer(richer)
    script.user(f'Let that person pay {amount} to "{payee}".')
    _pay(script, accounts[richer], _account_of(script, payee), amount)
    third = scene.rng.random() < 0.5
    if third:
        script.user("And freeze the account of the other.")
        script.answer(script.call("freeze", account=accounts[poorer])["status"])
    return script.task("compare_freeze" if third else "compare")


def _own_after_all(scene: _Scene) -> Task:
    """What is nobody's business, then what is the asker's own."""
    asker, owner = scene.draw.person(), scene.draw.person()
    scene.open(asker)
    scene.open(owner)
    script = _start(scene)
    script.user(f'This is "{asker}". How much money does "{owner}" have?')
    script.answer("refused")
    script.user("Then tell me my own balance.")
    account = _account_of(script, asker)
    record = script.call("get_account", account=account)
    script.answer(record["balance"])
    status = scene.rng.choice(("active", "frozen"))
    script.user(f"See to it that my account is {status}.")
    if record["status"] != status:
        script.call("freeze" if status == "frozen" else "unfreeze", account=account)
    script.answer(status)
    return script.task("own_after_all", _OWN_ONLY)


_KINDS: Mapping[Level, tuple[Callable[[_Scene], Task], ...]] = {
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
