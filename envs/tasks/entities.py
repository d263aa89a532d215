"""Names, ids and numbers for task generators, held out by split.

Every value belongs to one split by a hash of itself: 80% train, 10% validation, 10% test. So a
test task speaks of people, ids, amounts and titles that no training task ever showed. The words a
name is made of are shared (a small model could not embed a word it never saw); their combination is
not.
"""

# ruff: noqa: SIM905 - forty names, each in quotes, are no easier to read

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

from journeyman.envs.types import Split

FIRST_NAMES = (
    "Ada Ben Cleo Dario Edith Felix Greta Hugo Iris Jonas Kira Leon Mara Nils Olga Pablo Quinn "
    "Rosa Simon Tilda Umar Vera Walt Xenia Yusuf Zoe Amir Bella Carl Dora Emil Flora Gino Hanna "
    "Igor Julia Kofi Lina Milo Nora"
).split()
LAST_NAMES = (
    "Abbott Berger Castro Dumont Eriksen Fischer Garcia Holm Ivanov Jensen Keller Lopez Moreau "
    "Novak Okafor Petrov Quist Rossi Silva Tanaka Ueda Vogel Weber Xu Yilmaz Zhang Adler Bloom "
    "Conti Diaz Engel Ferrari Grant Haas Ishida Jung Klein Lind Meyer Nguyen"
).split()
ITEMS = (
    "lamp chair desk kettle camera guitar jacket helmet tent mirror clock carpet printer bicycle "
    "blender telescope backpack keyboard teapot violin sofa drone candle notebook"
).split()
CITIES = (
    "Oslo Paris Lima Cairo Rome Delhi Quito Seoul Accra Berlin Madrid Lisbon Vienna Dublin Athens "
    "Prague Havana Nairobi Toronto Sydney"
).split()
TOPICS = (
    "budget design safety sales research garden travel budgeting hiring music energy harbour data "
    "ethics launch science museum water traffic school"
).split()
MEETINGS = (
    "review workshop lunch standup briefing interview rehearsal retreat training audit planning "
    "debate seminar demo tour breakfast"
).split()

QUALIFIERS = (
    "spring summer autumn winter annual weekly final early north south east west red blue green "
    "silver golden old new open closed short long quiet"
).split()
DOCUMENTS = (
    "invoice contract survey ledger memo recipe poster manual catalogue protocol roster itinerary "
    "forecast inventory petition guideline checklist blueprint certificate brochure transcript "
    "questionnaire statement outline"
).split()


def split_of(value: str) -> Split:
    """The split a value belongs to; the same in every process."""
    bucket = zlib.crc32(value.encode()) % 10
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


class Entities:
    """Draws values of one split, none twice, for one task."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        """Draw from `rng`, values of `split` only."""
        self._rng = rng
        self._split = split
        self._used: set[str] = set()

    def person(self) -> str:
        """A full name; no two of one task share a first or a last name."""
        return self._pair(FIRST_NAMES, LAST_NAMES)

    def title(self) -> str:
        """An event title of two words, none of them used before in this task."""
        return self._pair(TOPICS, MEETINGS)

    def document(self) -> str:
        """Two words such as "winter invoice", none of them used before in this task."""
        return self._pair(QUALIFIERS, DOCUMENTS)

    def item(self) -> str:
        """A thing to order; items are not held out, their orders are."""
        return self._draw(lambda: self._rng.choice(ITEMS), hold_out=False)

    def city(self) -> str:
        """A city; not held out."""
        return self._draw(lambda: self._rng.choice(CITIES), hold_out=False)

    def identifier(self, prefix: str) -> str:
        """An id such as A4821; no two of one task share a two-digit half."""
        while True:
            value = self._draw(lambda: f"{prefix}{self._rng.randint(1000, 9999)}")
            halves = {value[-4:-2], value[-2:]}
            if len(halves) == 2 and not halves & self._used:
                self._used |= halves
                return value

    def number(self, low: int, high: int) -> int:
        """A number in [low, high]."""
        return int(self._draw(lambda: str(self._rng.randint(low, high))))

    def _pair(self, left: list[str], right: list[str]) -> str:
        while True:
            a, b = self._rng.choice(left), self._rng.choice(right)
            if split_of(f"{a} {b}") == self._split and not {a, b} & self._used:
                self._used |= {a, b}
                return f"{a} {b}"

    def _draw(self, sample: Callable[[], str], hold_out: bool = True) -> str:
        while True:
            value = sample()
            if value not in self._used and (not hold_out or split_of(value) == self._split):
                self._used.add(value)
                return value
