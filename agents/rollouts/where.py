"""Where episodes are played: in this process, or by workers elsewhere (`conf/rollouts/`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from journeyman.agents.rollouts.occupancy import Occupancy
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
