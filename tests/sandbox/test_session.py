"""The host's side of a session, on the real backend."""

import contextlib
import gc
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from journeyman.sandbox import KilledReason, Limits, Sandbox, SandboxDied, Session
from journeyman.sandbox.container import Container
from journeyman.sandbox.session import WorkerSession
from journeyman.sandbox.worker.frames import MAX_FRAME, encode


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def children(pid: int) -> set[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return {int(child) for child in file.read().split()}
    except OSError:
        return set()


def descendants(pid: int) -> set[int]:
    return children(pid).union(*(descendants(child) for child in children(pid)))


def bubblewrap_of(session: Session) -> int:
    assert isinstance(session, WorkerSession)
    return session.container.worker.process.pid


def existing(pids: set[int]) -> set[int]:
    return {pid for pid in pids if os.path.exists(f"/proc/{pid}")}


def running(pids: set[int]) -> set[int]:
    """Those that are more than a zombie which the host's init has yet to reap."""
    found = set()
    for pid in existing(pids):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] not in "ZX":
                found.add(pid)
    return found


def test_a_kill_leaves_an_empty_process_tree(session: Session) -> None:
    session.exec("import os, time")
    code = "for _ in range(10):\n    if not os.fork():\n        break\ntime.sleep(60)"
    root = bubblewrap_of(session)
    tree: set[int] = set()
    watcher = threading.Thread(
        target=lambda: wait_for(lambda: bool(tree.update(descendants(root))) or len(tree) >= 12)
    )
    watcher.start()
    got = session.exec(code, timeout=1.0)
    watcher.join()
    assert got.killed_reason is KilledReason.WALL
    assert len(tree) >= 12
    assert existing(tree | {root}) == set()


def test_a_dead_session_says_why(session: Session) -> None:
    session.exec("import time")
    session.exec("time.sleep(9)", timeout=0.05)
    assert not session.alive
    with pytest.raises(SandboxDied, match=r"killed \(wall\)\. Open a new one"):
        session.exec("1")


def test_a_closed_session_says_so(session: Session) -> None:
    session.close()
    session.close()
    with pytest.raises(SandboxDied, match="it was closed"):
        session.exec("1")


def test_the_timeout_can_only_shorten_the_limit(bwrap: str) -> None:
    with Sandbox(limits=Limits(wall_s=0.2)).session() as session:
        got = session.exec("import time; time.sleep(9)", timeout=30)
        assert got.killed_reason is KilledReason.WALL and got.duration_s < 5


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_senseless_timeout(session: Session, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout="):
        session.exec("1", timeout)
    assert session.alive


def test_code_must_be_text_of_a_bounded_size(session: Session) -> None:
    with pytest.raises(TypeError, match="code is a bytes"):
        session.exec(b"1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the most is"):
        session.exec("#" * MAX_FRAME)
    assert session.exec("#" * 3_000_000 + "\n'long'").value_repr == "'long'"


def test_an_interrupted_call_ends_the_session(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Container, "_pump", interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.exec("1")
    with pytest.raises(SandboxDied, match="a call was interrupted"):
        session.exec("1")


def test_the_hosts_kill_is_infra_and_nobody_elses(session: Session) -> None:
    (supervisor,) = children(bubblewrap_of(session))
    os.kill(supervisor, signal.SIGKILL)
    got = session.exec("1")
    assert got.killed_reason is KilledReason.INFRA and not got.ok
    assert not session.alive


@pytest.mark.parametrize("frame", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02[]", b"\0\0\0\1{"])
def test_a_supervisor_gone_mad_is_infra(session: Session, frame: bytes) -> None:
    assert isinstance(session, WorkerSession)
    # Its frames come from this buffer's tail on.
    session.container.incoming += frame
    assert session.exec("1").killed_reason is KilledReason.INFRA


def test_a_reply_of_the_wrong_shape_is_infra(session: Session) -> None:
    assert isinstance(session, WorkerSession)
    session.container.incoming += encode({"ended": False, "cpu_s": "much"})
    assert session.exec("1").killed_reason is KilledReason.INFRA


def test_a_dropped_session_leaves_nothing_behind(bwrap: str) -> None:
    session = Sandbox().session()
    tree = descendants(bubblewrap_of(session)) | {bubblewrap_of(session)}
    assert len(tree) == 3
    del session
    gc.collect()
    assert existing(tree) == set()


def test_threads_take_turns(session: Session) -> None:
    session.exec("n = 0")
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(session.exec, ["n += 1\nn"] * 40))
    assert sorted(int(got.value_repr or 0) for got in results) == list(range(1, 41))


def test_a_session_outlives_the_thread_that_opened_it(bwrap: str) -> None:
    opened: list[Session] = []
    thread = threading.Thread(target=lambda: opened.append(Sandbox().session()))
    thread.start()
    thread.join()
    with opened[0] as session:
        assert session.exec("1 + 1").value_repr == "2"


def test_a_fork_of_the_host_does_not_end_its_sessions(session: Session) -> None:
    assert isinstance(session, WorkerSession)
    pid = os.fork()
    if pid == 0:
        try:
            session._release()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert session.exec("1 + 1").value_repr == "2"


HOST = """
import os, sys
from journeyman.sandbox import Sandbox
session = Sandbox().session()
print(session.container.worker.process.pid, flush=True)
{then}
"""


@pytest.mark.parametrize(
    "then", ["sys.stdin.read()", "session.exec('while True: pass')", "os._exit(0)", "sys.exit()"]
)
def test_no_orphan_outlives_the_host(bwrap: str, then: str) -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST.format(then=then)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with host:
        assert host.stdout is not None
        root = int(host.stdout.readline())
        tree = descendants(root) | {root}
        host.kill()
    wait_for(lambda: running(tree) == set())


def test_a_thread_speaks_in_the_call_it_runs_in(session: Session) -> None:
    # The thread is stopped with its process, and speaks on in the next call.
    session.exec("import threading\ngo = threading.Event()")
    session.exec("thread = threading.Thread(target=lambda: (go.wait(), print('late')))")
    assert session.exec("thread.start()").stdout == ""
    assert session.exec("go.set()\nthread.join()").stdout == "late\n"


def test_cpu_time_counts_children_and_not_sleep(session: Session) -> None:
    session.exec("import os, time")
    assert session.exec("time.sleep(0.2)").cpu_s < 0.1
    burn = "while time.process_time() < 0.15: pass"
    code = f"pid = os.fork()\nif not pid:\n    {burn}\n    os._exit(0)\nos.waitpid(pid, 0)"
    assert session.exec(code).cpu_s > 0.1


@pytest.mark.bench
def test_latency(session: Session) -> None:
    seconds = [session.exec("1 + 1").duration_s for _ in range(500)]
    assert statistics.median(seconds) < 0.005
