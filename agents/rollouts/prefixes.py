"""The latest episodes, from inside of which others begin (ReOPD, arXiv:2607.04763).

A fork needs a snapshot, and no file holds one. What is kept goes into checkpoints as the episodes
themselves; whoever goes on from there plays their turns again, and sees that each leads to the
state that it led to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from journeyman.agents.errors import SettingError
from journeyman.agents.rollouts.tasks import Fork
from journeyman.agents.students.dialect import Dialect
from journeyman.envs import BranchPoint, Episode, StopReason, env_class, make_for_run

_PLACE = 4
"""Beside a row's seed: where it begins."""


class Prefixes:
    """Places inside the latest episodes."""

    def __init__(self, dialect: Dialect, env_kwargs: dict[str, Any], kept: int) -> None:
        """Keep nothing yet.

        Args:
            dialect: The student's, by which turns are read again.
            env_kwargs: For the environments.
            kept: Episodes; the oldest make room for new ones.
        """
        self._dialect = dialect
        self._env_kwargs = env_kwargs
        self._kept = kept
        self._episodes: list[Episode] = []

    def __len__(self) -> int:
        """Episodes there are."""
        return len(self._episodes)

    def add(self, episodes: Iterable[Episode]) -> None:
        """Keep those of at least two turns that were played from their start, with `keep=True`.

        Raises:
            SettingError: An environment is of a kind that `check` refuses.
        """
        found = [
            e
            for e in episodes
            if e.stop is not StopReason.INFRA_ERROR and not e.first_step and len(e.steps) > 1
        ]
        self._episodes = [*self._episodes, *found][-self._kept :]

    def draw(self, seed: int) -> Fork | None:
        """A place before any but the first turn of any episode; None if there are no episodes.

        Args:
            seed: Says which, and is that of the dice from there on.
        """
        if not self._episodes:
            return None
        dice = np.random.default_rng((seed, _PLACE))
        parent = self._episodes[int(dice.integers(len(self._episodes)))]
        return Fork(parent, int(dice.integers(1, len(parent.steps))), seed)

    def state_dict(self) -> dict[str, Any]:
        """The episodes without their snapshots, for checkpoints: text and numbers."""
        return {
            "episodes": [
                (e.to_dict(), [point.state_hash for point in e.branch_points])
                for e in self._episodes
            ]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`: the episodes' turns are played again.

        Raises:
            SettingError: A turn leads to another state than it did.
        """
        self._episodes = [
            self._again(Episode.from_dict(data), hashes)
            for data, hashes in state.get("episodes", ())
        ]

    def _again(self, episode: Episode, hashes: Sequence[str]) -> Episode:
        """An episode with its branch points."""
        env = make_for_run(episode.env_id, self._env_kwargs)
        points = []
        try:
            env.reset(options={"task_id": episode.task_id})
            for step, known in zip(episode.steps, hashes, strict=True):
                if env.state_hash() != known:
                    raise SettingError(
                        f"{episode.env_id} {episode.task_id}: the same turns lead to another state "
                        f"than they did, so a run that replays prefixes cannot go on as it was: "
                        f"mend the environment, or start anew with trainer.curriculum.replay=0"
                    )
                points.append(BranchPoint(env.snapshot(), known))
                if len(points) < len(hashes):
                    prompt = episode.tokens[: step.span[0]]
                    env.step(self._dialect.read(step.text, env.tools, prompt))
        finally:
            env.close()
        return replace(episode, branch_points=tuple(points))


def check_replayable(ids: Sequence[str]) -> None:
    """See that places inside episodes of these environments can be kept at no cost.

    Raises:
        SettingError: The state of one lives in a sandbox or a server.
    """
    for env_id in ids:
        if env_class(env_id).waits:
            raise SettingError(
                f"trainer.curriculum.replay keeps places inside many episodes, and tools of "
                f"{env_id} run code or live in a server; expected environments whose state is a "
                f"value: choose another env=…, or trainer.curriculum.replay=0"
            )
