"""Advantages brought to one size: between the credit that gave them and the rows they go into.

Only divided, never shifted: what an advantage is compared with is the credit's to say.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, get_args

from torch import Tensor

from journeyman.agents.credit import TokenCredit
from journeyman.agents.errors import SettingError
from journeyman.agents.rollouts.job import Job
from journeyman.envs import Episode, StopReason

Scale = Literal["none", "batch", "group"]
SMALLEST = 1e-4
"""Added to each standard deviation (TRL's), so that what is next to nothing is not blown up."""
ROUNDING = 1e-9
"""Advantages that differ by no more are one, and are left as they are."""


def check_scale(scale: str, rows_a_task: int) -> None:
    """See whether there is something to measure.

    Raises:
        SettingError: No such way; or groups of one row, which have no spread.
    """
    if scale not in get_args(Scale):
        raise SettingError(f"trainer.advantages={scale}: expected {', '.join(get_args(Scale))}")
    if scale == "group" and rows_a_task < 2:
        raise SettingError(
            "trainer.advantages=group: a group is the rows of one task, and each task has one row; "
            "expected search=credit (as method=grpo has it), or trainer.advantages=batch"
        )


def scaled(
    credit: Sequence[TokenCredit],
    episodes: Sequence[Episode],
    scale: str,
    job: Job = Job(),  # noqa: B008 - frozen
) -> list[TokenCredit]:
    """Credit whose advantages are divided by their standard deviation.

    A / (s + `SMALLEST`), s over the whole rollout ("batch", that of all processes) or over the
    episodes of the same task ("group", GRPO, arXiv:2402.03300, section 4.1.2). s is that of one of
    the steps of one of the episodes, each drawn evenly: the spread between episodes (unbiased, as
    TRL has it) and within them. Where all steps of an episode have its one advantage, that is the
    standard deviation of outcomes. Dividing by groups weighs tasks that are nearly always or nearly
    never solved the more (Dr. GRPO, arXiv:2503.20783); by batches it does not.

    Args:
        credit: Of each episode.
        episodes: Those that broke count for nothing.
        scale: "none", "batch" or "group".
        job: Its processes have the other rows of the rollout, and whole groups.
    """
    if scale == "none":
        return list(credit)
    groups: dict[object, list[int]] = defaultdict(list)
    for i, episode in enumerate(episodes):
        groups[episode.env_id, episode.task_id].append(i)
    found = list(credit)
    for members in groups.values() if scale == "group" else [range(len(episodes))]:
        own = [
            _of_steps(episodes[i], credit[i].advantages)
            for i in members
            if episodes[i].stop is not StopReason.INFRA_ERROR
        ]
        spread = _deviation(job.share(own) if scale == "batch" else own)
        size = spread + SMALLEST if spread > ROUNDING else 1.0
        for i in members:
            found[i] = replace(credit[i], advantages=credit[i].advantages / size)
    return found


def _of_steps(episode: Episode, advantages: Tensor) -> list[float]:
    """The mean advantage of each step's chosen tokens; of steps that have none, nothing."""
    means = []
    for step in episode.steps:
        start, end = step.span
        chosen = [
            float(it)
            for it, own in zip(advantages[start:end], episode.mask[start:end], strict=True)
            if own
        ]
        if chosen:
            means.append(math.fsum(chosen) / len(chosen))
    return means


def _deviation(episodes: Iterable[list[float]]) -> float:
    """Of a step of an episode, each drawn evenly; 0 where there is nothing to compare."""
    steps = [it for it in episodes if it]
    if len(steps) < 2:
        return 0.0
    means = [math.fsum(it) / len(it) for it in steps]
    centre = math.fsum(means) / len(means)
    between = math.fsum((it - centre) ** 2 for it in means) / (len(means) - 1)
    within = math.fsum(
        math.fsum((a - mean) ** 2 for a in it) / len(it)
        for it, mean in zip(steps, means, strict=True)
    ) / len(steps)
    return math.sqrt(between + within)
