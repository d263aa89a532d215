"""What is said in an episode and how it is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from journeyman.tools import ToolResult

Role = Literal["system", "user", "assistant", "tool"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Level = Literal["easy", "medium", "hard"]
LEVELS: tuple[Level, ...] = ("easy", "medium", "hard")


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
    """What broke, when `stop` is `INFRA_ERROR`."""
    first_step: int = 0
    """Index of the first step that was played here; those before belong to the episode it was
    forked from, and their tokens are masked."""
    branch_points: tuple[BranchPoint, ...] = field(default=(), repr=False, compare=False)
    """Before each step (one that broke too), if the rollout kept them."""

    def __post_init__(self) -> None:
        """Check that per-token fields have one entry a token."""
        if not len(self.tokens) == len(self.logprobs) == len(self.mask):
            raise ValueError(
                f"episode {self.task_id}: {len(self.tokens)} tokens, {len(self.logprobs)} logprobs "
                f"and {len(self.mask)} mask entries; they must be as many"
            )

    @property
    def calls(self) -> tuple[ToolResult, ...]:
        """All attempted calls in order."""
        return tuple(result for step in self.steps for result in step.results)
