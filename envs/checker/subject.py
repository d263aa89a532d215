"""What is under check, how much of it is played, and what a check found."""

from __future__ import annotations

import functools
import os
import random
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from journeyman.envs.core import ToolEnv
from journeyman.envs.registry import make
from journeyman.envs.task import Task
from journeyman.envs.types import SPLITS

Cause = tuple[str, str, int]
"""Where an exception comes from: its type, file and line. One cause is reported once."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: where it shows and how to mend it."""

    text: str
    cause: Cause | None = None
    """Of the exception, if it was one."""


class _Found(Exception):
    """A check does not hold."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__("\n".join(finding.text for finding in findings))
        self.findings = findings


def found(*texts: str | Finding) -> _Found:
    """What a check raises that does not hold."""
    return _Found(*(text if isinstance(text, Finding) else Finding(text) for text in texts))


Found = _Found


def cause_of(error: BaseException) -> Cause:
    """Where an exception was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    at = frames[-1] if frames else None
    return (type(error).__name__, at.filename if at else "", (at.lineno or 0) if at else 0)


def told(error: BaseException) -> str:
    """An exception with the line of the environment's own code that led to it, if any did."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_ours(f.filename)]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


_HOUSE = Path(__file__).parents[2]
_OURS = tuple(f"{_HOUSE / floor}{os.sep}" for floor in ("agents", "envs", "tools", "sandbox"))
_PYTHON = f"{sysconfig.get_path('stdlib')}{os.sep}"


def _is_ours(file: str) -> bool:
    """True of this project's files, of Python's own, and of what a decorator generated."""
    if file.startswith(_PYTHON):
        return "site-packages" not in file
    return file.startswith(("<", *_OURS))


class Listed(NamedTuple):
    """A task that was looked at."""

    id: str
    prompt: str
    content: str
    """Digest of what makes it another task."""


@dataclass
class Subject:
    """The environment under check and how much of it to play."""

    env_id: str
    env_type: type[ToolEnv]
    episodes: int
    prefixes: int
    seed: int
    progress: bool
    kwargs: dict[str, Any]
    listed: list[Listed] = field(default_factory=list)
    """The tasks that the check of tasks has loaded."""
    faulty: set[str] = field(default_factory=set)
    """Tasks that a check has named: the checks after it do not blame them again."""

    def make(self) -> ToolEnv:
        """A new environment."""
        return make(self.env_id, **self.kwargs)

    def rng(self, *about: object) -> random.Random:
        """Dice that are the same in every run of the check."""
        return random.Random("/".join(map(str, (self.seed, *about))))

    @functools.cached_property
    def pools(self) -> list[str]:
        """Every split at every level, but for those without a task."""
        levels = self.env_type.levels
        pools = [f"{split}/{level}" for level in levels for split in SPLITS]
        return [where for where in pools if next(self.env_type.tasks(where), None) is not None]

    def reset(self, env: ToolEnv, episode: int) -> Any:
        """Begin an episode: one level and split after the other."""
        options = {"split": self.pools[episode % len(self.pools)]}
        return env.reset(seed=self.seed + episode, options=options)

    def tasks(self, share: int = 1) -> Iterator[Task]:
        """The first tasks of every split at every level, or a share of them."""
        count = -(-self.episodes // share)
        for where in self.pools:
            for task_id in islice(self.env_type.tasks(where), count):
                yield self.env_type.load_task(task_id)

    def samples(self) -> list[Task]:
        """The first task of every pool; of two pools where a step may cost a session."""
        pools = self.pools[:2] if self.env_type.waits else self.pools
        return [self.env_type.load_task(next(iter(self.env_type.tasks(where)))) for where in pools]
