"""The student in vLLM: the same conversations as `journeyman.agents.students.hf`, batched there.

Each turn is one request whose prompt is the row's whole token stream; the prefix cache makes that
cheap. Tokens go in and come out: vLLM is not even given the tokenizer. The engine is in this
process (`vllm_engine.py`) or on a server (`vllm_server.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol

import numpy as np
from transformers import PreTrainedModel

from journeyman.agents.errors import (
    DivergedError,
    ParcelError,
    UnsupportedModelError,
    VocabularyMismatchError,
)
from journeyman.agents.networks.loading import load_tokenizer
from journeyman.agents.students.dialect import Dialect, ToolRender, dialect_of
from journeyman.agents.students.player import (
    Conversation,
    ModelPlayer,
    Sampling,
    Stream,
    Turn,
    longest_turn,
    turn_limit,
)
from journeyman.agents.students.settings import NAMES, recall
from journeyman.agents.students.tokenizers import end_ids_at
from journeyman.agents.students.vllm_engine import Engine
from journeyman.envs import Message


class TurnEngine(Protocol):
    """vLLM as a player sees it, wherever it runs."""

    max_length: int
    """Longest token stream, the tokens that are to be written included."""
    vocabulary: int
    """Tokens that the model tells apart."""

    @property
    def model(self) -> PreTrainedModel:
        """What trainers train; once asked for, it is what `sync` brings to the engine."""

    @property
    def weights(self) -> PreTrainedModel | str:
        """`model` if anyone has asked for it, else the folder (or hub id) of what is played."""

    def sync(self) -> None:
        """Play with the weights that `model` has now, if anyone has asked for it."""

    def rest(self) -> None:
        """Nothing is played until the next `sync`."""

    def submit(self, tokens: Sequence[int], ends: Sequence[int], **sampling: Any) -> str:
        """Ask for a turn: what is written after `tokens` up to one of `ends`; returns its id."""

    def step(self) -> None:
        """Work a little at what was asked for."""

    def take(self, request: str) -> tuple[list[int], list[float]] | None:
        """Tokens and log-probabilities of a request, once, if it has finished."""

    def abort(self, request: str) -> None:
        """Forget a request."""


class VLLMPlayer(ModelPlayer):
    """Samples turns from a causal language model in vLLM's engine."""

    def __init__(
        self,
        engine: TurnEngine,
        dialect: Dialect,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        max_context: int | None = None,
    ) -> None:
        """Wrap an engine; the other arguments are those of `ModelPlayer`.

        Raises:
            VocabularyMismatchError: The dialect's tokenizer has tokens that the model has not.
            UnsupportedModelError: A turn would fill the engine's whole context, or texts are to end
                turns, which an engine without a tokenizer cannot see.
        """
        if len(dialect.tokenizer) > engine.vocabulary:
            raise VocabularyMismatchError(
                f"the tokenizer has {len(dialect.tokenizer)} tokens, the model in the engine "
                f"{engine.vocabulary}: use the model's own tokenizer"
            )
        if sampling.stops:
            raise UnsupportedModelError(
                f"stops={list(sampling.stops)}: vLLM's engine reads tokens alone here; leave them "
                f"out, or play in this process: student=hf"
            )
        longest, named = engine.max_length, "the engine's max_model_len"
        super().__init__(longest, named, dialect, sampling, max_context)
        self.engine = engine

    def __reduce__(self) -> NoReturn:
        """It cannot be pickled.

        Raises:
            ParcelError: Saying what to use instead.
        """
        raise ParcelError(
            "vLLM's engine is brought its weights by one process, and cannot be sent to a worker: "
            "take student=hf for workers; or play here (rollouts=local), where student=vllm and "
            "student=vllm_server write many turns side by side"
        )

    @property
    def model(self) -> PreTrainedModel:
        """What trainers train; once asked for, every batch is played with its weights."""
        return self.engine.model

    @property
    def weights(self) -> PreTrainedModel | str:
        """What it plays with: `model` once asked for, else the folder it was loaded from."""
        return self.engine.weights

    def open(self, conversations: Sequence[Conversation]) -> Stream:
        """Start a batch of conversations."""
        self.engine.sync()
        return VLLMStream(self, conversations)

    def rest(self) -> None:
        """See `Engine.rest`."""
        self.engine.rest()

    def at(self, **changes: Any) -> VLLMPlayer:
        """The same engine with other sampling."""
        return VLLMPlayer(self.engine, self.dialect, self.changed(changes), self.max_context)


class VLLMStream:
    """A batch of conversations in progress."""

    def __init__(self, player: VLLMPlayer, conversations: Sequence[Conversation]) -> None:
        """Submit the opening prompts."""
        self._player = player
        self._engine = player.engine
        self._tokens: list[list[int]] = []
        self._seeds: list[int] = []
        self._turns: list[int] = []
        self._writing: dict[int, str] = {}
        """Rows that write -> their request."""
        for it in conversations:
            self.add(it)

    def add(self, conversation: Conversation) -> int:
        """Submit another opening prompt."""
        row = len(self._tokens)
        self._tokens.append(list(conversation.tokens))
        self._seeds.append(conversation.seed)
        self._turns.append(0)
        self._submit(row)
        return row

    @property
    def idle(self) -> bool:
        """True if every row waits or is done."""
        return not self._writing

    def extend(self, row: int, tokens: Sequence[int], messages: Sequence[Message] = ()) -> None:
        """Feed the environment's answer."""
        self._tokens[row] += tokens
        self._submit(row)

    def finish(self, row: int) -> None:
        """Drop a row."""
        if request := self._writing.pop(row, None):
            self._engine.abort(request)
        self._tokens[row].clear()

    def advance(self) -> list[Turn]:
        """One step of the engine."""
        if self.idle:
            return []
        self._engine.step()
        turns = []
        for row, request in list(self._writing.items()):
            if written := self._engine.take(request):
                del self._writing[row]
                turns.append(self._turn(row, *written))
        return turns

    def _submit(self, row: int) -> None:
        sampling = self._player.sampling
        other = (sampling.seed,) if sampling.seed else ()
        key = (self._seeds[row], self._turns[row], *other)  # a 0 at the end would not count
        self._turns[row] += 1
        self._writing[row] = self._engine.submit(
            self._tokens[row],
            self._player.dialect.end_ids,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_tokens,
            seed=int(np.random.SeedSequence(key).generate_state(1)[0]),
        )

    def _turn(self, row: int, tokens: list[int], logprobs: list[float]) -> Turn:
        if any(map(math.isnan, logprobs)):
            raise DivergedError
        dialect = self._player.dialect
        truncated = tokens[-1] not in dialect.end_ids
        if truncated:
            tokens, logprobs = [*tokens, dialect.eos_id], [*logprobs, 0.0]
        self._tokens[row] += tokens
        return Turn(row, tuple(tokens), tuple(logprobs), truncated)


@dataclass(frozen=True)
class Ways:
    """How a model converses, wherever it is played."""

    dialect: Dialect
    sampling: Sampling
    max_turn_tokens: int | None
    """None is for the engine to say, by what it can read."""
    max_context: int | None

    @classmethod
    def of(
        cls,
        model: str,
        sampling: Sampling,
        dialect: str | None,
        render: ToolRender | None,
        template_kwargs: Mapping[str, Any] | None,
        max_turn_tokens: int | None,
        max_context: int | None,
    ) -> Ways:
        """What is None is as the model was trained, if it was trained here; see `load_student`.

        Raises:
            ModelNotFoundError: No such model here.
            SettingError: A value is out of its range.
        """
        own = (dialect, render, template_kwargs, max_turn_tokens, max_context)
        ways = recall(model, dict(zip(NAMES, own, strict=True)))
        dialect, render, template_kwargs, max_turn_tokens, max_context = ways.values()
        if max_turn_tokens is not None:
            sampling = turn_limit(sampling, max_turn_tokens)
        spoken = dialect_of(
            load_tokenizer(model), dialect, render, template_kwargs, end_ids_at(model)
        )
        return cls(spoken, sampling, max_turn_tokens, max_context)

    def player(self, engine: TurnEngine) -> VLLMPlayer:
        """Who converses so in an engine."""
        sampling = self.sampling
        if self.max_turn_tokens is None:
            sampling = replace(sampling, max_tokens=longest_turn(engine.max_length))
        return VLLMPlayer(engine, self.dialect, sampling, self.max_context)


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
    sleep: int = 0,
    lora: Mapping[str, Any] | bool | None = None,
    engine: dict[str, Any] | None = None,
) -> VLLMPlayer:
    """A student by model name; what is not told here is as in `hf`.

    Args:
        model: Its name; an adapter's folder is played on its base.
        dialect: See `hf`; this and the next eight.
        render: See `hf`.
        template_kwargs: See `hf`.
        max_turn_tokens: See `hf`.
        max_context: See `hf`.
        temperature: See `hf`.
        top_p: See `hf`.
        top_k: See `hf`.
        min_p: See `hf`.
        sleep: What of the GPU's memory is free while the trainer works; see `Engine`.
        lora: Begins an adapter, which alone is trained and copied; see `begin`.
        engine: Arguments of `vllm.LLM`.

    Raises:
        MissingExtraError: vLLM is not installed.
        ModelNotFoundError: No such model here.
        UnsupportedModelError: vLLM does not know the model, or the context is longer than its.
    """
    sampling = Sampling(temperature, top_p, top_k, min_p)
    ways = Ways.of(model, sampling, dialect, render, template_kwargs, max_turn_tokens, max_context)
    arguments = dict(engine or {})
    if ways.max_context is not None and ways.max_turn_tokens is not None:
        # The engine's cache must hold at least one such row.
        arguments.setdefault("max_model_len", ways.max_context + ways.max_turn_tokens)
    return ways.player(Engine(model, sleep, lora, **arguments))
