"""`journeyman/Python-v0`: questions about data that only the interpreter holds.

The data is loaded, not shown: a task takes at least two calls, one to see and one to reckon. The
state is the tuple of cells the interpreter has run (see `journeyman.tools.python`), so that a
snapshot is a reference and a branch is rebuilt, by a fork or by replay, when it is played on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from journeyman.envs.core import Task, ToolEnv
from journeyman.envs.tasks.entities import Entities
from journeyman.envs.types import Level, Split
from journeyman.sandbox import Sandbox
from journeyman.tools import ToolCall, ToolResult, execute
from journeyman.tools import python as interpreter
from journeyman.tools.python import Cell, Repl


class _Scene:
    """A task under construction."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng = rng
        self.draw = Entities(rng, split)

    def ask(self, *wordings: str, **values: str) -> str:
        return self.rng.choice(wordings).format(**values)


def _task(kind: str, prompt: str, data: dict[str, Any], codes: list[str], answer: object) -> Task:
    loading = "\n".join(f"{name} = {value!r}" for name, value in data.items())
    gold = tuple(ToolCall("python", {"code": code}) for code in codes)
    return Task("", kind, prompt, (Cell(loading),), gold, str(answer))


def _spent(scene: _Scene) -> Task:
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


def _most(scene: _Scene) -> Task:
    """The shape of the data decides how to go on: a dict, or a list of pairs."""
    stock = {scene.draw.item(): scene.draw.number(100, 999) for _ in range(scene.rng.randint(4, 8))}
    pairs = scene.rng.random() < 0.5
    prompt = scene.ask(
        "The variable `stock` is loaded. Look at it, then tell which item there is most of.",
        "Which item has the largest number in `stock`? The variable is loaded; look at it first.",
    )
    reckon = "max(stock, key=lambda p: p[1])[0]" if pairs else "max(stock, key=stock.get)"
    data = {"stock": list(stock.items()) if pairs else stock}
    kind = "most_pairs" if pairs else "most_dict"
    return _task(kind, prompt, data, ["stock", reckon], max(stock, key=lambda item: stock[item]))


def _dirty_sum(scene: _Scene) -> Task:
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
    return _task("dirty_sum", prompt, {"amounts": amounts}, codes, sum(numbers))


def _distance(scene: _Scene) -> Task:
    """The plain lookup raises: the two dicts do not spell cities alike."""
    cities = [scene.draw.city() for _ in range(scene.rng.randint(3, 6))]
    home = {scene.draw.person(): city for city in cities}
    far = {city: scene.draw.number(100, 999) for city in cities}
    who = scene.rng.choice(list(home))
    upper = scene.rng.random() < 0.5
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
    return _task("distance", prompt, data, codes, far[home[who]])


_KINDS: tuple[Callable[[_Scene], Task], ...] = (_spent, _most, _dirty_sum, _distance)
_QUESTIONS = ("spent", "most_pairs", "most_dict", "dirty_sum", "distance")


class PythonEnv(ToolEnv):
    """A data desk with an interpreter: 2 or 3 calls a task; the answer alone decides."""

    toolset = interpreter.TOOLS
    waits = True
    harmless = dict.fromkeys(_QUESTIONS, "the answer alone decides")

    def __init__(
        self,
        split: str = "train",
        max_turns: int = 12,
        parser: str = "hermes",
        render_mode: str | None = None,
        sandbox: Sandbox | str = "namespace",
    ) -> None:
        """Make an environment; no sandbox starts before the first call of a tool.

        Args:
            split: See `ToolEnv`.
            max_turns: See `ToolEnv`.
            parser: See `ToolEnv`.
            render_mode: See `ToolEnv`.
            sandbox: Where sessions come from, or the name of a backend.
        """
        super().__init__(split, max_turns, parser, render_mode)
        self._repl = Repl(sandbox)

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw data and a question about it."""
        kind = rng.choice(_KINDS)
        return kind(_Scene(rng, split))

    def solved(self) -> bool:
        """The answer is right: what was run to find it does not matter."""
        return self.answered()

    def close(self) -> None:
        """End the sandbox session; the env can be reset and used again."""
        self._repl.close()
        super().close()

    def _execute(self, call: ToolCall) -> ToolResult:
        self._repl.cells = self._state
        _, result = execute(call, self._tools, self._repl)
        self._state = self._repl.cells  # a call that failed may have changed it: REPLs are so
        return result
