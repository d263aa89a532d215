"""How the student does on tasks it is not trained on, while it is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from journeyman.agents.evaluation.metrics import Metrics, summarise
from journeyman.agents.rollouts.job import Job
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.player import Trainable


class Validation(TrainerCallback):
    """Plays validation tasks every so many steps; training goes on as if it had not."""

    def __init__(
        self,
        student: Trainable,
        tasks: Sequence[TaskRef],
        every: int,
        path: Path,
        batch_size: int = 64,
        env_kwargs: dict[str, Any] | None = None,
        job: Job = Job(),  # noqa: B008 - frozen
        tell: Callable[[int, Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Join the parts.

        Args:
            student: It is trained; it plays greedily.
            tasks: The same every time.
            every: Optimiser steps from one time to the next.
            path: Metrics file that gets a line each time: "eval/success" with its 95% interval.
            batch_size: Conversations side by side.
            env_kwargs: For the environments.
            job: Its processes share the tasks; the first of them writes.
            tell: Told the step and the figures too.
        """
        self._student = student
        self._tasks = tasks
        self._every = every
        self._path = path
        self._batch_size = batch_size
        self._env_kwargs = env_kwargs
        self._job = job
        self._tell = tell

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Play, if it is time."""
        if state.global_step % self._every:
            return
        metrics = self._play()
        if not self._job.first:
            return
        low, high = metrics.success.interval
        figures = {
            "step": state.global_step,
            "eval/success": metrics.success.value,
            "eval/low": low,
            "eval/high": high,
            "eval/tasks": metrics.tasks,
            "eval/infra_errors": metrics.infra_failures,
        }
        with self._path.open("a") as file:
            file.write(json.dumps(figures) + "\n")
        if self._tell is not None:
            self._tell(state.global_step, figures)

    def _play(self) -> Metrics:
        model = self._student.model
        training = model.training
        model.eval()  # and greedily: nothing here draws from the dice that training uses
        try:
            player = self._student.at(temperature=0.0)
            size = self._batch_size
            batches = [self._tasks[i : i + size] for i in range(0, len(self._tasks), size)]
            own = [task for batch in batches[self._job.rank :: self._job.count] for task in batch]
            return summarise(self._job.share(rollout(player, own, size, self._env_kwargs)))
        finally:
            model.train(training)
