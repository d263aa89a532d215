"""`Sandbox.exec`: every program in a session of its own, made ahead."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from journeyman.sandbox import KilledReason, Sandbox


@pytest.fixture
def sandbox(bwrap: str) -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one


def test_every_program_starts_afresh(sandbox: Sandbox) -> None:
    for _ in range(5):
        got = sandbox.exec("import os\nold = os.listdir('.'), 'x' in globals()\nx = 1\nold")
        assert got.value_repr == "([], False)"
        assert sandbox.exec("x = 1\nopen('f', 'w').close()\nx").value_repr == "1"


def test_many_threads_share_few_sessions(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(sandbox.exec, [f"{n} * 2" for n in range(60)]))
    assert [got.value_repr for got in results] == [str(n * 2) for n in range(60)]
    assert 1 <= len(sandbox._idle) <= 8


def test_the_dead_are_replaced(sandbox: Sandbox) -> None:
    for code in ("import os; os.abort()", "while True: pass"):
        assert not sandbox.exec(code, 0.2).ok
        assert sandbox.exec("1 + 1").value_repr == "2"


@pytest.mark.parametrize("which", ["container", "interpreter"])
def test_what_is_kept_may_die_in_the_meantime(sandbox: Sandbox, which: str) -> None:
    assert sandbox.exec("1").ok
    ((fresh, _),) = sandbox._idle
    bubblewrap = fresh.container.worker.process.pid  # type: ignore[attr-defined]
    if which == "container":
        os.kill(bubblewrap, signal.SIGKILL)
        os.waitid(os.P_PID, bubblewrap, os.WEXITED | os.WNOWAIT)
    else:
        (supervisor,) = children(bubblewrap)
        os.kill(min(children(supervisor)), signal.SIGKILL)  # the first that it started
    for _ in range(3):  # made before; asked of the dead; in a new container
        got = sandbox.exec("1 + 1")
        assert got.ok or got.killed_reason is KilledReason.INFRA
    for _ in range(3):
        assert sandbox.exec("1 + 1").value_repr == "2"


def children(pid: int) -> set[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return set(map(int, file.read().split()))


def test_short_times_cost_only_the_calls_that_had_them(sandbox: Sandbox) -> None:
    for timeout in (0.0005, 0.002, 0.005) * 5:  # some end while the copy is still being made
        got = sandbox.exec("while True: pass", timeout)
        assert got.killed_reason is KilledReason.WALL
        assert sandbox.exec("1 + 1").value_repr == "2"


def test_a_closed_sandbox_can_be_used_again(sandbox: Sandbox) -> None:
    assert sandbox.exec("1").ok
    kept = sandbox._idle[0]
    sandbox.close()
    assert not any(session.alive for session in kept)
    assert sandbox.exec("1 + 1").value_repr == "2"
