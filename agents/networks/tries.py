"""Rows of tokens as a trie, laid out depth first in one sequence. Nothing here runs a model.

`ancestry.py` attends along the branches of a layout, `sharing.py` reads rows so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

Row = tuple[int, ...]
Run = tuple[int, int]
"""Places from the first up to the second in a layout."""


@dataclass(frozen=True)
class Stretch:
    """What a row adds to a layout: tokens one after the other, of which each sees those before."""

    own: Run
    """Where they stand; there is at least one."""
    past: tuple[Run, ...]
    """What the first of them follows, from the root on."""

    @cached_property
    def depth(self) -> int:
        """Tokens that the first one follows."""
        return sum(end - start for start, end in self.past)

    @property
    def size(self) -> int:
        """Tokens of its own."""
        return self.own[1] - self.own[0]


@dataclass(frozen=True)
class Layout:
    """Rows as one sequence of U tokens that holds those which they begin with in common once."""

    tokens: tuple[int, ...]
    """[U]."""
    branches: tuple[Stretch, ...]
    """In the order of the layout; a row that is the beginning of another, or equal, has none."""
    paths: tuple[Tensor, ...]
    """Of each row, where its tokens stand."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Layout:
        """Lay out rows in lexicographic order: whatever two share, all between them share too."""
        tokens: list[int] = []
        branches: list[Stretch] = []
        paths = []
        runs: tuple[Run, ...] = ()
        for row, shared in zip(rows, [0, *shared_lengths(rows)], strict=True):
            runs = _first(runs, shared)
            if len(row) > shared:
                own = (len(tokens), len(tokens) + len(row) - shared)
                branches.append(Stretch(own, runs))
                tokens += row[shared:]
                runs = (*runs, own)
            paths.append(torch.cat([torch.arange(*run) for run in runs]))
        return cls(tuple(tokens), tuple(branches), tuple(paths))

    @property
    def depths(self) -> Tensor:
        """[U] places that the tokens have in their rows."""
        return torch.cat([torch.arange(it.depth, it.depth + it.size) for it in self.branches])

    @cached_property
    def pieces(self) -> list[int]:
        """Lengths into which the sequence is cut so that every run is a number of whole pieces."""
        ends = {end for it in self.branches for _, end in (*it.past, it.own)}
        return [end - start for start, end in pairwise(sorted({0} | ends))]

    @cached_property
    def seen(self) -> list[list[int]]:
        """Of each branch the pieces that its tokens may see, its own last."""
        places = [0, *accumulate(self.pieces)]
        number = {place: i for i, place in enumerate(places)}
        return [
            [i for run in (*it.past, it.own) for i in range(number[run[0]], number[run[1]])]
            for it in self.branches
        ]

    @property
    def pairs(self) -> int:
        """Places of a table of who sees whom, branch by branch."""
        return sum(it.size * (it.depth + it.size) for it in self.branches)


def _first(runs: Sequence[Run], count: int) -> tuple[Run, ...]:
    """The first `count` places of runs."""
    kept: list[Run] = []
    for start, end in runs:
        if count <= 0:
            break
        kept.append((start, min(end, start + count)))
        count -= end - start
    return tuple(kept)


def shared_lengths(rows: Sequence[Row]) -> list[int]:
    """How many first tokens each row but the first has in common with the one before it."""
    found = []
    for before, row in pairwise(rows):
        both = enumerate(zip(before, row, strict=False))
        found.append(next((i for i, (a, b) in both if a != b), min(len(before), len(row))))
    return found
