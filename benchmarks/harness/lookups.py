"""Conversations of look-ups that are said in advance, whoever plays them: speed of equal work.

A conversation is a number: it says how long each result is, and what the student writes in each
turn. Players draw from logits in which the next token of the script stands out, so that the model
runs in full for every token and all of them sample the same.
"""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor
from transformers import AutoTokenizer, LogitsProcessor

from journeyman.agents.networks.catalogue import resolve
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students import hf
from journeyman.agents.students.dialect import Dialect, dialect_of
from journeyman.agents.students.player import Sampling
from journeyman.envs import Task, ToolEnv, register
from journeyman.envs.types import Level, Split
from journeyman.tools import ToolCall, tool

TEMPLATE = """\
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + (m.content or '') }}
{%- if loop.first and tools %}{{- '\nTools:' }}
{%- for t in tools %}{{- ' ' + t.function.name }}{%- endfor %}{%- endif %}
{%- for c in m.tool_calls or [] %}{{- '<tool_call>\n' + (c.function | tojson) + '\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
"""The embedded student's, with calls in the form that TRL keeps them in."""
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}
"""How transformers reads what is written in it, for TRL."""
WORDS = (
    "account",
    "order",
    "transfer",
    "balance",
    "ticket",
    "mail",
    "file",
    "table",
    "the",
    "of",
    "is",
)
_OUTSTANDING = 1e4
"""Logit of the script's token: no other has a chance."""
NAP = 0.05
"""Seconds that the tools sleep of those that do."""


def spoken() -> Dialect:
    """The embedded student's dialect, in a template that TRL takes too."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("embedded-student"))
    tokenizer.chat_template, tokenizer.response_template = TEMPLATE, RESPONSE
    return dialect_of(tokenizer, "hermes", "full")


@functools.cache
def _lengths() -> dict[str, int]:
    """Tokens of each word after a space."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("embedded-student"))
    return {word: len(tokenizer.encode(f" {word}")) for word in WORDS}


def _words(rng: random.Random, tokens: int) -> str:
    """Words of about so many tokens of the embedded vocabulary."""
    said: list[str] = []
    while tokens > 0:
        said.append(rng.choice(WORDS))
        tokens -= _lengths()[said[-1]]
    return " ".join(said)


State = tuple[int, int, int, float]
"""The conversation's number, tokens of a mean result, look-ups so far, seconds that one takes."""


def look_up(state: State, key: str) -> tuple[State, str]:  # noqa: D417 - no model sees it
    """Look something up.

    Args:
        key: What to look up.
    """
    number, mean, done, nap = state
    if nap:
        time.sleep(nap)
    rng = random.Random(number * 1000 + done)
    return (number, mean, done + 1, nap), _words(rng, round(mean * rng.uniform(0.5, 1.5)))


class LookUps(ToolEnv):
    """One thing after the other is looked up."""

    toolset = (tool(look_up),)
    mean = 50
    nap = 0.0

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """A conversation of its own number."""
        number = rng.randrange(10**9)
        prompt = f"Look up {number} and what it leads to."
        return Task("", "look-ups", prompt, (number, cls.mean, 0, cls.nap), (), None)


def lookups(mean: int, nap: float = 0.0) -> str:
    """Register the look-ups whose results have so many tokens, half as many more or less.

    Args:
        mean: Tokens of a result.
        nap: Seconds that a tool sleeps.

    Returns:
        The environment's id.
    """
    name = f"LookUps{mean}{'Asleep' if nap else ''}"
    body = {"mean": mean, "nap": nap, "waits": bool(nap), "__doc__": LookUps.__doc__}
    register(f"rollout/{name}-v0", type(name, (LookUps,), body))
    return f"rollout/{name}-v0"


def tasks(env_id: str, first: int, count: int) -> list[TaskRef]:
    """Conversations by their numbers, which are their seeds too."""
    return [TaskRef(env_id, f"train/{i}", seed=i) for i in range(first, first + count)]


@functools.cache
def _turns(dialect: Dialect, turns: int, seed: int) -> list[list[int]]:
    """See `Script.of`; known by the time that a clock runs."""
    rng = random.Random(seed)
    said = [
        dialect.write_call(ToolCall("look_up", {"key": _words(rng, rng.randrange(1, 12))}))
        for _ in range(turns - 1)
    ]
    return [list(dialect.turn(text)) for text in (*said, "Answer: done")]


@dataclass(frozen=True)
class Script:
    """What is said in each turn of every conversation."""

    dialect: Dialect
    turns: int = 8

    def of(self, seed: int) -> list[list[int]]:
        """Tokens of a conversation's turns, their ends included: calls, and an answer."""
        return _turns(self.dialect, self.turns, seed)

    @contextmanager
    def dictated(self) -> Iterator[None]:
        """Students in this process say it: a conversation's dice show its tokens, one by one."""
        real = hf.sample

        def dice(seed: int, other: int) -> Iterator[float]:
            said = (float(token) for turn in self.of(seed) for token in turn)
            return itertools.chain(said, itertools.repeat(0.0))

        def sample(logits: Tensor, sampling: Sampling, shown: Tensor) -> tuple[Tensor, Tensor]:
            told = outstanding(logits, shown.long())
            return real(told, sampling, torch.full_like(shown, 0.5))

        with mock.patch.multiple(hf, sample=sample, _dice=dice):
            yield


def outstanding(logits: Tensor, tokens: Tensor) -> Tensor:
    """Logits [B, V] in which one token of each row, [B], is sure."""
    return logits.scatter(1, tokens[:, None], _OUTSTANDING)


class Dictated(LogitsProcessor):
    """The same for one call of `generate`, which tells what was said before in left-padded rows."""

    def __init__(self, turns: Sequence[Sequence[int]], start: int, end: int) -> None:
        """Say a turn in each row.

        Args:
            turns: Tokens of each row's turn.
            start: Tokens of the padded prompts.
            end: What comes after a turn.
        """
        longest = max(map(len, turns))
        rows = [[*turn, *[end] * (longest - len(turn))] for turn in turns]
        self._told = torch.tensor(rows)
        self._start = start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Logits of the next token."""
        return outstanding(scores, self._told[:, input_ids.shape[1] - self._start])


class Prompter:
    """Finds out which turn comes next from the tokens of a conversation so far."""

    def __init__(self, script: Script, openings: dict[tuple[int, ...], int]) -> None:
        """Remember the conversations.

        Args:
            script: What is said in them.
            openings: The seed of each by the tokens of its opening.
        """
        self._script = script
        self._openings = openings
        self._end = script.dialect.eos_id

    def next_turn(self, tokens: Sequence[int]) -> list[int]:
        """Tokens of the turn that comes after these."""
        ends = [i for i, token in enumerate(tokens) if token == self._end]
        # System and user, then two messages a turn; the opening ends with the turn's header.
        header = len(tokens) - ends[-1] - 1
        seed = self._openings[tuple(tokens[: ends[1] + 1 + header])]
        return self._script.of(seed)[(len(ends) - 2) // 2]
