"""A key-value cache for token-by-token decoding over many turns.

transformers' dynamic cache concatenates, so every token copies the whole past. This one writes into
buffers that double when full and hands out views of their used part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class GrowingLayer(DynamicLayer):
    """One layer: keys and values [batch, heads, used, head_dim], views of larger buffers."""

    def __init__(self, capacity: int = 256) -> None:
        """Reserve `capacity` positions at first use."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._capacity = capacity
        self._used = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate buffers in the shape of the first states."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._key_buffer = self._allocate(key_states)
        self._value_buffer = self._allocate(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append states; returns all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self._used + key_states.shape[-2]
        if end > self._capacity:
            self._capacity = max(2 * self._capacity, end)
            self._key_buffer = self._grown(self._key_buffer)
            self._value_buffer = self._grown(self._value_buffer)
        self._key_buffer[:, :, self._used : end] = key_states
        self._value_buffer[:, :, self._used : end] = value_states
        self._used = end
        self.keys, self.values = self._key_buffer[:, :, :end], self._value_buffer[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows of the batch."""
        if self.is_initialized:
            self._key_buffer = self._key_buffer[indices]
            self._value_buffer = self._value_buffer[indices]
            self.keys = self._key_buffer[:, :, : self._used]
            self.values = self._value_buffer[:, :, : self._used]

    def _allocate(self, like: Tensor) -> Tensor:
        batch, heads, _, dim = like.shape
        return torch.zeros(batch, heads, self._capacity, dim, dtype=self.dtype, device=self.device)

    def _grown(self, buffer: Tensor) -> Tensor:
        grown = self._allocate(buffer)
        grown[:, :, : self._used] = buffer[:, :, : self._used]
        return grown


def growing_cache(layers: int, capacity: int = 256) -> Cache:
    """A cache of `layers` growing layers.

    Only for models whose every layer attends to the whole past: the rows of a batch advance in
    lockstep, and a sliding window or a recurrent state would see the gaps.
    """
    return Cache(layers=[GrowingLayer(capacity) for _ in range(layers)])
