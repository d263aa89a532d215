"""On-policy distillation: a thin subclass of `trl.DistillationTrainer`.

TRL brings the optimiser loop, checkpoints, distribution and the tiled divergence kernels. Its
seams are filled anew: the rollouts are ours (multi-turn, in environments) and may serve several
optimiser steps, and the per-token divergence is multiplied by weights and joined by a
policy-gradient term.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from trl import DistillationConfig, DistillationTrainer
from trl.trainer.utils import RepeatSampler, shuffle_sequence_dict, split_tensor_dict

from journeyman.agents.credit import Credit, Experience, TokenCredit
from journeyman.agents.errors import UserError
from journeyman.agents.learning.losses.divergence import compare
from journeyman.agents.learning.losses.functions import policy_gradient, weighted_mean
from journeyman.agents.learning.samples import to_batch
from journeyman.agents.learning.trainers.parts import Parts, PlainTrainer, tasks_needed
from journeyman.agents.networks.batching import similar_lengths
from journeyman.agents.networks.heads import Head, backbone
from journeyman.agents.rollouts.rollout import TaskRef, rollout
from journeyman.agents.search.evidence import Spent, TreeEpisode, TreeRollouts
from journeyman.agents.students.hf import alike
from journeyman.agents.students.player import Student
from journeyman.agents.teachers.local import LocalTeacher
from journeyman.envs import Episode, StopReason
from journeyman.tools import CallStatus

RUN = (CallStatus.OK, CallStatus.TOOL_ERROR, CallStatus.TIMEOUT)
LOGGED_TURNS = 6
"""Divergence is logged for this many turns: its drift over turns is the first thing to watch."""


class OnPolicyDistillation(PlainTrainer, DistillationTrainer):
    """Distils a teacher into a student on the student's own episodes."""

    def __init__(
        self,
        policy: Student,
        teacher: LocalTeacher,
        credit: Credit,
        args: DistillationConfig,
        tasks: Sequence[TaskRef],
        env_kwargs: dict[str, Any] | None = None,
        rollout_batch: int = 64,
        steps_per_generation: int = 1,
        num_iterations: int = 1,
        lmbda: float = 1.0,
        search: TreeRollouts | None = None,
        record: Callable[[int, Sequence[Episode]], object] = lambda step, episodes: None,
        **kwargs: Any,
    ) -> None:
        """Join the parts.

        Args:
            policy: The student; its model is trained.
            teacher: Compared with the student on every token it chose.
            credit: Token weights and advantages.
            args: TRL's arguments; `beta` 0 is KL(teacher || student), 1 is KL(student || teacher).
            tasks: One an episode, in order; as many as `tasks_needed` says.
            env_kwargs: For the environments.
            rollout_batch: Conversations side by side.
            steps_per_generation: Optimiser steps that the episodes of a rollout are dealt among;
                decoding is the faster the more rows it has.
            num_iterations: Times that each rollout is learned from. Both as in TRL's GRPO; both 1
                is strictly on policy.
            lmbda: Chance of a task to be played by the student, as in TRL's GKD; the teacher plays
                the others (0 is distillation on the teacher's episodes).
            search: Grows each task's rows into a tree; None plays one episode a task.
            record: Told of each of this process's rollouts; see `Parts`.
            kwargs: Passed to `transformers.Trainer` (callbacks, optimizers, …).

        Raises:
            UserError: Checkpoints would fall between a rollout and its last step. A run could not
                go on from there as if it had not stopped: the rollout is not in a checkpoint. Or
                `lmbda` is no probability, or the teacher is to play where trees are to grow.
        """
        if not 0 <= lmbda <= 1:
            raise UserError(f"trainer.lmbda={lmbda}: expected 0 (the teacher plays) to 1")
        if search is not None and lmbda < 1:
            raise UserError(
                f"trainer.lmbda={lmbda}: a search grows trees of the student's own episodes; "
                f"expected 1, or no search"
            )
        if args.save_strategy == "steps" and args.save_steps % (
            steps_per_generation * num_iterations
        ):
            raise UserError(
                f"trainer.args.save_steps={args.save_steps:g}: expected a multiple of trainer."
                f"steps_per_generation={steps_per_generation} * num_iterations={num_iterations}"
            )
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        if search is not None and rows * steps_per_generation % search.rows:
            raise UserError(
                f"search.rows={search.rows}: expected a divisor of {rows * steps_per_generation}, "
                f"the rows of a rollout (batch size * accumulation * steps_per_generation)"
            )
        self._search = search
        self._record = record
        self._steps_per_generation = steps_per_generation
        self._num_iterations = num_iterations
        # Defaults of TRL that would break ours: rows are task references, in a fixed order.
        args.remove_unused_columns = False
        args.shuffle_dataset = False
        super().__init__(
            model=policy.model,
            teacher_model=teacher.model,
            args=args,
            train_dataset=_as_dataset(tasks),
            processing_class=policy.format.tokenizer,
            **kwargs,
        )
        self._policy = policy
        self._teacher = teacher
        self._lmbda = lmbda
        self._credit = credit
        self._env_kwargs = env_kwargs or {}
        self._rollout_batch = rollout_batch
        self._played: list[dict[str, Any]] = []
        """Microbatches of the current rollout."""

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
        return RepeatSampler(
            tasks,
            mini_repeat_count=self._rows_a_task,
            batch_size=self._train_batch_size
            * self._microbatches
            * self.accelerator.num_processes
            // self._rows_a_task,
            repeat_count=self._microbatches * self._num_iterations,
            shuffle=False,
        )

    @property
    def _rows_a_task(self) -> int:
        return self._search.rows if self._search is not None else 1

    @property
    def _microbatches(self) -> int:
        """That one iteration over a rollout has in this process."""
        return int(self.args.gradient_accumulation_steps) * self._steps_per_generation

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """The next microbatch; a rollout if the last one is used up."""
        model: Any = self.model
        if not model.training:
            return self._generate_and_score_completions(generation_batch)
        place = self._step % (self._microbatches * self._num_iterations)
        if place == 0:
            rows = self._generate_and_score_completions(generation_batch)
            self._played = []
            for _ in range(self._num_iterations):
                self._played += self._deal(shuffle_sequence_dict(rows))
        return self._played[place]

    def _deal(self, rows: dict[str, Any]) -> list[dict[str, Any]]:
        """Cut a rollout into microbatches, each with the count of its own optimiser step."""
        parts: list[dict[str, Any]] = split_tensor_dict(rows, self._microbatches)
        accumulated = int(self.args.gradient_accumulation_steps)
        for start in range(0, len(parts), accumulated):
            step = parts[start : start + accumulated]
            count = torch.stack([part["tool_mask"].sum() for part in step]).sum()
            count = self.accelerator.gather(count).sum()
            for part in step:
                part["num_items_in_batch"] = count
        return parts

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Play the student's episodes and turn them into rows (TRL's seam for rollouts)."""
        started = time.perf_counter()
        tasks = [
            TaskRef(row["env_id"], row["task_id"], self._row_seed(i))
            for i, row in enumerate(inputs)
        ]
        training = self._policy.model.training
        self._policy.model.eval()
        theirs = [_dice(task) >= self._lmbda for task in tasks]
        rows = self._play(tasks, theirs)
        theirs = theirs[: len(rows)]  # a search plays fewer rows than tasks, all the student's
        episodes = [row.episode for row in rows]
        evidence = None if self._search is None else [row.steps for row in rows]
        experience = Experience(episodes, evidence, self._teacher, self._policy.model)
        credit = self._credit.assign(experience)
        if training:
            self._credit.learn(experience)
        self._policy.model.train(training)
        missing = len(tasks) - len(rows)
        blank = _blank(tasks[0], self._policy.format.eos_id)
        nothing = TokenCredit(*torch.zeros(2, len(blank.tokens)).unbind())
        batch = to_batch(
            episodes + [blank] * missing,
            credit + [nothing] * missing,
            self._tokenizer.pad_token_id,
        )
        batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
        if training and self.accelerator.is_main_process:
            self._record(int(self.state.global_step) + 1, episodes)
        self._log_rollouts(episodes, theirs, time.perf_counter() - started)
        if self._search is not None:
            self._log_search(rows, self._search.spent)
        return batch

    def _play(self, tasks: Sequence[TaskRef], theirs: Sequence[bool]) -> list[TreeEpisode]:
        """An episode a task; or trees, of fewer rows where a budget ends or something breaks.

        Args:
            tasks: One a row.
            theirs: True where the teacher plays.
        """
        if self._search is None:
            episodes: dict[int, Episode] = {}
            for by_teacher in set(theirs):
                player = alike(self._policy, self._teacher.model) if by_teacher else self._policy
                rows = [i for i, it in enumerate(theirs) if it is by_teacher]
                played = rollout(
                    player, [tasks[i] for i in rows], self._rollout_batch, self._env_kwargs
                )
                episodes.update(zip(rows, played, strict=True))
            found = [episodes[i] for i in range(len(tasks))]
            _check_alive(found)
            return [TreeEpisode(e, (None,) * len(e.steps)) for e in found]
        trees = self._search.play(
            self._policy, self._teacher, tasks, self._rollout_batch, self._env_kwargs
        )
        _check_alive([tree.episode for tree in trees])
        return trees

    def _log_search(self, rows: Sequence[TreeEpisode], spent: Spent) -> None:
        metrics = self._metrics["train" if self._policy.model.training else "eval"]
        for name, count in dataclasses.asdict(spent).items():
            metrics[f"search/{name}"].append(float(count))
        values, tools = defaultdict(list), defaultdict(list)
        for row in rows:
            for turn, (step, known) in enumerate(zip(row.episode.steps, row.steps, strict=True)):
                if known is not None:
                    values[turn].append(known.value.mean)
                    for result in step.results:
                        if result.call.status in RUN:  # other names are the student's inventions
                            tools[result.call.name].append(known.advantage.mean)
        for turn in range(LOGGED_TURNS):
            if values[turn]:
                metrics[f"value/turn_{turn + 1}"].append(fmean(values[turn]))
        for name, advantages in tools.items():
            metrics[f"advantage/{name}"].append(fmean(advantages))

    def _row_seed(self, row: int) -> int:
        """A seed by place in the run, not by history: a resumed run draws the same."""
        key = (self.args.seed, self.state.global_step, self.accelerator.process_index, row)
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """What the credit has learned goes into the checkpoint too (TRL's seam)."""
        super()._save_optimizer_and_scheduler(output_dir)
        if learned := self._credit.state_dict():
            torch.save(learned, self._credit_file(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (file := self._credit_file(checkpoint)).exists():
            self._credit.load_state_dict(torch.load(file))

    def _credit_file(self, checkpoint: str) -> Path:
        """Each process has its own episodes, and learns its own credit."""
        return Path(checkpoint) / f"credit_{self.accelerator.process_index}.pt"

    def _compute_loss(
        self,
        unwrapped_student: PreTrainedModel,
        inputs: dict[str, Tensor],
        num_items: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted divergence plus policy gradient over chosen tokens (TRL's seam for losses).

        Returns:
            The loss, the sum of the student's entropy, and the count of chosen tokens.
        """
        chosen = (inputs["tool_mask"] * inputs["completion_mask"]).bool()
        count = num_items if num_items is not None else chosen.sum().clamp(min=1)

        student = _hidden_states(unwrapped_student, inputs, chosen)
        unwrapped_teacher = self.accelerator.unwrap_model(self.teacher_model)
        with torch.no_grad():
            teacher = self._forward_redirection(
                self.teacher_model,
                unwrapped_teacher,
                _hidden_states,
                unwrapped_teacher,
                inputs,
                chosen,
            )
        advantages = inputs["advantages"][chosen]
        reinforced = bool(advantages.any())
        found = compare(
            student,
            Head.of(unwrapped_student),
            teacher,
            Head.of(unwrapped_teacher),
            self.beta,
            self.temperature,
            inputs["completion_ids"][chosen] if reinforced else None,
        )
        loss = weighted_mean(found.divergence, inputs["weights"][chosen], count)
        if found.logprobs is not None:
            terms = policy_gradient(found.logprobs, inputs["sampled_logprobs"][chosen], advantages)
            loss = loss + terms.sum() / count
        self._log_divergence(found.divergence.detach(), inputs["turns"][chosen])
        return loss, found.entropy.sum(), chosen.sum()

    def _log_rollouts(
        self, episodes: Sequence[Episode], theirs: Sequence[bool], seconds: float
    ) -> None:
        broken = sum(e.stop is StopReason.INFRA_ERROR for e in episodes)
        own = [e for e, by_teacher in zip(episodes, theirs, strict=True) if not by_teacher]
        sound = [e for e in own if e.stop is not StopReason.INFRA_ERROR]
        metrics = self._metrics["train" if self._policy.model.training else "eval"]
        tokens = sum(sum(e.mask) for e in sound)
        if sound:
            metrics["rollout/success"].append(sum(e.success for e in sound) / len(sound))
            metrics["rollout/calls"].append(sum(len(e.calls) for e in sound) / len(sound))
            metrics["rollout/turns"].append(sum(len(e.steps) for e in sound) / len(sound))
            metrics["rollout/tokens"].append(tokens / len(sound))
        if any(theirs):
            written = sum(sum(e.mask) for e in episodes) - sum(sum(e.mask) for e in own)
            metrics["rollout/teacher_tokens"].append(float(written))
        metrics["rollout/infra_errors"].append(float(broken))
        metrics["rollout/seconds"].append(seconds)
        metrics["rollout/tokens_per_s"].append(tokens / seconds)
        for name, figure in self._credit.log.items():
            metrics[name].append(figure)

    def _log_divergence(self, divergence: Tensor, turns: Tensor) -> None:
        metrics = self._metrics["train" if self._policy.model.training else "eval"]
        for turn in range(LOGGED_TURNS):
            here = divergence[turns == turn]
            if here.numel():
                metrics[f"divergence/turn_{turn + 1}"].append(float(here.mean()))


def _hidden_states(model: PreTrainedModel, inputs: dict[str, Tensor], chosen: Tensor) -> Tensor:
    """Last hidden states [N, H] from which the chosen tokens are predicted, in their order.

    TRL's own counts positions from the left edge of the padding. Here a token has the position it
    was sampled at, without which learned position embeddings would see another text.

    Args:
        model: Student or teacher.
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


def _check_alive(episodes: Sequence[Episode]) -> None:
    """Stop a run whose environments do not work: nothing is left to learn from.

    Args:
        episodes: Of a rollout; a tree leaves out those that broke before their first step.

    Raises:
        UserError: Every episode broke.
    """
    if all(e.stop is StopReason.INFRA_ERROR for e in episodes):
        what = episodes[0].error if episodes else "none could begin; see the warnings above"
        raise UserError(
            f"every episode of a rollout broke ({what}): mend the environment; the same command "
            f"goes on from the last checkpoint"
        )


def _dice(task: TaskRef) -> float:
    """Says who plays a row: a number in [0, 1) that follows from its seed."""
    return float(np.random.default_rng((task.seed, 1)).random())


def _blank(task: TaskRef, token: int) -> Episode:
    """A row that is trained on nothing: a batch has as many rows as it has tasks."""
    return Episode(task.env_id, task.task_id, (token,), (0.0,), (False,), (), StopReason.MAX_TURNS)


def _as_dataset(tasks: Sequence[TaskRef]) -> Dataset:
    return Dataset.from_dict(
        {"env_id": [t.env_id for t in tasks], "task_id": [t.task_id for t in tasks]}
    )


def build(
    parts: Parts,
    args: DistillationConfig,
    rollout_batch: int = 64,
    steps_per_generation: int = 1,
    num_iterations: int = 1,
    lmbda: float = 1.0,
    **kwargs: Any,
) -> OnPolicyDistillation:
    """The trainer of `trainer=distill`."""
    rows_a_task = parts.search.rows if parts.search is not None else 1
    return OnPolicyDistillation(
        parts.policy,
        parts.teacher,
        parts.credit,
        args,
        parts.tasks(tasks_needed(args, steps_per_generation, num_iterations) // rows_a_task),
        parts.env_kwargs,
        rollout_batch,
        steps_per_generation,
        num_iterations,
        lmbda,
        parts.search,
        parts.record,
        **kwargs,
    )
