"""What was read before is not read again: prefixes of conversations, and their states.

Rows of one task begin with one prompt, and a search plays on from places inside conversations that
it has just played. `PrefixIndex` finds who began with the same tokens; `PrefixStore` keeps states
from one batch to the next, as long as the weights are what they were.
"""

from __future__ import annotations

import bisect
import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from journeyman.agents.students.cache import States

LEAST_SHARED = 16
"""Tokens below which to share is not worth a copy."""
STORE_BYTES = 256 << 20
"""Of states kept between batches; those not used for longest go first."""

Tokens = tuple[int, ...]
T = TypeVar("T")


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows of one type begin with in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # slices are compared faster than items
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class PrefixIndex(Generic[T]):
    """Owners by their tokens, in order of the tokens: who shares most with a row is beside it."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._tokens: list[Tokens] = []
        self._owners: list[T] = []

    def add(self, tokens: Tokens, owner: T) -> None:
        """Take in an owner, behind those of the same tokens."""
        place = bisect.bisect_right(self._tokens, tokens)
        self._tokens.insert(place, tokens)
        self._owners.insert(place, owner)

    def discard(self, tokens: Tokens, owner: T) -> None:
        """Forget an owner, if it was added with these tokens."""
        place = bisect.bisect_left(self._tokens, tokens)
        while place < len(self._tokens) and self._tokens[place] == tokens:
            if self._owners[place] is owner:
                del self._tokens[place], self._owners[place]
                return
            place += 1

    def best(self, tokens: Tokens) -> tuple[T, int] | None:
        """Who begins with most of these tokens, and with how many; None if too few for use."""
        place = bisect.bisect_right(self._tokens, tokens)
        found: tuple[T, int] | None = None
        for i in range(max(0, place - 1), min(place + 1, len(self._tokens))):
            count = shared(self._tokens[i], tokens)
            if count >= LEAST_SHARED and (found is None or count > found[1]):
                found = self._owners[i], count
        return found


class _Kept(NamedTuple):
    """States of one row."""

    tokens: Tokens
    states: States
    size: int
    """In bytes."""


class PrefixStore:
    """States of rows that were played, until the weights change."""

    def __init__(self, model: PreTrainedModel, limit: int = STORE_BYTES) -> None:
        """Keep at most `limit` bytes of a model's states."""
        self._model = model
        self._limit = limit
        self._of: object = None
        """The weights that the states are of."""
        self._size = 0
        self._index = PrefixIndex[_Kept]()
        self._kept: OrderedDict[Tokens, _Kept] = OrderedDict()
        """The one not used for longest first."""

    def __reduce__(self) -> tuple[type[PrefixStore], tuple[PreTrainedModel, int]]:
        """What is pickled leaves the states behind: another process reads anew."""
        return PrefixStore, (self._model, self._limit)

    def __len__(self) -> int:
        """How many rows are kept."""
        return len(self._kept)

    @property
    def size(self) -> int:
        """Bytes of what is kept."""
        return self._size

    def check(self) -> None:
        """Forget everything if the weights have changed: to be called before a batch begins."""
        now = (marks(self._model), contents(self._model))
        if now != self._of:
            self.clear()
            self._of = now

    def clear(self) -> None:
        """Forget everything."""
        self._index, self._size = PrefixIndex(), 0
        self._kept.clear()

    def keep(self, tokens: Tokens, states: States) -> None:
        """Keep a row's states; what it goes on from is in it and need not be kept as well."""
        size = sum(t.numel() * t.element_size() for pair in states for t in pair)
        if tokens in self._kept or size > self._limit:
            return
        while self._size + size > self._limit:
            self._drop(next(iter(self._kept.values())))
        kept = _Kept(tokens, states, size)
        self._kept[tokens] = kept
        self._index.add(tokens, kept)
        self._size += size

    def _drop(self, kept: _Kept) -> None:
        del self._kept[kept.tokens]
        self._index.discard(kept.tokens, kept)
        self._size -= kept.size

    def best(self, tokens: Tokens) -> tuple[States, int] | None:
        """States of a row that begins with most of these tokens, and how many those are."""
        found = self._index.best(tokens)
        if found is None:
            return None
        kept, count = found
        self._kept.move_to_end(kept.tokens)
        return kept.states, count


def marks(model: PreTrainedModel) -> object:
    """What differs, at almost no cost, between most states of a model: equal if nothing changed.

    Assignments, `load_state_dict` and most optimisers change it, and so do adapters (of `peft`)
    that are put in, scaled, merged or switched off. Fused optimisers and writes through `.data` do
    not: see `contents`.
    """
    weights = [
        (id(t), t.data_ptr(), None if t.is_inference() else t._version) for t in _weights(model)
    ]
    adapters = [
        (str(layer.scaling), layer.disable_adapters, layer.active_adapters, layer.merged_adapters)
        for layer in model.modules()
        if hasattr(layer, "merged_adapters")
    ]
    return weights, copy.deepcopy(adapters)


def contents(model: PreTrainedModel) -> list[int]:
    """A sum of each weight's bits, which takes about as long as reading a token."""
    return sums_of_bits([t for t in _weights(model) if t.numel()])


def sums_of_bits(tensors: Sequence[Tensor]) -> list[int]:
    """A number each, which tells a tensor from what it becomes; every device is asked once."""
    by_device: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(i)
    found = [0] * len(tensors)
    for places in by_device.values():
        sums = [_bits(tensors[i].detach()).sum(dtype=torch.long) for i in places]
        for i, total in zip(places, torch.stack(sums).tolist(), strict=True):
            found[i] = total
    return found


def _weights(model: PreTrainedModel) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _bits(values: Tensor) -> Tensor:
    """Numbers as integers of the same width, whatever they stand for: no rounding, no NaN."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return values.view(kinds[values.element_size()])
