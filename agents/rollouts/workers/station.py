"""A worker's side: plays what it is sent, and sends each episode back as it ends.

A station is used by one thread. It keeps what it has read of players, the sandboxes that its
environments share, and the snapshots that are alive in this process.
"""

from __future__ import annotations

import itertools
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from journeyman.agents.errors import ParcelError
from journeyman.agents.rollouts.occupancy import Occupancy
from journeyman.agents.rollouts.rollout import played
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.rollouts.workers.errands import Errand, Pinned, PlayedTask, Task, reduced
from journeyman.agents.rollouts.workers.parcels import Unpacker
from journeyman.envs import BranchPoint, Episode, env_class

_KWARGS = 4
"""Arguments of environments that are kept, with what they hold: the sandboxes of so many runs."""


class Station:
    """Plays errands, one at a time."""

    def __init__(
        self,
        name: str,
        get: Callable[[Any], Any] | None = None,
        device: torch.device | str = "cpu",
        threads: int | None = None,
    ) -> None:
        """Nothing is there yet.

        Args:
            name: No other station has it: what stays here is found by it.
            get: See `Unpacker`.
            device: Where players compute.
            threads: That torch computes with in this process; None leaves it to torch.

        Raises:
            ParcelError: There are no threads.
        """
        if threads is not None:
            if threads < 1:
                raise ParcelError(f"threads={threads}: expected at least 1, or null")
            torch.set_num_threads(threads)
        self.name = name
        self.unpacker = Unpacker(get, device)
        self.occupancy = Occupancy()
        """Of all that was played here so far."""
        self._numbers = itertools.count()
        self._alive: dict[str, Any] = {}
        """Snapshots that stay here, by their keys."""
        self._kwargs: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._busy = False

    @property
    def kept(self) -> int:
        """How many snapshots stay here."""
        return len(self._alive)

    def play(
        self, errand: Errand, more: Callable[[], Errand | None] = lambda: None
    ) -> Iterator[PlayedTask]:
        """Play an errand; gives each episode as it ends.

        Close the iterator to end it before its time: every environment is closed.

        Args:
            errand: What to play.
            more: Asked where a place is free and no task is left for it: gives the next errand of
                the same rollout, whose tasks are numbered on from those before; None if there is
                none now. So places are full until the last errand's end.

        Raises:
            ParcelError: Weights, a part or a snapshot that it needs are not here, or newer weights
                are; or another errand is under way, or `more` gives one of another rollout.
            UnknownEnvError: An environment cannot be imported here.
        """
        if self._busy:
            raise ParcelError(
                f"{self.name} plays an errand already: take its episodes to the last, or close it, "
                f"before the next"
            )
        self._busy = True
        try:
            self.release(errand.released)
            errand.prepare()
            player = self.unpacker.open(errand.parcel)
            tasks = errand.opened()

            def further() -> list[Task]:
                found = more()
                if found is None:
                    return []
                self._check_same(errand, found)
                self.release(found.released)
                found.prepare()
                opened = found.opened()
                tasks.extend(opened)
                return [self._at_home(task) for task in opened]

            ended = played(
                player,
                [self._at_home(task) for task in tasks],
                errand.batch_size,
                self._arguments(errand),
                keep=errand.keep,
                most_turns=errand.most_turns,
                occupancy=self.occupancy,
                more=further,
            )
            for index, episode in ended:
                data = self._packed(reduced(tasks[index], episode))
                yield PlayedTask(index, errand.parcel.version, data)
        finally:
            self._busy = False

    def _check_same(self, errand: Errand, further: Errand) -> None:
        """See that an errand can be played in the places of another.

        Raises:
            ParcelError: It is of another rollout.
        """

        def terms(it: Errand) -> tuple[object, ...]:
            weights = it.parcel.origin, it.parcel.version, it.parcel.digest
            return *weights, it.kwargs_digest, it.batch_size, it.keep, it.most_turns

        if terms(errand) != terms(further):
            raise ParcelError(
                f"{self.name}: an errand of another rollout came while one is under way: expected "
                f"the same player, weights, arguments and places; hand it out when that has ended"
            )

    def release(self, keys: Iterable[str] | None = None) -> None:
        """Let snapshots go that stayed here; None lets all go."""
        if keys is None:
            self._alive.clear()
        else:
            for key in keys:
                self._alive.pop(key, None)

    def _arguments(self, errand: Errand) -> dict[str, Any]:
        """For the environments: the same objects for the same rollout."""
        digest = errand.kwargs_digest
        if digest not in self._kwargs:
            self._kwargs[digest] = pickle.loads(errand.env_kwargs)
        self._kwargs.move_to_end(digest)
        while len(self._kwargs) > _KWARGS:
            self._kwargs.popitem(last=False)
        return self._kwargs[digest]

    def _at_home(self, task: Task) -> Task:
        """A task whose snapshot is what it was when it was taken."""
        if isinstance(task, TaskRef):
            return task
        point = task.parent.branch_points[task.step]
        kept = point.snapshot
        if not isinstance(kept, Pinned):
            return task
        found = self._alive.get(kept.key) if kept.station == self.name else None
        if found is None:
            found = kept.spare
        if found is None:
            raise ParcelError(
                f"{task.env_id} {task.task_id}: its snapshot before step {task.step} is alive at "
                f"{kept.station} alone, and this is {self.name}: play the fork there while it "
                f"lives, or its parent anew"
            )
        points = list(task.parent.branch_points)
        points[task.step] = BranchPoint(found, point.state_hash)
        parent = replace(task.parent, branch_points=tuple(points))
        return Fork(parent, task.step, task.seed, task.turn)

    def _packed(self, episode: Episode) -> bytes:
        """An episode as bytes; what of it is alive stays here."""
        if episode.branch_points:
            travels = env_class(episode.env_id).travels
            points = [
                point if travels(point.snapshot) else self._stays(point)
                for point in episode.branch_points
            ]
            episode = replace(episode, branch_points=tuple(points))
        try:
            return pickle.dumps(episode, pickle.HIGHEST_PROTOCOL)
        except Exception:  # pickle raises what it likes, and a state may be anything
            points = [
                point if _pickles(point.snapshot) else self._stays(point)
                for point in episode.branch_points
            ]
            episode = replace(episode, branch_points=tuple(points))
            return pickle.dumps(episode, pickle.HIGHEST_PROTOCOL)

    def _stays(self, point: BranchPoint) -> BranchPoint:
        """A branch point whose snapshot stays here, and a reference to it."""
        key = f"{self.name}/{next(self._numbers)}"
        self._alive[key] = point.snapshot
        spare = point.snapshot if _pickles(point.snapshot) else None
        return BranchPoint(Pinned(self.name, key, spare), point.state_hash)


def _pickles(it: Any) -> bool:
    try:
        pickle.dumps(it, pickle.HIGHEST_PROTOCOL)
    except Exception:
        return False
    return True
