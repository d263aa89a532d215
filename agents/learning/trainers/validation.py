"""How the student does on tasks it is not trained on, while it is trained."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from journeyman.agents.evaluation.metrics import Metrics, summarise
from journeyman.agents.networks.heads import is_sharded
from journeyman.agents.rollouts.job import Job
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.rollouts.where import Rollouts
from journeyman.agents.students.player import ModelPlayer, Trainable
from journeyman.agents.students.settings import remember

KEPT = "validation.json"
"""In the folder of the best student: the step, and its success on validation tasks."""


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
        best: Path | None = None,
        rollouts: Rollouts = rollout,
        bring: Callable[[], object] = lambda: None,
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
            tell: Told the step and the figures too, in every process.
            best: Folder in which the student that did best is kept; None keeps none.
            rollouts: Where the tasks are played.
            bring: Called first; it brings a student up to date that is trained as another model.
        """
        self._student = student
        self._tasks = tasks
        self._every = every
        self._path = path
        self._batch_size = batch_size
        self._env_kwargs = env_kwargs
        self._job = job
        self._tell = tell
        self._best = best
        self._rollouts = rollouts
        self._bring = bring

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Forget a best student of steps that a resumed run takes again: it will find it again."""
        if self._best is not None and self._job.first and self._record(state.global_step) is None:
            shutil.rmtree(self._best, ignore_errors=True)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **_: Any,
    ) -> None:
        """Play, if it is time."""
        if state.global_step % self._every:
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
        if self._job.first:
            with self._path.open("a") as file:
                file.write(json.dumps(figures) + "\n")
            success = metrics.success.value  # None: infrastructure broke every episode
            if self._best is not None and model is not None and success is not None:
                self._keep(model, state.global_step, success)
        if self._tell is not None:
            self._tell(state.global_step, figures)

    def _keep(self, model: PreTrainedModel, step: int, success: float) -> None:
        """Keep the student, if it is the best so far; the former best is there until then."""
        assert self._best is not None
        if success <= (self._record(step) or {"success": -1.0})["success"]:
            return
        new = self._best.with_name(f"{self._best.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        bare = getattr(model, "module", model)  # of several processes' wrapper
        if is_sharded(bare):
            bare = self._student.model
        bare.save_pretrained(new)
        self._student.dialect.tokenizer.save_pretrained(new)
        remember(self._student, new)
        (new / KEPT).write_text(json.dumps({"step": step, "success": success}) + "\n")
        shutil.rmtree(self._best, ignore_errors=True)
        new.rename(self._best)

    def _record(self, step: int) -> dict[str, float] | None:
        """Of the best student, if one is kept that was found at this step or before."""
        assert self._best is not None
        try:
            known = dict(json.loads((self._best / KEPT).read_text()))
        except (OSError, TypeError, ValueError):
            return None
        return known if known.get("step", math.inf) <= step and "success" in known else None

    def _play(self) -> Metrics:
        self._bring()
        model = self._student.model
        training = model.training
        model.eval()  # and greedily: nothing here draws from the dice that training uses
        try:
            player = self._student.at(temperature=0.0)
            size = self._batch_size
            batches = [self._tasks[i : i + size] for i in range(0, len(self._tasks), size)]
            own = [task for batch in batches[self._job.rank :: self._job.count] for task in batch]
            played = self._rollouts(player, own, size, self._env_kwargs)
            return summarise(self._job.share(played))
        finally:
            if isinstance(self._student, ModelPlayer):
                self._student.rest()
            model.train(training)
