"""The in-process student: a transformers model that writes many conversations side by side.

All rows of a batch advance in lockstep, one token a tick. A row that writes samples its next token;
a row that has been answered is fed the answer's tokens; a row that waits for its tools is fed a
gap, which the attention mask hides. So the cache lives from an episode's first token to its last,
nothing is computed twice, and no row waits for another's turn to end.
"""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from journeyman.agents.errors import DivergedError, UnsupportedModelError
from journeyman.agents.networks.adapters import begin
from journeyman.agents.networks.loading import load_model, load_tokenizer
from journeyman.agents.students.cache import growing_cache
from journeyman.agents.students.dialect import Dialect, ToolRender, dialect_of
from journeyman.agents.students.player import (
    Conversation,
    ModelPlayer,
    Sampling,
    Stream,
    Trainable,
    Turn,
    end_ids,
    longest_turn,
    stop_of,
    turn_limit,
)
from journeyman.agents.students.settings import NAMES, recall
from journeyman.envs import Message


class HFPlayer(ModelPlayer):
    """Samples turns from a causal language model."""

    def __init__(
        self,
        model: PreTrainedModel,
        dialect: Dialect,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        max_context: int | None = None,
    ) -> None:
        """Wrap a model; the model is not copied, so training it changes the player.

        Args:
            model: A decoder-only model with full attention in every layer.
            dialect: Its family's.
            sampling: Its dice.
            max_context: Longest token stream; None takes the model's own limit.

        Raises:
            UnsupportedModelError: A layer has a sliding window or a recurrent state; or a turn
                would fill the model's whole context.
        """
        config = model.config.get_text_config()
        kinds = _layer_kinds(config)
        if kinds != {"full_attention"}:
            raise UnsupportedModelError(
                f"playing in this process needs full attention in every layer, this model "
                f"({config.model_type}) has {', '.join(sorted(kinds))}; vLLM can play it, as a "
                f"student: student=vllm"
            )
        positions = int(config.max_position_embeddings)
        named = "the model's max_position_embeddings"
        super().__init__(positions, named, dialect, sampling, max_context)
        self.model = model
        self.end_ids = (*dialect.end_ids, *end_ids(getattr(model, "generation_config", None)))
        """Tokens of which any ends a turn."""

    def open(self, conversations: Sequence[Conversation]) -> Stream:
        """Start a batch of conversations."""
        return HFStream(self, conversations)

    def at(self, **changes: Any) -> HFPlayer:
        """The same model with other sampling."""
        return HFPlayer(self.model, self.dialect, self.changed(changes), self.max_context)


def _layer_kinds(config: PretrainedConfig) -> set[str]:
    """What a model's layers do; older configurations name one window for all layers."""
    if kinds := getattr(config, "layer_types", None):
        return set(kinds)
    window = getattr(config, "sliding_window", None)
    return {"full_attention" if window is None else "sliding_attention"}


class _Row:
    """One conversation's place in the lockstep."""

    def __init__(self, index: int, conversation: Conversation, seed: int) -> None:
        self.index = index
        self.pending: deque[int] = deque(conversation.tokens)
        """Tokens to feed before the row writes again; none while it writes."""
        self.dice = _dice(conversation.seed, seed)
        self.tokens: list[int] = []
        """Written so far in this turn; the last is fed next."""
        self.logprobs: list[float] = []
        self.waiting = False
        """True from the end of a turn until the environment has answered."""
        self.done = False

    def take_turn(self, forced: int | None = None) -> Turn:
        """End the turn, if need be with a token that was not chosen."""
        last = self.tokens[-1:]
        if forced is not None:
            last.append(forced)
            self.tokens.append(forced)
            self.logprobs.append(0.0)
        turn = Turn(self.index, tuple(self.tokens), tuple(self.logprobs), forced is not None)
        self.pending.extend(last)
        self.tokens, self.logprobs, self.waiting = [], [], True
        return turn


def _dice(seed: int, other: int) -> Iterator[float]:
    """Numbers in [0, 1) without end; asked for one by one, numpy takes longer for each.

    Args:
        seed: The conversation's.
        other: `Sampling.seed`.
    """
    # What is 0 comes first: behind the rest it would not count.
    key = np.random.SeedSequence((seed, other)) if other else seed
    generator = np.random.Generator(np.random.Philox(key))
    while True:
        yield from generator.random(64).tolist()


class _Places(NamedTuple):
    """Who does what in the model's batch: nothing changes while all go on writing."""

    feeding: list[tuple[int, _Row]]
    writing: list[tuple[int, _Row]]
    active: Tensor
    """[B, 1] which rows are either."""

    @classmethod
    def of(cls, live: Sequence[_Row], device: torch.device) -> _Places:
        active = [not (row.waiting or row.done) for row in live]
        rows = [(i, row) for i, row in enumerate(live) if active[i]]
        feeding = [(i, row) for i, row in rows if row.pending]
        writing = [(i, row) for i, row in rows if not row.pending]
        return cls(feeding, writing, torch.tensor(active, device=device)[:, None])


class HFStream:
    """A batch of conversations in progress; see the module's docstring."""

    def __init__(self, player: HFPlayer, conversations: Sequence[Conversation]) -> None:
        """Queue the opening prompts."""
        self._player = player
        self._model = player.model
        self._device = player.model.device
        seed = player.sampling.seed
        self._rows = [_Row(i, it, seed) for i, it in enumerate(conversations)]
        self._live = list(self._rows)
        """The rows of the model's batch, in its order."""
        self._places: _Places | None = None
        """Of `_live`; None after a change."""
        config = player.model.config.get_text_config()
        self._cache = growing_cache(config.num_hidden_layers)
        self._mask = torch.ones(len(conversations), 0, dtype=torch.bool, device=self._device)
        self._positions = torch.zeros(len(conversations), dtype=torch.long, device=self._device)
        self._offsets = torch.arange(int(config.max_position_embeddings), device=self._device)
        self._gaps = False

    @property
    def idle(self) -> bool:
        """True if every row waits or is done."""
        return all(row.waiting or row.done for row in self._live)

    def extend(self, row: int, tokens: Sequence[int], messages: Sequence[Message] = ()) -> None:
        """Feed the environment's answer."""
        self._rows[row].pending.extend(tokens)
        self._rows[row].waiting = False
        self._places = None

    def finish(self, row: int) -> None:
        """Drop a row; the batch shrinks once half of it is gone: shrinking copies the cache."""
        self._rows[row].done = True
        self._places = None
        keep = [i for i, r in enumerate(self._live) if not r.done]
        if keep and len(keep) <= len(self._live) // 2:
            indices = torch.tensor(keep, device=self._device)
            self._cache.batch_select_indices(indices)
            self._mask, self._positions = self._mask[indices], self._positions[indices]
            self._live = [self._live[i] for i in keep]

    @torch.inference_mode()
    def advance(self) -> list[Turn]:
        """One tick: one forward pass over the batch, one token (or one shared chunk) a row."""
        places = self._places = self._places or _Places.of(self._live, self._device)
        if not (places.feeding or places.writing):
            return []
        logits = self._forward(*self._inputs(places))
        writing = places.writing
        if any(not row.pending for _, row in places.feeding):
            self._places = None
            rows = sorted(places.feeding + writing, key=operator.itemgetter(0))
            writing = [(i, row) for i, row in rows if not row.pending]
        return self._sample(logits, writing)

    def _inputs(self, places: _Places) -> tuple[Tensor, Tensor]:
        """The next tokens [B, K] and which are real [B, K]; K > 1 only if no row samples."""
        width = 1 if places.writing else min(len(row.pending) for _, row in places.feeding)
        ids = [[0] * width for _ in self._live]
        for i, row in places.feeding:
            ids[i] = [row.pending.popleft() for _ in range(width)]
        for i, row in places.writing:
            ids[i] = row.tokens[-1:]
        return torch.tensor(ids, device=self._device), places.active.expand(-1, width)

    def _forward(self, ids: Tensor, real: Tensor) -> Tensor:
        """Logits [B, V] after the last of the fed tokens."""
        positions = self._positions[:, None] + self._offsets[: ids.shape[1]]
        self._positions = self._positions + real.sum(1)
        self._mask = torch.cat([self._mask, real], dim=1)
        # Without a gap before a live row, plain causal attention is right, and faster.
        self._gaps = self._gaps or any(r.waiting for r in self._live)
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask if self._gaps else None,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _sample(self, logits: Tensor, writing: Sequence[tuple[int, _Row]]) -> list[Turn]:
        """The rows that write get a token each; returns the turns that ended."""
        if not writing:
            return []
        if len(writing) < len(self._live):
            rows = torch.tensor([i for i, _ in writing], device=self._device)
            logits = logits.index_select(0, rows)
        chosen = logits.float()
        uniforms = torch.tensor(
            [next(row.dice) for _, row in writing], device=self._device, dtype=chosen.dtype
        )
        sampling, dialect = self._player.sampling, self._player.dialect
        ends = self._player.end_ids
        tokens, logprobs = sample(chosen, sampling, uniforms)
        turns = []
        for (_, row), token, logprob in zip(
            writing, tokens.tolist(), logprobs.tolist(), strict=True
        ):
            if math.isnan(logprob):
                raise DivergedError
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if token in ends:
                turns.append(row.take_turn())
            elif len(row.tokens) >= sampling.max_tokens or (
                sampling.stops and stop_of(dialect.decode(row.tokens), sampling.stops)
            ):
                turns.append(row.take_turn(forced=dialect.eos_id))
        if turns:
            self._places = None
        return turns


_COLDEST = 1e-6
"""Below it the most probable token is taken: what is divided by less may not be finite."""
_HOTTEST = 1e38
"""Above it all tokens are alike: float32 has no such number, and what is impossible divided by
infinity is none."""


def sample(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverse transform.

    Args:
        logits: [B, V].
        sampling: The dice.
        uniforms: [B], in [0, 1); the only source of chance.

    Returns:
        Tokens [B] and their log-probabilities at temperature 1 [B], NaN where logits are not
        finite.
    """
    logprobs = logits.log_softmax(-1)
    if sampling.temperature < _COLDEST:
        tokens = logits.argmax(-1)
    else:
        chances = (logits / min(sampling.temperature, _HOTTEST)).softmax(-1)
        if sampling.truncated:
            chances = _truncated(chances, sampling)
        cumulative = chances.cumsum(-1)
        # Scaled by the sum, which rounding keeps from being 1; and below it, which rounding of the
        # dice to 1 would not be: a token past the end of the probability has none itself.
        total = cumulative[:, -1:]
        threshold = (uniforms[:, None] * total).minimum(total.nextafter(torch.zeros_like(total)))
        # NaN compares with nothing and would be found past the end.
        last = logits.shape[1] - 1
        tokens = torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=last)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _truncated(chances: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities [B, V] with 0 for tokens that may not be drawn; the first is always kept.

    In the order of transformers: top_k, then top_p of what is left, then min_p. vLLM begins with
    min_p, which makes a difference beside top_p only.
    """
    ranked, order = chances.sort(stable=True, dim=-1, descending=True)
    places = torch.arange(ranked.shape[1], device=ranked.device)
    kept = places < (sampling.top_k or ranked.shape[1])
    ranked = ranked * kept
    mass = ranked / ranked.sum(-1, keepdim=True)
    # A token counts while those before it do not yet hold the share, which float32 may round to 0.
    ranked = ranked * (((mass.cumsum(-1) - mass) < sampling.top_p) | (places == 0))
    ranked = ranked * (ranked >= sampling.min_p * ranked[:, :1])
    return torch.zeros_like(chances).scatter(-1, order, ranked)


def alike(student: Trainable, model: PreTrainedModel) -> HFPlayer:
    """Another model that plays as a student does: in its dialect and within its limits."""
    return HFPlayer(model, student.dialect, student.sampling, student.max_context)


def load_student(
    model: str,
    dialect: str | None = None,
    render: ToolRender | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    max_turn_tokens: int | None = None,
    max_context: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    stops: Sequence[str] = (),
    dtype: str | None = None,
    device: str | None = None,
    model_config: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | bool | None = None,
    quantization: Mapping[str, Any] | None = None,
) -> HFPlayer:
    """A student by model name; what is None is as it was trained, if it was trained here.

    With `lora`, or where `model` is an adapter, the student's `model` is a `peft.PeftModel` with
    one adapter, "default", of which alone parameters require gradients and are saved: its
    `get_base_model()` is the base with the adapter's layers in it. Trainers take it as it is.

    Args:
        model: Its name (see `journeyman.agents.networks.catalogue`).
        dialect: Its family; None asks the chat template.
        render: How the prompt shows the tools; None is in full where the chat template shows tools.
        template_kwargs: For the chat template.
        max_turn_tokens: Of a turn; None is a quarter of the model's context, 2,048 at most.
        max_context: Longest token stream; None takes the model's own limit.
        temperature: Of the episodes it is trained on; this and the next are those of `Sampling`.
        top_p: See `Sampling`.
        top_k: See `Sampling`.
        min_p: See `Sampling`.
        stops: See `Sampling`.
        dtype: Of the weights; None keeps the type they are saved in.
        device: Such as "cuda:1"; None takes a GPU if there is one.
        model_config: Values of the model's config to be changed, such as `attention_dropout`.
        lora: Begins an adapter, which alone is trained: fields of `peft.LoraConfig`, see `begin`.
        quantization: See `load_model`.

    Raises:
        ModelNotFoundError: No such model here.
        MissingExtraError: An adapter needs PEFT, and it is not installed.
        SettingError: A value is out of its range.
        DialectError: The chat template cannot carry an episode.
    """
    sampling = Sampling(temperature, top_p, top_k, min_p, stops=stops)
    own = (dialect, render, template_kwargs, max_turn_tokens, max_context)
    ways = recall(model, dict(zip(NAMES, own, strict=True)))
    dialect, render, template_kwargs, max_turn_tokens, max_context = ways.values()
    if max_turn_tokens is not None:
        sampling = turn_limit(sampling, max_turn_tokens)
    loaded = load_model(model, dtype, device, model_config, quantization, trainable=True)
    if lora or lora == {}:
        loaded = begin(loaded, lora)
    tokenizer = load_tokenizer(model)
    ends = end_ids(loaded.generation_config)
    spoken = dialect_of(tokenizer, dialect, render, template_kwargs, ends)
    if max_turn_tokens is None:
        longest = int(loaded.config.get_text_config().max_position_embeddings)
        sampling = replace(sampling, max_tokens=longest_turn(longest))
    return HFPlayer(loaded, spoken, sampling, max_context)
