"""On-policy distillation: a thin subclass of `trl.DistillationTrainer`.

TRL brings the optimiser loop, checkpoints and distribution. Its seams are filled anew: a collector
plays (multi-turn, in environments) and asks the teacher, each rollout may serve several optimiser
steps, and a token's loss is multiplied by its weight and joined by a policy-gradient term.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl import DistillationConfig, DistillationTrainer

from journeyman.agents.errors import SettingError
from journeyman.agents.evaluation.scores import Scores
from journeyman.agents.learning.collector import Collector
from journeyman.agents.learning.curriculum import Curriculum
from journeyman.agents.learning.losses import Loss, Predictions, TeacherView
from journeyman.agents.learning.losses.functions import checked, visits, weighted_mean
from journeyman.agents.learning.recorded import Recorded
from journeyman.agents.learning.rollout_figures import LOGGED_TURNS
from journeyman.agents.learning.trainers.beginning import hidden_states
from journeyman.agents.learning.trainers.dealing import DealsRollouts
from journeyman.agents.learning.trainers.parts import (
    KeepsCredit,
    Parts,
    PlainTrainer,
    Record,
    check_settings,
    tasks_needed,
)
from journeyman.agents.learning.trainers.schedule import BEGAN, HELD, Schedule
from journeyman.agents.learning.trainers.several import shard, to_train
from journeyman.agents.learning.trainers.watching import CollapseWatch
from journeyman.agents.networks.heads import Head
from journeyman.agents.rollouts.job import Job
from journeyman.agents.rollouts.prefixes import Prefixes, check_replayable
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.envs import Episode


class OnPolicyDistillation(KeepsCredit, PlainTrainer, DealsRollouts):
    """Has a collector play and forms the loss."""

    def __init__(
        self,
        collector: Collector,
        loss: Loss,
        args: DistillationConfig,
        tasks: Sequence[TaskRef],
        schedule: Schedule = Schedule(),  # noqa: B008 - frozen
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
        schedule.check(args, collector.rows_a_task, collector.staleness)
        self._record: Record = kwargs.pop("record", _forget)
        # Defaults of TRL that would break ours: rows are task references, in a fixed order.
        args.remove_unused_columns = False
        args.shuffle_dataset = False
        self._collector, self._loss, self._schedule = collector, loss, schedule
        self._beginning = schedule.beginning(collector.student.model, kwargs.get("peft_config"))
        self.credit, self.teacher = collector.credit, collector.teacher
        self.prefixes = collector.prefixes
        super().__init__(
            model=to_train(collector.student.model, args, **kwargs),
            whole=collector.student.model,
            args=args,
            train_dataset=_as_dataset(tasks),
            processing_class=collector.student.dialect.tokenizer,
            **kwargs,
        )
        if self.teacher is not None:
            self.teacher.advance()  # from the student to the student: refused, or nothing happens
        self._views, self._played = [], ([], [])

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Play the student's episodes and turn them into rows (TRL's seam for rollouts)."""
        model: Any = self.model
        step = int(self.state.global_step)
        self.bring()
        pairs = [(row["env_id"], row["task_id"]) for row in inputs]
        tasks = _seeded(pairs, self.args.seed, step, self.accelerator.process_index)
        coming = self._coming() if model.training else {}
        batch = self._collector.collect(tasks, model.training, step, coming)
        self._views = batch.views
        if model.training:
            self._record(step + 1, batch.episodes, batch.scores(self._collector.student.dialect))
        self.note(batch.figures)
        rows = {name: it.to(self.accelerator.device) for name, it in batch.rows.items()}
        return rows | ({} if self._beginning is None else {BEGAN: self._beginning.logprobs(rows)})

    def _coming(self) -> dict[int, list[TaskRef]]:
        """Tasks of the rollouts that may be played ahead, by the step that first learns of each."""
        found: dict[int, list[TaskRef]] = {}
        steps, job = self._schedule.steps_a_rollout, self.accelerator
        rows = self._train_batch_size * self._microbatches
        dataset: Any = self.train_dataset
        for ahead in range(steps, self._collector.staleness + 1, steps):
            step = int(self.state.global_step) + ahead
            start = (step // steps * job.num_processes + job.process_index) * rows
            own = dataset[start : start + rows]
            pairs = zip(own["env_id"], own["task_id"], strict=True)
            if tasks := _seeded(list(pairs), self.args.seed, step, job.process_index):
                found[step] = tasks
        return found

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
        states, distinct = hidden_states(unwrapped_student, inputs, chosen)
        head = Head.of(unwrapped_student)
        if not len(states):  # a function of the head too: all processes wait for its gradient
            nothing = states.sum() + 0 * head.projection.weight.sum()
            return nothing, nothing.detach(), chosen.sum()
        tokens = {name: inputs[name][chosen] for name in PER_TOKEN if name in inputs}
        reinforced = bool(self._schedule.kl or tokens["advantages"].any())
        targets = inputs["completion_ids"][chosen]
        predictions = Predictions(states, head, targets, reinforced, distinct)
        teacher = _joined(self._views, inputs["row"], states.device)
        values = checked(self._loss(predictions, teacher, tokens))
        weights = tokens["weights"]
        if self._collector.staleness and not self._loss.on_policy and teacher is not None:
            old = visits(predictions.logprobs, tokens["sampled_logprobs"], chosen)
            self.note({"rollout/visits": float(old.mean())})
            weights = weights * old
        loss = weighted_mean(values, weights, count)
        if reinforced:
            gained = checked(self._schedule.policy_loss(predictions.logprobs, tokens))
            loss = loss + gained.sum() / count
        if not loss.requires_grad and torch.is_grad_enabled():
            loss = loss + 0 * states.sum()  # nothing to learn from this microbatch
        self.note(by_turn(values.detach(), tokens["turns"], teacher))
        return loss, predictions.entropy.sum(), chosen.sum()


PER_TOKEN = ("weights", "advantages", "sampled_logprobs", "turns", BEGAN)
"""Columns of rows that losses read; the last only where something is held to it."""


def _seeded(pairs: Sequence[tuple[str, str]], seed: int, step: int, process: int) -> list[TaskRef]:
    """Tasks with dice by their place in the run: the same after a resume, and for any processes."""
    first = process * len(pairs)
    return [TaskRef(*pair, _seed(seed, step, 0, first + i)) for i, pair in enumerate(pairs)]


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
    clip_high: float | None = None,
    kl: float | None = None,
    advantages: str = "none",
    on_collapse: str = "warn",
    lmbda: float = 1.0,
    curriculum: Curriculum | None = None,
    episodes: str | None = None,
    sharding: str | None = None,
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
        clip_high: See `Schedule`.
        kl: See `Schedule`; None is 0 beside a teacher, and `HELD` without one.
        advantages: See `Collector`.
        on_collapse: See `CollapseWatch`.
        lmbda: See `Collector`.
        curriculum: What of the episodes the student plays; None is whole episodes, by itself.
        episodes: A run whose episodes are learned from, instead of playing; None plays.
        sharding: See `shard`.
        kwargs: Passed to `transformers.Trainer`.

    Raises:
        SettingError: A setting is out of its range, or none of this trainer's.
    """
    check_settings("distill", DistillationTrainer, kwargs)
    shard(args, sharding)
    _refuse_loss_settings(args)
    if parts.loss.on_policy and lmbda < 1:
        raise SettingError(
            f"trainer.lmbda={lmbda}: {type(parts.loss).__name__} learns from the student's own "
            f"tokens; expected 1, or another loss=…"
        )
    if kl is None:
        kl = 0.0 if parts.teacher is not None else HELD
    schedule = Schedule(steps_per_generation, num_iterations, clip, clip_high, kl)
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
        advantages,
        Job.join(),
        parts.rollouts,
    )
    needed = tasks_needed(args, steps_per_generation, num_iterations)
    rollouts = -(-args.max_steps // (steps_per_generation * num_iterations))
    watch = CollapseWatch(on_collapse, needed / rollouts / collector.rows_a_task)
    if recorded is None:  # else figures are of another time
        kwargs["callbacks"] = [watch, *(kwargs.get("callbacks") or ())]
    deal = parts.tasks if recorded is None else recorded.tasks
    tasks = deal(needed // collector.rows_a_task)
    if prefixes is not None:
        check_replayable(list(dict.fromkeys(task.env_id for task in tasks)))
    return OnPolicyDistillation(
        collector, parts.loss, args, tasks, schedule, record=parts.record, **kwargs
    )
