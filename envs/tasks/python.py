"""`journeyman/Python-v0`: questions about data in the interpreter, and functions to write.

The data is loaded, not shown: an easy task takes at least two calls, one to see and one to reckon.
A function is tested at the end, in the same session, on cases that the student never sees. The
state is what the interpreter has run (see `journeyman.tools.cells`), so that a snapshot is a
reference, and a branch goes on from the fork of a session that it brings along.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from journeyman.envs.shortfall import Difference, differences
from journeyman.envs.task import Task, UserTurn, refused
from journeyman.envs.tasks.entities import ITEMS
from journeyman.envs.tasks.interpreter import InterpreterEnv
from journeyman.envs.tasks.scene import Kinds, Scene
from journeyman.envs.types import LEVELS, Level, Split
from journeyman.tools import ToolCall, ToolError
from journeyman.tools import python as interpreter
from journeyman.tools.cells import Cell, Cells

Case = tuple[str, tuple[Any, ...], Any]
"""A function's name, its arguments, and what it must return."""


@dataclass(frozen=True, slots=True)
class FunctionTask(Task):
    """A task that is solved if the functions which the student defines pass hidden tests."""

    cases: tuple[Case, ...] = ()


def _task(kind: str, prompt: str, data: dict[str, Any], codes: list[str], answer: object) -> Task:
    loading = "\n".join(f"{name} = {value!r}" for name, value in data.items())
    gold = tuple(ToolCall("python", {"code": code}) for code in codes)
    return Task("", kind, prompt, Cells((Cell(loading),)), gold, str(answer))


def _raises_first(task: Task) -> Task:
    """The task, whose first gold call raises: what it says leads to the next."""
    first, *others = task.gold
    return replace(task, gold=(refused(first), *others))


def _spent(scene: Scene) -> Task:
    """Select in one call, reckon in the next: what the first defined must still be there."""
    people = [scene.draw.person() for _ in range(3)]
    who = people[0]
    owners = [who, who, *(scene.rng.choice(people) for _ in range(scene.rng.randint(4, 8)))]
    scene.rng.shuffle(owners)
    sales = [(owner, scene.draw.number(100, 999)) for owner in owners]
    orders = [{"customer": owner, "price": price} for owner, price in sales]
    prices = [price for owner, price in sales if owner == who]
    word, reckon, answer = scene.rng.choice(
        (
            ("the sum of the prices", "sum(mine)", sum(prices)),
            ("the highest price", "max(mine)", max(prices)),
            ("the number", "len(mine)", len(prices)),
        )
    )
    prompt = scene.ask(
        'The list `orders` is loaded; its dicts have "customer" and "price". '
        'What is {word} of the orders of "{who}"?',
        'Of the orders of "{who}" in the list `orders` (dicts with "customer" and "price"), '
        "what is {word}?",
        word=word,
        who=who,
    )
    select = f'mine = [o["price"] for o in orders if o["customer"] == {who!r}]\nmine'
    return _task("spent", prompt, {"orders": orders}, [select, reckon], answer)


def _most(scene: Scene) -> Task:
    """The shape of the data decides how to go on: a dict, or a list of pairs."""
    stock = {scene.draw.item(): scene.draw.number(100, 999) for _ in range(scene.rng.randint(4, 8))}
    pairs = scene.toss()
    prompt = scene.ask(
        "The variable `stock` is loaded. Look at it, then tell which item there is most of.",
        "Which item has the largest number in `stock`? The variable is loaded; look at it first.",
    )
    reckon = "max(stock, key=lambda p: p[1])[0]" if pairs else "max(stock, key=stock.get)"
    data = {"stock": list(stock.items()) if pairs else stock}
    kind = "most_pairs" if pairs else "most_dict"
    return _task(kind, prompt, data, ["stock", reckon], max(stock, key=lambda item: stock[item]))


def _dirty_sum(scene: Scene) -> Task:
    """The plain sum raises: some entries are no numbers."""
    numbers = [scene.draw.number(100, 999) for _ in range(scene.rng.randint(5, 9))]
    amounts: list[int | str | None] = list(numbers)
    for _ in range(scene.rng.randint(1, 3)):
        amounts.insert(scene.rng.randint(1, len(amounts)), scene.rng.choice(("n/a", "", None)))
    prompt = scene.ask(
        "The list `amounts` is loaded. What is the sum of its numbers?",
        "Add up the numbers in the list `amounts`, which is loaded.",
    )
    codes = ["sum(amounts)", "sum(a for a in amounts if isinstance(a, int))"]
    return _raises_first(_task("dirty_sum", prompt, {"amounts": amounts}, codes, sum(numbers)))


def _distance(scene: Scene) -> Task:
    """The plain lookup raises: the two dicts do not spell cities alike."""
    cities = [scene.draw.city() for _ in range(scene.rng.randint(3, 6))]
    home = {scene.draw.person(): city for city in cities}
    far = {city: scene.draw.number(100, 999) for city in cities}
    who = scene.rng.choice(list(home))
    upper = scene.toss()
    spelling: Callable[[str], str] = str.upper if upper else str.lower
    prompt = scene.ask(
        'The dicts `home` (person to city) and `far` (city to km) are loaded. How far is "{who}"?',
        'How many km away does "{who}" live? The dicts `home` (person to city) and `far` (city to '
        "km) are loaded.",
        who=who,
    )
    mend = f"far[home[{who!r}].{'upper' if upper else 'lower'}()]"
    codes = [f"far[home[{who!r}]]", "list(far)", mend]
    data = {"home": home, "far": {spelling(city): km for city, km in far.items()}}
    return _raises_first(_task("distance", prompt, data, codes, far[home[who]]))


# Medium: two tables, a function to write, a question to refuse


def _joined(scene: Scene) -> Task:
    """The prices are in another table than the orders."""
    prices = {scene.draw.item(): scene.draw.number(100, 999) for _ in range(4)}
    people = [scene.draw.person() for _ in range(3)]
    who = people[0]
    owners = [who, who, *(scene.rng.choice(people) for _ in range(scene.rng.randint(3, 6)))]
    bought = [(owner, scene.rng.choice(list(prices))) for owner in owners]
    prompt = scene.ask(
        "The list `bought` (pairs of person and item) and the dict `prices` (item to price) are "
        'loaded. How much did "{who}" pay in all?',
        who=who,
    )
    codes = [
        f"items = [item for person, item in bought if person == {who!r}]\nitems",
        "paid = [prices[item] for item in items]\npaid",
        "sum(paid)",
    ]
    paid = sum(prices[item] for person, item in bought if person == who)
    return _task("joined", prompt, {"bought": bought, "prices": prices}, codes, paid)


def _refused(scene: Scene) -> Task:
    """A rule forbids what would be easy: no call is called for."""
    people = [scene.draw.person() for _ in range(4)]
    who = people[0]
    salary = {person: scene.draw.number(1000, 9999) for person in people}
    prompt = scene.ask(
        'The dict `salary` is loaded. What does "{who}" earn?',
        'How much does "{who}" earn? See the dict `salary`, which is loaded.',
        who=who,
    )
    task = _task("refused", prompt, {"salary": salary}, [], "refused")
    return replace(task, policy="What one person earns is told to nobody: answer instead: refused")


def _function(
    kind: str, turns: Sequence[tuple[str, str]], cases: Sequence[Case], data: dict[str, Any]
) -> Task:
    """Prompts, each with the code that does what it asks for, and what the functions must do."""
    first, *then = (
        UserTurn(prompt, (ToolCall("python", {"code": code}),), None) for prompt, code in turns
    )
    loading = "\n".join(f"{name} = {value!r}" for name, value in data.items())
    state = Cells((Cell(loading),))
    return FunctionTask(
        "", kind, first.prompt, state, first.gold, None, tuple(then), cases=tuple(cases)
    )


def _fee(scene: Scene) -> Task:
    """One number decides between two others."""
    limit, low, high = (scene.draw.number(100, 999) for _ in range(3))
    prompt = scene.ask(
        "Define a function `fee(amount)`: {low} for amounts up to {limit}, {high} above. It will "
        "be tested.",
        "Write `fee(amount)`, which returns {high} if amount is above {limit}, else {low}. It will "
        "be tested.",
        low=low,
        high=high,
        limit=limit,
    )
    code = f"def fee(amount):\n    return {low} if amount <= {limit} else {high}"
    amounts = (0, limit - 1, limit, limit + 1, 5 * limit)
    cases = [("fee", (n,), low if n <= limit else high) for n in amounts]
    return _function("fee", [(prompt, code)], cases, {})


def _pick(scene: Scene) -> Task:
    """Select and sort."""
    limit = scene.draw.number(100, 999)
    prompt = scene.ask(
        "Define `pick(stock)`: of a dict of items and numbers, the items with at least {limit}, "
        "in alphabetical order, as a list. It will be tested.",
        limit=limit,
    )
    code = (
        "def pick(stock):\n"
        f"    return sorted(item for item, number in stock.items() if number >= {limit})"
    )
    cases: list[Case] = [("pick", ({},), [])]
    for _ in range(3):
        items = [scene.rng.choice(ITEMS) for _ in range(5)]
        stock = {item: limit + scene.rng.choice((-50, -1, 0, 1, 50)) for item in items}
        stock |= {"exact": limit, "short": limit - 1}
        chosen = sorted(item for item, number in stock.items() if number >= limit)
        cases.append(("pick", (stock,), chosen))
    return _function("pick", [(prompt, code)], cases, {})


# Hard: a second wish that builds on what was done for the first


def _total_and_mean(scene: Scene) -> Task:
    """A function, then another one that calls it; both are tested."""
    least = scene.draw.number(100, 999)
    people = [scene.draw.person() for _ in range(3)]

    def book() -> list[dict[str, Any]]:
        prices = (least - 1, least, least + 1, *(scene.rng.randint(1, 2000) for _ in range(3)))
        return [{"customer": scene.rng.choice(people), "price": price} for price in prices]

    def count(orders: list[dict[str, Any]], who: str) -> int:
        return sum(o["customer"] == who and o["price"] >= least for o in orders)

    def total(orders: list[dict[str, Any]], who: str) -> int:
        return sum(o["price"] for o in orders if o["customer"] == who and o["price"] >= least)

    books = [book() for _ in range(3)]
    edge = [{"customer": people[0], "price": price} for price in (least - 1, least, least + 1)]
    cases: list[Case] = []
    for orders in (edge, *books):
        for who in people:
            cases.append(("total", (orders, who), total(orders, who)))
            mean = total(orders, who) // (count(orders, who) or 1)
            cases.append(("mean", (orders, who), mean))
    which = f'if o["customer"] == customer and o["price"] >= {least}'
    turns = [
        (
            f"`orders` is a sample: dicts with customer and price. Define "
            f"`total(orders, customer)`: the sum of the customer's prices of at least {least}.",
            f'def total(orders, customer):\n    return sum(o["price"] for o in orders {which})',
        ),
        (
            "Now `mean(orders, customer)`: that total divided by the number of these orders, "
            "rounded down; if there are none, 0. Both will be tested.",
            f"def mean(orders, customer):\n    count = len([o for o in orders {which}])\n"
            "    return total(orders, customer) // count if count else 0",
        ),
    ]
    return _function("total_and_mean", turns, cases, {"orders": books[0]})


def _spent_and_most(scene: Scene) -> Task:
    """A question, then another one about the same data, then one that needs no call."""
    task = _spent(scene)
    prices = [o["price"] for o in ast.literal_eval(task.state[0].code.partition(" = ")[2])]
    code = 'max(o["price"] for o in orders)'
    more = UserTurn(
        "And the highest price of all orders in the list?",
        (ToolCall("python", {"code": code}),),
        str(max(prices)),
    )
    again = UserTurn("What was your first answer?", (), task.answer)
    return replace(task, kind="spent_and_most", then=(more, again))


_KINDS: Kinds[Scene] = {
    "easy": (_spent, _most, _dirty_sum, _distance),
    "medium": (_joined, _refused, _fee, _pick),
    "hard": (_total_and_mean, _spent_and_most),
}
_QUESTIONS = (
    "spent", "most_pairs", "most_dict", "dirty_sum", "distance", "joined", "spent_and_most",
)  # fmt: skip


class PythonEnv(InterpreterEnv):
    """A data desk with an interpreter: questions to answer, functions to write that are tested."""

    toolset = interpreter.TOOLS
    levels = LEVELS
    harmless = MappingProxyType(
        {
            **dict.fromkeys(_QUESTIONS, "the answer alone decides"),
            "added": "more code does no harm while the tests pass",
        }
    )

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw data and a question about it."""
        kind = rng.choice(_KINDS[level])
        return kind(Scene(rng, split))

    def solved(self) -> bool:
        """The answer is right, and functions pass; what was run on the way does not matter."""
        task = self.task
        if not self.answered():
            return False
        return not isinstance(task, FunctionTask) or _same(self._returned(task), _expected(task))

    def difference(self) -> tuple[Difference, ...]:
        """Cases that functions do not pass."""
        task = self.task
        if not isinstance(task, FunctionTask):
            return ()
        expected = _expected(task)
        returned = None if self._state == task.state else self._returned(task)
        if not isinstance(returned, list) or len(returned) != len(expected):
            names = ", ".join(dict.fromkeys(name for name, *_ in task.cases))
            return (Difference(names, None, f"{len(expected)} cases that pass"),)
        reached, wanted = {}, {}
        for (name, arguments, value), found in zip(task.cases, returned, strict=True):
            if not _same(found, value):
                call = f"{name}({', '.join(map(repr, arguments))})"
                reached[call], wanted[call] = found, value
        return differences(reached, wanted)

    def _returned(self, task: FunctionTask) -> object:
        """Call the functions in the session; what they must return never goes in there.

        Returns:
            A list of what they return, or None if one raised or returned no plain value.
        """
        calls = ", ".join(f"{name}(*{arguments!r})" for name, arguments, _ in task.cases)
        code = (
            "import contextlib as _c, io as _i\n"
            "with _c.redirect_stdout(_i.StringIO()), _c.redirect_stderr(_i.StringIO()):\n"
            f"    _results = [{calls}]\n"
            "_results"
        )
        self._repl.cells = self._state
        try:
            return ast.literal_eval(self._repl.look(code))
        except (ToolError, *_NO_LITERAL):  # it raised, met a limit, or returned no plain value
            return None

    @staticmethod
    def cells_of(state: Cells) -> Cells:
        """All of the state."""
        return state

    @staticmethod
    def with_cells(state: Cells, cells: Cells) -> Cells:
        """All of the state."""
        return cells


_NO_LITERAL = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)
"""What `ast.literal_eval` raises, by its documentation."""


def _expected(task: FunctionTask) -> list[Any]:
    return [expected for _, _, expected in task.cases]


def _same(found: object, expected: object) -> bool:
    """Equal in value: 707.0 is 707. But True is not 1, nor is a tuple a list."""
    if isinstance(expected, list | tuple):
        return (
            type(found) is type(expected)
            and len(found) == len(expected)
            and all(map(_same, found, expected))
        )
    return isinstance(found, bool) == isinstance(expected, bool) and found == expected
