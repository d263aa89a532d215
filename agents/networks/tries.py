"""Rows of tokens as a trie: its layout, depth first in one sequence, and which places are one.

Nothing here runs a model. `ancestry.py` attends along the branches of a layout, `sharing.py` reads
rows so; heads and losses look once at places that are one (`Distinct`).
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


@dataclass(frozen=True)
class Distinct:
    """Which of N things are the same, so that each is looked at once."""

    kept: Tensor
    """[M] one of each."""
    back: Tensor
    """[N] which of the M each of the N is."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], ends: Sequence[Sequence[int]]) -> Distinct:
        """Beginnings of rows that are equal, token for token.

        Args:
            rows: Token ids.
            ends: Of each row, how long its beginnings are; N in all, counted row after row.
        """
        order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
        lengths = (0, *shared_lengths([rows[i] for i in order]))
        starts = [0, *accumulate(map(len, ends))]
        places: list[list[int]] = [[] for _ in rows]
        known: dict[int, int] = {}  # beginnings of the row before, by length
        for i, shared in zip(order, lengths, strict=False):
            known = {end: place for end, place in known.items() if end <= shared}
            places[i] = [known.setdefault(end, starts[i] + k) for k, end in enumerate(ends[i])]
        found = torch.tensor([place for own in places for place in own], dtype=torch.long)
        kept, back = found.unique(return_inverse=True)
        return cls(kept, back)

    @classmethod
    def apart(cls, count: int, device: torch.device) -> Distinct:
        """So many, each of its own."""
        return cls(torch.arange(count, device=device), torch.arange(count, device=device))

    def to(self, device: torch.device) -> Distinct:
        """The same, there."""
        return Distinct(self.kept.to(device), self.back.to(device))

    def where(self, *known: Tensor) -> Distinct:
        """The same things, one apart from the one that is kept where what is known of it differs.

        Args:
            known: [N, ...] each.
        """
        if self._is_all:
            return self
        differs = torch.zeros_like(self.back, dtype=torch.bool)
        for it in known:
            other = it.index_select(0, self.kept).index_select(0, self.back)
            differs |= (it != other).flatten(1).any(1) if it.dim() > 1 else it != other
        if not differs.any():
            return self
        apart = differs.nonzero()[:, 0]
        back = self.back.clone()
        back[apart] = len(self.kept) + torch.arange(len(apart), device=back.device)
        return Distinct(torch.cat([self.kept, apart]), back)

    def once(self, values: Tensor) -> Tensor:
        """[M, ...] of values [N, ...]."""
        return values if self._is_all else values.index_select(0, self.kept)

    def each(self, values: Tensor) -> Tensor:
        """[N, ...] of values [M, ...]; their gradients are added up."""
        return values if self._is_all else values.index_select(0, self.back)

    @property
    def _is_all(self) -> bool:
        return len(self.kept) == len(self.back)


def _first(runs: Sequence[Run], count: int) -> tuple[Run, ...]:
    """The first `count` places of runs."""
    kept: list[Run] = []
    for start, end in runs:
        if count <= 0:
            break
        kept.append((start, min(end, start + count)))
        count -= end - start
    return tuple(kept)


def shared_lengths(rows: Sequence[Sequence[int]]) -> list[int]:
    """How many first tokens each row but the first has in common with the one before it."""
    found = []
    for before, row in pairwise(rows):
        both = enumerate(zip(before, row, strict=False))
        found.append(next((i for i, (a, b) in both if a != b), min(len(before), len(row))))
    return found
