"""What every trainer is built from; each takes the parts it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import Trainer, TrainingArguments

from journeyman.agents.credit import Credit
from journeyman.agents.rollouts.rollout import TaskRef
from journeyman.agents.search.evidence import TreeRollouts
from journeyman.agents.students.player import Student
from journeyman.agents.teachers.local import LocalTeacher
from journeyman.envs import Episode


@dataclass(frozen=True)
class Parts:
    """The pieces of a run."""

    policy: Student
    """The student."""
    teacher: LocalTeacher
    """Scores the student's tokens; supervised training has no use for it."""
    credit: Credit
    """Token weights and advantages."""
    tasks: Callable[[int], Sequence[TaskRef]]
    """The first n training tasks."""
    env_kwargs: dict[str, Any]
    """For every environment."""
    search: TreeRollouts | None = None
    """Grows rollouts into trees; for distillation only."""
    record: Callable[[int, Sequence[Episode]], object] = lambda step, episodes: None
    """Told of every rollout: the optimiser step that learns from it first, and its episodes."""


class PlainTrainer(Trainer):
    """What the libraries' trainers say and write that would mislead here is left out."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card in checkpoints: TRL's would call the model a fine-tuned version of nothing."""

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Weights that are tied to others are saved as those, not missing."""
        tied: Any = getattr(self.model, "all_tied_weights_keys", {})
        missing = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))


def tasks_needed(
    args: TrainingArguments, steps_per_generation: int = 1, num_iterations: int = 1
) -> int:
    """Rows a run of `max_steps` draws over all processes, in whole rollouts.

    Raises:
        ValueError: `max_steps` is not set.
    """
    if args.max_steps <= 0:
        raise ValueError("set steps (trainer.args.max_steps) to a number above zero")
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    generations = -(-args.max_steps // (steps_per_generation * num_iterations))
    return int(generations * steps_per_generation * rows)
