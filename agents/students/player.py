"""What plays: the protocol between the rollout loop and a student.

A player opens a `Stream` over a batch of conversations. The loop advances the stream, gets finished
turns, plays them in the environments and feeds the answers back. A turn of one row may finish, and
its tools run, while the other rows go on writing; and where a row's episode is over, another
conversation comes in. A player that speaks text alone (an API, a
script) need not know of streams: see `journeyman.agents.students.spoken`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

from journeyman.agents.errors import (
    ContextFullError,
    LostTurnError,
    SettingError,
    UnsupportedModelError,
)
from journeyman.agents.students.dialect import Dialect
from journeyman.envs import Message, ToolEnv
from journeyman.envs.types import Usage

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a student's dice fall: everything about them but the model."""

    temperature: float = 1.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    """Only the most probable tokens that together have this share (Holtzman et al. 2020)."""
    top_k: int = 0
    """Only so many of the most probable tokens; 0 for all."""
    min_p: float = 0.0
    """Only tokens that have this share of the most probable one's chance (Nguyen et al. 2024)."""
    max_tokens: int = 128
    """Of a turn; one that gets longer is ended by force."""
    stops: Sequence[str] = ()
    """Texts that end a turn, kept in it."""
    seed: int = 0
    """Other dice for every conversation; 0 leaves each to its own seed."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            SettingError: Naming the value and what was expected.
        """
        if isinstance(self.stops, str) or not isinstance(self.stops, Sequence):
            raise SettingError(f"stops={self.stops!r}: expected a list of texts, none empty")
        object.__setattr__(self, "stops", tuple(self.stops))  # YAML gives lists
        for name in ("temperature", "top_p", "min_p"):
            value = getattr(self, name)
            if type(value) not in (int, float) or math.isnan(value):
                raise SettingError(f"{name}={value}: expected a number")
        if not 0 <= self.temperature < math.inf:
            raise SettingError(f"temperature={self.temperature}: expected a number, 0 or more")
        if not 0 < self.top_p <= 1:
            raise SettingError(f"top_p={self.top_p}: expected above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise SettingError(f"min_p={self.min_p}: expected 0 to 1")
        for name, least in (("top_k", 0), ("max_tokens", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise SettingError(f"{name}={value}: expected a whole number, {least} or more")
        if not all(isinstance(stop, str) and stop for stop in self.stops):
            raise SettingError(f"stops={list(self.stops)}: expected a list of texts, none empty")

    @property
    def truncated(self) -> bool:
        """True if some tokens that the model finds possible can never be drawn."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One finished student turn."""

    row: int
    """Number of the conversation in its stream."""
    tokens: tuple[int, ...]
    """Written tokens, end-of-turn token included."""
    logprobs: tuple[float, ...]
    """Log-probability of each token under the model at temperature 1; zeros where unknown."""
    truncated: bool = False
    """The last token, the end of the turn, was not chosen: the turn hit its token limit or one of
    the texts that stop it."""
    usage: Usage | None = None
    """What it cost, where a server wrote it."""
    failure: LostTurnError | ContextFullError | None = None
    """Why no turn was written, and the episode ends: infrastructure, or no room."""
    own: bool = True
    """False if another than the student wrote it: context, from which nothing is learned."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation to play."""

    tokens: tuple[int, ...]
    """The opening prompt."""
    seed: int
    """Seeds the sampling of this row alone, whatever else is in the batch."""
    env: ToolEnv
    """The environment, for players that read the task's solution (the oracle)."""
    messages: tuple[Message, ...] = ()
    """What the prompt says, for players that read text."""


class Stream(Protocol):
    """A batch of conversations in progress; a row has one of them, and is never used again."""

    def add(self, conversation: Conversation) -> int:
        """Start another conversation beside those in progress.

        Returns:
            Its row: rows are counted on from those that `Player.open` was given.
        """

    def advance(self) -> list[Turn]:
        """Work a little; returns the turns that got finished (often none)."""

    def extend(self, row: int, tokens: Sequence[int], messages: Sequence[Message] = ()) -> None:
        """Feed the environment's answer to a row's last turn; the row writes its next turn.

        Args:
            row: Of the conversation.
            tokens: The answer, for players that read tokens.
            messages: The same, for those that read text.
        """

    def finish(self, row: int) -> None:
        """The row's episode is over; nothing of it need be kept."""

    @property
    def idle(self) -> bool:
        """True if no row has anything to do until `extend` or `add` is called."""


class Player(Protocol):
    """Whoever takes an agent's turns."""

    dialect: Dialect
    """Renders its conversations and reads its turns."""
    max_context: int
    """Longest token stream of an episode."""

    def open(self, conversations: Sequence[Conversation]) -> Stream:
        """Start a batch of conversations."""


class Trainable(Player, Protocol):
    """A player with a model of its own: what is trained (`conf/student`)."""

    sampling: Sampling
    """Of the episodes it is trained on."""

    @property
    def model(self) -> PreTrainedModel:
        """What trainers train; what is played has its weights."""

    def at(self, **changes: Any) -> Trainable:
        """The same model with other sampling, say `at(temperature=0.0)`."""


class ModelPlayer:
    """What every player with a model in this process is told, and the limits it must keep."""

    def __init__(
        self,
        longest: int,
        named: str,
        dialect: Dialect,
        sampling: Sampling,
        max_context: int | None,
    ) -> None:
        """Check the limits.

        Args:
            longest: Token stream that the model can read.
            named: What calls it so, for errors.
            dialect: The model's.
            sampling: Its dice.
            max_context: Longest token stream; None takes the model's own limit.

        Raises:
            UnsupportedModelError: A turn would fill the model's whole context, or no turn has room.
        """
        # A turn that starts within the limit must also end within the model's.
        limit = longest - sampling.max_tokens
        if limit < 1:
            raise UnsupportedModelError(
                f"max_turn_tokens={sampling.max_tokens}: expected at least 1, and less than "
                f"{named}={longest}"
            )
        if max_context is not None and max_context < 1:
            raise UnsupportedModelError(f"max_context={max_context}: expected at least 1, or null")
        self.dialect = dialect
        self.sampling = sampling
        self.max_context = min(max_context or limit, limit)

    def rest(self) -> None:
        """Nothing is played for a while: memory may be given free until a batch is opened."""

    def remembering(self) -> Self:
        """The same, for a search: it may use what it has read in one batch in the next."""
        return self

    def changed(self, changes: dict[str, Any]) -> Sampling:
        """Its sampling with other values."""
        return replace(self.sampling, **changes)


def remembering(player: Player) -> Player:
    """The same player for one who plays on from what it has just played, as searches do."""
    return player.remembering() if isinstance(player, ModelPlayer) else player


def longest_turn(longest: int) -> int:
    """Tokens of a turn where nobody says how many.

    Args:
        longest: Token stream that the model can read.
    """
    return max(1, min(2048, longest // 4))


def turn_limit(sampling: Sampling, max_turn_tokens: int) -> Sampling:
    """Sampling with another limit of a turn, which configs call `max_turn_tokens`.

    Raises:
        SettingError: The limit is below one.
    """
    if type(max_turn_tokens) is not int or max_turn_tokens < 1:
        raise SettingError(f"max_turn_tokens={max_turn_tokens}: expected a whole number, 1 or more")
    return replace(sampling, max_tokens=max_turn_tokens)


def end_ids(config: GenerationConfig | None) -> tuple[int, ...]:
    """The tokens that end a turn by a model's own generation config."""
    ends = getattr(config, "eos_token_id", None)
    return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)


def stop_of(text: str, stops: Sequence[str]) -> bool:
    """True if a turn so far holds one of the texts that end it."""
    return any(stop in text for stop in stops)
