"""Rows of different lengths through a model without much padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

LEAST_FILL = 0.75
"""A row goes with longer ones only if it fills this share of their length."""


def similar_lengths(lengths: Sequence[int], most: int | None = None) -> Iterator[list[int]]:
    """Cut rows into groups of similar length: padded to its longest row, a group wastes little.

    Episodes of one batch differ several times over in length; padding all of them to the longest
    would triple the work. The groups are few, since each is at least a quarter shorter than the one
    before it.

    Args:
        lengths: Of the rows.
        most: Rows of a group at most.

    Yields:
        Indices of rows, the longest first; each row once.
    """
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        full = most is not None and len(group) == most
        if group and (full or lengths[row] < LEAST_FILL * lengths[group[0]]):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def right_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask (1 on tokens, 0 on padding), both [B, T], of rows of at most T tokens."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, device=device)
        mask[i, : len(row)] = 1
    return ids, mask
