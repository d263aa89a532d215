"""What was said of an episode while it was learned from, kept as it came until someone looks.

The trainer's rows need none of it in words. A run folder does, for the few episodes that it keeps:
only for those are parts of turns looked up and means formed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from journeyman.agents.credit import TokenCredit
from journeyman.agents.evaluation.scores import PartScore, Scores, StepScores
from journeyman.agents.learning.outlines import DIGITS, outline, worth
from journeyman.agents.search.evidence import TreeEpisode
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.teachers.scoring import log_ratio
from journeyman.envs import Episode, Step, StopReason
from journeyman.tools.parsing import covering, token_ends

Tokens = Sequence[int]
"""Places in an episode's stream."""


@dataclass(frozen=True)
class Judgement:
    """What teacher and credit said of one episode of T tokens."""

    episode: Episode
    credit: TokenCredit
    logprobs: Tensor | None = None
    """[T], the teacher's; None if no teacher was asked about it."""
    spoken: Tensor | None = None
    """[T], true where the teacher had something to say; None is everywhere."""
    searched: TreeEpisode | None = None
    """What a search knows of it; None without one."""

    def scores(self, dialect: Dialect) -> Scores:
        """The same by turn and part, without asking anybody anything.

        Args:
            dialect: The student's, which tells where a turn reasons and what a call is made of.
        """
        episode = self.episode
        learned = torch.tensor(episode.mask, dtype=torch.bool)
        learned &= episode.stop is not StopReason.INFRA_ERROR  # as in `to_batch`
        weights = self.credit.weights.masked_fill(~learned, 0.0).tolist()
        advantages = self.credit.advantages.masked_fill(~learned, 0.0).tolist()
        told = None if self.logprobs is None else log_ratio(episode, self.logprobs).tolist()
        heard = list(episode.mask)
        if self.spoken is not None:
            heard = [a and b for a, b in zip(heard, self.spoken.tolist(), strict=True)]
        steps, widths = [], [0] * len(episode.tokens)
        for k, step in enumerate(episode.steps):
            start, end = step.span
            ends = token_ends(episode.tokens[start : end - 1], dialect.decode)
            widths[start : end - 1] = [after - before for before, after in pairwise((0, *ends))]
            parts = {}
            if told is not None:
                for name, tokens in _parts(step, ends, dialect, episode.tokens[:start]):
                    if ratios := [told[t] for t in tokens if heard[t]]:
                        distance = _mean(list(map(abs, ratios)))
                        parts[name] = PartScore(_mean(ratios), distance, len(ratios))
            chosen = [t for t in range(start, end) if episode.mask[t]]
            weight, advantage = ([row[t] for t in chosen] for row in (weights, advantages))
            grade = None if self.credit.grades is None else round(self.credit.grades[k], DIGITS)
            steps.append(StepScores(_mean(weight), _mean(advantage), parts, grade))
        tree = None
        if self.searched is not None and (place := self.searched.place) is not None:
            steps = [
                replace(step, value=None if known is None else worth(known))
                for step, known in zip(steps, self.searched.steps, strict=True)
            ]
            tree = outline(place.tree, place.values, place.path)
        return Scores(
            tuple(steps),
            tuple(weights),
            tuple(advantages),
            tuple(widths),
            None if told is None else tuple(told),
            tree,
        )


def _parts(
    step: Step, ends: Sequence[int], dialect: Dialect, prompt: Sequence[int]
) -> Iterator[tuple[str, Tokens]]:
    """A turn's parts by name, and their tokens; a token across a border belongs to both sides."""
    first, last = step.span

    def tokens(span: tuple[int, int] | None) -> Tokens:
        if span is None or span[0] == span[1]:
            return ()
        start, end = covering(span, ends)
        return range(first + start, first + end)

    yield "turn", range(first, last)
    reasoning = {t for span in dialect.reasoning_in(step.text, prompt) for t in tokens(span)}
    yield "reasoning", sorted(reasoning)
    for number, result in enumerate(step.results, 1):
        call = result.call
        yield f"call {number}", tokens(call.span)
        places = dialect.form.places(step.text, call)
        yield f"call {number} tool", tokens(places.name)
        for name, span in places.arguments.items():
            yield f"call {number} argument {name}", tokens(span)
    if not step.results:
        yield "answer", [t for t in range(first, last - 1) if t not in reasoning]
    yield "stop", (last - 1,)


def _mean(values: Sequence[float]) -> float:
    """Rounded; 0 of nothing."""
    return round(sum(values) / len(values), DIGITS) if values else 0.0
