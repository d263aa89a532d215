"""Pools and asyncio."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import pytest

from journeyman.sandbox import (
    AsyncSession,
    IsolationUnavailable,
    KilledReason,
    Limits,
    Pool,
    Sandbox,
    SandboxDied,
    Session,
)


@pytest.fixture
def pool(bwrap: str) -> Iterator[Pool]:
    with Pool(Sandbox(), 2) as two:
        yield two


def test_every_loan_is_fresh(pool: Pool) -> None:
    for _ in range(5):
        got = pool.exec("import os\nold = os.listdir('.'), 'x' in globals()\nx = 1\nold")
        assert got.value_repr == "([], False)"
        with pool.session() as session:
            session.exec("x = 1\nopen('f', 'w').close()")
            assert session.exec("x").value_repr == "1"


def test_many_threads_share_few_sessions(pool: Pool) -> None:
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(pool.exec, [f"{n} * 2" for n in range(60)]))
    assert [got.value_repr for got in results] == [str(n * 2) for n in range(60)]


def test_the_dead_are_replaced(pool: Pool) -> None:
    for code in ("import os; os.abort()", "while True: pass"):
        assert not pool.exec(code, 0.2).ok
    with pool.session() as session, pool.session() as other:
        for each in (session, other):
            # The whole sandbox this time, behind the pool's back.
            os.kill(each.container.worker.process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            os.waitid(
                os.P_PID,
                each.container.worker.process.pid,  # type: ignore[attr-defined]
                os.WEXITED | os.WNOWAIT,
            )
            assert each.exec("1").killed_reason is KilledReason.INFRA
    for _ in range(4):
        assert pool.exec("1 + 1").value_repr == "2"


def test_short_times_cost_only_the_calls_that_had_them(pool: Pool) -> None:
    for timeout in (0.0005, 0.002, 0.005) * 5:  # some end while the copy is still being made
        got = pool.exec("while True: pass", timeout)
        assert got.killed_reason is KilledReason.WALL
        assert pool.exec("1 + 1").value_repr == "2"


def test_a_slot_whose_fresh_interpreter_died_is_replaced(bwrap: str) -> None:
    with Pool(Sandbox(), 1) as pool:
        with pool.session() as session:
            bubblewrap = session.container.worker.process.pid  # type: ignore[attr-defined]
            (supervisor,) = children(bubblewrap)
            fresh = min(children(supervisor))  # the first that it started
        os.kill(fresh, signal.SIGKILL)
        for _ in range(3):  # made before; asked of the dead; in a new container
            got = pool.exec("1 + 1")
            assert got.ok or got.killed_reason is KilledReason.INFRA
        for _ in range(3):
            assert pool.exec("1 + 1").value_repr == "2"


def children(pid: int) -> set[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return set(map(int, file.read().split()))


def test_waiting_ends(pool: Pool) -> None:
    with pool.session(), pool.session():
        with pytest.raises(TimeoutError), pool.session(timeout=0.05):
            pass
        waiter = threading.Thread(target=lambda: pool.exec("1"))
        waiter.start()
    waiter.join()
    assert pool.exec("1 + 1").value_repr == "2"


def test_a_closed_pool(pool: Pool) -> None:
    with pool.session() as session, pool.session():
        caught: list[BaseException] = []

        def wait() -> None:
            try:
                pool.exec("1")
            except SandboxDied as error:
                caught.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        deadline = time.monotonic() + 10
        while not pool._waiting and time.monotonic() < deadline:
            time.sleep(0.001)
        pool.close()
        pool.close()
        waiter.join()
        assert len(caught) == 1
        assert session.exec("1 + 1").value_repr == "2"
    assert not session.alive
    with pytest.raises(SandboxDied, match="this pool is closed"):
        pool.exec("1")


def test_a_pool_that_cannot_start() -> None:
    class Nowhere:
        name = "nowhere"

        def describe(self) -> dict[str, str]:
            return {}

        def session(self, limits: Limits, packages: tuple[str, ...]) -> Session:
            raise IsolationUnavailable("anything", "nothing")

    with pytest.raises(IsolationUnavailable):
        Pool(Sandbox(Nowhere()), 2)
    with pytest.raises(ValueError, match="at least 1"):
        Pool(Sandbox(Nowhere()), 0)


def test_tasks_share_the_pool(pool: Pool) -> None:
    async def work(number: int) -> str | None:
        async with pool.asession() as session:
            await session.exec(f"x = {number}")
            return (await session.exec("x * 2")).value_repr

    async def main() -> list[str | None]:
        tasks = [asyncio.create_task(work(n)) for n in range(12)]
        plain = [pool.aexec(f"{n}") for n in range(12)]
        one, two = await asyncio.gather(asyncio.gather(*tasks), asyncio.gather(*plain))
        return [*one, *(got.value_repr for got in two)]

    expected = [str(n * 2) for n in range(12)] + [str(n) for n in range(12)]
    assert asyncio.run(main()) == expected


def test_a_cancelled_task_gives_its_session_back(pool: Pool) -> None:
    async def main() -> str | None:
        async with pool.asession(), pool.asession():
            waiting = asyncio.create_task(pool.aexec("1"))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        running = asyncio.create_task(pool.aexec("import time; time.sleep(0.3)"))
        await asyncio.sleep(0.1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        async with pool.asession() as one, pool.asession() as two:
            await one.exec("x = 1")
            return (await two.exec("'x' in globals()")).value_repr

    assert asyncio.run(main()) == "False"


class SlowBackend:
    """Sessions of no process, which are slow to come if told so."""

    name = "slow"
    lacks: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.made: list[SlowSession] = []
        self.entered = threading.Event()

    def describe(self) -> dict[str, str]:
        return {}

    def session(self, limits: Limits, packages: tuple[str, ...]) -> Session:
        self.entered.set()
        time.sleep(self.delay_s)
        return cast(Session, SlowSession(self))


class SlowSession:
    def __init__(self, backend: SlowBackend) -> None:
        self.backend = backend
        self.alive = True
        backend.made.append(self)

    def exec(self, code: str, timeout: float | None = None) -> str:
        return code

    def spare(self) -> "SlowSession":
        return SlowSession(self.backend)

    def close(self) -> None:
        self.alive = False


def test_a_pool_may_be_closed_while_a_task_has_a_session() -> None:
    backend = SlowBackend()
    pool = Pool(Sandbox(backend), 2)

    async def main() -> object:
        async with pool.asession() as session, pool.asession():
            pool.close()
            return await session.exec("still lent")

    assert asyncio.run(main()) == "still lent"
    assert not any(session.alive for session in backend.made)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool._threads.submit(int)


def test_a_task_cancelled_while_its_session_opens() -> None:
    backend = SlowBackend()
    pool = Pool(Sandbox(backend), 2)
    for slot in pool._free:
        assert slot.fresh is not None
        slot.fresh.close()
    backend.entered.clear()
    backend.delay_s = 0.2

    async def main() -> None:
        opening = asyncio.create_task(pool.aexec("1"))
        while not backend.entered.is_set():
            await asyncio.sleep(0.001)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert len(pool._free) == 2 and len(set(pool._free)) == 2
        async with pool.asession() as one, pool.asession() as two:
            assert one.session is not two.session

    asyncio.run(main())
    pool.close()
    assert not any(session.alive for session in backend.made)


def test_a_task_cancelled_as_its_turn_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    with Pool(Sandbox(SlowBackend()), 1) as pool:

        async def main() -> None:
            granted = pool._ask()
            asked: Future[Any] = Future()
            asked.set_running_or_notify_cancel()
            monkeypatch.setattr(pool, "_ask", lambda: asked)
            waiting = asyncio.create_task(pool.aexec("1"))
            await asyncio.sleep(0)
            threading.Timer(0.05, asked.set_result, [granted.result()]).start()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert len(pool._free) == 1

        asyncio.run(main())


def test_a_session_that_cannot_be_renewed_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with Pool(Sandbox(SlowBackend()), 1) as pool:

        def fail(_: SlowSession) -> SlowSession:
            raise SandboxDied("no copy")

        with monkeypatch.context() as patch, pytest.raises(SandboxDied, match="no copy"):
            patch.setattr(SlowSession, "spare", fail)
            pool.exec("1")
        assert pool.exec("2") == "2"  # type: ignore[comparison-overlap]


def test_sessions_can_be_awaited(bwrap: str) -> None:
    async def main() -> None:
        async with await AsyncSession.start(Sandbox().session) as session:
            await session.exec("x = 1")
            point = await session.snapshot()
            branch = await session.fork()
            await branch.exec("x += 1")
            await session.put("f", b"data")
            assert await session.get("f") == b"data"
            await session.restore(point)
            assert (await session.exec("x")).value_repr == "1"
            assert (await branch.exec("x")).value_repr == "2"
            await branch.close()
            assert session.alive and not branch.alive
            point.close()

    asyncio.run(main())
