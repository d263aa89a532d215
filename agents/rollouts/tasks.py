"""What is to be played: tasks from their start, or forks of an episode that was played."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from journeyman.envs import Episode, env_class
from journeyman.envs.errors import UnknownTaskError
from journeyman.envs.types import SPLITS


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


def deal(ids: Sequence[str], split: str, first: int, count: int, seed: int = 0) -> list[TaskRef]:
    """Tasks dealt over environments in turn: the i-th task of each is "<split>/<first + i>".

    Raises:
        UnknownEnvError: No environment of that id.
        UnknownTaskError: An environment has no such split, or fewer tasks in it.
    """
    for env_id in ids:
        tasks = env_class(env_id).tasks
        if next(tasks(split), None) is None:
            others = ", ".join(s for s in SPLITS if next(tasks(s), None) is not None)
            raise UnknownTaskError(f"{env_id} has no {split} tasks, only {others} tasks")
    refs = [
        TaskRef(ids[i % len(ids)], f"{split}/{first + i // len(ids)}", seed + i)
        for i in range(count)
    ]
    for ref in refs[-len(ids) :]:  # the last of each environment: some have few tasks
        try:
            env_class(ref.env_id).load_task(ref.task_id)
        except UnknownTaskError as error:
            raise UnknownTaskError(f"{ref.env_id} cannot give so many tasks: {error}") from error
    return refs
