"""Small environments that behave."""

import random
from collections.abc import Iterator

import pytest

from journeyman.envs import Split, Task, ToolEnv
from journeyman.tools import ToolCall, ToolError, tool

OFFICE = ("journeyman/Bank-v0", "journeyman/Calendar-v0", "journeyman/Orders-v0")
"""The domains that the embedded models know; their easy tasks never change."""
BUILTIN = (
    "journeyman/Bank-v0",
    "journeyman/Calendar-v0",
    "journeyman/Files-v0",
    "journeyman/Mail-v0",
    "journeyman/Orders-v0",
    "journeyman/Tickets-v0",
    "journeyman/Travel-v0",
)
"""Those that need no sandbox."""


@tool
def add(state: tuple[int, ...], number: int) -> tuple[tuple[int, ...], int]:
    """Add a number.

    Args:
        number: What to add.
    """
    if number == 404:
        raise ToolError("no such number")
    if number == 500:
        raise ConnectionError("the adder is gone")
    return (*state, number), sum(state) + number


class SumEnv(ToolEnv):
    """Add two numbers."""

    toolset = (add,)

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: str) -> Task:
        """Draw two numbers."""
        start = {"train": 100, "validation": 200, "test": 300}[split]
        a, b = rng.randrange(start, start + 100), rng.randrange(10**9)
        gold = (ToolCall("add", {"number": a}), ToolCall("add", {"number": b}))
        return Task("", "sum", f"Add {a} and {b}.", (), gold, str(a + b))


@pytest.fixture
def sum_env() -> Iterator[SumEnv]:
    with SumEnv() as env:
        env.reset(options={"task_id": "train/0"})
        yield env
