"""The student in vLLM: the same conversations as `journeyman.agents.students.hf`, batched there.

Each turn is one request whose prompt is the row's whole token stream; the prefix cache makes that
cheap. Tokens go in and come out: vLLM is not even given the tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedModel

from journeyman.agents.errors import DivergedError, VocabularyMismatchError
from journeyman.agents.networks.catalogue import resolve
from journeyman.agents.search.searches import Rule
from journeyman.agents.students.dialect import ChatFormat, ToolRender
from journeyman.agents.students.player import Request, Stream, Turn, TurnLimits
from journeyman.agents.students.vllm_engine import Engine


class VLLMPolicy(TurnLimits):
    """Samples turns from a causal language model in vLLM's engine."""

    def __init__(
        self,
        engine: Engine,
        format: ChatFormat,
        temperature: float = 1.0,
        max_turn_tokens: int = 128,
        max_context: int | None = None,
        search: Rule | None = None,
    ) -> None:
        """Wrap an engine; the other arguments are those of `TurnLimits`.

        Raises:
            VocabularyMismatchError: The format's tokenizer has tokens that the model has not.
            UnsupportedModelError: A turn would fill the engine's whole context.
        """
        if len(format.tokenizer) > engine.vocabulary:
            raise VocabularyMismatchError(
                f"the tokenizer has {len(format.tokenizer)} tokens, the model in the engine "
                f"{engine.vocabulary}: use the model's own tokenizer"
            )
        longest, named = engine.max_length, "the engine's max_model_len"
        super().__init__(longest, named, format, temperature, max_turn_tokens, max_context, search)
        self.engine = engine

    @property
    def model(self) -> PreTrainedModel:
        """What trainers train; once asked for, every batch is played with its weights."""
        return self.engine.model

    def open(self, requests: Sequence[Request]) -> Stream:
        """Start a batch of conversations."""
        self.engine.sync()
        return VLLMStream(self, requests)

    def at(self, temperature: float) -> VLLMPolicy:
        """The same engine at another temperature."""
        return VLLMPolicy(
            self.engine, self.format, temperature, self.max_turn_tokens, self.max_context
        )


class VLLMStream:
    """A batch of conversations in progress."""

    def __init__(self, policy: VLLMPolicy, requests: Sequence[Request]) -> None:
        """Submit the opening prompts."""
        self._policy = policy
        self._engine = policy.engine
        self._tokens = [list(request.tokens) for request in requests]
        self._seeds = [request.seed for request in requests]
        self._turns = [0] * len(requests)
        self._writing: dict[int, str] = {}
        """Rows that write -> their request."""
        for row in range(len(requests)):
            self._submit(row)

    @property
    def idle(self) -> bool:
        """True if every row waits or is done."""
        return not self._writing

    def extend(self, row: int, tokens: Sequence[int]) -> None:
        """Feed the environment's answer."""
        self._tokens[row] += tokens
        self._submit(row)

    def finish(self, row: int) -> None:
        """Drop a row."""
        if request := self._writing.pop(row, None):
            self._engine.abort(request)

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
        key = np.random.SeedSequence((self._seeds[row], self._turns[row]))
        self._turns[row] += 1
        self._writing[row] = self._engine.submit(
            self._tokens[row],
            self._policy.format.eos_id,
            temperature=self._policy.temperature,
            max_tokens=self._policy.max_turn_tokens,
            seed=int(key.generate_state(1)[0]),
        )

    def _turn(self, row: int, tokens: list[int], logprobs: list[float]) -> Turn:
        if any(map(math.isnan, logprobs)):
            raise DivergedError
        end = self._policy.format.eos_id
        truncated = tokens[-1] != end
        if truncated:
            tokens, logprobs = [*tokens, end], [*logprobs, 0.0]
        self._tokens[row] += tokens
        return Turn(row, tuple(tokens), tuple(logprobs), truncated)


def load_policy(
    model: str,
    render: ToolRender = "full",
    max_turn_tokens: int = 128,
    max_context: int | None = None,
    temperature: float = 1.0,
    search: Rule | None = None,
    engine: dict[str, Any] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> VLLMPolicy:
    """A student by model name; `engine` holds arguments of `vllm.LLM`, the others are as in `hf`.

    Raises:
        MissingExtraError: vLLM is not installed.
        ModelNotFoundError: No such model here.
        UnsupportedModelError: vLLM does not know the model, or the context is longer than its.
    """
    format = ChatFormat(AutoTokenizer.from_pretrained(resolve(model)), render, template_kwargs)
    arguments = dict(engine or {})
    if max_context is not None:  # the engine's cache must hold at least one such row
        arguments.setdefault("max_model_len", max_context + max_turn_tokens)
    return VLLMPolicy(
        Engine(model, **arguments), format, temperature, max_turn_tokens, max_context, search
    )
