"""How often a rollout is learned from, and how far that may take the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel
from trl import DistillationConfig

from journeyman.agents.errors import SettingError
from journeyman.agents.learning.losses.functions import clipped_policy_gradient, kl_estimate
from journeyman.agents.learning.losses.loss import check_number
from journeyman.agents.learning.trainers.beginning import Beginning

BEGAN = "began_logprobs"
"""Column of rows: log-probabilities under the student as the run began with it."""
MOST = 1e6
HELD = 0.5
"""Weight of the divergence from the beginning where no teacher holds the student."""


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
    clip_high: float | None = None
    """The bound above 1, if it is another than `clip` (DAPO)."""
    kl: float = 0.0
    """Weight of the divergence from the student as the run began with it, of every chosen token."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SettingError: A count is below one, or a bound or a weight is out of its range.
        """
        check_number("trainer.clip", self.clip, 0, 1)
        if self.clip_high is not None:
            check_number("trainer.clip_high", self.clip_high, 0, MOST)
            if self.clip == 0:
                raise SettingError(
                    f"trainer.clip_high={self.clip_high}: trainer.clip=0 clips nothing; expected "
                    f"trainer.clip above 0, such as 0.2"
                )
        check_number("trainer.kl", self.kl, 0, MOST)
        for name in ("steps_per_generation", "num_iterations"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise SettingError(f"trainer.{name}={value}: expected a whole number, 1 or more")

    @property
    def steps_a_rollout(self) -> int:
        """Optimiser steps that learn from a rollout."""
        return self.steps_per_generation * self.num_iterations

    def check(self, args: DistillationConfig, rows_a_task: int, staleness: int = 0) -> None:
        """See whether checkpoints and tasks fall between rollouts.

        Raises:
            SettingError: Checkpoints would fall between a rollout and its last step. A run could
                not go on from there as if it had not stopped: the rollout is not in a checkpoint.
                Or a task's rows would be cut; or no rollout can be played ahead.
        """
        steps = self.steps_a_rollout
        if 0 < staleness < steps:
            raise SettingError(
                f"rollouts.staleness={staleness}: a rollout serves {steps} steps (trainer."
                f"steps_per_generation={self.steps_per_generation} * num_iterations="
                f"{self.num_iterations}), and the next is needed after them all; expected 0, or "
                f"{steps} or more"
            )
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

    def dealt(self, rows: int, first: int, key: Sequence[int]) -> list[int]:
        """In which order rows of a rollout are learned from: those of the first step come first.

        Of every `steps_per_generation` rows in a row each step gets one, and dice say which: rows
        of one task go to different steps, and who has which rows of the rollout plays no part. So
        a step has the same rows on any number of processes.

        Args:
            rows: That a process has, a multiple of `steps_per_generation`.
            first: The place of the first of them among those of all processes.
            key: Of the dice; the same in all processes.
        """
        steps = self.steps_per_generation
        starts = range(0, rows, steps)
        dealt = [
            np.random.default_rng((*key, first + start)).permutation(steps) for start in starts
        ]
        return [
            start + int(own[step])
            for step in range(steps)
            for start, own in zip(starts, dealt, strict=True)
        ]

    def beginning(self, model: PreTrainedModel, adapters: Any = None) -> Beginning | None:
        """What the run is held to, of a student before it is trained; None if by nothing."""
        return Beginning(model, adapters) if self.kl else None

    def policy_loss(self, logprobs: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
        """[N] of advantages, and of the divergence from where the student began.

        Args:
            logprobs: [N] of the chosen tokens, with gradient.
            tokens: [N] each: "sampled_logprobs", "advantages", and with `kl` "began_logprobs".
        """
        known = tokens["sampled_logprobs"], tokens["advantages"]
        loss = clipped_policy_gradient(logprobs, *known, self.clip, self.clip_high)
        return loss + self.kl * kl_estimate(logprobs, tokens[BEGAN]) if self.kl else loss


def in_order(
    rows: Mapping[str, Tensor], schedule: Schedule, again: int, seed: int, step: int, process: int
) -> dict[str, Tensor]:
    """A process's rows of a rollout in the order in which an iteration learns from them.

    Args:
        rows: [B, …] each, but for counts.
        schedule: Deals them.
        again: Iterations before this one.
        seed: The run's.
        step: That the rollout was played at.
        process: The place of the process; all have as many rows.
    """
    count = len(rows["row"])
    order = schedule.dealt(count, process * count, (seed, step, 1 + again))  # 0: what is played
    return {name: it[order] if it.ndim else it for name, it in rows.items()}
