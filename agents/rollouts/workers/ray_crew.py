"""Ray's actors as a crew: each has a station, plays its leases, and sends episodes as they end.

An actor that dies is lost to the scheduler, and another is started in its place, later the more
often that happens. What it held (weights, snapshots) is gone; weights lie in the object store.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from journeyman.agents.errors import CrewError
from journeyman.agents.rollouts.workers.crew import Done, Ended, Event, Gone, Joined, Lease
from journeyman.agents.rollouts.workers.errands import Errand, Ledger, PlayedTask, Task, restored
from journeyman.agents.rollouts.workers.parcels import Parcel

logger = logging.getLogger(__name__)

BACKOFF = 0.5
"""Seconds before the first new start of an actor; each further one in a row waits twice as long."""
_SLICE = 1.0
"""Seconds between two looks at whether the crew is closed."""


@dataclass(frozen=True)
class Hands:
    """What workers there are to be, and what each takes of its node."""

    workers: int = 2
    cpus: float = 1.0
    gpus: float = 0.0
    threads: int | None = 1
    """That torch computes with at each."""
    restarts: int = 3
    """Times in a row that a worker which dies, and does nothing in between, is started anew."""


class Actor:
    """An actor: a station that Ray calls."""

    def __init__(self, name: str, device: str, threads: int | None) -> None:
        """Load what plays."""
        import ray

        from journeyman.agents.rollouts.workers.station import Station

        self._station = Station(name, ray.get, device, threads)

    def pid(self) -> int:
        """Of its process; answers once it is ready."""
        return os.getpid()

    def play(self, errand: Errand) -> Iterator[PlayedTask]:
        """See `Station.play`."""
        yield from self._station.play(errand)


@dataclass(frozen=True)
class Work:
    """What the leases of a rollout have in common."""

    parcel: Parcel
    batch_size: int
    env_kwargs: dict[str, Any] | None
    keep: bool
    most_turns: int | None


@dataclass
class _Post:
    """A worker's place, which one actor after the other fills."""

    name: str
    actor: Any = None
    deaths: int = 0
    """In a row, with nothing done in between."""


@dataclass(eq=False)
class _Stream:
    """A lease under way."""

    post: _Post
    lease: Lease
    tasks: Sequence[Task]
    errors: list[str] = field(default_factory=list)


class RayCrew:
    """Actors that come and go; see `Crew`. It is used by one thread."""

    def __init__(self, ray: Any, hands: Hands) -> None:
        """Have the first actors started; they join as they are ready."""
        self._ray, self._hands = ray, hands
        self._kind = ray.remote(Actor)
        self._numbers = itertools.count(1)
        self._starting: dict[Any, _Post] = {}
        """By the reference to an actor's first answer."""
        self._later: list[tuple[float, int]] = []
        """Actors to be started: when, and the deaths at their post before."""
        self._there: dict[str, _Post] = {}
        self._streams: dict[Any, _Stream] = {}
        self._ledger = Ledger()
        self._told: list[Event] = []
        self._given_up: list[str] = []
        """Workers that nobody takes the place of, and why."""
        self.pids: dict[str, int] = {}
        """Of the workers that are there."""
        self.work: Work | None = None
        self.cause: BaseException | None = None
        """What was last raised at a worker that lives."""
        self.closed = False
        for _ in range(hands.workers):
            self._hire(0)

    def present(self) -> Sequence[str]:
        """See `Crew.present`."""
        return list(self._there)

    def hand(self, worker: str, lease: Lease, jobs: Sequence[Task]) -> None:
        """See `Crew.hand`."""
        post, work = self._there.get(worker), self.work
        if post is None or work is None:
            self._told.append(Gone(worker, "is gone"))
            return
        errand = Errand.of(
            *(work.parcel, jobs, work.batch_size, work.env_kwargs, work.keep, work.most_turns),
            self._ledger.released(worker),
        )
        episodes = post.actor.play.options(num_returns="streaming").remote(errand)
        self._streams[episodes] = _Stream(post, lease, jobs)

    def wait(self, seconds: float | None = None) -> list[Event]:
        """See `Crew.wait`.

        Raises:
            CrewError: The crew was closed meanwhile, or no worker is left.
        """
        end = None if seconds is None else time.monotonic() + seconds
        while not self._told:
            if self.closed:
                raise CrewError("the workers were sent home")
            self._hire_again()
            if not (self._there or self._starting or self._later):
                raise CrewError(f"no worker is left: {'; '.join(self._given_up)}")
            left = _SLICE if end is None else min(_SLICE, end - time.monotonic())
            if left <= 0:
                break
            self._look(left)
        told, self._told = self._told, []
        return told

    def dismiss(self, worker: str) -> None:
        """See `Crew.dismiss`."""
        post = self._there.pop(worker, None)
        if post is not None:
            self._forget(post)
            self._ray.kill(post.actor)

    def leave_off(self) -> None:
        """End what is under way: who was at it is started anew."""
        for post in {it.post.name: it.post for it in self._streams.values()}.values():
            self.dismiss(post.name)
            self._hire(0)
        self._told.clear()

    def close(self) -> None:
        """Let all actors go."""
        self.closed = True
        for post in [*self._there.values(), *self._starting.values()]:
            self._ray.kill(post.actor)
        self._there, self._starting, self._streams = {}, {}, {}

    def _hire(self, deaths: int) -> None:
        hands = self._hands
        post = _Post(f"worker-{next(self._numbers)}", deaths=deaths)
        options = {"num_cpus": hands.cpus, "num_gpus": hands.gpus, "max_restarts": 0}
        device = "cuda" if hands.gpus else "cpu"
        post.actor = self._kind.options(**options).remote(post.name, device, hands.threads)
        self._starting[post.actor.pid.remote()] = post

    def _hire_again(self) -> None:
        now = time.monotonic()
        due = [it for it in self._later if it[0] <= now]
        self._later = [it for it in self._later if it[0] > now]
        for _, deaths in due:
            self._hire(deaths)

    def _look(self, seconds: float) -> None:
        """Wait for something of any actor, and take up all that is there."""
        refs = [*self._starting, *self._streams]
        if not refs:
            time.sleep(min(seconds, 0.1))
            return
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=seconds)
        if ready:
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            if ref in self._starting:
                self._join(ref)
            elif ref in self._streams:
                self._take(ref, self._streams[ref])

    def _join(self, ref: Any) -> None:
        post = self._starting.pop(ref)
        try:
            self.pids[post.name] = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self._replace(post, f"cannot start: {_why(error)}")
            return
        self._there[post.name] = post
        self._told.append(Joined(post.name))

    def _take(self, episodes: Any, stream: _Stream) -> None:
        """Take up an episode of a lease, or its end."""
        post, lease = stream.post, stream.lease
        exceptions = self._ray.exceptions
        try:
            played: PlayedTask = self._ray.get(next(episodes))
        except StopIteration:
            del self._streams[episodes]
            error = stream.errors[0] if stream.errors else None
            self._told.append(Ended(post.name, lease.number, error))
        except (exceptions.RayActorError, exceptions.ObjectLostError) as error:
            self._there.pop(post.name, None)
            self._forget(post)
            self._told.append(Gone(post.name, why := _why(error)))
            self._replace(post, f"died: {why}")
        except exceptions.RayTaskError as error:  # the stream ends after it
            self.cause = error.cause
            stream.errors.append(_why(error.cause))
        else:
            post.deaths = 0
            episode = restored(stream.tasks[played.index], played, self._ledger)
            job = lease.jobs[played.index]
            self._told.append(Done(post.name, lease.number, job, episode))

    def _replace(self, post: _Post, why: str) -> None:
        if post.deaths >= self._hands.restarts:
            self._given_up.append(f"{post.name} {why}")
            logger.warning(
                "%s %s; it is the %s time in a row, and nobody is started in its place",
                *(post.name, why, f"{post.deaths + 1}."),
            )
            return
        logger.info("%s %s; another is started", post.name, why)
        when = time.monotonic() + BACKOFF * 2**post.deaths
        self._later.append((when, post.deaths + 1))

    def _forget(self, post: _Post) -> None:
        self._streams = {ref: it for ref, it in self._streams.items() if it.post is not post}
        self.pids.pop(post.name, None)


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def _why(error: BaseException | None) -> str:
    """An error in one line; of a traceback of Ray's the last, which is what was raised."""
    lines = [it.strip() for it in _COLOURS.sub("", str(error)).splitlines() if it.strip()]
    named = type(error).__name__
    if not lines:
        return named
    return f"{named}: {lines[-1 if 'ray::' in lines[0] else 0][:300]}"
