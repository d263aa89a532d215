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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from journeyman.agents.errors import DivergedError, UnsupportedModelError
from journeyman.agents.networks.catalogue import resolve
from journeyman.agents.search.searches import Rule
from journeyman.agents.students.cache import growing_cache
from journeyman.agents.students.dialect import ChatFormat, ToolRender
from journeyman.agents.students.player import Request, Stream, Student, Turn, TurnLimits
from journeyman.agents.teachers.local import LocalTeacher


class HFPolicy(TurnLimits):
    """Samples turns from a causal language model."""

    def __init__(
        self,
        model: PreTrainedModel,
        format: ChatFormat,
        temperature: float = 1.0,
        max_turn_tokens: int = 128,
        max_context: int | None = None,
        search: Rule | None = None,
    ) -> None:
        """Wrap a model; the model is not copied, so training it changes the policy.

        Args:
            model: A decoder-only model with full attention in every layer.
            format: Its chat format; this and the others are those of `TurnLimits`.
            temperature: Of its dice.
            max_turn_tokens: Of a turn.
            max_context: Of a token stream.
            search: For `journeyman eval`.

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
        super().__init__(
            positions, named, format, temperature, max_turn_tokens, max_context, search
        )
        self.model = model

    def open(self, requests: Sequence[Request]) -> Stream:
        """Start a batch of conversations."""
        return HFStream(self, requests)

    def at(self, temperature: float) -> HFPolicy:
        """The same model at another temperature."""
        return alike(self, self.model, temperature)


def _layer_kinds(config: PretrainedConfig) -> set[str]:
    """What a model's layers do; older configurations name one window for all layers."""
    if kinds := getattr(config, "layer_types", None):
        return set(kinds)
    window = getattr(config, "sliding_window", None)
    return {"full_attention" if window is None else "sliding_attention"}


class _Row:
    """One conversation's place in the lockstep."""

    def __init__(self, index: int, request: Request) -> None:
        self.index = index
        self.pending: deque[int] = deque(request.tokens)
        """Tokens to feed before the row writes again; none while it writes."""
        self.dice = _dice(request.seed)
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


def _dice(seed: int) -> Iterator[float]:
    """Numbers in [0, 1) without end; asked for one by one, numpy takes longer for each."""
    generator = np.random.Generator(np.random.Philox(seed))
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

    def __init__(self, policy: HFPolicy, requests: Sequence[Request]) -> None:
        """Queue the opening prompts."""
        self._policy = policy
        self._model = policy.model
        self._device = policy.model.device
        self._rows = [_Row(i, r) for i, r in enumerate(requests)]
        self._live = list(self._rows)
        """The rows of the model's batch, in its order."""
        self._places: _Places | None = None
        """Of `_live`; None after a change."""
        config = policy.model.config.get_text_config()
        self._cache = growing_cache(config.num_hidden_layers)
        self._mask = torch.ones(len(requests), 0, dtype=torch.bool, device=self._device)
        self._positions = torch.zeros(len(requests), dtype=torch.long, device=self._device)
        self._offsets = torch.arange(int(config.max_position_embeddings), device=self._device)
        self._gaps = False

    @property
    def idle(self) -> bool:
        """True if every row waits or is done."""
        return all(row.waiting or row.done for row in self._live)

    def extend(self, row: int, tokens: Sequence[int]) -> None:
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
        tokens, logprobs = sample(chosen, self._policy.temperature, uniforms)
        eos, limit = self._policy.format.eos_id, self._policy.max_turn_tokens
        turns = []
        for (_, row), token, logprob in zip(
            writing, tokens.tolist(), logprobs.tolist(), strict=True
        ):
            if math.isnan(logprob):
                raise DivergedError
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if token == eos:
                turns.append(row.take_turn())
            elif len(row.tokens) >= limit:
                turns.append(row.take_turn(forced=eos))
        if turns:
            self._places = None
        return turns


def sample(logits: Tensor, temperature: float, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverse transform.

    Args:
        logits: [B, V].
        temperature: 0 takes the most probable token.
        uniforms: [B], in [0, 1); the only source of chance.

    Returns:
        Tokens [B] and their log-probabilities at temperature 1 [B], NaN where logits are not
        finite.
    """
    logprobs = logits.log_softmax(-1)
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        cumulative = (logits / temperature).softmax(-1).cumsum(-1)
        # Scaled by the sum, which rounding keeps from being 1; and below it, which rounding of the
        # dice to 1 would not be: a token past the end of the probability has none itself.
        total = cumulative[:, -1:]
        threshold = (uniforms[:, None] * total).minimum(total.nextafter(torch.zeros_like(total)))
        # NaN compares with nothing and would be found past the end.
        last = logits.shape[1] - 1
        tokens = torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=last)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def load_model(name: str, dtype: str = "float32", device: str | None = None) -> PreTrainedModel:
    """A causal language model by name (see `journeyman.agents.networks.catalogue`).

    Raises:
        ModelNotFoundError: No such model here; the message says how to get it.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(resolve(name), dtype=getattr(torch, dtype))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def alike(student: Student, model: PreTrainedModel, temperature: float = 1.0) -> HFPolicy:
    """Another model that plays as a student does: in its format and within its limits."""
    return HFPolicy(
        model, student.format, temperature, student.max_turn_tokens, student.max_context
    )


def load_policy(
    model: str,
    render: ToolRender = "full",
    max_turn_tokens: int = 128,
    max_context: int | None = None,
    temperature: float = 1.0,
    dtype: str = "float32",
    device: str | None = None,
    search: Rule | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> HFPolicy:
    """A student by model name; `temperature` is that of the episodes it is trained on.

    `render` and `template_kwargs` are those of its `ChatFormat`.

    Raises:
        ModelNotFoundError: No such model here.
    """
    loaded = load_model(model, dtype, device)
    format = ChatFormat(AutoTokenizer.from_pretrained(resolve(model)), render, template_kwargs)
    return HFPolicy(loaded, format, temperature, max_turn_tokens, max_context, search)


def load_teacher(
    model: str, batch_size: int = 16, dtype: str = "float32", device: str | None = None
) -> LocalTeacher:
    """A teacher by model name.

    Raises:
        ModelNotFoundError: No such model here.
    """
    loaded = load_model(model, dtype, device)
    return LocalTeacher(loaded, AutoTokenizer.from_pretrained(resolve(model)), batch_size)
