"""What an interpreter has run, as a value, and the forks of its session that keep it at hand.

The value is enough to tell two states apart, to show them, and to run them again. It is not enough
to have a state back: code that read the clock does something else the second time. So each state
brings a fork of the session that reached it along (`Checkpoint`), for as long as anybody holds the
value: an environment the state it is in, a snapshot the branch point it marks.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from journeyman.sandbox import SandboxError, SandboxSnapshot, Session

MAX_CHECKPOINTS = 512
"""Forks kept at once in this process; each is a stopped process of about a megabyte, its files, and
what memory the code has written to since. The one that was longest not used goes first."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One snippet that an interpreter has run."""

    code: str
    output: str | None = None
    """What came of it; None if it is not the student's, but loads data: it may be run again
    anywhere and gives the same."""


class Checkpoint:
    """A fork of a session that never runs, and which cells it has run."""

    def __init__(self, snapshot: SandboxSnapshot, count: int) -> None:
        """Take a fork over.

        Args:
            snapshot: The fork.
            count: How many cells it has run: the first ones of all `Cells` that bring it along.
        """
        self.count = count
        self._snapshot: SandboxSnapshot | None = snapshot
        _Kept.add(self)

    @property
    def alive(self) -> bool:
        """Whether it may still be there; `session` finds out."""
        return self._snapshot is not None

    def session(self) -> Session:
        """A session that goes on from here.

        Raises:
            SandboxError: The fork is gone.
        """
        _Kept.add(self)
        snapshot = self._snapshot
        if snapshot is None:
            raise SandboxError("it is closed")
        return snapshot.session()

    def close(self) -> None:
        """Let the fork go, which ends with that; sessions that went on from here stay.

        To close it in so many words would wait for whatever runs beside it.
        """
        self._snapshot = None


class _Kept:
    """The checkpoints of this process, the longest unused first; it keeps none of them alive."""

    lock = threading.Lock()
    order: dict[int, weakref.ref[Checkpoint]] = {}  # noqa: RUF012 - one for the process

    @classmethod
    def add(cls, checkpoint: Checkpoint) -> None:
        """Note that it was used; close the oldest if there are too many."""
        with cls.lock:
            cls.order.pop(id(checkpoint), None)
            cls.order[id(checkpoint)] = weakref.ref(checkpoint)
            if len(cls.order) <= MAX_CHECKPOINTS:
                return
            living = [each for ref in cls.order.values() if (each := ref()) and each.alive]
            cls.order = {id(each): weakref.ref(each) for each in living[-MAX_CHECKPOINTS:]}
        for each in living[:-MAX_CHECKPOINTS]:
            each.close()


class Cells(tuple[Cell, ...]):
    """The cells that an interpreter has run, equal to any tuple of the same.

    Immutable like one, so that a copy is the same object; what is pickled leaves the fork behind.
    """

    checkpoint: Checkpoint | None
    """A fork that has run all of them, or the first ones."""

    def __new__(cls, cells: Iterable[Cell] = (), checkpoint: Checkpoint | None = None) -> Self:
        """Make the value of a state.

        Args:
            cells: What was run.
            checkpoint: Of these cells, or of some first ones of them.
        """
        self = super().__new__(cls, cells)
        self.checkpoint = checkpoint
        return self

    def then(self, cell: Cell) -> Cells:
        """The state that one more cell leads to."""
        return Cells((*self, cell), self.checkpoint)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Cells], tuple[tuple[Cell, ...]]]:
        return Cells, (tuple(self),)
