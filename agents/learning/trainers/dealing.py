"""A rollout's rows as microbatches: played once, dealt among steps, learned from again."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader
from trl import DistillationTrainer
from trl.trainer.utils import RepeatSampler, split_tensor_dict

from journeyman.agents.learning.collector import Collector
from journeyman.agents.learning.losses import TeacherView
from journeyman.agents.learning.trainers.schedule import Schedule, in_order


class DealsRollouts(DistillationTrainer):
    """Plays a rollout where one is used up, and hands out its microbatches until then."""

    _collector: Collector
    _schedule: Schedule
    _views: list[TeacherView]
    """Of the rows that the next loss is of."""
    _played: tuple[list[dict[str, Any]], list[TeacherView]]
    """Microbatches of the current rollout, and the views of its rows."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """All tasks of a rollout at once, and again for each microbatch that is made of it."""
        tasks: Any = self.train_dataset
        loader: DataLoader[Any] = self._get_dataloader(
            dataset=tasks,
            description="Training",
            batch_size=self._train_batch_size * self._microbatches,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )
        return loader

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        tasks: Any = self.train_dataset if dataset is None else dataset
        rows_a_task = self._collector.rows_a_task
        rows = self._train_batch_size * self._microbatches * self.accelerator.num_processes
        return RepeatSampler(
            tasks,
            mini_repeat_count=rows_a_task,
            batch_size=rows // rows_a_task,
            repeat_count=self._microbatches * self._schedule.num_iterations,
            shuffle=False,
        )

    @property
    def _microbatches(self) -> int:
        """That one iteration over a rollout has in this process."""
        return int(self.args.gradient_accumulation_steps) * self._schedule.steps_per_generation

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """The next microbatch; a rollout if the last one is used up."""
        model: Any = self.model
        if not model.training:
            return self._generate_and_score_completions(generation_batch)
        iterations = self._schedule.num_iterations
        place = self._step % (self._microbatches * iterations)
        if place == 0:
            rows = self._generate_and_score_completions(generation_batch)
            self._played = [], self._views
            key = self.args.seed, self.state.global_step, self.accelerator.process_index
            for again in range(iterations):
                self._played[0].extend(self._counted(in_order(rows, self._schedule, again, *key)))
        self._views = self._played[1]  # an evaluation in between has its own
        return self._played[0][place]

    def _counted(self, rows: Any) -> list[dict[str, Any]]:
        """A rollout as microbatches, each with the count of its own optimiser step."""
        parts: list[dict[str, Any]] = split_tensor_dict(rows, self._microbatches)
        accumulated = int(self.args.gradient_accumulation_steps)
        for start in range(0, len(parts), accumulated):
            step = parts[start : start + accumulated]
            count = self.accelerator.gather(sum(part["tool_mask"].sum() for part in step)).sum()
            for part in step:
                part["num_items_in_batch"] = count
        return parts
