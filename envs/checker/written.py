"""Checks of what is written down: the class, its tools, its tasks and their splits."""

from __future__ import annotations

import pickle
from itertools import islice

from journeyman.envs.checker.subject import Listed, Subject, found, told
from journeyman.envs.definition import mistakes, tool_mistakes
from journeyman.envs.hashing import digest
from journeyman.envs.task import Task
from journeyman.envs.types import SPLITS


def definition(subject: Subject) -> str:
    """The class and its tools can work as they are written."""
    wrong = list(mistakes(subject.env_type)) or list(tool_mistakes(subject.env_type))
    if wrong:
        raise found(*wrong)
    return f"{len(subject.env_type.toolset)} tools, each with a schema"


def tasks(subject: Subject) -> str:
    """An id names one task for good; a task is a value that can be hashed and sent about."""
    env_type = subject.env_type
    if not subject.pools:
        raise found(
            f"no split of {env_type.__name__} has a task: tasks(split) and task_count say none"
        )
    empty = [
        level for level in env_type.levels
        if not any(f"{split}/{level}" in subject.pools for split in SPLITS)
    ]  # fmt: skip
    if empty:
        raise found(f"no split has a task of level {empty[0]!r}: leave it out of `levels`")
    for where in subject.pools:
        ids = list(islice(env_type.tasks(where), 10 * subject.episodes))
        again = list(islice(env_type.tasks(where), len(ids)))
        if ids != again:
            first, second = next(p for p in zip(ids, again, strict=False) if p[0] != p[1])
            raise found(f"tasks({where!r}) gave {first}, then {second} at the same place")
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise found(f"tasks({where!r}) gives the id {twice} twice: an id names one task")
        for number, task_id in enumerate(ids):
            task = env_type.load_task(task_id)
            problem = _problem(task, task_id, thorough=number < 3)
            if problem:
                raise found(problem)
            subject.listed.append(Listed(task_id, task.prompt, _content(task)))
            if digest(env_type.load_task(task_id)) != digest(task):
                raise found(
                    f"task {task_id} is another task when it is loaded again: draw all of it from "
                    f"the rng that generate() is given"
                )
        split, _, level = where.partition("/")
        size = env_type.task_count(split, level)  # type: ignore[arg-type]
        if size is not None:
            env_type.load_task(f"{where}/{size - 1}")
    return f"{len(subject.listed)} tasks, each the same when it is loaded again"


def _problem(task: Task, task_id: str, thorough: bool) -> str | None:
    if task.id != task_id:
        return f"task {task_id} calls itself {task.id!r}: load_task must fill in the id"
    if not task.prompt.strip():
        return f"task {task_id} has an empty prompt"
    try:
        digest(task.state)
    except TypeError as error:
        return f"the state of task {task_id}: {error}"
    if thorough:
        try:
            pickle.dumps(task)
        except Exception as error:  # pickle raises what it likes
            return (
                f"task {task_id} cannot be pickled, and another process could not be given it: "
                f"{told(error)}"
            )
    return None


def splits(subject: Subject) -> str:
    """No task of one split is also in another."""
    seen: dict[str, str] = {}
    for task in subject.listed:
        other = seen.setdefault(task.content, task.id)
        if other.partition("/")[0] != task.id.partition("/")[0]:
            raise found(
                f"task {task.id} is also task {other}: {task.prompt!r}; give each split values of "
                f"its own"
            )
    return f"{len(seen)} different tasks, none in two splits"


def _content(task: Task) -> str:
    return digest((task.state, [(t.prompt, t.answer) for t in task.turns]))
