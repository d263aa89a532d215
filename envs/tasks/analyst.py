"""`journeyman/Analyst-v0`: figures to report, found with SQL, two lookups and an interpreter.

The columns are not told, the totals need more than one source, and what decides is what was filed.
"""

from __future__ import annotations

import random
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from journeyman.envs.task import Task
from journeyman.envs.tasks.interpreter import InterpreterEnv
from journeyman.envs.tasks.scene import Kinds, Plan, Scene, rules
from journeyman.envs.types import LEVELS, Level, Split
from journeyman.tools import ToolCall
from journeyman.tools import python as interpreter
from journeyman.tools.apis import analyst
from journeyman.tools.apis.analyst import AnalystState
from journeyman.tools.cells import Cells
from journeyman.tools.sql import Table

_CURRENCIES = ("EUR", "USD", "JPY", "GBP", "CHF", "SEK", "NOK", "DKK")
_WHO = ("customer", "client", "buyer")
_WORTH = ("amount", "price", "worth")
_FEWEST = 3
_MEDIAN = "sorted(row[0] for row in rows)[len(rows) // 2]"


class _Scene(Scene):
    """A desk under construction: some people, each with a city and a currency, and their sales."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        super().__init__(rng, split)
        self.who, self.worth = rng.choice(_WHO), rng.choice(_WORTH)
        cities = [self.draw.city() for _ in range(2)]
        currencies = rng.sample(_CURRENCIES, 3)
        self.people = {self.draw.person(): rng.choice(cities) for _ in range(4)}
        self.currency = {name: rng.choice(currencies) for name in self.people}
        self.rates = {currency: self.draw.number(100, 999) for currency in currencies}
        self.targets = {city: self.draw.number(10_000, 40_000) for city in cities}
        self.sales = {name: self.prices(rng.choice((3, 5, 7))) for name in self.people}
        self.person = rng.choice(list(self.people))
        self.label = self.draw.document()

    def prices(self, count: int) -> list[int]:
        return [self.draw.number(1000, 9999) for _ in range(count)]

    @property
    def city(self) -> str:
        return self.people[self.person]

    @property
    def city_total(self) -> int:
        return sum(sum(self.sales[n]) for n, city in self.people.items() if city == self.city)

    def plan(self) -> Plan:
        rows = [(name, price) for name, prices in self.sales.items() for price in prices]
        self.rng.shuffle(rows)
        people = tuple((n, city, self.currency[n]) for n, city in self.people.items())
        tables = (
            Table("sales", (self.who, self.worth), tuple(rows)),
            Table("people", ("name", "city", "currency"), people),
        )
        state = AnalystState(tables, self.table(self.rates), self.table(self.targets))
        return Plan(self, analyst.TOOLS, state)

    def select(self, what: str) -> str:
        """The query for a person's sales."""
        return f"SELECT {what} FROM sales WHERE {self.who} = '{self.person}'"

    def select_city(self, what: str) -> str:
        """The query for the sales of a city."""
        return (
            f"SELECT {what} FROM sales JOIN people ON name = {self.who} WHERE city = '{self.city}'"
        )


def _describe(plan: Plan, *tables: str) -> None:
    for table in tables:
        plan.call("describe", table=table)


def _value(plan: Plan, query: str) -> Any:
    """The one value that a query gives."""
    ((value,),) = plan.call("sql", query=query)["rows"]
    return value


def _report(plan: Plan, scene: _Scene, value: int) -> None:
    plan.call("report", name=scene.label, value=value)


# Easy: two or three calls in a row


def _figure(scene: _Scene) -> Task:
    word, function = scene.rng.choice((("total", "SUM"), ("highest", "MAX"), ("lowest", "MIN")))
    plan = scene.plan()
    plan.user(
        'Report the {w} of the sales of "{p}" as "{n}". The table is sales.',
        'In the table sales, what is the {w} for "{p}"? Report it as "{n}".',
        w=word,
        p=scene.person,
        n=scene.label,
    )
    _describe(plan, "sales")
    _report(plan, scene, _value(plan, scene.select(f"{function}({scene.worth})")))
    plan.done()
    return plan.task(word)


def _rate(scene: _Scene) -> Task:
    currency = scene.rng.choice(list(scene.rates))
    plan = scene.plan()
    plan.user(
        'Report the rate of {c} as "{n}".',
        'What is one {c} worth? Report the rate as "{n}".',
        c=currency,
        n=scene.label,
    )
    _report(plan, scene, plan.call("get_rate", currency=currency)["rate"])
    plan.done()
    return plan.task("rate")


def _lookup(scene: _Scene) -> Task:
    word = scene.rng.choice(("city", "currency"))
    plan = scene.plan()
    plan.user(
        'What is the {w} of "{p}" in the table people?',
        'Look up the {w} of "{p}"; the table is people.',
        w=word,
        p=scene.person,
    )
    _describe(plan, "people")
    plan.answer(_value(plan, f"SELECT {word} FROM people WHERE name = '{scene.person}'"))
    return plan.task("lookup")


# Medium: what is found decides, or a tool refuses


def _convert(scene: _Scene) -> Task:
    """A person's total, at the rate of the person's currency."""
    plan = scene.plan()
    plan.user(
        'Report as "{n}" what the sales of "{p}" come to in home units: the total from the '
        "table sales (columns {a} and {b}), times the rate of the currency that the table "
        "people (name, city, currency) gives.",
        'Take the total of "{p}" in sales ({a}, {b}) times the rate of the currency of "{p}" '
        'in people (name, city, currency), and report the product as "{n}".',
        p=scene.person,
        n=scene.label,
        a=scene.who,
        b=scene.worth,
    )
    total = _value(plan, scene.select(f"SUM({scene.worth})"))
    currency = _value(plan, f"SELECT currency FROM people WHERE name = '{scene.person}'")
    rate = plan.call("get_rate", currency=currency)["rate"]
    _report(plan, scene, _value(plan, f"SELECT {total} * {rate}"))
    plan.done()
    return plan.task("convert")


def _target(scene: _Scene) -> Task:
    """The total if it reaches the target, or else what is missing."""
    total, target = scene.city_total, scene.targets[scene.city]
    plan = scene.plan()
    plan.user(
        'Do the sales ({a}, {b}) to people (name, city, currency) of "{c}" reach its target? '
        'If so, report their total as "{n}", if not, how much is missing.',
        'Report as "{n}" the total of the sales ({a}, {b}) in "{c}" if it reaches the target '
        "of the city, else the difference. The table people has name, city, currency.",
        c=scene.city,
        n=scene.label,
        a=scene.who,
        b=scene.worth,
    )
    _value(plan, scene.select_city(f"SUM({scene.worth})"))
    plan.call("get_target", city=scene.city)
    if total < target:
        total = _value(plan, f"SELECT {target} - {total}")
    _report(plan, scene, total)
    plan.done()
    return plan.task("target_reached" if total >= target else "target_missed")


def _misnamed(scene: _Scene) -> Task:
    """The question may call a column by another name than the table does."""
    wrong = scene.rng.choice([w for w in _WORTH if w != scene.worth])
    known = scene.toss()
    said = scene.worth if known else wrong
    plan = scene.plan()
    plan.user(
        'The table sales has {a} and {b}, I think. Report the total of "{p}" as "{n}".',
        'Report as "{n}" the sum of {b} in sales where {a} is "{p}", if these are the columns.',
        a=scene.who,
        b=said,
        p=scene.person,
        n=scene.label,
    )
    if not known:
        plan.refused("sql", query=scene.select(f"SUM({said})"))
        _describe(plan, "sales")
    _report(plan, scene, _value(plan, scene.select(f"SUM({scene.worth})")))
    plan.done()
    return plan.task("named" if known else "misnamed")


def _median(scene: _Scene) -> Task:
    """SQLite has no median; the interpreter has the rows."""
    plan = scene.plan()
    plan.user(
        'Report the median of the sales of "{p}" as "{n}". The table is sales.',
        'Which is the middle one, by size, of the sales of "{p}" in the table sales? Report it '
        'as "{n}".',
        p=scene.person,
        n=scene.label,
    )
    _describe(plan, "sales")
    _report(plan, scene, _median_of(plan, scene))
    plan.done()
    return plan.task("median")


def _median_of(plan: Plan, scene: _Scene) -> int:
    rows = plan.call("sql", query=scene.select(scene.worth))["rows"]
    plan.write(ToolCall("python", {"code": _MEDIAN}))
    return int(sorted(row[0] for row in rows)[len(rows) // 2])


# Hard: rules, requests that need no call, users who come back, long programs


def _too_few(scene: _Scene) -> Task:
    """A rule forbids to report few sales by themselves."""
    few = len(scene.sales[scene.person]) <= _FEWEST
    policy = rules(
        scene,
        f"No total of {_FEWEST} sales or fewer is reported: where one is asked for, report the "
        "total of all sales instead, under the same name.",
        f'"{scene.draw.person()}" gets a copy of nothing.',
    )
    plan = scene.plan()
    plan.user(
        'Report the total of the sales of "{p}" as "{n}". The table is sales.',
        'As "{n}", report what "{p}" has in the table sales, in total.',
        p=scene.person,
        n=scene.label,
    )
    _describe(plan, "sales")
    query = scene.select(f"COUNT(*), SUM({scene.worth})")
    ((_, total),) = plan.call("sql", query=query)["rows"]
    if few:
        total = _value(plan, f"SELECT SUM({scene.worth}) FROM sales")
    _report(plan, scene, total)
    plan.done()
    return plan.task("too_few" if few else "enough", policy)


def _no_names(scene: _Scene) -> Task:
    """A rule forbids the answer that was asked for, and says which to give."""
    best = max(scene.sales, key=lambda name: sum(scene.sales[name]))
    policy = rules(
        scene,
        "Names of people are not given away: where a name is asked for, answer with the city that "
        "the table people gives for it.",
        f'Figures for "{scene.draw.person()}" are not reported.',
    )
    plan = scene.plan()
    plan.user(
        'It is not "{p}", is it? Who has the highest total in the table sales?',
        'Look into the table sales: who comes first by the total? "{p}" wants to know.',
        p=scene.draw.person(),
    )
    _describe(plan, "sales", "people")
    name = plan.call(
        "sql",
        query=f"SELECT {scene.who} FROM sales GROUP BY {scene.who} "
        f"ORDER BY SUM({scene.worth}) DESC LIMIT 1",
    )["rows"][0][0]
    assert name == best
    plan.answer(_value(plan, f"SELECT city FROM people WHERE name = '{name}'"))
    return plan.task("no_names", policy)


def _no_call(scene: _Scene) -> Task:
    """The answer is in the question, or a rule says to refuse."""
    number, word = scene.draw.number(1000, 9999), scene.rng.choice(("refused", "not allowed"))
    policy = rules(
        scene,
        f'Nothing is told or reported about "{scene.person}": call no tool and answer: {word}',
        "What the question itself tells is answered without a call.",
    )
    refuse = scene.toss()
    plan = scene.plan()
    if refuse:
        plan.user(
            'Report the total of "{p}" in the table sales as "{n}".',
            'What is the highest of the sales of "{p}"? Report it as "{n}".',
            p=scene.person,
            n=scene.label,
        )
        plan.answer(word)
        return plan.task("refuse", policy)
    plan.user(
        'The figure "{n}" was {k} last week, "{p}" says. What was it last week?',
        'I wrote down that "{p}" reported {k} as "{n}". What number was that?',
        p=scene.draw.person(),
        n=scene.label,
        k=number,
    )
    plan.answer(number)
    return plan.task("in_the_question", policy)


def _follow_up(scene: _Scene) -> Task:
    """Three user turns about one person's sales."""
    plan = scene.plan()
    plan.user(
        'What is the total of "{p}" in the table sales?',
        'How much has "{p}" in the table sales, in total?',
        p=scene.person,
    )
    _describe(plan, "sales")
    total = _value(plan, scene.select(f"SUM({scene.worth})"))
    plan.answer(total)
    currency = scene.currency[scene.person]
    plan.user(
        'That is in {c}. Report it in home units as "{n}".',
        'Report it as "{n}", in home units; the currency is {c}.',
        c=currency,
        n=scene.label,
    )
    rate = plan.call("get_rate", currency=currency)["rate"]
    _report(plan, scene, _value(plan, f"SELECT {total} * {rate}"))
    plan.done()
    scene.label = scene.draw.document()
    plan.user('And report the median of the same sales as "{n}".', n=scene.label)
    _report(plan, scene, _median_of(plan, scene))
    plan.done()
    return plan.task("follow_up")


def _pipeline(scene: _Scene) -> Task:
    """All sources for one figure: database, rates, interpreter."""
    plan = scene.plan()
    plan.user(
        'Report as "{n}" the median of the sales of "{p}" in home units: at the rate of the '
        "currency of that person. The tables are sales and people.",
        'The tables are sales and people. What is the median sale of "{p}" times the rate of '
        'the currency of "{p}"? Report it as "{n}".',
        p=scene.person,
        n=scene.label,
    )
    _describe(plan, "sales", "people")
    currency = _value(plan, f"SELECT currency FROM people WHERE name = '{scene.person}'")
    rate = plan.call("get_rate", currency=currency)["rate"]
    median = _median_of(plan, scene)
    plan.write(ToolCall("python", {"code": f"{median} * {rate}"}))
    _report(plan, scene, median * rate)
    plan.done()
    return plan.task("pipeline")


_KINDS: Kinds[_Scene] = {
    "easy": (_figure, _rate, _lookup),
    "medium": (_convert, _target, _misnamed, _median),
    "hard": (_too_few, _no_names, _no_call, _follow_up, _pipeline),
}


class AnalystEnv(InterpreterEnv):
    """An analyst's desk: 2 to 8 calls a task, none where none is called for."""

    toolset = (*analyst.TOOLS, *interpreter.TOOLS)
    levels = LEVELS
    harmless = MappingProxyType(
        {
            "sql": "a query only reads: what was reported decides",
            "python": "code changes nothing but its own variables: what was reported decides",
        }
    )

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw a desk and a request."""
        kind = rng.choice(_KINDS[level])
        return kind(_Scene(rng, split))

    @classmethod
    def outcome(cls, state: AnalystState) -> Any:
        """What was reported; not how it was found."""
        return state.reports

    @staticmethod
    def cells_of(state: AnalystState) -> Cells:
        """What was run beside the desk."""
        return state.cells

    @staticmethod
    def with_cells(state: AnalystState, cells: Cells) -> AnalystState:
        """The same desk."""
        return replace(state, cells=cells)

    def _gold_state(self, task: Task) -> Any:
        """As ever, but without the code, which reports nothing: no sandbox is needed."""
        calls = [c for turn in task.turns for c in turn.gold if c.name != interpreter.python.name]
        return super()._gold_state(replace(task, gold=tuple(calls), then=()))
