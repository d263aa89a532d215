"""Forward passes over rows of different lengths: what `journeyman.agents.students.hf` decodes by.

Each row's tokens go behind what its place in the cache holds, and see that alone: the masks are
made here, a layer kind each, so that the model need not know of places. Rows of very different
numbers of tokens share a pass: all their tokens stand in one line, and attention takes it apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from journeyman.agents.errors import UnsupportedModelError
from journeyman.agents.students.cache import RowCache

FULL, SLIDING = "full_attention", "sliding_attention"
_MASKED = ("sdpa", "eager")
"""Attention of transformers that takes a mask of its own for every row."""


class Part(NamedTuple):
    """Some rows of a pass, of about one length: short ones are filled up."""

    places: Sequence[int]
    """In the cache."""
    starts: Sequence[int]
    """What each holds: its length so far."""
    tokens: Sequence[Sequence[int]]
    """To go behind that, at least one a row."""
    asked: Sequence[int]
    """Behind how many of them, the last ones, logits are asked for."""

    @property
    def width(self) -> int:
        """Tokens a row, filling included."""
        return max(map(len, self.tokens))

    def columns(self, row: int) -> range:
        """Where logits are asked for."""
        count = len(self.tokens[row])
        return range(count - self.asked[row], count)


class _Laid(NamedTuple):
    """A part as tensors."""

    ids: list[list[int]]
    positions: Tensor
    """[rows, tokens]."""
    used: int
    """Positions that are looked at."""
    rows: slice | Tensor
    """Places, as buffers are indexed."""
    masks: dict[str, Tensor]
    """Who sees what [rows, 1, tokens, used], by kind of layer."""


class _Joint:
    """A pass of several parts, whose tokens stand in one line; each part attends by itself."""

    def __init__(self, parts: Sequence[_Laid], device: torch.device) -> None:
        self.parts = parts
        self.masks = {kind: torch.ones(1, 1, 1, 1, device=device) for kind in parts[0].masks}
        """Stand in for masks; by them a layer's kind is known."""
        self.met = 0
        """Layers that have attended."""

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """As `_attend`, of all parts.

        Args:
            module: The layer's.
            query: [1, heads, tokens of all parts, size].
            key: Of all places [places, fewer heads, positions, size], as the values.
            value: What is looked for.
            attention_mask: What stands in for it, see `masks`.
            others: As there.

        Raises:
            _ApartError: It is another mask.
        """
        kind = next((kind for kind, it in self.masks.items() if it is attention_mask), None)
        if kind is None:
            raise _ApartError
        self.met += 1
        found, begin = list[Tensor](), 0
        for part in self.parts:
            rows, width = part.positions.shape
            own = query[0, :, begin : begin + rows * width].unflatten(1, (rows, width))
            keys, values = (states[part.rows, :, : part.used] for states in (key, value))
            mask = part.masks[kind]
            states, _ = _grouped(module, own.transpose(0, 1), keys, values, mask, **others)
            found.append(states.flatten(0, 1))
            begin += rows * width
        return torch.cat(found)[None], None


class _ApartError(Exception):
    """A layer makes something of its mask before it attends; it never leaves `Decoder`."""


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As "sdpa" of transformers; but see `_grouped` and `_Joint`.

    Args:
        module: The layer's.
        query: [rows, heads, tokens, size].
        key: [rows, fewer heads, positions, size], as the values.
        value: What is looked for.
        attention_mask: [rows, 1, tokens, positions], or one a head.
        others: `scaling`, and what the layer tells other kinds of attention.
    """
    decoding = _DECODING.get()
    way = decoding.attend if isinstance(decoding, _Joint) else _grouped if decoding else None
    return (way or sdpa_attention_forward)(module, query, key, value, attention_mask, **others)


def _grouped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The same; heads that share keys and values read them where they lie.

    transformers' copies keys and values for each head where there is a mask: in every layer, for
    every token. Here the heads of a group are rows of one head.
    """
    heads, tokens = query.shape[1:3]
    group = heads // key.shape[1]
    plain = group == 1 or tokens > _FEW
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
_DECODING: ContextVar[_Joint | bool] = ContextVar("_DECODING", default=False)
# Under its own name, since some models ask for that; anything but decoding attends as ever.
AttentionInterface.register("sdpa", _attend)


@contextmanager
def _decoding(how: _Joint | bool = True) -> Iterator[None]:
    token = _DECODING.set(how)
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
        registered = bool(getattr(model, "_supports_attention_backend", False))
        attends_here = registered and config._attn_implementation == "sdpa"
        self.joins = attends_here and can_look_ahead(config)
        """Whether a pass may have several parts, as far as is known yet."""
        self.cache = RowCache(config.num_hidden_layers, self.device)
        self._offsets = torch.arange(0, device=self.device)

    def read(self, parts: Sequence[Part]) -> Tensor:
        """Put tokens behind what rows hold: in one pass, if the model's layers can be told so.

        Args:
            parts: At least one; no row is in two of them. There are places for all (`reserve`).

        Returns:
            The logits that were asked for, [asked, V]: part by part, row by row.
        """
        used = max(max(part.starts) + part.width for part in parts)
        self.cache.reserve(self.cache.places, used)
        if used > len(self._offsets):
            self._offsets = torch.arange(2 * used, device=self.device)
        if len(parts) > 1 and self.joins:
            logits = self._joint(parts)
            if logits is not None:
                return logits
            self.joins = False  # what that pass has written is written over
        return torch.cat([self._apart(part) for part in parts])

    def _joint(self, parts: Sequence[Part]) -> Tensor | None:
        """Several parts in one pass; None if the model does not attend as it is told to."""
        laid = [self._laid(part) for part in parts]
        joint = _Joint(laid, self.device)
        places, asked, begin = list[int](), list[int](), 0
        for part in parts:
            for row, place in enumerate(part.places):
                places += [place] * part.width
                asked += [begin + column for column in part.columns(row)]
                begin += part.width
        ids = [token for it in laid for row in it.ids for token in row]
        positions = torch.cat([it.positions.flatten() for it in laid])[None]
        used = max(it.used for it in laid)
        targets, kept = (torch.tensor(it, device=self.device) for it in (places, asked or [0]))
        self.cache.aim(slice(self.cache.places), used, targets[None], positions)
        try:
            with _decoding(joint):
                logits = self._forward([ids], positions, joint.masks, kept)
        except _ApartError:
            return None
        except Exception:  # such as of shapes: layers that attend by themselves see all places
            if joint.met:
                raise
            return None
        return logits[0, : len(asked)] if joint.met else None

    def _apart(self, part: Part) -> Tensor:
        """A part in a pass of its own."""
        laid = self._laid(part)
        places = torch.tensor(part.places, device=self.device)
        self.cache.aim(laid.rows, laid.used, places[:, None], laid.positions)
        rows = range(len(part.tokens))
        columns = sorted({column for row in rows for column in part.columns(row)}) or [0]
        if columns[-1] - columns[0] == len(columns) - 1 == part.width - 1 - columns[0]:
            kept: int | Tensor = len(columns)
        else:
            kept = torch.tensor(columns, device=self.device)
        with _decoding():
            logits = self._forward(laid.ids, laid.positions, laid.masks, kept)
        at = {column: i for i, column in enumerate(columns)}
        asked = [row * len(at) + at[column] for row in rows for column in part.columns(row)]
        return logits.flatten(0, 1)[asked]

    def _laid(self, part: Part) -> _Laid:
        width, starts = part.width, torch.tensor(part.starts, device=self.device)
        positions = self._offsets[:width] + starts[:, None]
        used = max(part.starts) + width
        # What fills short rows up lies behind them, where nobody looks and the next tokens go.
        ids = [[*row, *(0,) * (width - len(row))] for row in part.tokens]
        return _Laid(
            ids, positions, used, self.cache.stretch(part.places), self._masks(positions, used)
        )

    def _forward(
        self,
        ids: list[list[int]],
        positions: Tensor,
        masks: dict[str, Tensor],
        kept: int | Tensor,
    ) -> Tensor:
        # Models whose layers are all of one kind take the mask itself, and some of them no more.
        output = self._model(
            input_ids=torch.tensor(ids, device=self.device),
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=positions.clamp(max=self._last),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=kept,
        )
        logits: Tensor = output.logits
        return logits

    def _masks(self, positions: Tensor, used: int) -> dict[str, Tensor]:
        """Who sees what [rows, 1, tokens, used], by kind of layer."""
        places, seen = self._offsets[:used], positions[:, None, :, None]
        masks = {FULL: places <= seen}
        if SLIDING in self._kinds:
            masks[SLIDING] = masks[FULL] & (places > seen - self._window)
        if self._config._attn_implementation == "eager":  # adds masks to scores
            masks = {kind: self._added(mask) for kind, mask in masks.items()}
        return masks if len(self._kinds) > 1 else {kind: masks[kind] for kind in self._kinds}

    def _added(self, mask: Tensor) -> Tensor:
        dtype = self._model.dtype
        zeros = torch.zeros_like(mask, dtype=dtype)
        return zeros.masked_fill(~mask, torch.finfo(dtype).min)
