"""Teacher scores attached to steps: how far the student strayed, turn by turn and part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from journeyman.agents.teachers.signal import Annotations, Signal
from journeyman.envs import Episode


@dataclass(frozen=True)
class EpisodeScores:
    """A teacher's view of one episode."""

    log_ratio: Tensor
    """[T] log p_teacher - log p_student of each token; 0 on tokens the student did not choose."""
    steps: tuple[float, ...]
    """Mean of |log_ratio| over each step's chosen tokens."""
    parts: tuple[dict[str, float], ...]
    """The same by part of the step ("call", "answer", "stop")."""


def score_episodes(annotations: Annotations, episodes: Sequence[Episode]) -> list[EpisodeScores]:
    """Score episodes; those without student tokens get empty scores."""
    signals = annotations.of(episodes)
    return [attach(episode, it) for episode, it in zip(episodes, signals, strict=True)]


def attach(episode: Episode, signal: Signal) -> EpisodeScores:
    """A teacher's view of one episode, from what it said of its tokens."""
    mask = torch.tensor(episode.mask)
    ratio = log_ratio(episode, signal.logprobs)
    steps, parts = [], []
    for step in episode.steps:
        steps.append(_mean_abs(ratio, mask, [step.span]))
        parts.append({name: _mean_abs(ratio, mask, spans) for name, spans in step.parts.items()})
    return EpisodeScores(ratio, tuple(steps), tuple(parts))


def log_ratio(episode: Episode, logprobs: Tensor) -> Tensor:
    """[T] log p_teacher - log p_student of the tokens the student chose; 0 elsewhere.

    Args:
        episode: Of T tokens.
        logprobs: [T], the teacher's.
    """
    difference = logprobs - torch.tensor(episode.logprobs)
    return difference.masked_fill(~torch.tensor(episode.mask, dtype=torch.bool), 0.0)


def _mean_abs(ratio: Tensor, mask: Tensor, spans: Sequence[tuple[int, int]]) -> float:
    pieces = [ratio[start:end].abs() for start, end in spans]
    count = sum(int(mask[start:end].sum()) for start, end in spans)
    return float(torch.cat(pieces).sum()) / count if count and pieces else 0.0
