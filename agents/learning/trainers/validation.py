"""How the student does on tasks it is not trained on, while it is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from journeyman.agents.evaluation.metrics import Metrics, summarise
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
    ) -> None:
        """Join the parts.

        Args:
            student: It is trained; it plays greedily.
            tasks: The same every time.
            every: Optimiser steps from one time to the next.
            path: Metrics file that gets a line each time: "eval/success" with its 95% interval.
            batch_size: Conversations side by side.
            env_kwargs: For the environments.
        """
        self._student = student
        self._tasks = tasks
        self._every = every
        self._path = path
        self._batch_size = batch_size
        self._env_kwargs = env_kwargs

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Play, if it is time."""
        if not state.is_world_process_zero or state.global_step % self._every:
            return
        metrics = self._play()
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

    def _play(self) -> Metrics:
        model = self._student.model
        training = model.training
        model.eval()  # and greedily: nothing here draws from the dice that training uses
        try:
            player = self._student.at(temperature=0.0)
            return summarise(rollout(player, self._tasks, self._batch_size, self._env_kwargs))
        finally:
            model.train(training)
