"""Forward passes over rows of different lengths: what `journeyman.agents.students.hf` decodes by.

Each row's tokens go behind what its place in the cache holds, and see that alone: the masks are
made here, a layer kind each, so that the model need not know of places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from journeyman.agents.errors import UnsupportedModelError
from journeyman.agents.students.cache import RowCache

FULL, SLIDING = "full_attention", "sliding_attention"
_MASKED = ("sdpa", "eager")
"""Attention of transformers that takes a mask of its own for every row."""


def _grouped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As "sdpa" of transformers; heads that share keys and values read them where they lie.

    Theirs copies keys and values for each head where there is a mask: in every layer, for every
    token. Here the heads of a group are rows of one head.

    Args:
        module: The layer's.
        query: [rows, heads, tokens, size].
        key: [rows, fewer heads, positions, size], as the values.
        value: What is looked for.
        attention_mask: [rows, 1, tokens, positions], or one a head.
        others: `scaling`, and what the layer tells other kinds of attention.
    """
    heads, tokens = query.shape[1:3]
    group = heads // key.shape[1]
    plain = not _DECODING.get() or group == 1 or tokens > _FEW
    if plain or attention_mask is None or attention_mask.shape[1] != 1 or "position_bias" in others:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **others)
    rows = query.unflatten(1, (-1, group)).flatten(2, 3)
    mask = attention_mask if tokens == 1 else attention_mask.repeat(1, 1, group, 1)
    states = nn.functional.scaled_dot_product_attention(
        rows, key, value, attn_mask=mask, scale=others.get("scaling")
    )
    return states.unflatten(2, (group, tokens)).flatten(1, 2).transpose(1, 2).contiguous(), None


_FEW = 128
"""Tokens a row; of more the copy costs less than heads in rows do."""
_DECODING: ContextVar[bool] = ContextVar("_DECODING", default=False)
# Under its own name, since some models ask for that; anything but decoding attends as ever.
AttentionInterface.register("sdpa", _grouped)


@contextmanager
def _decoding() -> Iterator[None]:
    token = _DECODING.set(True)
    try:
        yield
    finally:
        _DECODING.reset(token)


def can_look_ahead(config: PretrainedConfig) -> bool:
    """Whether a position says by itself how a token is turned, or the longest of the pass does."""
    told = getattr(config, "rope_parameters", None) or {}
    kinds = [told, *(it for it in told.values() if isinstance(it, dict))]  # one for all, or more
    return all(it.get("rope_type") not in ("dynamic", "longrope") for it in kinds)


def check_decodable(model: PreTrainedModel) -> None:
    """See that a model can be played by rows of different lengths.

    Raises:
        UnsupportedModelError: A layer does not attend by a mask: it has a recurrent state, say; or
            the attention is computed by a kernel that takes no masks.
    """
    config = model.config.get_text_config()
    others = layer_kinds(config) - {FULL, SLIDING}
    if others:
        raise UnsupportedModelError(
            f"playing in this process needs attention in every layer, in full or in a sliding "
            f"window; this model ({config.model_type}) has {', '.join(sorted(others))}; vLLM can "
            f"play it, as a student: student=vllm"
        )
    kernel = config._attn_implementation
    if kernel not in _MASKED:
        raise UnsupportedModelError(
            f"playing in this process needs attention that takes a mask, this model's is "
            f"{kernel!r}; expected {' or '.join(_MASKED)}: "
            f"student.model_config.attn_implementation=sdpa"
        )


def layer_kinds(config: PretrainedConfig) -> set[str]:
    """What a model's layers do; older configurations name one window for all layers."""
    if kinds := getattr(config, "layer_types", None):
        return set(kinds)
    return {FULL if getattr(config, "sliding_window", None) is None else SLIDING}


class Decoder:
    """A model and the cache of its rows."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Begin with an empty cache."""
        config = model.config.get_text_config()
        self.device: torch.device = model.device
        if self.device.type == "cuda":
            # cuDNN plans anew for every length, which takes longer than all the rest.
            torch.backends.cuda.enable_cudnn_sdp(False)
        self._model = model
        self._config = config
        self._kinds = layer_kinds(config)
        self._window = int(getattr(config, "sliding_window", None) or 0)
        self._last = int(config.max_position_embeddings) - 1
        self.cache = RowCache(config.num_hidden_layers, self.device)
        self._offsets = torch.arange(0, device=self.device)

    def read(
        self,
        places: Sequence[int],
        starts: Sequence[int],
        tokens: Sequence[Sequence[int]],
        each: bool = False,
    ) -> Tensor:
        """Put tokens behind what rows hold.

        Args:
            places: In the cache, one a row.
            starts: What each holds: its length so far.
            tokens: At least one a row; rows may differ in number.
            each: All rows have as many tokens, and logits are asked for after each.

        Returns:
            Logits [rows, V] after the last token of each row; or [rows, tokens, V].
        """
        counts = [len(row) for row in tokens]
        width = max(counts)
        used = max(starts) + width
        self.cache.reserve(self.cache.places, used)
        if used > len(self._offsets):
            self._offsets = torch.arange(2 * used, device=self.device)
        even = min(counts) == width
        # What fills short rows up lies behind them, where nobody looks and the next tokens go.
        ids = tokens if even else [[*row, *(0,) * (width - len(row))] for row in tokens]
        positions = self._offsets[:width] + torch.tensor(starts, device=self.device)[:, None]
        self.cache.aim(places, positions, used)
        ends = sorted({count - 1 for count in counts})
        kept = 0 if each else 1 if even else torch.tensor(ends, device=self.device)
        with _decoding():
            output = self._model(
                input_ids=torch.tensor(ids, device=self.device),
                attention_mask=self._masks(positions, used),
                position_ids=positions if used <= self._last else positions.clamp(max=self._last),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=kept,
            )
        logits: Tensor = output.logits
        if each:
            return logits
        if even:
            return logits[:, -1]
        columns = [ends.index(count - 1) for count in counts]
        return logits[range(len(columns)), columns]

    def _masks(self, positions: Tensor, used: int) -> Tensor | dict[str, Tensor]:
        """Who sees what [rows, 1, tokens, used]; of models with several kinds of layers, by kind.

        Models whose layers are all of one kind take the mask itself, and some of them nothing else.
        """
        places, seen = self._offsets[:used], positions[:, None, :, None]
        masks = {FULL: places <= seen}
        if SLIDING in self._kinds:
            masks[SLIDING] = masks[FULL] & (places > seen - self._window)
        if self._config._attn_implementation == "eager":  # adds masks to scores
            masks = {kind: self._added(mask) for kind, mask in masks.items()}
        return masks if len(self._kinds) > 1 else masks[next(iter(self._kinds))]

    def _added(self, mask: Tensor) -> Tensor:
        dtype = self._model.dtype
        zeros = torch.zeros_like(mask, dtype=dtype)
        return zeros.masked_fill(~mask, torch.finfo(dtype).min)
