"""Ray's actors as a crew: each has a station, plays its leases, and sends episodes as they end.

A lease that comes while one of the same rollout is played is sent after it, so that places stay
full. An actor that dies is lost to the scheduler, and another is started in its place, later the
more often that happens. What it held (weights, snapshots) is gone; weights lie in the object store.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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
_ADDING = "adding"
"""Ray's name for the thread in which an actor takes errands while it plays."""


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
    """An actor: a station that Ray calls. `add` runs beside `play`, in a thread of its own."""

    def __init__(self, name: str, device: str, threads: int | None) -> None:
        """Load what plays."""
        import ray

        from journeyman.agents.rollouts.workers.station import Station

        self._station = Station(name, ray.get, device, threads)
        self._lock = threading.Lock()
        self._added: deque[tuple[int, Errand]] = deque()
        """Errands to be played in the places of one before, with its number."""
        self._over = 0
        """What was played last, and has ended: nothing is added to it, nor to those before."""

    def pid(self) -> int:
        """Of its process; answers once it is ready."""
        return os.getpid()

    def play(self, number: int, errand: Errand) -> Iterator[PlayedTask]:
        """See `Station.play`; then all that was added, whose tasks are numbered on.

        Args:
            number: By which `add` knows it; larger than any before.
            errand: The first.
        """
        told = 0
        upcoming: Errand | None = errand
        try:
            while upcoming is not None:
                before = told
                for it in self._station.play(upcoming, lambda: self._next(number)):
                    told += 1
                    yield replace(it, index=before + it.index)
                upcoming = self._next(number, last=True)
        finally:
            self._end(number)

    def add(self, number: int, errand: Errand) -> bool:
        """Play an errand in the places of one of the same rollout; False if that has ended."""
        with self._lock:
            if number <= self._over:
                return False
            self._added.append((number, errand))
            return True

    def _next(self, number: int, last: bool = False) -> Errand | None:
        """What was added; `last`: if that is nothing, nothing more is taken."""
        with self._lock:
            if self._added and self._added[0][0] == number:
                return self._added.popleft()[1]
            if last:
                self._over = number
            return None

    def _end(self, number: int) -> None:
        """Take nothing more, whatever has ended it; what is not played is left."""
        with self._lock:
            self._over = number
            while self._added and self._added[0][0] == number:
                self._station.release(self._added.popleft()[1].released)


@dataclass(frozen=True)
class Work:
    """What the leases of a rollout have in common."""

    parcel: Parcel
    batch_size: int
    env_kwargs: dict[str, Any] | None
    keep: bool
    most_turns: int | None


@dataclass(eq=False)
class _Post:
    """A worker's place, which one actor after the other fills."""

    name: str
    actor: Any = None
    deaths: int = 0
    """In a row, with nothing done in between."""
    stream: _Stream | None = None
    """To which leases may be added."""


@dataclass(eq=False)
class _Stream:
    """Leases that an actor plays one after another, in the same places."""

    post: _Post
    work: Work
    number: int
    """See `Actor.play`."""
    jobs: list[tuple[Lease, int, Task]] = field(default_factory=list)
    """By the index that the actor knows them by."""
    left: dict[int, int] = field(default_factory=dict)
    """How many jobs are not done, by the number of their lease."""
    error: str | None = None
    over: bool = False
    """Nothing more comes."""

    def append(self, lease: Lease, tasks: Sequence[Task]) -> None:
        """The next lease."""
        self.jobs += [(lease, *it) for it in zip(lease.jobs, tasks, strict=True)]
        self.left[lease.number] = len(tasks)


@dataclass(frozen=True)
class _Added:
    """A lease that was added to a stream, if the actor says so."""

    stream: _Stream
    lease: Lease
    tasks: Sequence[Task]
    errand: Errand


class RayCrew:
    """Actors that come and go; see `Crew`. It is used by one thread."""

    def __init__(self, ray: Any, hands: Hands) -> None:
        """Have the first actors started; they join as they are ready."""
        self._ray, self._hands = ray, hands
        self._kind = ray.remote(concurrency_groups={_ADDING: 1})(Actor)
        self._names = map("worker-{}".format, itertools.count(1))
        self._numbers = itertools.count(1)
        """Of streams."""
        self._starting: dict[Any, _Post] = {}
        """By the reference to an actor's first answer."""
        self._later: list[tuple[float, int]] = []
        """Actors to be started: when, and the deaths at their post before."""
        self._there: dict[str, _Post] = {}
        self._streams: dict[Any, _Stream] = {}
        self._added: dict[Any, _Added] = {}
        """By the reference to what the actor says to it."""
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
        self._send(post, work, lease, jobs, errand)

    def _send(
        self, post: _Post, work: Work, lease: Lease, tasks: Sequence[Task], errand: Errand
    ) -> None:
        """Have an errand played after what is played of the same rollout, or by itself."""
        stream = post.stream
        if stream is not None and stream.work is work:
            said = post.actor.add.options(concurrency_group=_ADDING).remote(stream.number, errand)
            self._added[said] = _Added(stream, lease, tasks, errand)
        else:
            stream = post.stream = _Stream(post, work, next(self._numbers))
            play = post.actor.play.options(num_returns="streaming")
            self._streams[play.remote(stream.number, errand)] = stream
        stream.append(lease, tasks)

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
        self._there, self._starting, self._streams, self._added = {}, {}, {}, {}

    def _hire(self, deaths: int) -> None:
        hands = self._hands
        post = _Post(next(self._names), deaths=deaths)
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
        refs = [*self._starting, *self._streams, *self._added]
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
            elif ref in self._added:
                self._heed(self._added.pop(ref), ref)

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
        """Take up an episode of a stream, or its end."""
        exceptions = self._ray.exceptions
        try:
            played: PlayedTask = self._ray.get(next(episodes))
        except StopIteration:
            del self._streams[episodes]
            stream.over = True
            self._close(stream)
            open_still = {it.lease.number for it in self._added.values() if it.stream is stream}
            for number in stream.left.keys() - open_still:
                self._told.append(Ended(stream.post.name, number, stream.error))
        except (exceptions.RayActorError, exceptions.ObjectLostError) as error:
            self._lose(stream.post, error)
        except exceptions.RayTaskError as error:  # the stream ends after it
            self.cause = error.cause
            stream.error = _why(error.cause)
            self._close(stream)
        else:
            stream.post.deaths = 0
            lease, job, task = stream.jobs[played.index]
            episode = restored(task, played, self._ledger)
            self._told.append(Done(stream.post.name, lease.number, job, episode))
            stream.left[lease.number] -= 1
            if not stream.left[lease.number]:
                del stream.left[lease.number]
                self._told.append(Ended(stream.post.name, lease.number))

    def _heed(self, it: _Added, said: Any) -> None:
        """See whether an actor has taken a lease to those that it plays."""
        stream, lease = it.stream, it.lease
        try:
            taken = self._ray.get(said)
        except self._ray.exceptions.RayError as error:
            # It may have taken it or not: which task an index stands for is not known any more.
            self._ray.kill(stream.post.actor)
            self._lose(stream.post, error)
            return
        if taken:
            if stream.over and stream.left.pop(lease.number, 0):
                self._told.append(Ended(stream.post.name, lease.number, stream.error))
            return
        # The stream had ended: of this lease nothing was begun.
        self._close(stream)
        del stream.left[lease.number]
        if stream.work is self.work:
            self._send(stream.post, stream.work, lease, it.tasks, it.errand)

    def _close(self, stream: _Stream) -> None:
        """Add nothing more to a stream."""
        if stream.post.stream is stream:
            stream.post.stream = None

    def _lose(self, post: _Post, error: BaseException) -> None:
        """An actor is dead, or out of reach."""
        self._there.pop(post.name, None)
        self._forget(post)
        self._told.append(Gone(post.name, why := _why(error)))
        self._replace(post, f"died: {why}")

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
        self._added = {ref: it for ref, it in self._added.items() if it.stream.post is not post}
        self.pids.pop(post.name, None)


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def _why(error: BaseException | None) -> str:
    """An error in one line; of a traceback of Ray's the last, which is what was raised."""
    lines = [it.strip() for it in _COLOURS.sub("", str(error)).splitlines() if it.strip()]
    named = type(error).__name__
    if not lines:
        return named
    return f"{named}: {lines[-1 if 'ray::' in lines[0] else 0][:300]}"
