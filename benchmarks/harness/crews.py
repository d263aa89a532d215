"""A crew that is simulated: workers with places, whose jobs take as long as is said, in no time.

An event queue in virtual time under the real scheduler: what it does, and what that costs the
driver, is what it does and costs with workers that exist.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from journeyman.agents.rollouts.workers.crew import Done, Ended, Event, Gone, Joined, Lease


@dataclass(eq=False)
class _Worker:
    name: str
    leases: dict[int, deque[tuple[int, Any]]] = field(default_factory=dict)
    """By number, the jobs that have not begun."""
    running: Counter[int] = field(default_factory=Counter)
    """Jobs of each lease."""


class SimulatedCrew:
    """Workers in virtual time.

    A worker has `places`, and begins the next job of a lease when one is free: of the next lease
    when all of this one have begun, or, unless it `refills`, when all of this one are done.
    """

    def __init__(
        self,
        workers: int,
        places: int,
        seconds: Callable[[Any], float],
        result: Callable[[Any], Any],
        *,
        refills: bool = True,
        delay: float = 0.0,
        deaths: Iterable[tuple[float, int]] = (),
        back: float = 0.0,
    ) -> None:
        """All workers are there.

        Args:
            workers: How many.
            places: Jobs that each does side by side.
            seconds: That a job takes.
            result: What comes of it.
            refills: A place that one lease leaves empty takes a job of the next.
            delay: Seconds between the driver's handing out a lease and its first job's beginning.
            deaths: When which worker dies.
            back: Seconds until another is there in its place.
        """
        self.now = 0.0
        """Virtual seconds since the beginning."""
        self.own = 0.0
        """Seconds of the processor that the simulation itself took."""
        self.leases = 0
        self.lost = 0
        """Jobs that were under way at a worker that died."""
        self._places, self._seconds, self._result = places, seconds, result
        self._refills, self._delay, self._back = refills, delay, back
        self._numbers = itertools.count()
        self._queue: list[tuple[float, int, Callable[[], list[Event]]]] = []
        self._names = [f"worker {i}" for i in range(workers)]
        """Who is there in each place now."""
        self._there = {name: _Worker(name) for name in self._names}
        for at, i in deaths:
            self._later(at, partial(self._die, i))

    def present(self) -> Sequence[str]:
        """Those that are alive."""
        return list(self._there)

    def hand(self, worker: str, lease: Lease, jobs: Sequence[Any]) -> None:
        """Begin a lease after the delay, if the worker lives then."""
        started = time.process_time()
        self.leases += 1
        queue = deque(zip(lease.jobs, jobs, strict=True))
        if (at := self._there.get(worker)) is not None:
            self._later(self._delay, partial(self._begin, at, lease.number, queue))
        self.own += time.process_time() - started

    def dismiss(self, worker: str) -> None:
        """Forget a worker."""
        self._there.pop(worker, None)

    def wait(self, seconds: float | None = None) -> list[Event]:
        """Go on to the next moment at which anything happens."""
        started = time.process_time()
        until = float("inf") if seconds is None else self.now + seconds
        events: list[Event] = []
        while self._queue and self._queue[0][0] <= until:
            if events and self._queue[0][0] > self.now:
                break
            self.now, _, happens = heapq.heappop(self._queue)
            events += happens()
        if not events and seconds is not None:
            self.now = until
        self.own += time.process_time() - started
        return events

    def _later(self, seconds: float, happens: Callable[[], list[Event]]) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._numbers), happens))

    def _begin(self, at: _Worker, number: int, jobs: deque[tuple[int, Any]]) -> list[Event]:
        at.leases[number] = jobs
        self._fill(at)
        return []

    def _fill(self, at: _Worker) -> None:
        """Begin jobs while places are free."""
        free = self._places - at.running.total()
        for number, jobs in at.leases.items():
            while jobs and free:
                place, job = jobs.popleft()
                free -= 1
                at.running[number] += 1
                self._later(self._seconds(job), partial(self._end, at, number, place, job))
            if not free or not self._refills:
                return

    def _end(self, at: _Worker, number: int, place: int, job: Any) -> list[Event]:
        if self._there.get(at.name) is not at:
            return []
        at.running[number] -= 1
        events: list[Event] = [Done(at.name, number, place, self._result(job))]
        if not at.running[number] and not at.leases[number]:
            del at.running[number], at.leases[number]
            events.append(Ended(at.name, number))
        self._fill(at)
        return events

    def _die(self, i: int) -> list[Event]:
        at = self._there.pop(self._names[i], None)
        if at is None:
            return []  # it is down already
        self.lost += at.running.total()
        self._later(self._back, partial(self._rise, i))
        return [Gone(at.name, "SIGKILL")]

    def _rise(self, i: int) -> list[Event]:
        name = f"worker {i}, since {self.now:.0f} s"
        self._names[i] = name
        self._there[name] = _Worker(name)
        return [Joined(name)]
