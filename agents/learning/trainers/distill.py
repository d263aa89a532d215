"""On-policy distillation: a thin subclass of `trl.DistillationTrainer`.

TRL brings the optimiser loop, checkpoints and distribution. Its seams are filled anew: a collector
plays (multi-turn, in environments) and asks the teacher, each rollout may serve several optimiser
steps, and a token's loss is multiplied by its weight and joined by a policy-gradient term.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from trl import DistillationConfig, DistillationTrainer
from trl.trainer.utils import RepeatSampler, shuffle_sequence_dict, split_tensor_dict

from journeyman.agents.errors import SettingError
from journeyman.agents.evaluation.scores import Scores
from journeyman.agents.learning.collector import LOGGED_TURNS, Collector
from journeyman.agents.learning.curriculum import Curriculum
from journeyman.agents.learning.losses import Loss, Predictions, TeacherView
from journeyman.agents.learning.losses.functions import clipped_policy_gradient, weighted_mean
from journeyman.agents.learning.losses.loss import check_number
from journeyman.agents.learning.recorded import Recorded
from journeyman.agents.learning.trainers.parts import (
    KeepsCredit,
    Parts,
    PlainTrainer,
    Record,
    check_settings,
    tasks_needed,
)
from journeyman.agents.networks.batching import similar_lengths
from journeyman.agents.networks.heads import Head, backbone
from journeyman.agents.rollouts.prefixes import Prefixes, check_replayable
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.envs import Episode


@dataclass(frozen=True)
class Schedule:
    """How rollouts are dealt among optimiser steps; 1 and 1 is strictly on policy."""

    steps_per_generation: int = 1
    """Steps that the episodes of a rollout are dealt among: decoding is the faster the more rows it
    has."""
    num_iterations: int = 1
    """Times that each rollout is learned from. Both as in TRL's GRPO."""
    clip: float = 0.0
    """The policy gradient's trust region where a rollout is learned from more than once: ratios
    beyond 1 - clip and 1 + clip give no more gradient (PPO); 0 clips nothing."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SettingError: A count is below one, or `clip` is not within 0 and 1.
        """
        check_number("trainer.clip", self.clip, 0, 1)
        for name in ("steps_per_generation", "num_iterations"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise SettingError(f"trainer.{name}={value}: expected a whole number, 1 or more")

    def check(self, args: DistillationConfig, rows_a_task: int) -> None:
        """See whether checkpoints and tasks fall between rollouts.

        Raises:
            SettingError: Checkpoints would fall between a rollout and its last step. A run could
                not go on from there as if it had not stopped: the rollout is not in a checkpoint.
                Or a task's rows would be cut.
        """
        steps = self.steps_per_generation * self.num_iterations
        if args.save_strategy == "steps" and args.save_steps % steps:
            raise SettingError(
                f"trainer.args.save_steps={args.save_steps:g}: expected a multiple of trainer."
                f"steps_per_generation={self.steps_per_generation} * "
                f"num_iterations={self.num_iterations}"
            )
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        if rows * self.steps_per_generation % rows_a_task:
            raise SettingError(
                f"search.rows={rows_a_task}: expected a divisor of "
                f"{rows * self.steps_per_generation}, the rows of a rollout (batch size * "
                f"accumulation * steps_per_generation)"
            )


class OnPolicyDistillation(KeepsCredit, PlainTrainer, DistillationTrainer):
    """Deals a collector's rows out and forms the loss."""

    def __init__(
        self,
        collector: Collector,
        loss: Loss,
        args: DistillationConfig,
        tasks: Sequence[TaskRef],
        schedule: Schedule = Schedule(),
        **kwargs: Any,
    ) -> None:
        """Join the parts.

        Args:
            collector: Plays and judges.
            loss: Of each chosen token.
            args: TRL's arguments; its `beta` and `temperature` are those of losses here.
            tasks: One an episode, in order; as many as `tasks_needed` says.
            schedule: How rollouts are dealt among steps.
            kwargs: Passed to `transformers.Trainer` (callbacks, optimizers, …); `record` is told of
                each rollout, see `Parts`.

        Raises:
            SettingError: The schedule does not go with `args`.
        """
        schedule.check(args, collector.rows_a_task)
        self._record: Record = kwargs.pop("record", _forget)
        # Defaults of TRL that would break ours: rows are task references, in a fixed order.
        args.remove_unused_columns = False
        args.shuffle_dataset = False
        self._collector, self._loss, self._schedule = collector, loss, schedule
        self.credit, self.teacher = collector.credit, collector.teacher
        self.prefixes = collector.prefixes
        super().__init__(
            model=collector.student.model,
            args=args,
            train_dataset=_as_dataset(tasks),
            processing_class=collector.student.dialect.tokenizer,
            **kwargs,
        )
        if self.teacher is not None:
            self.teacher.advance()  # from the student to the student: refused, or nothing happens
        self._views: list[TeacherView] = []
        """Of the rows that the next loss is of."""
        self._played: tuple[list[dict[str, Any]], list[TeacherView]] = [], []
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
        if self._mode == "eval":
            return self._generate_and_score_completions(generation_batch)
        iterations = self._schedule.num_iterations
        place = self._step % (self._microbatches * iterations)
        if place == 0:
            rows = self._generate_and_score_completions(generation_batch)
            self._played = [], self._views
            for _ in range(iterations):
                self._played[0].extend(self._counted(shuffle_sequence_dict(rows)))
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

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Play the student's episodes and turn them into rows (TRL's seam for rollouts)."""
        model: Any = self.model
        # Seeds by place in the run, not by history: a resumed run draws the same.
        place = (self.args.seed, self.state.global_step, self.accelerator.process_index)
        tasks = [
            TaskRef(row["env_id"], row["task_id"], _seed(*place, i)) for i, row in enumerate(inputs)
        ]
        batch = self._collector.collect(tasks, model.training, int(self.state.global_step))
        self._views = batch.views
        if model.training and self.accelerator.is_main_process:
            scores = batch.scores(self._collector.student.dialect)
            self._record(int(self.state.global_step) + 1, batch.episodes, scores)
        self.note(batch.figures)
        return {name: it.to(self.accelerator.device) for name, it in batch.rows.items()}

    def _compute_loss(
        self,
        unwrapped_student: PreTrainedModel,
        inputs: dict[str, Tensor],
        num_items: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted loss plus policy gradient over chosen tokens (TRL's seam for losses).

        Returns:
            The loss, the sum of the student's entropy, and the count of chosen tokens.
        """
        chosen = (inputs["tool_mask"] * inputs["completion_mask"]).bool()
        count = num_items if num_items is not None else chosen.sum().clamp(min=1)
        states = hidden_states(unwrapped_student, inputs, chosen)
        if not len(states):
            return states.sum(), states.sum().detach(), chosen.sum()
        tokens = {name: inputs[name][chosen] for name in PER_TOKEN}
        reinforced = bool(tokens["advantages"].any())
        targets = inputs["completion_ids"][chosen]
        predictions = Predictions(states, Head.of(unwrapped_student), targets, reinforced)
        teacher = _joined(self._views, inputs["row"], states.device)
        values = self._loss(predictions, teacher, tokens)
        loss = weighted_mean(values, tokens["weights"], count)
        if reinforced:
            known = tokens["sampled_logprobs"], tokens["advantages"], self._schedule.clip
            loss = loss + clipped_policy_gradient(predictions.logprobs, *known).sum() / count
        if not loss.requires_grad and torch.is_grad_enabled():
            loss = loss + 0 * states.sum()  # nothing to learn from this microbatch
        self.note(by_turn(values.detach(), tokens["turns"], teacher))
        return loss, predictions.entropy.sum(), chosen.sum()


PER_TOKEN = ("weights", "advantages", "sampled_logprobs", "turns")
"""Columns of `to_batch` that losses read."""


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def _joined(views: Sequence[TeacherView], rows: Tensor, device: torch.device) -> TeacherView | None:
    """Of the rows of a microbatch; None where no loss asks a teacher."""
    return TeacherView.join([views[row] for row in rows.tolist()], device) if views else None


def by_turn(values: Tensor, turns: Tensor, teacher: TeacherView | None = None) -> dict[str, float]:
    """Mean loss of each of the first turns that have tokens of which the teacher speaks; [N]."""
    if teacher is not None and teacher.spoken is not None:
        values, turns = values[teacher.spoken], turns[teacher.spoken]
    places = ((turn, values[turns == turn]) for turn in range(LOGGED_TURNS))
    return {f"divergence/turn_{t + 1}": float(here.mean()) for t, here in places if here.numel()}


def _forget(step: int, episodes: Sequence[Episode], scores: Iterable[Scores]) -> None:
    """Nobody keeps what was played."""


def hidden_states(model: PreTrainedModel, inputs: dict[str, Tensor], chosen: Tensor) -> Tensor:
    """Last hidden states [N, H] from which the chosen tokens are predicted, in their order.

    TRL's own counts positions from the left edge of the padding. Here a token has the position it
    was sampled at, without which learned position embeddings would see another text.

    Args:
        model: The student.
        inputs: Rows of `to_batch`.
        chosen: [B, C], true on the N tokens of completions that are to be predicted.
    """
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    before = inputs["prompt_ids"].shape[1] - 1
    predicting = torch.nn.functional.pad(chosen, (before, 1))  # the state before each chosen token
    order = torch.arange(ids.numel(), device=ids.device).view_as(ids)
    states, places = [], []
    for group in similar_lengths(attention.sum(1).tolist()):
        rows = torch.tensor(group, device=ids.device)
        mask = attention[rows]
        used = mask.any(0).nonzero()[:, 0].tolist() or [0]
        columns = slice(used[0], used[-1] + 1)
        mask = mask[:, columns]
        output = backbone(model)(
            input_ids=ids[rows, columns],
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        )
        wanted = predicting[rows, columns]
        states.append(output.last_hidden_state[wanted])
        places.append(order[rows, columns][wanted])
    return torch.cat(states)[torch.cat(places).argsort()]


def _as_dataset(tasks: Sequence[TaskRef]) -> Dataset:
    return Dataset.from_dict(
        {"env_id": [t.env_id for t in tasks], "task_id": [t.task_id for t in tasks]}
    )


def _refuse_loss_settings(args: DistillationConfig) -> None:
    """What TRL's own loss reads would do nothing here: losses are parts of their own.

    Raises:
        SettingError: One of them is set.
    """
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if field.name in ("beta", "temperature") and value != field.default:
            raise SettingError(
                f"trainer.args.{field.name}={value}: that is the loss's; write "
                f"{'loss=jsd ' if field.name == 'beta' else ''}loss.{field.name}={value}"
            )


def build(
    parts: Parts,
    args: DistillationConfig,
    rollout_batch: int = 64,
    steps_per_generation: int = 1,
    num_iterations: int = 1,
    clip: float = 0.0,
    lmbda: float = 1.0,
    curriculum: Curriculum | None = None,
    episodes: str | None = None,
    **kwargs: Any,
) -> OnPolicyDistillation:
    """The trainer of `trainer=distill`.

    Args:
        parts: Of the run.
        args: TRL's arguments.
        rollout_batch: Conversations side by side.
        steps_per_generation: See `Schedule`.
        num_iterations: See `Schedule`.
        clip: See `Schedule`.
        lmbda: See `Collector`.
        curriculum: What of the episodes the student plays; None is whole episodes, by itself.
        episodes: A run whose episodes are learned from, instead of playing; None plays.
        kwargs: Passed to `transformers.Trainer`.

    Raises:
        SettingError: A setting is out of its range, or none of this trainer's.
    """
    check_settings("distill", DistillationTrainer, kwargs)
    _refuse_loss_settings(args)
    if parts.loss.on_policy and lmbda < 1:
        raise SettingError(
            f"trainer.lmbda={lmbda}: {type(parts.loss).__name__} learns from the student's own "
            f"tokens; expected 1, or another loss=…"
        )
    schedule = Schedule(steps_per_generation, num_iterations, clip)
    curriculum = curriculum or Curriculum()
    prefixes = None
    if curriculum.replay:
        dialect = parts.student.dialect
        prefixes = Prefixes(dialect, parts.env_kwargs, curriculum.replay_kept)
    recorded = None if episodes is None else Recorded.read(episodes, parts.student)
    collector = Collector(
        parts.student,
        parts.credit,
        parts.teacher,
        parts.loss.needs,
        parts.env_kwargs,
        rollout_batch,
        lmbda,
        parts.search,
        curriculum,
        prefixes,
        recorded,
    )
    needed = tasks_needed(args, steps_per_generation, num_iterations)
    deal = parts.tasks if recorded is None else recorded.tasks
    tasks = deal(needed // collector.rows_a_task)
    if prefixes is not None:
        check_replayable(list(dict.fromkeys(task.env_id for task in tasks)))
    return OnPolicyDistillation(
        collector, parts.loss, args, tasks, schedule, record=parts.record, **kwargs
    )
