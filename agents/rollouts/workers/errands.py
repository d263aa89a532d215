"""What a worker is sent to play, and what it sends back.

Tasks go with what finds their environments: the folders that modules are imported from here, and
the module that registers each id. Forks of one parent share it, cut to what they go on from; what
comes of a fork comes back without what its parent has. Both are put together again by `restored`.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import sys
import weakref
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium

from journeyman.agents.errors import ParcelError
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.rollouts.workers.parcels import Parcel
from journeyman.envs import BranchPoint, Episode, Message, Step, StopReason, env_class
from journeyman.envs.errors import UnknownEnvError
from journeyman.envs.registry import register
from journeyman.tools import ToolSpec

Task = TaskRef | Fork


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Pinned:
    """A snapshot that stayed at the worker that took it, since it is alive there."""

    station: str
    """The worker's name."""
    key: str
    """What it is known by there."""
    spare: Any = None
    """The snapshot without what is alive, where that is enough to go on from it anywhere: code is
    run again then, and the model is told where that gives something else. None if it is not."""


def home_of(task: Task) -> str | None:
    """The worker that a task is best played at; None if any is as good.

    It must be that one if the snapshot (a `Pinned`) has no `spare`; see `bound`.
    """
    kept = _kept(task)
    return None if kept is None else kept.station


def bound(task: Task) -> bool:
    """True if a task can be played at its home alone: if that dies, its parent must be played anew.

    `journeyman.agents.rollouts.replay` plays a record again.
    """
    kept = _kept(task)
    return kept is not None and kept.spare is None


def _kept(task: Task) -> Pinned | None:
    if isinstance(task, TaskRef):
        return None
    snapshot = task.parent.branch_points[task.step].snapshot
    return snapshot if isinstance(snapshot, Pinned) else None


class Ledger:
    """Which snapshots that stayed at workers somebody here can still ask for."""

    def __init__(self) -> None:
        """None yet."""
        self._gone: deque[tuple[str, str]] = deque()
        """Station and key of those that were dropped, and their stations were not told of."""

    def watch(self, episode: Episode) -> None:
        """Note when nobody holds what an episode has at a worker any more."""
        for point in episode.branch_points:
            if isinstance(point.snapshot, Pinned):
                it = point.snapshot
                end = weakref.finalize(it, self._gone.append, (it.station, it.key))
                end.atexit = False

    def released(self, station: str) -> tuple[str, ...]:
        """What a worker may let go; it is told once."""
        gone = [self._gone.popleft() for _ in range(len(self._gone))]
        self._gone.extend(it for it in gone if it[0] != station)
        return tuple(key for name, key in gone if name == station)


@dataclass(frozen=True, slots=True)
class EnvSource:
    """Where an environment comes from, for a process that has not met it."""

    env_id: str
    """As tasks name it."""
    module: str
    name: str
    """Of its class in the module."""
    kwargs: Mapping[str, Any]
    """That it is registered with."""

    @classmethod
    def of(cls, env_id: str) -> EnvSource:
        """Look where a class was defined.

        Raises:
            ParcelError: In a place that another process cannot import.
        """
        found = env_class(env_id)
        plain = env_id.rpartition(":")[2]
        module, name = found.__module__, found.__qualname__
        if module == "__main__" or "<locals>" in name:
            where = "the script that runs" if module == "__main__" else "a function"
            raise ParcelError(
                f"{env_id}: {name} is defined in {where}, which a worker cannot import; expected a "
                f"class at the top of a module: move it to garden.py, say, and write garden:{plain}"
            )
        return cls(env_id, module, name, dict(gymnasium.spec(plain).kwargs))

    def find(self) -> None:
        """See that its id stands for the same class here.

        Raises:
            UnknownEnvError: The class cannot be imported.
        """
        if self._found():
            return
        try:
            importlib.import_module(self.module)
            if not self._found():
                plain = self.env_id.rpartition(":")[2]
                register(plain, f"{self.module}:{self.name}", **self.kwargs)
            env_class(self.env_id)
        except Exception as error:  # a module may raise what it likes
            raise UnknownEnvError(
                f"no environment {self.env_id!r} at a worker, which looked in {self.module}: "
                f"{type(error).__name__}: {error}; its package must be installed there, or lie in "
                f"a folder that is there too"
            ) from error

    def _found(self) -> bool:
        try:
            found = env_class(self.env_id)
        except UnknownEnvError:
            return False
        return (found.__module__, found.__qualname__) == (self.module, self.name)


@dataclass(frozen=True, slots=True)
class Errand:
    """Tasks for a worker, with all it needs to play them."""

    parcel: Parcel
    tasks: bytes
    """To be read once `paths` and `envs` are known."""
    env_kwargs: bytes
    """Apart, so that environments of one rollout share a sandbox at each worker."""
    paths: tuple[str, ...]
    """Folders that modules are imported from, absolute."""
    envs: tuple[EnvSource, ...]
    batch_size: int
    keep: bool
    most_turns: int | None
    released: tuple[str, ...] = ()
    """Keys of what was `Pinned` and nobody will ask for any more."""

    @classmethod
    def of(
        cls,
        parcel: Parcel,
        tasks: Sequence[Task],
        batch_size: int = 64,
        env_kwargs: dict[str, Any] | None = None,
        keep: bool = False,
        most_turns: int | None = None,
        released: Sequence[str] = (),
    ) -> Errand:
        """An errand; see `rollout` for what is to be played, and how.

        Raises:
            ParcelError: A task, its environment or an argument cannot leave this process.
        """
        ids = dict.fromkeys(task.env_id for task in tasks)
        return cls(
            parcel,
            _pickled(_cut(tasks), "tasks"),
            _pickled(env_kwargs or {}, "env.kwargs"),
            tuple(dict.fromkeys(os.path.abspath(path) for path in sys.path)),
            tuple(map(EnvSource.of, ids)),
            batch_size,
            keep,
            most_turns,
            tuple(released),
        )

    def prepare(self) -> None:
        """Make known here what its tasks need.

        Raises:
            UnknownEnvError: An environment cannot be imported.
        """
        known = {os.path.abspath(path) for path in sys.path}
        sys.path += [it for it in self.paths if it not in known and os.path.isdir(it)]
        importlib.invalidate_caches()
        for source in self.envs:
            source.find()

    def opened(self) -> list[Task]:
        """The tasks, once prepared."""
        parents, tasks = pickle.loads(self.tasks)
        episodes = [parent.episode() for parent in parents]
        return [it if isinstance(it, TaskRef) else Fork(episodes[it[0]], *it[1:]) for it in tasks]

    @property
    def kwargs_digest(self) -> str:
        """Tells the arguments of environments from others."""
        return hashlib.blake2b(self.env_kwargs, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class _Parent:
    """What forks read of an episode."""

    env_id: str
    task_id: str
    seed: int
    tokens: array[int]
    steps: tuple[Step, ...]
    points: tuple[BranchPoint, ...]
    opening: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]

    @classmethod
    def of(cls, episode: Episode, forks: Sequence[Fork]) -> _Parent:
        steps = {fork.step for fork in forks}
        points = [
            point if i in steps else BranchPoint(None, point.state_hash)
            for i, point in enumerate(episode.branch_points[: max(steps) + 1])
        ]
        return cls(
            episode.env_id,
            episode.task_id,
            episode.seed,
            array("I", max((fork.prefix for fork in forks), key=len)),
            episode.steps[: max(steps) + 1],
            tuple(points),
            episode.opening,
            episode.tools,
        )

    def episode(self) -> Episode:
        count = len(self.tokens)
        return Episode(
            self.env_id,
            self.task_id,
            tuple(self.tokens),
            (0.0,) * count,
            (False,) * count,
            self.steps,
            StopReason.MAX_TURNS,
            branch_points=self.points,
            opening=self.opening,
            tools=self.tools,
            seed=self.seed,
        )


def _cut(tasks: Sequence[Task]) -> tuple[list[_Parent], list[Any]]:
    """Parents once each, and forks by the numbers of theirs."""
    forks: dict[int, list[Fork]] = {}
    for task in tasks:
        if isinstance(task, Fork):
            forks.setdefault(id(task.parent), []).append(task)
    places = {key: i for i, key in enumerate(forks)}
    parents = [_Parent.of(its[0].parent, its) for its in forks.values()]
    return parents, [
        (places[id(it.parent)], it.step, it.seed, it.turn) if isinstance(it, Fork) else it
        for it in tasks
    ]


@dataclass(frozen=True, slots=True)
class PlayedTask:
    """What came of one task of an errand."""

    index: int
    """Of the task in the errand, or in those that were played in the same places."""
    version: int
    """Of the weights that played it; see `Parcel.version`."""
    episode: bytes
    """See `restored`."""


def reduced(task: Task, episode: Episode) -> Episode:
    """An episode without what the driver has: of a fork, what its parent says."""
    if isinstance(task, TaskRef):
        return episode
    start = len(task.prefix)
    return replace(
        episode,
        tokens=episode.tokens[start:],
        logprobs=episode.logprobs[start:],
        mask=episode.mask[start:],
        steps=episode.steps[task.step :],
        branch_points=episode.branch_points[_inherited(task) :],
        opening=(),
        tools=(),
    )


def restored(task: Task, played: PlayedTask, ledger: Ledger | None = None) -> Episode:
    """The episode that a worker played, as it would have been here.

    Its branch points may hold `Pinned`; so may those of the fork's parent.

    Args:
        task: What was sent.
        played: What came back.
        ledger: Is to know what stayed at the worker.
    """
    episode: Episode = pickle.loads(played.episode)
    if ledger is not None:
        ledger.watch(episode)
    if isinstance(task, TaskRef):
        return episode
    parent, prefix = task.parent, task.prefix
    return replace(
        episode,
        tokens=prefix + episode.tokens,
        logprobs=(0.0,) * len(prefix) + episode.logprobs,
        mask=(False,) * len(prefix) + episode.mask,
        steps=parent.steps[: task.step] + episode.steps,
        branch_points=parent.branch_points[: _inherited(task)] + episode.branch_points,
        opening=parent.opening,
        tools=parent.tools,
    )


def _inherited(fork: Fork) -> int:
    """How many branch points a fork has from its parent."""
    return fork.step + (fork.turn is not None)


def _pickled(it: Any, what: str) -> bytes:
    try:
        return pickle.dumps(it, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # pickle raises what it likes
        raise ParcelError(
            f"{what} cannot be sent to a worker ({type(error).__name__}: {error}); expected what "
            f"can be pickled: mend it, or play here (rollouts=local)"
        ) from error
