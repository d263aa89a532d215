"""Supervised warm start on gold episodes: a thin subclass of `trl.SFTTrainer`.

Loss falls on student turns only, and not on the wrong calls that demonstrations may contain.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from journeyman.agents.errors import SettingError
from journeyman.agents.learning.trainers.parts import Parts, PlainTrainer, tasks_needed
from journeyman.agents.rollouts.demonstrations import demonstrate
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.player import Trainable
from journeyman.envs import make_for_run

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of tokens without loss, by transformers' convention."""
MAX_TURNS = 64
"""Room for demonstrations with many mistakes."""


class DemonstrationTuning(PlainTrainer, SFTTrainer):
    """Trains a student on gold episodes."""

    def __init__(
        self,
        student: Trainable,
        args: SFTConfig,
        tasks: Sequence[TaskRef],
        error_rate: float = 0.0,
        env_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the demonstrations and hand them to TRL.

        Args:
            student: Its model is trained.
            args: TRL's arguments.
            tasks: One demonstration a task.
            error_rate: Chance of a harmless wrong call before each right one.
            env_kwargs: For the environments; their turns are not limited by it.
            kwargs: Passed to `transformers.Trainer`.
        """
        if not 0 <= error_rate < 1:
            raise SettingError(f"trainer.error_rate={error_rate}: expected 0 or more, below 1")
        rows = demonstration_rows(tasks, student.dialect, error_rate, env_kwargs)
        _check_room(rows, student.max_context + student.sampling.max_tokens)
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        args.remove_unused_columns = False
        super().__init__(
            model=student.model,
            args=args,
            train_dataset=rows,
            processing_class=student.dialect.tokenizer,
            **kwargs,
        )


def demonstration_rows(
    tasks: Sequence[TaskRef],
    dialect: Dialect,
    error_rate: float = 0.0,
    env_kwargs: Mapping[str, Any] | None = None,
) -> Dataset:
    """Gold episodes as rows of "input_ids" and "labels"."""
    given = {**(env_kwargs or {}), "max_turns": MAX_TURNS}
    envs = {env_id: make_for_run(env_id, given) for env_id in {t.env_id for t in tasks}}
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for task in tasks:
        row = demonstrate(envs[task.env_id], task.task_id, dialect, error_rate)
        rows["input_ids"].append(list(row.tokens))
        rows["labels"].append(
            [t if learn else IGNORED for t, learn in zip(row.tokens, row.mask, strict=True)]
        )
    return Dataset.from_dict(rows)


def _check_room(rows: Dataset, room: int) -> None:
    """See that the student could play what it is shown.

    Raises:
        SettingError: Every demonstration is longer than its context.
    """
    longer = sum(len(tokens) > room for tokens in rows["input_ids"])
    words = (
        f"{longer} of {len(rows)} demonstrations are longer than the student's context of {room} "
        f"tokens: raise student.max_context, or show less in the prompt (student.render)"
    )
    if longer == len(rows):
        raise SettingError(words)
    if longer:
        logger.warning("%s", words)


def build(
    parts: Parts, args: SFTConfig, error_rate: float = 0.0, **kwargs: Any
) -> DemonstrationTuning:
    """The trainer of `trainer=sft`."""
    return DemonstrationTuning(
        parts.student,
        args,
        parts.tasks(tasks_needed(args)),
        error_rate,
        parts.env_kwargs,
        **kwargs,
    )
