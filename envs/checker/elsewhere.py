"""The check that another process, with another hash seed, plays the same.

Tasks are named by their ids on disk and in other processes, and episodes are compared by their
hashes. Both go wrong where the order of a set decides something. This module is also the program
that the other process runs.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from journeyman.envs.checker.subject import Subject, found
from journeyman.envs.checker.turns import play, random_turns
from journeyman.envs.core import ToolEnv
from journeyman.envs.hashing import digest
from journeyman.envs.nearmiss import program

_TASKS = 3
"""Tasks of every split and level that are played once more."""

_SECONDS = 300.0

_NOT_FOUND = 3
"""Exit status of a process that does not find the class: one of a notebook, or of a test."""

_Seen = dict[str, list[list[str]]]
"""By task id, what was seen in order: a name and a digest each."""


def processes(subject: Subject) -> str:
    """Tasks and episodes are the same in another process, whose hash seed is another."""
    cls = subject.env_type
    if _found_in_module(cls) is not cls:
        return f"{cls.__name__} cannot be imported by name, so no other process could play it"
    count = 1 if cls.waits else _TASKS
    ids = [i for where in subject.pools for i in itertools.islice(cls.tasks(where), count)]
    with subject.make() as env:
        assert env.spec is not None
        kwargs = env.spec.kwargs
        here = _play(env, ids, subject.seed)
    try:
        job = pickle.dumps((sys.path, cls.__module__, cls.__qualname__, kwargs, ids, subject.seed))
    except Exception:  # pickle raises what it likes
        return "its arguments cannot be pickled, so no other process could play it"
    there = _ask(job)
    if there is None:
        return f"{cls.__module__} cannot be imported elsewhere, so no other process could play it"
    for task_id in ids:
        pairs = zip(here[task_id], there[task_id], strict=False)
        for (what, one), (_, other) in pairs:
            if one != other:
                raise found(
                    f"task {task_id}: {what} is another in a process with another hash seed: let "
                    f"no order of a set decide (sort it), and take nothing from hash() or id()"
                )
    return f"{len(ids)} tasks were played alike in another process"


def _found_in_module(cls: type[ToolEnv]) -> Any:
    if cls.__module__ == "__main__":
        return None
    module = sys.modules.get(cls.__module__)
    names = cls.__qualname__.split(".")
    return functools.reduce(lambda at, name: getattr(at, name, None), names, module)


def _ask(job: bytes) -> _Seen | None:
    """What another process sees; None if it cannot import the class."""
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    run = subprocess.run(
        [sys.executable, "-m", __name__],
        input=job,
        capture_output=True,
        timeout=_SECONDS,
        env={**os.environ, "PYTHONHASHSEED": other},
        check=False,
    )
    if run.returncode == _NOT_FOUND:
        return None
    if run.returncode:
        last = run.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise found(f"another process could not play it: {last}")
    seen: _Seen = json.loads(run.stdout.splitlines()[-1])
    return seen


def _play(env: ToolEnv, ids: Sequence[str], seed: int) -> _Seen:
    """Gold programs and random turns, as digests."""
    seen: _Seen = {}
    for task_id in ids:
        task = env.load_task(task_id)
        seen[task_id] = [["the task", digest(task)]]
        env.begin(task)
        for actions in (
            [action for _, action in program(task.turns)],
            random_turns(env, random.Random(f"{seed}/{task_id}")),
        ):
            env.begin(task)
            for turn in play(env, actions):
                for what in ("observation", "hash"):
                    name = f"the {what} after {str(turn['action'])[:100]!r}"
                    seen[task_id].append([name, digest(turn[what])])
    return seen


def _main() -> None:
    path, module, name, kwargs, ids, seed = pickle.load(sys.stdin.buffer)
    sys.path[:] = path
    try:
        cls: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        sys.exit(_NOT_FOUND)
    for part in name.split("."):
        cls = getattr(cls, part)
    with cls(**kwargs) as env:
        seen = _play(env, ids, seed)
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    _main()
