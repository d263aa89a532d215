"""Who gets what: a driver's jobs in leases to workers that come, go, die and break things.

Leases are large while much is left, and shrink as it runs out (guided self-scheduling:
Polychronopoulos and Kuck, 1987), so that workers end together. A result counts once it is told, so
that a dead worker costs no more than the jobs that it was at: they are handed out again. Nothing
here knows what a job is, and the only clock is the crew's.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from journeyman.agents.errors import CrewError
from journeyman.agents.rollouts.workers.blame import Blame, Member
from journeyman.agents.rollouts.workers.crew import Crew, Done, Ended, Event, Gone, Joined, Lease

T = TypeVar("T")
logger = logging.getLogger(__name__)

_numbers = itertools.count(1)
_OPEN: Any = object()


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms jobs are handed out."""

    places: int = 64
    """Jobs that a worker does side by side."""
    refills: bool = False
    """A worker begins jobs of its next lease in places that the last one leaves empty. If not, it
    gets the next when all of the last are done."""
    failures: int = 4
    """So many workers may die of a job, or fail at it, before it is given up; it is played alone
    after two. One death alone proves nothing yet: workers die of other things too."""
    streak: int = 8
    """A worker that breaks so many jobs in a row, which others do not break, is set aside."""
    patience: float = 300.0
    """Seconds to wait for a worker when none is there."""


def refuse(job: Any, why: str) -> Any:
    """What becomes of a job that cannot be done, unless the caller knows better.

    Raises:
        CrewError: Always.
    """
    raise CrewError(f"a job cannot be played: {why}")


def play_out(
    crew: Crew,
    jobs: Sequence[Any],
    take: Callable[[int, Any], T],
    *,
    terms: Terms | None = None,
    broken: Callable[[Any], bool] = lambda result: False,
    broken_job: Callable[[Any, str], Any] = refuse,
    home: Callable[[Any], str | None] = lambda job: None,
    rehome: Callable[[Any], Any] = lambda job: None,
) -> list[T]:
    """Have each job done once by some worker.

    Args:
        crew: Who does them.
        jobs: What is to be done.
        take: Called with a job's place in the list and its result, once a job, as soon as the
            result counts; what it returns is all that is kept of it.
        terms: Sizes and bounds.
        broken: Infrastructure broke this result: it says nothing of the job, and perhaps something
            of the worker. Such results count once the worker gives a sound one again. A worker
            all of whose last `terms.streak` results are broken gets nothing more until others have
            played these; if half of them are sound there, it is set aside.
        broken_job: The result of a job that cannot be done, given why; or it raises.
        home: The only worker that can do a job; None if any can.
        rehome: A job whose home is lost, in a form that any worker can do; None if there is none.

    Returns:
        What `take` made of each result, in the order of the jobs.

    Raises:
        CrewError: No worker is left and none joins, or they die without doing anything.
    """
    return _Play(crew, jobs, take, terms or Terms(), broken, broken_job, home, rehome).run()


class _Play:
    """One list of jobs, from the first lease to the last result."""

    def __init__(
        self,
        crew: Crew,
        jobs: Sequence[Any],
        take: Callable[[int, T], Any],
        terms: Terms,
        broken: Callable[[Any], bool],
        broken_job: Callable[[Any, str], Any],
        home: Callable[[Any], str | None],
        rehome: Callable[[Any], Any],
    ) -> None:
        self._crew, self._jobs, self._take, self._terms = crew, list(jobs), take, terms
        self._broken, self._broken_job, self._rehome = broken, broken_job, rehome
        self._enough = self._terms.places - 1 if self._terms.refills else 0
        """A worker with so many jobs or fewer gets more."""
        self._kept: list[Any] = [_OPEN] * len(jobs)
        self._left = len(jobs)
        self._workers: dict[str, Member] = {}
        self._owner: dict[int, Member] = {}
        """Who has a lease, by its number."""
        self._ready: dict[str, None] = {}
        """Workers that may have room for a lease."""
        self._homes = {i: at for i, job in enumerate(jobs) if (at := home(job)) is not None}
        self._fresh = deque(i for i in range(len(jobs)) if i not in self._homes)
        self._again: dict[int, None] = {}
        """Jobs that are not for every worker: some have failed at them, or are doubted for them."""
        self._pinned: dict[str, dict[int, None]] = {}
        self._blame = Blame(self._terms.failures)
        self._gone: deque[str] = deque(maxlen=5)
        self._most = 0
        """Workers that were there at once."""
        self._deaths = 0
        """Since anything was done."""

    def run(self) -> list[Any]:
        """To the end; returns what was made of the results."""
        for name in self._crew.present():
            self._join(name)
        for job, at in list(self._homes.items()):
            self._pinned.setdefault(at, {})[job] = None
        for at in self._pinned.keys() - self._workers.keys():
            self._move(at, "it was not there")
        while self._left:
            self._hand_out()
            if self._workers and not self._owner:
                # Nothing is under way and nobody can do more: what is held counts.
                for worker in list(self._workers.values()):
                    self._clear(worker)
                continue
            events = self._crew.wait(None if self._workers else self._terms.patience)
            if not events and not self._workers:
                raise CrewError(
                    f"no worker is there, and none has joined for {self._terms.patience:g} s; "
                    f"{self._left} of {len(self._jobs)} jobs are left; {self._told_losses()}"
                )
            for event in events:
                self._note(event)
        return self._kept

    def _note(self, event: Event) -> None:
        match event:
            case Joined():
                self._join(event.worker)
            case Done():
                self._done(event)
            case Ended():
                self._ended(event)
            case Gone():
                self._lost(event)

    def _join(self, name: str) -> None:
        if name not in self._workers:
            self._workers[name] = Member(name)
            self._ready[name] = None
            self._most = max(self._most, len(self._workers))

    def _hand_out(self) -> None:
        """Give every worker that has room its next lease."""
        for name in list(self._ready):
            if not (self._fresh or self._again or self._pinned):
                return
            worker = self._workers[name]
            if worker.doubted or worker.alone or worker.under_way > self._enough:
                del self._ready[name]
                continue
            if jobs := self._choose(worker):
                lease = Lease(next(_numbers), tuple(jobs))
                worker.leases[lease.number] = dict.fromkeys(jobs)
                worker.alone = self._blame.suspect(jobs[0])
                self._owner[lease.number] = worker
                del self._ready[name]
                self._crew.hand(name, lease, [self._jobs[job] for job in jobs])

    def _choose(self, worker: Member) -> list[int]:
        """The jobs of a worker's next lease."""
        jobs: list[int] = []
        size = self._size(self._terms.places - worker.under_way)
        mine = self._pinned.pop(worker.name, {})
        able = {name for name, it in self._workers.items() if not it.doubted} if self._again else ()
        for job in itertools.chain(mine, list(self._again)):
            full = job not in mine and len(jobs) >= size
            if full or (job not in mine and self._blame.shuns(job, worker.name, able)):
                continue
            if not self._blame.suspect(job):
                jobs.append(job)
            elif not jobs and not worker.leases:
                jobs.append(job)
                break
        for job in jobs:
            self._again.pop(job, None)
        if rest := {job: None for job in mine if job not in jobs}:
            self._pinned[worker.name] = rest
        if not (jobs and self._blame.suspect(jobs[0])):
            while self._fresh and len(jobs) < size:
                jobs.append(self._fresh.popleft())
        return jobs

    def _size(self, free: int) -> int:
        """Jobs of the next lease: a part of a worker's share of what is left; places are filled.

        Half of it, where places are refilled. Else each lease ends with places that stay empty, so
        that there are to be few: three quarters. Towards the end some are left empty from the start
        then, so that each worker has its share, down to a quarter of them: a batch of one costs a
        model as much as one of a few.

        Args:
            free: The worker's places that nothing is played in.
        """
        share = math.ceil((len(self._fresh) + len(self._again)) / max(1, len(self._workers)))
        if self._terms.refills:
            return max(math.ceil(share / 2), free)
        return max(math.ceil(0.75 * share), min(share, free), math.ceil(free / 4))

    def _done(self, event: Done) -> None:
        worker, job = self._owner.get(event.lease), event.job
        if worker is None or job not in worker.leases[event.lease]:
            return  # a double, or from a worker that is given up
        del worker.leases[event.lease][job]
        self._deaths = 0
        self._ready[worker.name] = None
        if self._kept[job] is not _OPEN:
            return
        accused = self._workers.get(self._blame.settled(job))
        if not self._broken(event.result):
            self._settle(job, event.result)
            self._clear(worker)
            if accused is not None:
                accused.refuted += 1
        elif job in self._blame.broken:
            self._settle(job, event.result)
        else:
            worker.held[job] = event.result
            worker.streak += 1
            self._weigh(worker)
        if accused is not None:
            self._weigh(accused)

    def _ended(self, event: Ended) -> None:
        worker = self._owner.pop(event.lease, None)
        if worker is None:
            return
        undone = list(worker.leases.pop(event.lease))
        worker.alone = False
        self._ready[worker.name] = None
        if undone:
            worker.streak += 1
            why = event.error or "it ended without a result"
            self._take_back(worker.name, undone, why)
            if (job := undone[0]) in self._again:
                self._blame.accuse(job, worker.name)
            self._weigh(worker)

    def _lost(self, event: Gone) -> None:
        worker = self._workers.get(event.worker)
        if worker is None:
            return
        self._gone.append(f"{event.worker}: {event.why}")
        logger.warning("worker %s is lost: %s; others play what it was at", event.worker, event.why)
        if worker.leases:
            self._deaths += 1
            if self._deaths > 2 * self._terms.failures * (self._most + 1):
                raise CrewError(
                    f"{self._deaths} workers died one after another, and none did a job; "
                    f"{self._told_losses()}"
                )
        self._part(worker, event.why, blame=True)

    def _part(self, worker: Member, why: str, blame: bool) -> None:
        """A worker is gone: others do what it was at, and what it broke."""
        name = worker.name
        del self._workers[name]
        self._ready.pop(name, None)
        for number in worker.leases:
            del self._owner[number]
        self._take_back(name, worker.jobs(), why, blame)
        for job, result in worker.held.items():
            asked = job in self._blame.broken or self._ask_others(job, name)
            if self._kept[job] is _OPEN and not asked:
                self._settle(job, result)
        self._move(name, why)

    def _take_back(self, name: str, undone: list[int], why: str, blame: bool = True) -> None:
        """Jobs are to be done anew; those that had begun may be what the worker failed at."""
        begun = undone[: self._terms.places] if blame else []
        for job in begun:
            if self._kept[job] is not _OPEN:
                continue
            if given_up := self._blame.failed(job, name, why):
                self._give_up(job, given_up)
            else:
                self._queue(job)
        for job in reversed(undone[len(begun) :]):
            if self._kept[job] is _OPEN:
                self._queue(job)

    def _queue(self, job: int) -> None:
        if job in self._homes:
            self._pinned.setdefault(self._homes[job], {})[job] = None
        elif self._blame.tried(job):
            self._again[job] = None
        else:
            self._fresh.appendleft(job)

    def _move(self, name: str, why: str) -> None:
        """What only a worker that is gone could do goes elsewhere, if it can."""
        for job in self._pinned.pop(name, {}):
            if self._movable(job):
                self._queue(job)
            else:
                self._give_up(job, f"only {name} could do it, and it is lost: {why}")

    def _movable(self, job: int) -> bool:
        """Make a job one that any worker can do; False if that cannot be."""
        if job in self._homes:
            moved = self._rehome(self._jobs[job])
            if moved is None:
                return False
            self._jobs[job] = moved
            del self._homes[job]
        return True

    def _ask_others(self, job: int, name: str) -> bool:
        """Have a job done by another than who broke it; False if no other can."""
        if not self._movable(job):
            return False
        self._blame.ask_others(job, name)
        self._again[job] = None
        return True

    def _weigh(self, worker: Member) -> None:
        """See whether a worker that only fails is to blame for it."""
        if worker.streak < self._terms.streak or worker.name not in self._workers:
            return
        others = [it for it in self._workers.values() if it is not worker and not it.doubted]
        if not others:
            self._clear(worker)
        elif 2 * worker.refuted >= self._terms.streak:
            self._set_aside(worker)
        else:
            if not worker.doubted:
                worker.doubted = True
                for job in worker.held:
                    self._ask_others(job, worker.name)
            if not self._blame.open(worker.name):  # others have broken the same
                self._clear(worker)

    def _set_aside(self, worker: Member) -> None:
        why = f"its last {worker.streak} jobs broke, and other workers do them"
        logger.warning("worker %s is set aside: %s", worker.name, why)
        self._gone.append(f"{worker.name}: set aside, as {why}")
        self._crew.dismiss(worker.name)
        self._part(worker, why, blame=False)

    def _clear(self, worker: Member) -> None:
        """A worker is as good as others: what it broke counts."""
        if not worker.streak:
            return
        held, worker.held = worker.held, {}
        worker.streak, worker.doubted, worker.refuted = 0, False, 0
        self._ready[worker.name] = None
        self._blame.acquit(worker.name)
        for job, result in held.items():
            if self._kept[job] is _OPEN:
                self._settle(job, result)

    def _give_up(self, job: int, why: str) -> None:
        self._settle(job, self._broken_job(self._jobs[job], why))

    def _settle(self, job: int, result: Any) -> None:
        """A job is done."""
        self._kept[job] = self._take(job, result)
        self._left -= 1
        self._again.pop(job, None)
        self._blame.settled(job)

    def _told_losses(self) -> str:
        if self._gone:
            return f"lost: {'; '.join(self._gone)}"
        return (
            "none was ever there: see that the cluster has room (ray status), ask for less "
            "(rollouts.workers, cpus, gpus), or wait longer (rollouts.patience)"
        )
