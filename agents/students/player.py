"""What plays: the protocol between the rollout loop and a student.

A policy opens a `Stream` over a batch of conversations. The loop advances the stream, gets finished
turns, plays them in the environments and feeds the answers back as tokens. A turn of one row may
finish, and its tools run, while the other rows go on writing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from journeyman.agents.errors import UnsupportedModelError
from journeyman.agents.students.dialect import ChatFormat
from journeyman.envs import ToolEnv

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from journeyman.agents.search.searches import Rule


@dataclass(frozen=True, slots=True)
class Turn:
    """One finished student turn."""

    row: int
    """Index of the conversation in the batch."""
    tokens: tuple[int, ...]
    """Sampled tokens, end-of-turn token included."""
    logprobs: tuple[float, ...]
    """Log-probability of each token under the sampling distribution at temperature 1."""
    truncated: bool = False
    """The turn hit its token limit; its last token is a forced end of turn."""


@dataclass(frozen=True, slots=True)
class Request:
    """One conversation to play."""

    tokens: tuple[int, ...]
    """The opening prompt."""
    seed: int
    """Seeds the sampling of this row alone, whatever else is in the batch."""
    env: ToolEnv
    """The environment, for policies that read the task's solution (the oracle)."""


class Stream(Protocol):
    """A batch of conversations in progress."""

    def advance(self) -> list[Turn]:
        """Work a little; returns the turns that got finished (often none)."""

    def extend(self, row: int, tokens: Sequence[int]) -> None:
        """Feed the environment's answer to a row's last turn; the row writes its next turn."""

    def finish(self, row: int) -> None:
        """The row's episode is over."""

    @property
    def idle(self) -> bool:
        """True if no row has anything to do until `extend` is called."""


class Policy(Protocol):
    """A student."""

    format: ChatFormat
    """Renders its conversations."""
    max_context: int
    """Longest token stream of an episode."""

    def open(self, requests: Sequence[Request]) -> Stream:
        """Start a batch of conversations."""


class Student(Policy, Protocol):
    """A policy with a model of its own: what is evaluated and trained (`conf/student`)."""

    temperature: float
    """Of its dice; 0 takes the most probable token."""
    max_turn_tokens: int
    """A turn that gets longer is ended by force."""
    search: Rule | None
    """How `journeyman eval` is to choose turns; see `SearchPolicy`."""

    @property
    def model(self) -> PreTrainedModel:
        """What trainers train; what is played has its weights."""

    def at(self, temperature: float) -> Student:
        """The same model at another temperature."""


class TurnLimits:
    """What every `Student` is told, and the limits that its turns must keep."""

    def __init__(
        self,
        longest: int,
        named: str,
        format: ChatFormat,
        temperature: float = 1.0,
        max_turn_tokens: int = 128,
        max_context: int | None = None,
        search: Rule | None = None,
    ) -> None:
        """Check the limits.

        Args:
            longest: Token stream that the model can read.
            named: What calls it so, for errors.
            format: The model's chat format.
            temperature: 0 takes the most probable token.
            max_turn_tokens: A turn that gets longer is ended by force.
            max_context: Longest token stream; by default the model's own limit.
            search: How `journeyman eval` is to choose turns: None samples them, else see
                `SearchPolicy`.

        Raises:
            UnsupportedModelError: A turn would fill the model's whole context, or no turn has room.
        """
        # A turn that starts within the limit must also end within the model's.
        limit = longest - max_turn_tokens
        if max_turn_tokens < 1 or limit < 1:
            raise UnsupportedModelError(
                f"max_turn_tokens={max_turn_tokens}: expected at least 1, and less than {named}="
                f"{longest}"
            )
        if max_context is not None and max_context < 1:
            raise UnsupportedModelError(f"max_context={max_context}: expected at least 1, or null")
        self.format = format
        self.temperature = temperature
        self.max_turn_tokens = max_turn_tokens
        self.max_context = min(max_context or limit, limit)
        self.search = search
