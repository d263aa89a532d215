"""`rollouts=ray`: episodes are played by Ray's actors, on this machine or on a cluster."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from journeyman.agents.errors import AgentError, CommandError, CrewError, SettingError
from journeyman.agents.rollouts.occupancy import Occupancy
from journeyman.agents.rollouts.workers.errands import Task, bound, home_of
from journeyman.agents.rollouts.workers.leases import Terms, play_out
from journeyman.agents.rollouts.workers.own_cluster import (
    LocalCluster,
    check_ray,
    join,
    own_token,
    standing,
)
from journeyman.agents.rollouts.workers.parcels import Packer
from journeyman.agents.rollouts.workers.ray_crew import Hands, RayCrew, Work
from journeyman.agents.students.player import Player
from journeyman.envs import Episode, StopReason


@dataclass
class OnRay:
    """A context that gives `RayRollouts`, and ends what it has started."""

    address: str | None = None
    """Of the cluster; None is the one that `journeyman cluster up` started, or else one of this
    machine that is started and stopped with the run."""
    workers: int = 2
    """Actors that play."""
    cpus: float = 1.0
    """Of a worker."""
    gpus: float = 0.0
    """Of a worker: 0.25 lets four share one."""
    threads: int | None = 1
    """That torch computes with at each worker; None leaves it to torch."""
    staleness: int = 0
    """Optimiser steps by which weights that play may be behind those that are trained."""
    restarts: int = 3
    """See `Hands`."""
    patience: float = 300.0
    """Seconds to wait for a worker where none is there, before the run is given up."""
    _open: list[Callable[[], object]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the settings, and that Ray is installed; nothing is started.

        Raises:
            SettingError: A value is out of its range.
            MissingExtraError: Ray is not installed.
        """
        for name, least in (("workers", 1), ("staleness", 0), ("restarts", 0), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise SettingError(f"{name}={value}: expected a whole number, {least} or more")
        for name, above in (("cpus", 0), ("gpus", 0), ("patience", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < above:
                raise SettingError(f"{name}={value}: expected a number, {above} or more")
        check_ray()

    def __enter__(self) -> RayRollouts:
        """Join the cluster, and have the workers started.

        Raises:
            CrewError: There is none, or it has no room for a worker.
        """
        try:
            ray = self._joined()
            self._open.append(ray.shutdown)
            self._check_room(ray)
            rollouts = RayRollouts(ray, self._hands, self.staleness, self.patience)
            self._open.append(rollouts.close)
        except BaseException:
            self.__exit__()
            raise
        return rollouts

    def __exit__(self, *exc: object) -> None:
        """Let the workers go, leave the cluster, and stop it if it is the run's own."""
        while self._open:
            self._open.pop()()

    @property
    def _hands(self) -> Hands:
        return Hands(self.workers, self.cpus, self.gpus, self.threads, self.restarts)

    def _joined(self) -> Any:
        if self.address is not None:
            return join(self.address)
        known = standing()
        if known is not None:
            if not known.alive:
                raise CommandError(
                    f"the cluster of pid {known.pid} is gone, though nobody stopped it: "
                    f"journeyman cluster down clears it away"
                )
            return join(known.address, known.token)
        head = LocalCluster(self.workers * self.cpus, self.workers * self.gpus or None)
        self._open.append(head.stop)
        return join(head.address, own_token())

    def _check_room(self, ray: Any) -> None:
        there = ray.cluster_resources()
        for name, wanted in (("CPU", self.cpus), ("GPU", self.gpus)):
            if wanted > there.get(name, 0):
                raise CrewError(
                    f"rollouts.{name.lower()}s={wanted:g}: a worker wants more than the cluster "
                    f"has ({there.get(name, 0):g})"
                )
            if wanted * self.workers > there.get(name, 0):
                print(
                    f"Mind: the cluster has {there.get(name, 0):g} {name}s, fewer than "
                    f"{self.workers} workers want; those that find no room wait for it"
                )


class RayRollouts:
    """Plays with a crew of Ray's actors, one rollout after the other; see `Elsewhere`."""

    def __init__(self, ray: Any, hands: Hands, staleness: int, patience: float) -> None:
        """Have the workers started.

        Args:
            ray: Joined.
            hands: What workers there are to be.
            staleness: See `Elsewhere`.
            patience: See `Terms`.
        """
        self.staleness = staleness
        self._patience = patience
        self._packer = Packer(ray.put)
        self._crew = RayCrew(ray, hands)
        self._asked: queue.SimpleQueue[_Rollout | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)
        self._thread.start()

    @property
    def pids(self) -> dict[str, int]:
        """Processes of the workers that are there, by name."""
        return dict(self._crew.pids)

    @property
    def pushed(self) -> int:
        """Bytes of weights that went to the object store so far."""
        return self._packer.pushed

    def __call__(
        self,
        player: Player,
        tasks: Sequence[Task],
        batch_size: int = 64,
        env_kwargs: dict[str, Any] | None = None,
        progress: Callable[[int], object] = lambda done: None,
        keep: bool = False,
        most_turns: int | None = None,
        occupancy: Occupancy | None = None,
    ) -> list[Episode]:
        """See `rollout`; of the places of workers nothing is told.

        Raises:
            CrewError: No worker is left, and none comes.
            AgentError: What was raised at the workers.
        """
        told = lambda place, episode: progress(1)  # noqa: E731
        return self.begin(player, tasks, batch_size, env_kwargs, keep, most_turns, told)()

    def begin(
        self,
        player: Player,
        tasks: Sequence[Task],
        batch_size: int = 64,
        env_kwargs: dict[str, Any] | None = None,
        keep: bool = False,
        most_turns: int | None = None,
        ended: Callable[[int, Episode], object] | None = None,
    ) -> Callable[[], list[Episode]]:
        """See `Elsewhere.begin`."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        work = Work(self._packer.pack(player), batch_size, env_kwargs, keep, most_turns)
        asked = _Rollout(work, list(tasks))
        self._asked.put(asked)
        return lambda: asked.episodes(ended)

    def close(self) -> None:
        """Let the workers go; what is under way is lost."""
        self._crew.closed = True
        self._asked.put(None)
        self._thread.join()
        self._crew.close()

    def _run(self) -> None:
        """Play what is asked for, in the order in which it was."""
        while (asked := self._asked.get()) is not None:
            try:
                self._play(asked)
            except BaseException as error:
                asked.told.put(error)
                if not self._crew.closed:
                    self._crew.leave_off()

    def _play(self, asked: _Rollout) -> None:
        self._crew.work, self._crew.cause = asked.work, None
        try:
            play_out(
                self._crew,
                asked.tasks,
                lambda job, episode: asked.told.put((job, episode)),
                terms=Terms(asked.work.batch_size, refills=True, patience=self._patience),
                broken=lambda episode: episode.stop is StopReason.INFRA_ERROR,
                broken_job=self._broken,
                home=home_of,
                rehome=lambda task: None if bound(task) else task,
            )
        except CrewError as error:
            if isinstance(self._crew.cause, AgentError):
                raise self._crew.cause from error
            raise

    def _broken(self, task: Task, why: str) -> Episode:
        """A task that kills whoever plays it is infrastructure, and no failure of the student's."""
        if self._crew.cause is not None:
            raise self._crew.cause  # here it would have been raised at once
        nothing: tuple[Any, ...] = ()
        return Episode(
            *(task.env_id, task.task_id, nothing, nothing, nothing, nothing),
            StopReason.INFRA_ERROR,
            error=why,
            seed=task.seed,
        )


class _Rollout:
    """What was asked for, and what has come of it."""

    def __init__(self, work: Work, tasks: list[Task]) -> None:
        self.work, self.tasks = work, tasks
        self.told: queue.SimpleQueue[tuple[int, Episode] | BaseException] = queue.SimpleQueue()

    def episodes(self, ended: Callable[[int, Episode], object] | None) -> list[Episode]:
        """Wait for all of them; they are told of, and given, in the thread that waits."""
        found: dict[int, Episode] = {}
        while len(found) < len(self.tasks):
            told = self.told.get()
            if isinstance(told, BaseException):
                raise told
            place, episode = told
            found[place] = episode
            if ended is not None:
                ended(place, episode)
        return [found[place] for place in range(len(self.tasks))]
