"""What has failed at whom: whether a job is to blame for it, or a worker."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

_SHARED = 2
"""Workers may die of a job among others, before it is played alone."""


@dataclass(eq=False)
class Member:
    """What the driver knows of a worker."""

    name: str
    leases: dict[int, dict[int, None]] = field(default_factory=dict)
    """What it is at: by a lease's number, its jobs that are not done, in order."""
    held: dict[int, Any] = field(default_factory=dict)
    """Broken results that do not count yet."""
    streak: int = 0
    """Failures since its last sound result."""
    doubted: bool = False
    """It gets nothing until others have played what it broke."""
    refuted: int = 0
    """So many of them others have done."""
    alone: bool = False
    """It is at a job that others have died of."""

    def jobs(self) -> list[int]:
        """What it is at, in the order in which it begins them."""
        return [job for lease in self.leases.values() for job in lease]

    @property
    def under_way(self) -> int:
        """How many jobs it has to do."""
        return sum(map(len, self.leases.values()))


class Blame:
    """Failures at jobs, and what others are asked to do because of them."""

    def __init__(self, failures: int) -> None:
        """Nothing has failed; a job is given up after so many failures."""
        self._failures = failures
        self._why: dict[int, list[str]] = {}
        self._tried: dict[int, set[str]] = {}
        """Workers that a job is to keep away from."""
        self._accused: dict[int, str] = {}
        """Who has failed at a job that another is to do now."""
        self.broken: set[int] = set()
        """Jobs that a worker broke, and another was asked for: what it says counts."""

    def failed(self, job: int, worker: str, why: str) -> str | None:
        """Note that a worker died of a job, or failed at it; says why to give it up, if so."""
        reasons = self._why.setdefault(job, [])
        reasons.append(f"{worker}: {why}")
        self._tried.setdefault(job, set()).add(worker)
        if len(reasons) < self._failures:
            return None
        return f"{len(reasons)} workers failed at it: {'; '.join(reasons)}"

    def suspect(self, job: int) -> bool:
        """True of a job that is played alone: who fails then has failed at nothing else."""
        failed = len(self._why.get(job, ()))
        return failed > 0 and failed >= min(_SHARED, self._failures - 1)

    def tried(self, job: int) -> bool:
        """True if a worker has failed at a job, or broken it."""
        return job in self._tried

    def shuns(self, job: int, worker: str, able: Collection[str]) -> bool:
        """True if a job had better go to another worker, and one of those that are able is left."""
        tried = self._tried.get(job, set())
        return worker in tried and not tried.issuperset(able)

    def accuse(self, job: int, worker: str) -> None:
        """Whether a worker is to blame for a job is seen by what another makes of it."""
        self._accused.setdefault(job, worker)

    def ask_others(self, job: int, worker: str) -> None:
        """The same of a job that a worker broke."""
        self._tried.setdefault(job, set()).add(worker)
        self._accused[job] = worker
        self.broken.add(job)

    def settled(self, job: int) -> str:
        """A job is done: whose fault was in question; nobody's is ""."""
        return self._accused.pop(job, "")

    def open(self, worker: str) -> bool:
        """True if others have still to do what a worker failed at."""
        return worker in self._accused.values()

    def acquit(self, worker: str) -> None:
        """A worker is not to blame, whatever comes of the jobs that others were asked for."""
        for job in [job for job, name in self._accused.items() if name == worker]:
            del self._accused[job]
