"""What a teacher is: it reads each row of a rollout once, and what it says is kept with the row.

A loss and a credit say how much they need to know (`Detail`); a teacher that cannot give it is
refused before anything is played. Nothing outside `journeyman.agents.teachers` touches a teacher's
model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, ClassVar

import torch
from torch import Tensor

from journeyman.agents.errors import DivergedError
from journeyman.agents.networks.heads import Head
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.player import Player, Trainable
from journeyman.agents.teachers.spans import number_spans
from journeyman.envs import Episode

RULED_OUT = -1e4
"""Least log-probability, in nats, that a teacher is heard with: what it rules out (-inf) is as good
as impossible with it, and ratios, their sums and their means are numbers."""


class Detail(IntEnum):
    """How much a teacher tells of each chosen token."""

    SPANS = 1
    """The log-probability of each span of text (`spans.py`), not of its tokens."""
    SAMPLED = 2
    """The log-probability of the token that was chosen."""
    TOP_K = 3
    """Its most probable tokens with their log-probabilities, and the mass of all others."""
    FULL = 4
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
    """[T] log-probability of each chosen token given those before it; 0 elsewhere. On the CPU. Of a
    teacher that gives `SPANS`: such that they add up to that of each span."""
    top: TopK | None = None
    """Of the N chosen tokens in order, if asked for."""
    full: Distribution | None = None
    """Likewise."""
    spans: Tensor | None = None
    """[T] number of the span that each chosen token is in, -1 for none and elsewhere; for
    `Detail.SPANS`."""
    spoken: Tensor | None = None
    """[T] true where the teacher has something to say; None where it speaks of all. Where it is
    silent `logprobs` are the student's own, so that no ratio shows, and losses have no weight."""


def silent(row: Episode, signal: Signal, spoken: Tensor | None = None) -> Signal:
    """What is left of a signal where the teacher is silent: its shapes.

    Args:
        row: That the signal is of.
        signal: What it would say.
        spoken: [T] true where it says so all the same; None is nowhere.
    """
    if spoken is None:
        spoken = torch.zeros(len(row.tokens), dtype=torch.bool)
    own = torch.tensor(row.logprobs, dtype=signal.logprobs.dtype)
    return replace(signal, logprobs=torch.where(spoken, signal.logprobs, own), spoken=spoken)


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

    def check_environments(self, ids: Sequence[str]) -> None:  # noqa: B027 - most judge all
        """See whether it can judge rows of these environments, before anything is played.

        Raises:
            SettingError: It cannot.
        """

    def player(self, student: Trainable) -> Player | None:
        """The teacher as one that plays as the student does, dice included; None if it does not.

        Raises:
            UnsupportedModelError: It would, and its model cannot.
        """
        return None

    def advance(self) -> None:  # noqa: B027 - most stay as they are
        """Follow the student, if it does: called before each rollout that is learned from.

        And once when the trainer is built, where the student is still as `check` saw it: what does
        not go together is to be refused there.

        Raises:
            SettingError: It cannot follow a student that is trained so.
        """

    def figures(self) -> dict[str, float]:
        """What there is to log since this was read last."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What changes over a run, for checkpoints; the same in each process of a job."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError: The state is another teacher's.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps nothing and was given {sorted(state)}")


class Annotations:
    """The signals of one rollout's rows: each row is read once, whoever asks and however often."""

    def __init__(
        self,
        teacher: Teacher | None,
        detail: Detail = Detail.SAMPLED,
        dialect: Dialect | None = None,
    ) -> None:
        """Ask `teacher` for `detail`; without a teacher nothing can be asked.

        Args:
            teacher: Is asked.
            detail: For what.
            dialect: The student's; it is needed to cut turns into spans.
        """
        self._teacher = teacher
        self._detail = detail
        self._dialect = dialect
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
                _check(row, signal)
                finite = replace(signal, logprobs=signal.logprobs.clamp(min=RULED_OUT))
                self._known[id(row)] = (row, self._cut(row, finite))
        return [
            self._known[id(row)][1] if any(row.mask) else Signal(torch.zeros(len(row.tokens)))
            for row in rows
        ]

    def _cut(self, row: Episode, signal: Signal) -> Signal:
        """With spans, where they are asked for: a teacher of the student's tokenizer knows none."""
        if self._detail is not Detail.SPANS or signal.spans is not None or self._dialect is None:
            return signal
        return replace(signal, spans=number_spans(row, self._dialect.decode))


def _check(row: Episode, signal: Signal) -> None:
    """The one place where scores meet an episode."""
    if signal.logprobs.shape != (len(row.tokens),):
        raise ValueError(
            f"{tuple(signal.logprobs.shape)} teacher scores for an episode of {len(row.tokens)} "
            f"tokens ({row.env_id} {row.task_id})"
        )
    if signal.logprobs.isnan().any():
        raise DivergedError(
            f"the teacher gives NaN for tokens of {row.env_id} {row.task_id}: its weights or its "
            f"type do not carry it; choose another teacher.model or teacher.dtype=float32"
        )
    chosen = sum(row.mask)
    lists = None if signal.top is None else signal.top.ids
    states = None if signal.full is None else signal.full.states
    for name, told in (("top-k lists", lists), ("states", states)):
        if told is not None and len(told) != chosen:
            raise ValueError(
                f"{len(told)} {name} for the {chosen} chosen tokens of {row.env_id} {row.task_id}"
            )
