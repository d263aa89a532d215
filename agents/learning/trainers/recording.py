"""What was played to be learned from, on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from journeyman.agents.evaluation.records import TRAINING, EpisodeFile, Played, digest_of, kind_of
from journeyman.agents.evaluation.scores import Scores
from journeyman.envs import Episode


class TrainingLog(TrainerCallback):
    """Writes down the first episodes of each rollout, in step with the run's checkpoints."""

    def __init__(self, file: EpisodeFile, count: int) -> None:
        """Keep `count` episodes of each rollout; 0 keeps none."""
        self._file = file
        self._count = count

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Forget what a killed run played after the checkpoint we go on from."""
        if state.is_world_process_zero:
            self._file.forget_after(state.global_step)

    def record(
        self,
        step: int,
        episodes: Sequence[Episode],
        scores: Iterable[Scores | None] = repeat(None),
    ) -> None:
        """Take a rollout.

        Args:
            step: The optimiser step that learns from it first, from 1.
            episodes: All of it.
            scores: What was said of each; read as far as episodes are kept.
        """
        if self._count:
            kept = zip(episodes[: self._count], scores, strict=False)
            self._file.append(
                Played(TRAINING, e, kind_of(e), step=step, scores=told, env_digest=digest_of(e))
                for e, told in kept
            )
