"""What was played to be learned from, on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from journeyman.agents.evaluation.records import TRAINING, EpisodeFile, Played, digest_of, kind_of
from journeyman.agents.evaluation.scores import Scores
from journeyman.agents.rollouts.job import Job
from journeyman.envs import Episode


class TrainingLog(TrainerCallback):
    """Writes down the first episodes of each rollout, in step with the run's checkpoints."""

    def __init__(
        self,
        file: EpisodeFile,
        count: int,
        job: Job = Job(),  # noqa: B008 - frozen
    ) -> None:
        """Keep `count` episodes of each rollout, whoever played them; 0 keeps none."""
        self._file = file
        self._count = count
        self._job = job

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
        """Take a rollout; each process of a job gives its own, and the first one writes.

        Args:
            step: The optimiser step that learns from it first, from 1.
            episodes: All of it that this process has.
            scores: What was said of each; read as far as episodes are kept.
        """
        if not self._count:
            return
        wanted = max(0, self._count - self._job.rank * len(episodes))
        kept = zip(episodes[:wanted], scores, strict=False)
        told = [
            Played(
                TRAINING,
                replace(e, branch_points=()),  # they stay with who played
                kind_of(e),
                step=step,
                scores=said,
                env_digest=digest_of(e),
            )
            for e, said in kept
        ]
        told = self._job.share(told)[: self._count]
        if self._job.first:
            self._file.append(told)
