"""What is said in an episode and how it is recorded."""

from __future__ import annotations

import base64
import sys
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import groupby
from typing import Any, Literal

from journeyman.envs.shortfall import Shortfall
from journeyman.tools import CallStatus, ToolCall, ToolResult, ToolSpec

Role = Literal["system", "user", "assistant", "tool"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Level = Literal["easy", "medium", "hard"]
LEVELS: tuple[Level, ...] = ("easy", "medium", "hard")


def level_of(task_id: str) -> Level:
    """The level of a task by its id, "<split>/<level>/<number>"; the first goes without saying."""
    named = task_id.partition("/")[2].partition("/")[0]
    return next((level for level in LEVELS if level == named), LEVELS[0])


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, in the roles chat templates know."""

    role: Role
    content: str
    name: str | None = None
    """The tool that speaks, for role "tool"."""

    def as_dict(self) -> dict[str, str]:
        """The form chat templates take."""
        message = {"role": self.role, "content": self.content}
        return message if self.name is None else message | {"name": self.name}


@dataclass(frozen=True, slots=True)
class AssistantTurn:
    """An assistant's turn as whoever read it understood it: its calls, or else its answer."""

    text: str
    """As it was written."""
    calls: tuple[ToolCall, ...] = ()
    """Every attempted call, malformed ones too."""
    answer: str = ""
    """What it says outside its reasoning; counts where it makes no call."""


class StopReason(StrEnum):
    """Why an episode ended."""

    ANSWERED = "answered"
    """The student spoke without calling a tool: its final answer."""
    MAX_TURNS = "max_turns"
    """The environment's turn limit (Gymnasium's truncation)."""
    CONTEXT_FULL = "context_full"
    """The token stream reached the policy's context length."""
    INFRA_ERROR = "infra_error"
    """The environment or a tool broke; masked from training and averages."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a turn cost, as the server that wrote it counts; None where it does not say."""

    prompt: int | None = None
    """Tokens that it read."""
    completion: int | None = None
    """Tokens that it wrote, reasoning included."""
    cost: float | None = None
    """Money, where prices are known."""


@dataclass(frozen=True, slots=True)
class Step:
    """One student turn and what the environment made of it."""

    span: tuple[int, int]
    """Half-open range of the turn in the episode's token stream, end-of-turn token included."""
    text: str
    """The turn's text without the end-of-turn token."""
    results: tuple[ToolResult, ...] = ()
    """One per attempted call, in order."""
    parts: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    """Token ranges by kind: "call" (one per call), "answer" (text outside calls), "stop"."""
    truncated: bool = False
    """True if the turn hit its token limit, so that its end token was forced, not chosen."""
    reply: tuple[Message, ...] = ()
    """What the environment said to it: tool results, or the user's next words."""
    answer: str | None = None
    """What it says outside its reasoning, if it makes no call and that is not all of its text."""
    usage: Usage | None = None
    """What it cost, where a server wrote it."""

    @property
    def said(self) -> str:
        """What it says outside its reasoning."""
        return self.text if self.answer is None else self.answer

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `reply` is left out if it only repeats the results."""
        step: dict[str, Any] = {
            "span": list(self.span),
            "text": self.text,
            "calls": [_result_to_dict(r) for r in self.results],
            "parts": {kind: [list(s) for s in spans] for kind, spans in self.parts.items()},
        }
        if self.truncated:
            step["truncated"] = True
        if self.reply != _spoken(self.results):
            step["reply"] = [m.as_dict() for m in self.reply]
        if self.answer is not None and self.answer != self.text:
            step["answer"] = self.answer
        if self.usage is not None:
            step["usage"] = asdict(self.usage)
        return step

    @classmethod
    def from_dict(cls, step: Mapping[str, Any]) -> Step:
        """Read what `to_dict` wrote."""
        results = tuple(map(_result_from_dict, step["calls"]))
        reply = step.get("reply")
        return cls(
            _span(step["span"]),
            step["text"],
            results,
            {kind: tuple(map(_span, spans)) for kind, spans in step["parts"].items()},
            step.get("truncated", False),
            _spoken(results) if reply is None else tuple(Message(**m) for m in reply),
            step.get("answer"),
            Usage(**step["usage"]) if step.get("usage") is not None else None,
        )


@dataclass(frozen=True, slots=True)
class BranchPoint:
    """A place to go on from."""

    snapshot: Any
    """`ToolEnv.snapshot()`."""
    state_hash: str
    """`ToolEnv.state_hash()`."""


@dataclass(frozen=True)
class Episode:
    """One token stream: prompt, student turns and tool results in order, never re-tokenised."""

    env_id: str
    task_id: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each token under the policy that sampled it; 0.0 where `mask` is False."""
    mask: tuple[bool, ...]
    """True on tokens the student chose: the only tokens a loss may touch."""
    steps: tuple[Step, ...]
    stop: StopReason
    reward: float = 0.0
    success: bool = False
    state_hash: str = ""
    error: str | None = None
    """What broke, when `stop` is `INFRA_ERROR`; or how the player's server said that it is full."""
    first_step: int = 0
    """Index of the first step that was played here; those before belong to the episode it was
    forked from, and their tokens are masked."""
    branch_points: tuple[BranchPoint, ...] = field(default=(), repr=False, compare=False)
    """Before each step (one that broke too), if the rollout kept them."""
    opening: tuple[Message, ...] = ()
    """What the environment said before the first turn."""
    tools: tuple[ToolSpec, ...] = field(default=(), repr=False, compare=False)
    """What there was to call, for whoever tells the conversation anew; not on disk."""
    seed: int = field(default=0, compare=False)
    """Of the student's dice."""
    version: int | None = field(default=None, compare=False)
    """Optimiser steps that the weights which played it had taken; None where nobody counts."""
    score: float | None = field(default=None, compare=False)
    """Partial credit, 0 to 1 (`ToolEnv.score`); None where nobody asked, as of a broken episode."""
    gold: tuple[tuple[ToolCall, ...], ...] | None = field(default=None, repr=False, compare=False)
    """The task's gold calls, of each user turn; one that its tool is to refuse has status
    TOOL_ERROR. None where nobody looked."""
    shortfall: Shortfall | None = field(default=None, repr=False, compare=False)
    """What it lacks, if it was played from its start and failed."""

    def __post_init__(self) -> None:
        """Check that per-token fields have one entry a token."""
        if not len(self.tokens) == len(self.logprobs) == len(self.mask):
            raise ValueError(
                f"episode {self.task_id}: {len(self.tokens)} tokens, {len(self.logprobs)} logprobs "
                f"and {len(self.mask)} mask entries; they must be as many"
            )

    @property
    def chosen(self) -> int:
        """How many tokens the student chose."""
        return sum(self.mask)

    @property
    def calls(self) -> tuple[ToolResult, ...]:
        """All attempted calls in order."""
        return tuple(result for step in self.steps for result in step.results)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation as text."""
        return said(self.opening, self.steps)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; branch points, which are states of a running program, are left out.

        Text stays legible. Numbers of every token are packed (base64 of deflated little-endian
        32-bit values), so `logprobs` are rounded to float32, and `mask` is its ranges of True.
        """
        told = {
            "weights_version": self.version,
            "score": self.score,
            "gold": None
            if self.gold is None
            else [[_gold_to_dict(c) for c in t] for t in self.gold],
            "shortfall": None if self.shortfall is None else self.shortfall.to_dict(),
        }
        return {
            "env_id": self.env_id,
            "task_id": self.task_id,
            "seed": self.seed,
            "success": self.success,
            "reward": self.reward,
            "stop": self.stop.value,
            "error": self.error,
            "opening": [m.as_dict() for m in self.opening],
            "steps": [step.to_dict() for step in self.steps],
            "first_step": self.first_step,
            "state_hash": self.state_hash,
            **self.packed(),
            **{name: value for name, value in told.items() if value is not None},
        }

    def packed(self) -> Mapping[str, Any]:
        """The numbers of every token in their JSON-able form."""
        return {
            "mask": _ranges(self.mask),
            "tokens": pack("I", self.tokens),
            "logprobs": pack("f", self.logprobs),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Episode:
        """Read what `to_dict` wrote; other keys are passed over.

        Raises:
            KeyError: A key is missing.
            ValueError: A value is none that `to_dict` writes.
        """
        tokens = tuple(unpack("I", data["tokens"]))
        mask = [False] * len(tokens)
        for start, end in data["mask"]:
            if not 0 <= start <= end <= len(mask):
                raise ValueError(f"mask {start}..{end} of an episode of {len(mask)} tokens")
            mask[start:end] = [True] * (end - start)
        gold, lacks = data.get("gold"), data.get("shortfall")
        return cls(
            env_id=data["env_id"],
            task_id=data["task_id"],
            tokens=tokens,
            logprobs=tuple(unpack("f", data["logprobs"])),
            mask=tuple(mask),
            steps=tuple(map(Step.from_dict, data["steps"])),
            stop=StopReason(data["stop"]),
            reward=data["reward"],
            success=data["success"],
            state_hash=data["state_hash"],
            error=data["error"],
            first_step=data["first_step"],
            opening=tuple(Message(**m) for m in data["opening"]),
            seed=data["seed"],
            version=data.get("weights_version"),
            score=data.get("score"),
            gold=None if gold is None else tuple(tuple(map(_gold_from_dict, t)) for t in gold),
            shortfall=None if lacks is None else Shortfall.from_dict(lacks),
        )


def said(opening: Sequence[Message], steps: Iterable[Step]) -> tuple[Message, ...]:
    """A conversation as text: what the environment said first, then turns and what came of them."""
    turns = ((Message("assistant", step.text), *step.reply) for step in steps)
    return (*opening, *(message for turn in turns for message in turn))


def _spoken(results: Iterable[ToolResult]) -> tuple[Message, ...]:
    """Tool results as messages, the way `ToolEnv.step` says them."""
    return tuple(Message("tool", r.content, r.call.name or None) for r in results)


def _result_to_dict(result: ToolResult) -> dict[str, Any]:
    call = result.call
    data: dict[str, Any] = {
        "name": call.name,
        "arguments": dict(call.arguments),
        "status": call.status.value,
        "content": result.content,
        "seconds": round(result.latency_s, 6),
    }
    optional = {"error": call.error, "span": call.span, "token_span": call.token_span}
    return data | {name: value for name, value in optional.items() if value is not None}


def _result_from_dict(data: Mapping[str, Any]) -> ToolResult:
    call = ToolCall(
        data["name"],
        data["arguments"],
        CallStatus(data["status"]),
        data.get("error"),
        _span(data["span"]) if "span" in data else None,
        _span(data["token_span"]) if "token_span" in data else None,
    )
    return ToolResult(call, data["content"], data["seconds"])


def _gold_to_dict(call: ToolCall) -> dict[str, Any]:
    data: dict[str, Any] = {"name": call.name, "arguments": dict(call.arguments)}
    return data | {"refused": True} if call.status is CallStatus.TOOL_ERROR else data


def _gold_from_dict(data: Mapping[str, Any]) -> ToolCall:
    call = ToolCall(data["name"], data["arguments"])
    return call.marked(CallStatus.TOOL_ERROR) if data.get("refused") else call


def _span(pair: Sequence[int]) -> tuple[int, int]:
    start, end = pair
    return start, end


def _ranges(mask: Sequence[bool]) -> list[list[int]]:
    """Half-open ranges of True."""
    ranges, start = [], 0
    for value, run in groupby(mask):
        end = start + sum(1 for _ in run)
        if value:
            ranges.append([start, end])
        start = end
    return ranges


def pack(code: Literal["I", "f"], values: Iterable[float]) -> str:
    """Numbers of every token as text: base64 of deflated little-endian 32-bit values."""
    packed = array(code, values)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(zlib.compress(packed.tobytes())).decode("ascii")


_MOST_PACKED = 1 << 26
"""Bytes that a few thousand must not unfold into."""


def unpack(code: Literal["I", "f"], text: str) -> list[Any]:
    """Read what `pack` wrote.

    Raises:
        ValueError: It is none.
    """
    packed: array[Any] = array(code)
    packed.frombytes(unfold(text))
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()


def unfold(text: str) -> bytes:
    """The bytes of what `pack` wrote, 4 a number.

    Raises:
        ValueError: It is none.
    """
    unfolding = zlib.decompressobj()
    try:
        data = unfolding.decompress(base64.b64decode(text), _MOST_PACKED)
    except zlib.error as error:
        raise ValueError(f"packed numbers that cannot be unpacked: {error}") from error
    if not unfolding.eof or len(data) % 4:
        raise ValueError("packed numbers that do not end")
    return data
