"""What a loss is, and what it may ask of the student at the tokens that it chose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from journeyman.agents.errors import SettingError
from journeyman.agents.learning.losses.divergence import (
    Comparison,
    Measure,
    chosen_logprobs,
    compare,
    compare_by,
    logprobs_of,
)
from journeyman.agents.networks.heads import Head
from journeyman.agents.networks.tries import Distinct
from journeyman.agents.teachers import Detail, Distribution, Signal, TopK


class Predictions:
    """What the student predicts where the N chosen tokens stand; formed when asked for.

    Rows of a tree begin alike: what a head makes of one token is made once, for all rows that have
    it there.
    """

    def __init__(
        self,
        states: Tensor,
        head: Head,
        targets: Tensor,
        reinforced: bool = False,
        distinct: Distinct | None = None,
    ) -> None:
        """Look at states through a head.

        Args:
            states: [N, H], with gradient.
            head: Theirs.
            targets: [N] chosen tokens.
            reinforced: `logprobs` will be asked for too, so that one pass may form both.
            distinct: Which of the N are one token after one beginning; None if each is another.
        """
        self.states = states
        self.head = head
        self.targets = targets
        self._reinforced = reinforced
        self._distinct = distinct or Distinct.apart(len(states), states.device)
        self._entropy: Tensor | None = None

    @cached_property
    def logprobs(self) -> Tensor:
        """[N] of the chosen tokens, at temperature 1, with gradient."""
        logprobs, entropy = self._chosen(self.states)
        if self._entropy is None:
            self._entropy = entropy
        return logprobs

    @property
    def entropy(self) -> Tensor:
        """[N] in nats, without gradient; at the temperature of the loss where it has one."""
        if self._entropy is None:
            _, self._entropy = self._chosen(self.states.detach())
        return self._entropy

    def _chosen(self, states: Tensor) -> tuple[Tensor, Tensor]:
        it = self._distinct
        logprobs, entropy = chosen_logprobs(it.once(states), self.head, it.once(self.targets))
        return it.each(logprobs), it.each(entropy)

    def logprobs_at(self, ids: Tensor, temperature: float = 1.0) -> Tensor:
        """[N, K] of other tokens [N, K], with gradient."""
        it = self._distinct.where(ids)
        return it.each(logprobs_of(it.once(self.states), self.head, it.once(ids), temperature))

    def divergence(self, teacher: Distribution, beta: float, temperature: float) -> Tensor:
        """[N] generalised Jensen-Shannon divergence from a teacher, with gradient.

        Both are taken over the tokens that the teacher tells of: what the student has beyond them
        is padding, of which the teacher knows nothing.
        """
        return self._against(
            teacher,
            lambda ours, head, theirs, targets: compare(
                *(ours, head, theirs, teacher.head, beta, temperature, targets)
            ),
        )

    def measured(self, measure: Measure, teacher: Distribution, temperature: float) -> Tensor:
        """[N] of another divergence from a teacher, with gradient, over the same tokens."""
        return self._against(
            teacher,
            lambda ours, head, theirs, targets: compare_by(
                *(measure, ours, head, theirs, teacher.head, temperature, targets)
            ),
        )

    def _against(
        self,
        teacher: Distribution,
        form: Callable[[Tensor, Head, Tensor, Tensor | None], Comparison],
    ) -> Tensor:
        """[N] of a comparison, formed once where student and teacher are the same."""
        it = self._distinct.where(teacher.states)
        head = self.head.cut(teacher.head.width)
        # Behind a narrower head the chosen tokens are formed in a pass of their own.
        targets = it.once(self.targets) if self._reinforced and head is self.head else None
        found = form(it.once(self.states), head, it.once(teacher.states), targets)
        self._entropy = it.each(found.entropy)
        if found.logprobs is not None:
            self.logprobs = it.each(found.logprobs)
        return it.each(found.divergence)


@dataclass(frozen=True)
class TeacherView:
    """What the teacher says of N chosen tokens."""

    logprobs: Tensor
    """[N] of the chosen tokens, in nats."""
    top: TopK | None = None
    full: Distribution | None = None
    spans: Tensor | None = None
    """[N] the span of each token, -1 for none; numbers of one row are in no other."""
    spoken: Tensor | None = None
    """[N] true where it has something to say; None where it speaks of all."""

    @classmethod
    def of(cls, signal: Signal, mask: Sequence[bool]) -> TeacherView:
        """The part of a row's signal that a loss reads."""
        chosen = torch.tensor(mask, dtype=torch.bool)
        spans = None if signal.spans is None else signal.spans[chosen]
        spoken = None if signal.spoken is None else signal.spoken[chosen]
        return cls(signal.logprobs[chosen], signal.top, signal.full, spans, spoken)

    @classmethod
    def nothing(cls) -> TeacherView:
        """Of a row that is trained on nothing."""
        return cls(torch.zeros(0))

    @classmethod
    def join(cls, views: Sequence[TeacherView], device: torch.device) -> TeacherView:
        """Several rows in one, where the student is."""
        tops = [it.top for it in views if it.top is not None]
        fulls = [it.full for it in views if it.full is not None]
        logprobs = torch.cat([it.logprobs for it in views]).to(device)
        top = full = None
        if tops:
            top = TopK(
                torch.cat([it.ids for it in tops]).to(device),
                torch.cat([it.logprobs for it in tops]).to(device),
                torch.cat([it.tail for it in tops]).to(device),
            )
        if fulls:
            states = torch.cat([it.states for it in fulls]).to(device)
            full = Distribution(states, fulls[0].head.on(device))
        spoken = None
        if any(it.spoken is not None for it in views):
            spoken = torch.cat([_heard(it) for it in views]).to(device)
        return cls(logprobs, top, full, _joined_spans(views, device), spoken)


def _heard(view: TeacherView) -> Tensor:
    if view.spoken is not None:
        return view.spoken
    return torch.ones(len(view.logprobs), dtype=torch.bool)


def _joined_spans(views: Sequence[TeacherView], device: torch.device) -> Tensor | None:
    found, count = [], 0
    for it in views:
        if it.spans is not None and len(it.spans):
            found.append(torch.where(it.spans < 0, it.spans, it.spans + count))
            count += 1 + int(it.spans.max())
    return torch.cat(found).to(device) if found else None


class Loss(ABC):
    """How far the student is from its teacher at each chosen token; a file in `conf/loss/` each.

    Prompts, tool results and forced tokens never come here. The trainer multiplies each token's
    value by its credit's weight and divides the sum by the count of chosen tokens.
    """

    needs: ClassVar[Detail | None] = Detail.SAMPLED
    """What the teacher must tell; None for a loss that asks no teacher."""
    on_policy: ClassVar[bool] = False
    """True if it takes every token for the student's own: the teacher must play none."""

    @abstractmethod
    def __call__(
        self, student: Predictions, teacher: TeacherView | None, batch: Mapping[str, Tensor]
    ) -> Tensor:
        """Values of N chosen tokens.

        Args:
            student: With gradient.
            teacher: What `needs` says; None where that is None.
            batch: What is known of the tokens beside: "sampled_logprobs", "advantages", "weights",
                "turns", all [N].

        Returns:
            [N], with gradient.
        """


def check_number(name: str, value: float, least: float, most: float) -> None:
    """Refuse a setting of a loss that is out of its range.

    Raises:
        SettingError: It is.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise SettingError(f"{name}={value}: expected {least:g} to {most:g}")
