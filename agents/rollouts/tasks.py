"""What is to be played: tasks from their start, or forks of an episode that was played."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from journeyman.agents.errors import SettingError
from journeyman.envs import Episode, env_class
from journeyman.envs.errors import UnknownTaskError
from journeyman.envs.types import SPLITS, Level, Split


@dataclass(frozen=True, slots=True)
class TaskRef:
    """Which task to play, and the seed of the student's dice."""

    env_id: str
    task_id: str
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Fork:
    """An episode to be played on from inside one that was played with `keep=True`.

    What stands before the step is context: read again, not sampled again, and masked, since the
    parent is trained on it.
    """

    parent: Episode
    step: int
    """Index of the step to play anew; there must be a branch point before it."""
    seed: int
    """Seed of the dice from here on: the student's, and the environment's if it has any."""
    turn: tuple[int, ...] | None = None
    """Tokens of a turn to play first, end-of-turn token included, in the student's place: masked,
    since the student did not choose it. The student goes on from what comes of it."""

    def __post_init__(self) -> None:
        """Check that there is a branch point."""
        if not 0 <= self.step < len(self.parent.branch_points):
            raise ValueError(
                f"no branch point before step {self.step} of {self.parent.env_id} "
                f"{self.parent.task_id}: it has {len(self.parent.branch_points)} (play the parent "
                f"with keep=True)"
            )

    @property
    def prefix(self) -> tuple[int, ...]:
        """The tokens before the step."""
        steps = self.parent.steps
        # After the last step there is one more place to go on from if the environment broke there.
        return self.parent.tokens[: steps[self.step].span[0] if self.step < len(steps) else None]

    @property
    def env_id(self) -> str:
        """The parent's environment."""
        return self.parent.env_id

    @property
    def task_id(self) -> str:
        """The parent's task."""
        return self.parent.task_id


Short = Literal["refuse", "cap", "cycle"]
"""What is done where an environment has fewer tasks than its share: refuse, give what there is (the
others give more), or begin again."""
All = Literal["all"]
"""In place of a number of tasks: every one that there is."""
MOST_TASKS = 10_000_000
"""More cannot be listed."""


def pool_size(env_id: str, split: str) -> int | None:
    """How many tasks an environment has in a split; None if they never run out.

    Raises:
        UnknownEnvError: No environment of that id.
        UnknownTaskError: It has no such split.
    """
    cls = env_class(env_id)
    if next(cls.tasks(split), None) is None:
        others = ", ".join(s for s in SPLITS if next(cls.tasks(s), None) is not None)
        raise UnknownTaskError(f"{env_id} has no {split} tasks, only {others} tasks")
    return cls.task_count(*pool(env_id, split))


def pool(env_id: str, split: str) -> tuple[Split, Level]:
    """A split and its level: the environment's first where none is named."""
    name, _, level = split.partition("/")
    return cast(Split, name), cast(Level, level or env_class(env_id).levels[0])


def deal(
    ids: Sequence[str],
    split: str,
    first: int,
    count: int | All,
    seed: int = 0,
    short: Short = "refuse",
) -> list[TaskRef]:
    """Tasks dealt over environments in turn: the i-th task of each is "<split>/<first + i>".

    Args:
        ids: The environments.
        split: Where their tasks come from.
        first: Number of the first task of each.
        count: Tasks in all; "all" takes every one, of lists that may differ in length.
        seed: Of the first; each further one has the next.
        short: What is done where tasks run out.

    Returns:
        As many as were asked for; with `short="cap"` perhaps fewer.

    Raises:
        SettingError: More than can be listed.
        UnknownEnvError: No environment of that id.
        UnknownTaskError: An environment has no such split, or too few tasks from `first` on.
    """
    sizes = [pool_size(env_id, split) for env_id in ids]
    left = [math.inf if size is None else max(0, size - first) for size in sizes]
    if count == "all":
        endless = [env_id for env_id, there in zip(ids, left, strict=True) if math.isinf(there)]
        if endless:
            raise SettingError(
                f"all {split} tasks are asked for, and those of {', '.join(endless)} never run "
                f"out: give a number"
            )
        count, short = int(sum(left)), "cap"
    if count > MOST_TASKS:
        raise SettingError(f"{count} tasks are asked for: expected at most {MOST_TASKS}")
    for i, (env_id, there) in enumerate(zip(ids, left, strict=True)):
        share = -(-(count - i) // len(ids))
        if not there or (short == "refuse" and share > there):
            raise UnknownTaskError(
                f"{env_id} cannot give so many tasks: no task '{split}/{first + max(share, 1) - 1}'"
                f": {split} has {pool_size(env_id, split)} tasks, from 0 on"
            )
    numbers: list[Iterator[int]] = [
        _numbers(first, there, cycle=short == "cycle") for there in left
    ]
    refs: list[TaskRef] = []
    open_ids = list(zip(ids, numbers, strict=True))
    while open_ids and len(refs) < count:
        for pair in open_ids[: count - len(refs)]:
            number = next(pair[1], None)
            if number is None:
                open_ids.remove(pair)
            else:
                refs.append(TaskRef(pair[0], f"{split}/{number}", seed + len(refs)))
    for ref in refs[-len(ids) :]:  # some say how few they have only when asked for one
        try:
            env_class(ref.env_id).load_task(ref.task_id)
        except UnknownTaskError as error:
            raise UnknownTaskError(f"{ref.env_id} cannot give so many tasks: {error}") from error
    return refs


def _numbers(first: int, there: float, cycle: bool) -> Iterator[int]:
    """Numbers of an environment's tasks in the order they are dealt."""
    if math.isinf(there):
        return itertools.count(first)
    once = range(first, first + int(there))
    return itertools.cycle(once) if cycle else iter(once)


def shortage(ids: Sequence[str], split: str, first: int, count: int) -> dict[str, int]:
    """Environments whose share of so many tasks is more than they have, and what they have."""
    found = {}
    for i, env_id in enumerate(ids):
        size = pool_size(env_id, split)
        if size is not None and -(-(count - i) // len(ids)) > size - first:
            found[env_id] = max(0, size - first)
    return found
