"""Workers somewhere, as the driver sees them: it hands out leases and is told what came of them.

Ray's actors are such a crew, and so are the simulated workers by which the scheduler is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Lease:
    """Jobs that one worker was asked to do."""

    number: int
    """No other lease of the driver has it."""
    jobs: tuple[int, ...]
    """Which they are: places in the driver's list."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is there, and idle."""

    worker: str


@dataclass(frozen=True, slots=True)
class Done:
    """One job of a lease is done; others of it may still be under way."""

    worker: str
    lease: int
    job: int
    result: Any


@dataclass(frozen=True, slots=True)
class Ended:
    """Of a lease nothing more will come: its worker is idle, or at others."""

    worker: str
    lease: int
    error: str | None = None
    """Why jobs of it were not done, though the worker lives."""


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker is dead, or out of reach: of its leases nothing more will come."""

    worker: str
    why: str


Event = Joined | Done | Ended | Gone


class Crew(Protocol):
    """Workers that come and go."""

    def present(self) -> Sequence[str]:
        """Workers that are there now: joined, and neither lost nor dismissed."""

    def hand(self, worker: str, lease: Lease, jobs: Sequence[Any]) -> None:
        """Give a worker its next jobs, in the order of `lease.jobs`; returns at once.

        They are begun in that order. Of a worker that is gone already `Gone` is told.
        """

    def wait(self, seconds: float | None = None) -> list[Event]:
        """What happened since it was last asked; waits for something, at most so long.

        Returns:
            Events in the order in which they came to be known; none if the time is up.
        """

    def dismiss(self, worker: str) -> None:
        """Have nothing more to do with a worker: nothing is told of it any more."""
