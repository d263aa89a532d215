"""What a teacher is: it reads each row of a rollout once, and what it says is kept with the row.

A loss and a credit say how much they need to know (`Detail`); a teacher that cannot give it is
refused before anything is played. Nothing outside `journeyman.agents.teachers` touches a teacher's
model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

import torch
from torch import Tensor

from journeyman.agents.networks.heads import Head
from journeyman.agents.students.player import Player, Trainable
from journeyman.envs import Episode


class Detail(IntEnum):
    """How much a teacher tells of each chosen token."""

    SAMPLED = 1
    """The log-probability of the token that was chosen."""
    TOP_K = 2
    """Its most probable tokens with their log-probabilities, and the mass of all others."""
    FULL = 3
    """All of it, by the states that it is formed from."""


@dataclass(frozen=True)
class TopK:
    """The most probable tokens at N places."""

    ids: Tensor
    """[N, K] token ids."""
    logprobs: Tensor
    """[N, K] their log-probabilities."""
    tail: Tensor
    """[N] log of the mass of all other tokens; -inf where there is none."""


@dataclass(frozen=True)
class Distribution:
    """Whole distributions at N places, not yet formed: all at once they could be gigabytes."""

    states: Tensor
    """[N, H] hidden states."""
    head: Head
    """From them to logits."""


@dataclass(frozen=True)
class Signal:
    """What a teacher says of one row of T tokens, N of which were chosen by the student."""

    logprobs: Tensor
    """[T] log-probability of each chosen token given those before it; 0 elsewhere. On the CPU."""
    top: TopK | None = None
    """Of the N chosen tokens in order, if asked for."""
    full: Distribution | None = None
    """Likewise."""


class Teacher(ABC):
    """Judges the tokens that a student chose; `annotate` is all that a subclass must write."""

    gives: ClassVar[Detail] = Detail.SAMPLED
    """The most that it can tell."""

    @abstractmethod
    def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
        """Read rows.

        Args:
            rows: Each with at least one chosen token.
            detail: How much to tell, at most what it `gives`.

        Returns:
            One signal a row.
        """

    def check(self, student: Trainable) -> None:  # noqa: B027 - most have nothing to check
        """See whether it can judge what this student writes, before anything is played.

        Raises:
            VocabularyMismatchError: A token means another thing to it.
        """

    def player(self, student: Trainable) -> Player | None:
        """The teacher as one that plays as the student does, dice included; None if it does not.

        Raises:
            UnsupportedModelError: It would, and its model cannot.
        """
        return None


class Annotations:
    """The signals of one rollout's rows: each row is read once, whoever asks and however often."""

    def __init__(self, teacher: Teacher | None, detail: Detail = Detail.SAMPLED) -> None:
        """Ask `teacher` for `detail`; without a teacher nothing can be asked."""
        self._teacher = teacher
        self._detail = detail
        # By identity: episodes are compared token by token. The episode keeps its id from being
        # given to another.
        self._known: dict[int, tuple[Episode, Signal]] = {}

    @property
    def taught(self) -> bool:
        """True if there is a teacher to ask."""
        return self._teacher is not None

    def known(self, row: Episode) -> Signal | None:
        """What has been said of a row; None if nobody asked, and nobody is asked now."""
        found = self._known.get(id(row))
        return None if found is None else found[1]

    def of(self, rows: Sequence[Episode]) -> list[Signal]:
        """One signal a row; those without chosen tokens are not sent to the teacher.

        Raises:
            ValueError: There is no teacher, or it gave another number of signals.
        """
        if self._teacher is None:
            raise ValueError("a teacher's scores are asked for and there is no teacher")
        asked = {id(row): row for row in rows if id(row) not in self._known and any(row.mask)}
        if new := list(asked.values()):
            signals = self._teacher.annotate(new, self._detail)
            if len(signals) != len(new):
                raise ValueError(
                    f"{type(self._teacher).__name__}.annotate gave {len(signals)} signals for "
                    f"{len(new)} rows"
                )
            for row, signal in zip(new, signals, strict=True):
                _check_length(row, signal)
                self._known[id(row)] = (row, signal)
        return [
            self._known[id(row)][1] if any(row.mask) else Signal(torch.zeros(len(row.tokens)))
            for row in rows
        ]


def _check_length(row: Episode, signal: Signal) -> None:
    """The one place where scores meet an episode."""
    if signal.logprobs.shape != (len(row.tokens),):
        raise ValueError(
            f"{tuple(signal.logprobs.shape)} teacher scores for an episode of {len(row.tokens)} "
            f"tokens ({row.env_id} {row.task_id})"
        )
    chosen = sum(row.mask)
    lists = None if signal.top is None else signal.top.ids
    states = None if signal.full is None else signal.full.states
    for name, told in (("top-k lists", lists), ("states", states)):
        if told is not None and len(told) != chosen:
            raise ValueError(
                f"{len(told)} {name} for the {chosen} chosen tokens of {row.env_id} {row.task_id}"
            )
