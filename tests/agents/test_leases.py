"""The driver's scheduler: every job counts once, in order, whatever becomes of the workers."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from journeyman.agents.errors import CrewError
from journeyman.agents.rollouts.workers.crew import Done, Ended, Event, Gone, Joined, Lease
from journeyman.agents.rollouts.workers.leases import Terms, play_out

TERMS = Terms(places=3, streak=4, patience=5.0)


class Crew:
    """Workers of a test: what happens next is drawn, or said by a plan for each of them.

    A job is whatever; its result is `(job, worker)`, or `(job, None)` if the worker breaks it.
    """

    def __init__(
        self,
        workers: Sequence[str],
        seed: int = 0,
        *,
        places: int = 3,
        deaths: int = 0,
        errors: int = 0,
        joins: int = 0,
        echoes: float = 0.0,
        poison: Sequence[Any] = (),
        breaks: Callable[[str, Any], bool] = lambda worker, job: False,
        fails: Callable[[str, Any], str | None] = lambda worker, job: None,
    ) -> None:
        self.dice = random.Random(seed)
        self.places, self.deaths, self.errors, self.joins = places, deaths, errors, joins
        self.echoes, self.poison, self.breaks, self.fails = echoes, set(poison), breaks, fails
        self.there = list(workers)
        self.leases: dict[int, tuple[str, dict[int, Any]]] = {}
        self.handed: list[tuple[str, tuple[Any, ...]]] = []
        self.told: list[Done] = []
        self.late: list[Done] = []
        self.dismissed: list[str] = []
        self.blamed: Counter[Any] = Counter()
        self.done: Counter[Any] = Counter()
        self.first: dict[Any, str | None] = {}
        self.waits = 0

    def present(self) -> Sequence[str]:
        return list(self.there)

    def hand(self, worker: str, lease: Lease, jobs: Sequence[Any]) -> None:
        assert worker in self.there and lease.number not in self.leases and jobs
        assert not any(at == worker for at, _ in self.leases.values()), "it is at work"
        self.handed.append((worker, tuple(jobs)))
        self.leases[lease.number] = worker, dict(zip(lease.jobs, jobs, strict=True))

    def dismiss(self, worker: str) -> None:
        self.dismissed.append(worker)
        self._forget(worker)

    def _forget(self, worker: str) -> None:
        self.there.remove(worker)
        for number in [n for n, (at, _) in self.leases.items() if at == worker]:
            _, jobs = self.leases.pop(number)
            self.late += [Done(worker, number, i, (job, worker)) for i, job in jobs.items()]

    def wait(self, seconds: float | None = None) -> list[Event]:
        self.waits += 1
        assert self.waits < 20_000, "it never ends"
        assert (seconds is None) == bool(self.there)
        events: list[Event] = []
        if self.joins and (not self.there or self.dice.random() < 0.1):
            self.joins -= 1
            self.there.append(f"new{self.joins}")
            events.append(Joined(self.there[-1]))
        if self.echoes and self.dice.random() < self.echoes:
            events += self.dice.sample(self.told, min(2, len(self.told)))  # twice
            events += self.dice.sample(self.late, min(2, len(self.late)))  # from the dead
        if self.leases:
            events += self._go_on(self.dice.choice(sorted(self.leases)))
        elif self.there and not events:
            raise AssertionError("nothing is under way, and it waits")
        return events

    def _go_on(self, number: int) -> list[Event]:
        worker, jobs = self.leases[number]
        begun = list(jobs)[: self.places]
        if self.deaths and self.dice.random() < 0.1:
            self.deaths -= 1
            return self._die(worker)
        if self.errors and self.dice.random() < 0.1:
            self.errors -= 1
            return self._fail(number, "out of memory")
        at = self.dice.choice(begun)
        job = jobs[at]
        if job in self.poison:
            return self._die(worker)
        if why := self.fails(worker, job):
            return self._fail(number, why)
        del jobs[at]
        self.done[job] += 1
        done = Done(worker, number, at, (job, None if self.breaks(worker, job) else worker))
        self.told.append(done)
        self.first.setdefault(*done.result)
        if jobs:
            return [done]
        del self.leases[number]
        return [done, Ended(worker, number)]

    def _die(self, worker: str) -> list[Event]:
        under_way = [
            job for at, jobs in self.leases.values() if at == worker for job in jobs.values()
        ]
        self.blamed.update(under_way[: self.places])
        self._forget(worker)
        return [Gone(worker, "SIGKILL")]

    def _fail(self, number: int, why: str) -> list[Event]:
        worker, jobs = self.leases.pop(number)
        self.blamed.update(list(jobs.values())[: self.places])
        return [Ended(worker, number, why)]


def broken(result: tuple[Any, str | None]) -> bool:
    return result[1] is None


def given_up(job: Any, why: str) -> tuple[Any, str]:
    return job, f"given up: {why}"


def names(count: int) -> list[str]:
    return [f"w{i}" for i in range(count)]


class Taken:
    """Keeps what it is told, and that it is told it once."""

    def __init__(self) -> None:
        self.places: list[int] = []

    def __call__(self, place: int, result: Any) -> Any:
        assert place not in self.places
        self.places.append(place)
        return result


def play(crew: Crew, jobs: Sequence[Any], **options: Any) -> list[tuple[Any, str | None]]:
    taken = Taken()
    options = {"terms": TERMS, "broken": broken, "broken_job": given_up} | options
    results = play_out(crew, jobs, taken, **options)
    assert sorted(taken.places) == list(range(len(jobs)))
    assert [job for job, _ in results] == list(jobs)
    return results


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    workers=st.integers(0, 6),
    jobs=st.integers(0, 80),
    deaths=st.integers(0, 5),
    errors=st.integers(0, 5),
    echoes=st.sampled_from([0.0, 0.3]),
    poison=st.sets(st.integers(0, 79), max_size=3),
    breakers=st.integers(0, 2),
    outage=st.integers(0, 30),
)
def test_each_job_counts_once_and_in_order_whatever_happens(
    seed: int,
    workers: int,
    jobs: int,
    deaths: int,
    errors: int,
    echoes: float,
    poison: set[int],
    breakers: int,
    outage: int,
) -> None:
    crew = Crew(
        names(workers),
        seed,
        deaths=deaths,
        errors=errors,
        joins=40,
        echoes=echoes,
        poison=poison,
        breaks=lambda worker, job: worker in names(breakers) or 40 <= job < 40 + outage,
    )
    results = play(crew, range(jobs))
    for job, told in results:
        if told is not None and told.startswith("given up"):
            assert crew.blamed[job] >= TERMS.failures
        else:
            assert job not in poison
    if 2 * errors < TERMS.streak:  # so many failures may look like a worker's
        assert set(crew.dismissed) <= set(names(breakers))
    assert max(crew.done.values(), default=0) <= 2  # what broke, once more
    assert not any(crew.done[job] > 1 for job, told in crew.first.items() if told is not None)


@settings(deadline=None)  # other work may be under way
@given(seed=st.integers(0, 10**6), workers=st.integers(1, 9), jobs=st.integers(0, 300))
def test_without_failures_nothing_is_played_twice(seed: int, workers: int, jobs: int) -> None:
    crew = Crew(names(workers), seed)
    results = play(crew, range(jobs))
    assert all(told for _, told in results)
    assert not crew.done or max(crew.done.values()) == 1


@pytest.mark.parametrize(("refills", "first", "last"), [(False, 188, 2), (True, 125, 1)])
def test_leases_fill_places_and_shrink_towards_the_end(
    refills: bool, first: int, last: int
) -> None:
    crew = (Queueing if refills else Crew)(names(4), places=8)
    play(crew, range(1000), terms=replace(TERMS, places=8, refills=refills))
    sizes = [len(jobs) for _, jobs in crew.handed]
    assert sizes[0] == first and sizes[-1] <= last
    assert all(size >= 8 for size in sizes[:4]) and sizes[-2] <= 2 * sizes[-1] + 1
    assert [job for _, jobs in crew.handed for job in jobs] == list(range(1000))


def test_what_a_dead_worker_had_done_is_not_played_again(caplog: Any) -> None:
    crew = Crew(names(3), 1, deaths=2)
    play(crew, range(60))
    assert crew.deaths == 0 and max(crew.done.values()) == 1
    assert sum("is lost: SIGKILL" in it.message for it in caplog.records) == 2


def test_a_job_that_workers_die_of_is_given_up_and_no_other() -> None:
    crew = Crew(names(2), joins=10, poison=[7])
    results = play(crew, range(40))
    assert [job for job, told in results if str(told).startswith("given up")] == [7]
    assert "4 workers failed at it" in str(results[7][1]) and "SIGKILL" in str(results[7][1])
    assert crew.blamed[7] == 4
    assert [jobs for _, jobs in crew.handed if 7 in jobs][-2:] == [(7,)] * 2  # so it was its doing


@settings(deadline=None)  # other work may be under way
@given(seed=st.integers(0, 10**6), refills=st.booleans())
def test_three_workers_that_are_killed_make_no_job_suspect_enough_to_be_given_up(
    seed: int, refills: bool
) -> None:
    crew = (Queueing if refills else Crew)(names(2), seed, deaths=3, joins=9)
    results = play(crew, range(30), terms=replace(TERMS, refills=refills))
    assert not [job for job, told in results if str(told).startswith("given up")]


def test_a_job_that_cannot_be_played_stops_all_unless_the_caller_knows_better() -> None:
    crew = Crew(names(2), joins=10, poison=[7])
    with pytest.raises(CrewError, match=r"a job cannot be played: 4 workers failed at it: .*SIG"):
        play_out(crew, range(40), Taken(), terms=TERMS)


def test_a_job_that_raises_is_tried_elsewhere_and_then_given_up() -> None:
    tried = []

    def fails(worker: str, job: Any) -> str | None:
        if job == 5:
            tried.append(worker)
        return "ZeroDivisionError" if job == 5 else None

    results = play(Crew(names(4), fails=fails), range(30))
    assert [job for job, told in results if str(told).startswith("given up")] == [5]
    assert len(set(tried)) == 4 and "ZeroDivisionError" in str(results[5][1])


def test_a_worker_at_which_every_lease_fails_is_set_aside(caplog: Any) -> None:
    crew = Crew(names(3), fails=lambda worker, job: "CUDA" if worker == "w1" else None)
    results = play(crew, range(200))
    assert {told for _, told in results} == {"w0", "w2"}
    assert crew.dismissed == ["w1"]


def test_a_worker_that_breaks_everything_is_set_aside_and_named(caplog: Any) -> None:
    crew = Crew(names(3), breaks=lambda worker, job: worker == "w1")
    results = play(crew, range(100))
    assert {told for _, told in results} == {"w0", "w2"}
    assert crew.dismissed == ["w1"]
    (told,) = [it.message for it in caplog.records if "set aside" in it.message]
    assert told.startswith("worker w1 is set aside: its last ")


def test_an_environment_that_breaks_everywhere_sets_nobody_aside() -> None:
    crew = Crew(names(4), breaks=lambda worker, job: True)
    assert play(crew, range(100)) == [(job, None) for job in range(100)]
    assert not crew.dismissed
    assert max(crew.done.values()) <= 2


def test_a_worker_that_had_only_tasks_of_a_broken_environment_stays() -> None:
    """Leases are neighbours in the list: one worker may get all of an environment that is down."""
    crew = Crew(names(4), breaks=lambda worker, job: job < 25)
    results = play(crew, range(200))
    assert [told is None for _, told in results] == [job < 25 for job in range(200)]
    assert not crew.dismissed


def test_a_worker_alone_is_not_set_aside() -> None:
    crew = Crew(["w0"], breaks=lambda worker, job: True)
    assert play(crew, range(50)) == [(job, None) for job in range(50)]
    assert not crew.dismissed and max(crew.done.values()) == 1


def test_a_pinned_job_is_played_at_home_and_nowhere_else() -> None:
    crew = Crew(names(3), 4, errors=3)
    at = {job: f"w{job % 3}" for job in range(0, 60, 2)}
    results = play(crew, range(60), home=at.get)
    assert all(told == at[job] for job, told in results if job in at)


@pytest.mark.parametrize("gone", ["before", "meanwhile"])
def test_a_pinned_job_whose_home_is_lost_is_given_up_or_moved(gone: str) -> None:
    def crew() -> Crew:
        there = names(3)[1:] if gone == "before" else names(3)
        return Crew(there, poison=[("die", 0)] if gone == "meanwhile" else [], joins=5)

    jobs = [("die", 0), *(("snapshot", i) for i in range(20)), *(("task", i) for i in range(20))]
    at = {job: "w0" for job in jobs if job[0] != "task"}
    results = dict(play(crew(), jobs, home=at.get))
    lost = [told for job, told in results.items() if job[0] == "snapshot" and "given" in str(told)]
    assert lost and all("only w0 could do it, and it is lost:" in str(told) for told in lost)
    assert not any("given up" in str(results["task", i]) for i in range(20))

    moved = play_out(
        crew(),
        jobs,
        lambda place, result: result,
        terms=TERMS,
        broken_job=given_up,
        home=at.get,
        rehome=lambda job: ("replay", *job[1:]) if job[0] == "snapshot" else None,
    )
    replayed = [told for job, told in moved if job[0] == "replay"]
    assert replayed and "w0" not in replayed and not any("given" in str(it) for it in replayed)


def test_workers_may_join_late() -> None:
    crew = Crew([], joins=3)
    results = play(crew, range(300))
    assert {told for _, told in results} == {"new2", "new1", "new0"}


def test_no_workers_is_an_error_that_says_why_each_was_lost() -> None:
    with pytest.raises(CrewError, match=r"none has joined for 5 s; 10 of 10 .*none was ever there"):
        play(Crew([]), range(10))
    crew = Crew(names(2), deaths=2)
    with pytest.raises(CrewError, match=r"lost: w\d: SIGKILL; w\d: SIGKILL"):
        play(crew, range(100))


def test_workers_that_die_of_everything_do_not_go_on_for_ever() -> None:
    crew = Crew(names(2), joins=10_000, poison=range(500))
    with pytest.raises(CrewError, match="workers died one after another, and none did a job"):
        play(crew, range(500), terms=replace(TERMS, failures=4))
    assert crew.waits < 200


def test_no_jobs_need_no_workers() -> None:
    assert play(Crew([]), []) == []


class Queueing(Crew):
    """Workers that take a lease while they are at another."""

    def hand(self, worker: str, lease: Lease, jobs: Sequence[Any]) -> None:
        held = sum(len(it) for at, it in self.leases.values() if at == worker)
        assert held < self.places
        self.leases[lease.number] = worker, dict(zip(lease.jobs, jobs, strict=True))
        self.handed.append((worker, tuple(jobs)))


@settings(deadline=None)  # other work may be under way
@given(seed=st.integers(0, 10**6), deaths=st.integers(0, 5))
def test_places_are_refilled_before_the_last_lease_s_end(seed: int, deaths: int) -> None:
    crew = Queueing(names(3), seed, deaths=deaths, joins=9, echoes=0.2)
    results = play(crew, range(80), terms=replace(TERMS, refills=True))
    lost = [job for job, told in results if str(told).startswith("given up")]
    assert all(crew.blamed[job] >= TERMS.failures for job in lost)
    assert max(crew.done.values()) == 1
    sizes = [len(jobs) for _, jobs in crew.handed]
    assert sizes[0] == 14 and sizes[-1] <= 3
