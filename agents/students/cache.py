"""A key-value cache whose rows have lengths of their own.

transformers' caches hold one length for a batch. Here every conversation has a place, a stretch of
a buffer that it fills at its own pace: `RowCache.aim` says which places a forward pass reads, and
where its new states go. Rows can be copied, moved, taken out and put back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

States = list[list[Tensor]]
"""What a cache holds of one row: of each layer keys and values [heads, length, head_dim]."""

_STEP = 64
"""Positions are reserved in multiples of this."""


class _Aim:
    """What the next forward pass touches; shared by all layers."""

    def __init__(self) -> None:
        self.places = 0
        """That there are buffers for."""
        self.capacity = 0
        """Positions of each."""
        self.rows: slice | Tensor = slice(0)
        """Places that are read."""
        self.used = 0
        """Positions that are read of each."""
        self.targets_in = self.positions = torch.zeros(0)
        """Places [rows, 1, 1 or tokens] and positions in them [rows, 1, tokens] of new states."""
        self._targets: dict[int, Tensor] = {}

    def set(self, rows: slice | Tensor, used: int, places: Tensor, positions: Tensor) -> None:
        """Aim at something else."""
        self.rows, self.used, self.targets_in, self.positions = rows, used, places, positions
        self._targets.clear()

    def targets(self, heads: int) -> Tensor:
        """Where new states go [rows x heads x tokens], of all places' heads in one line."""
        if heads not in self._targets:
            head = torch.arange(heads, device=self.targets_in.device)[:, None]
            lines = (self.targets_in * heads + head) * self.capacity
            self._targets[heads] = (lines + self.positions).flatten()
        return self._targets[heads]


class RowLayer(DynamicLayer):
    """One layer: buffers of keys and values [places, heads, capacity, head_dim].

    A head's positions lie side by side: attention on a CPU takes half the time that way.
    """

    def __init__(self, aim: _Aim) -> None:
        """Reserve nothing: shapes are known with the first states."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._aim = aim
        self.buffers: list[Tensor] = []
        """Of keys, and of values."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate buffers in the shape of the first states [rows, heads, tokens, head_dim]."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.hold([key_states[0], value_states[0]])

    def hold(self, like: Sequence[Tensor]) -> None:
        """Allocate buffers for states such as these, keys and values [heads, length, head_dim]."""
        places, capacity = self._aim.places, self._aim.capacity
        # Zeros, not what lay in memory: what is masked still meets a weight of 0, and NaN stays.
        self.buffers = [t.new_zeros(places, t.shape[0], capacity, t.shape[2]) for t in like]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write states where the aim says; returns what its rows hold, new states included."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        aim = self._aim
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            targets = aim.targets(states.shape[1])
            buffer.flatten(0, 2).index_copy_(0, targets, states.flatten(0, 2))
        keys, values = self.buffers
        return keys[aim.rows, :, : aim.used], values[aim.rows, :, : aim.used]

    def get_seq_length(self) -> int:
        """None for all rows; masks and positions are given to the model."""
        return 0


class RowCache(Cache):
    """Rows of conversations, each of its own length: see the module's docstring."""

    def __init__(self, layers: int, device: torch.device) -> None:
        """An empty cache of `layers` layers."""
        self._aim = _Aim()
        self._layers = [RowLayer(self._aim) for _ in range(layers)]
        super().__init__(layers=[*self._layers])
        self._device = device

    @property
    def places(self) -> int:
        """How many rows there is room for."""
        return self._aim.places

    def reserve(self, places: int, length: int) -> None:
        """See that there are so many places for rows of this length."""
        aim = self._aim
        if places <= aim.places and length <= aim.capacity:
            return
        if length > aim.capacity:  # by more than is asked for, since growing copies everything
            wanted = max(length, 3 * aim.capacity // 2)
            aim.capacity = -(-wanted // _STEP) * _STEP
        aim.places = max(places, aim.places)
        for layer in self._layers:
            layer.buffers = [self._grown(buffer) for buffer in layer.buffers]

    def _grown(self, buffer: Tensor) -> Tensor:
        places, (heads, length, dim) = len(buffer), buffer.shape[1:]
        grown = buffer.new_empty(self._aim.places, heads, self._aim.capacity, dim)
        grown[:places, :, :length] = buffer
        # Zeros, not what lay in memory: what is masked still meets a weight of 0, and NaN stays.
        grown[:places, :, length:] = grown[places:] = 0
        return grown

    def stretch(self, places: Sequence[int]) -> slice | Tensor:
        """Places as buffers are indexed: neighbours are read where they lie, others are copied."""
        first, beyond = places[0], places[0] + len(places)
        if list(places) == list(range(first, beyond)):
            return slice(first, beyond)
        return torch.tensor(places, device=self._device)

    def aim(self, rows: slice | Tensor, used: int, places: Tensor, positions: Tensor) -> None:
        """Say what the next forward pass is about; there must be room for it.

        Args:
            rows: What is read, as `stretch` gives it.
            used: Positions to read of each row.
            places: Of the new states, [rows, 1] or [rows, tokens].
            positions: Of the new states in their places, [rows, tokens].
        """
        self._aim.set(rows, used, places[:, None], positions[:, None])

    def move(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy the first positions of places to other places, all at once."""
        chosen = torch.tensor(sources, device=self._device)
        given = torch.tensor(targets, device=self._device)
        for layer in self._layers:
            for buffer in layer.buffers:
                buffer[given, :, :length] = buffer[chosen, :, :length]

    def taken(self, place: int, length: int) -> States:
        """A copy of a row's first positions."""
        return [[b[place, :, :length].clone() for b in layer.buffers] for layer in self._layers]

    def put(self, place: int, states: States, length: int) -> None:
        """Write the first positions of what was taken out of a cache of the same model."""
        for layer, pair in zip(self._layers, states, strict=True):
            if pair and not layer.is_initialized:  # some layers use the states of others
                layer.hold(pair)
            for buffer, part in zip(layer.buffers, pair, strict=True):
                buffer[place, :, :length] = part[:, :length]
