"""Where episodes are played: in this process, or by workers elsewhere (`conf/rollouts/`).

A part of a run, such as `local`, is a context that gives a `Rollouts`; whoever plays is given that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from journeyman.agents.rollouts.occupancy import Occupancy
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.students.player import Player
from journeyman.envs import Episode


class Rollouts(Protocol):
    """Plays one episode a task; `rollout` is the one that does it here (`rollouts=local`)."""

    def __call__(
        self,
        player: Player,
        tasks: Sequence[TaskRef | Fork],
        batch_size: int = 64,
        env_kwargs: dict[str, Any] | None = None,
        progress: Callable[[int], object] = ...,
        keep: bool = False,
        most_turns: int | None = None,
        occupancy: Occupancy | None = None,
    ) -> list[Episode]:
        """See `rollout`."""


@runtime_checkable
class Elsewhere(Rollouts, Protocol):
    """Plays in other processes, while this one does something else."""

    staleness: int
    """Optimiser steps by which a student's weights may be ahead of those that play."""

    def begin(
        self,
        player: Player,
        tasks: Sequence[TaskRef | Fork],
        batch_size: int = 64,
        env_kwargs: dict[str, Any] | None = None,
        keep: bool = False,
        most_turns: int | None = None,
        ended: Callable[[int, Episode], object] | None = None,
    ) -> Callable[[], list[Episode]]:
        """Have tasks played with the weights that the player has now, whatever becomes of them.

        Args:
            player: See `rollout`, and the other arguments too.
            tasks: What to play.
            batch_size: Places of each worker.
            env_kwargs: For the environments.
            keep: Keep branch points.
            most_turns: That are played.
            ended: Told of each episode as it ends, with the place of its task. It is called where
                the episodes are waited for.

        Returns:
            Waits for the episodes, one a task in order.
        """


@contextmanager
def local() -> Iterator[Rollouts]:
    """`rollouts=local`: in this process."""
    yield rollout
