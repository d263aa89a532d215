"""Supervised training: a thin subclass of `trl.SFTTrainer`, whose rows are tokens already.

They are gold episodes, or conversations of a file. Loss falls on student turns only, and not on the
wrong calls that demonstrations may contain.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from journeyman.agents.errors import ConversationError, DialectError, SettingError
from journeyman.agents.learning.conversations import conversations
from journeyman.agents.learning.trainers.fused import IGNORED, read_once
from journeyman.agents.learning.trainers.parts import (
    Parts,
    PlainTrainer,
    check_settings,
    tasks_needed,
)
from journeyman.agents.learning.trainers.several import shard, to_train
from journeyman.agents.rollouts.demonstrations import Demonstration, demonstrate
from journeyman.agents.rollouts.dialogues import retell
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.player import Trainable
from journeyman.agents.teachers.hints import Hint, hint_of
from journeyman.envs import Task, make_for_run

logger = logging.getLogger(__name__)

MAX_TURNS = 64
"""Room for demonstrations with many mistakes."""


class DemonstrationTuning(PlainTrainer, SFTTrainer):
    """Trains a student on token rows."""

    def __init__(self, student: Trainable, args: SFTConfig, rows: Dataset, **kwargs: Any) -> None:
        """Hand the rows to TRL.

        Args:
            student: Its model is trained.
            args: TRL's arguments.
            rows: Of "input_ids" and "labels".
            kwargs: Passed to `transformers.Trainer`.

        Raises:
            SettingError: Every row is longer than the student's context.
        """
        _check_room(rows, student.max_context + student.sampling.max_tokens)
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        args.remove_unused_columns = False
        super().__init__(
            model=to_train(student.model, args, **kwargs),
            whole=student.model,
            args=args,
            train_dataset=rows,
            processing_class=student.dialect.tokenizer,
            **kwargs,
        )
        if not args.neftune_noise_alpha:  # noise goes by the length of what is read
            read_once(self.model)


def demonstration_rows(
    tasks: Sequence[TaskRef],
    dialect: Dialect,
    error_rate: float = 0.0,
    env_kwargs: Mapping[str, Any] | None = None,
    hint: Hint | None = None,
    hinted: float = 1.0,
) -> Dataset:
    """Gold episodes as rows of "input_ids" and "labels".

    Args:
        tasks: One demonstration a task.
        dialect: How the student reads and writes.
        error_rate: Chance of a harmless wrong call before each right one.
        env_kwargs: For the environments; their turns are not limited by it.
        hint: Stands at the end of prompts, as `teacher=self` reads it.
        hinted: Chance of a prompt to have it.
    """
    given = {**(env_kwargs or {}), "max_turns": MAX_TURNS}
    envs = {env_id: make_for_run(env_id, given) for env_id in {t.env_id for t in tasks}}

    def tell(env_id: str, task: Task) -> str | None:
        if hint is None or random.Random(f"hint/{env_id}/{task.id}").random() >= hinted:
            return None
        return hint.tell(task, dialect, None)

    return _rows(
        demonstrate(envs[t.env_id], t.task_id, dialect, error_rate, partial(tell, t.env_id))
        for t in tasks
    )


def conversation_rows(files: Sequence[str], dialect: Dialect) -> Dataset:
    """Conversations of files as the same rows: of each all that the student would have said.

    Args:
        files: Of JSON lines, see `journeyman.agents.learning.conversations`.
        dialect: How the student reads and writes.

    Raises:
        ConversationError: A line is no conversation, or none that the student could have had; or a
            file holds none.
        OSError: A file cannot be read.
    """
    told: list[Demonstration] = []
    for file in files:
        before = len(told)
        for number, dialogue in conversations(Path(file)):
            try:
                told.append(retell(dialogue, dialect))
            except DialectError as error:
                raise ConversationError(f"{file}, line {number}: {error}") from error
        if len(told) == before:
            raise ConversationError(f"{file}: expected a conversation a line, and it is empty")
    return _rows(told)


def _rows(told: Iterable[Demonstration]) -> Dataset:
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for row in told:
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


def _told(name: str | Hint | None, hinted: float, data: object) -> Hint | None:
    """The hint that gold episodes are shown with.

    Raises:
        SettingError: There is none of that name, or none that is known before anything is played;
            or the share is out of its range; or what is learned from is no gold episodes.
    """
    if isinstance(hinted, bool) or not isinstance(hinted, int | float) or not 0 <= hinted <= 1:
        raise SettingError(f"trainer.hinted={hinted}: expected 0 to 1, the share of rows")
    if name is None:
        return None
    hint = hint_of(name)
    if not hint.ahead:
        raise SettingError(
            f"trainer.hint={name} tells of an episode that was played: expected a hint that hangs "
            f"on the task alone, such as gold"
        )
    if data is not None:
        raise SettingError(
            f"trainer.hint={name} is told with gold episodes, and trainer.data={data} are "
            f"conversations as they were: leave one of them out"
        )
    return hint


def build(
    parts: Parts,
    args: SFTConfig,
    error_rate: float = 0.0,
    data: str | Sequence[str] | None = None,
    hint: str | Hint | None = None,
    hinted: float = 1.0,
    sharding: str | None = None,
    **kwargs: Any,
) -> DemonstrationTuning:
    """The trainer of `trainer=sft`.

    Args:
        parts: Of the run.
        args: TRL's arguments.
        error_rate: Of gold episodes, see `demonstration_rows`.
        data: A file of conversations to learn from instead of gold episodes, or several.
        hint: What gold episodes are shown with: name of a hint, or one, see `teachers/hints.py`.
        hinted: Chance of a gold episode to be shown with it; the others have the plain prompt.
        sharding: See `shard`.
        kwargs: Passed to `transformers.Trainer`.

    Raises:
        SettingError: A value is out of its range, or of another trainer.
        ConversationError: A file cannot be learned from.
    """
    check_settings("sft", SFTTrainer, kwargs)
    shard(args, sharding)
    if not 0 <= error_rate < 1:
        raise SettingError(f"trainer.error_rate={error_rate}: expected 0 or more, below 1")
    told = _told(hint, hinted, data)
    needed = tasks_needed(args)
    dialect = parts.student.dialect
    if data is None:
        rows = demonstration_rows(
            parts.tasks(needed), dialect, error_rate, parts.env_kwargs, told, hinted
        )
    else:
        files = [data] if isinstance(data, str) else data
        named = isinstance(files, Sequence) and all(isinstance(file, str) for file in files)
        if not named or not files:
            raise SettingError(
                f"trainer.data={data}: expected a file of JSON lines, or a list of them: "
                f"trainer.data=[a.jsonl,b.jsonl]"
            )
        rows = conversation_rows(files, dialect)
        if args.process_index == 0:
            many = "conversation" if len(rows) == 1 else "conversations"
            print(f"{len(rows)} {many}, learned from {needed / len(rows):.3g} times each")
    return DemonstrationTuning(parts.student, args, rows, **kwargs)
