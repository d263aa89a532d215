"""Forks and snapshots of live sessions: equal at first, apart ever after."""

import contextlib
import gc
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from journeyman.sandbox import (
    KilledReason,
    Limits,
    Sandbox,
    SandboxDied,
    SandboxError,
    SandboxSnapshot,
    Session,
)

# System calls on x86_64 and aarch64.
NUMBERS = {
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "kill": (62, 129),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "prctl": (157, 167),
    "fcntl": (72, 25),
    "timer_create": (222, 107),
}
PID = "import os\nos.getpid()"


def value(session: Session, code: str) -> str | None:
    got = session.exec(code)
    assert got.ok, got
    return got.value_repr


def test_a_fork_has_the_state_and_goes_its_own_way(session: Session) -> None:
    session.exec("import math\nseen = [1]\ndef area(r):\n    return math.pi * r * r")
    with session.fork() as branch:
        assert value(branch, "seen.append(2)\nseen, round(area(1), 2)") == "([1, 2], 3.14)"
        assert value(session, "seen.append(3)\nseen") == "[1, 3]"
        assert value(branch, "seen") == "[1, 2]"
        assert value(session, PID) != value(branch, PID)
    assert value(session, "seen") == "[1, 3]"


def test_output_and_tracebacks_of_a_fork_are_its_own(session: Session) -> None:
    session.exec("def fail():\n    return {}['key']")
    with session.fork() as branch:
        assert branch.exec("print('from the fork')").stdout == "from the fork\n"
        assert session.exec("1").stdout == ""
        assert "return {}['key']" in branch.exec("fail()").stderr


def test_draws_differ_between_forks(session: Session) -> None:
    session.exec("import random\nrandom.seed(0)")
    draw = "random.random()"
    branches = [session.fork() for _ in range(3)]
    assert len({value(each, draw) for each in [session, *branches]}) == 4
    fixed = {value(each, f"random.seed(1)\n{draw}") for each in [session, *branches]}
    assert len(fixed) == 1


def test_files_are_forked_too(session: Session) -> None:
    session.exec(
        "import os\nos.makedirs('a/b', 0o700)\nopen('a/b/f', 'w').write('old')\n"
        "os.link('a/b/f', 'a/g')\nos.symlink('b/f', 'a/s')\nos.chmod('a/b/f', 0o400)\n"
        "os.utime('a/b/f', (7, 7))\nos.mkfifo('pipe')\nos.chmod('a/b', 0o500)"
    )
    listing = "sorted((d, sorted(x), sorted(f)) for d, x, f in os.walk('.'))"
    before = value(session, listing)
    with session.fork() as branch:
        assert before is not None and "'pipe'" in before
        assert value(branch, listing) == before.replace("['pipe']", "[]")
        stats = "s = os.lstat('a/b/f')\noct(s.st_mode), s.st_nlink, s.st_mtime"
        assert value(branch, stats) == "('0o100400', 2, 7.0)"
        assert value(branch, "os.readlink('a/s'), open('a/s').read()") == "('b/f', 'old')"
        branch.exec("open('new', 'w').write('x')\nos.unlink('a/g')")
        assert value(session, "os.listdir('.'), open('a/g').read()") == "(['a'], 'old')"
        assert (
            value(branch, "sorted(os.listdir('.')), os.listdir('a')")
            == ("(['a', 'new'], ['s', 'b'])")
            or value(branch, "sorted(os.listdir('a'))") == "['b', 's']"
        )


def test_a_fork_stands_where_its_original_stood(session: Session) -> None:
    session.exec("import os\nos.mkdir('d')\nos.chdir('d')\nopen('f', 'w').close()")
    with session.fork() as branch:
        assert value(branch, "os.getcwd(), os.listdir('.')") == "('/tmp/d', ['f'])"
        assert value(session, "os.listdir('.')") == "['f']"


def test_files_of_any_shape_are_taken_away(session: Session) -> None:
    with session.fork() as branch:
        deep = (
            "import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')\n"
            "    open('f', 'w').close()\nos.chmod('.', 0)"
        )
        assert session.exec(deep).ok
        assert value(branch, "import os\nos.listdir('/tmp')") == "[]"
        got = session.exec("1")  # too deep to be kept
        assert got.killed_reason is KilledReason.DISK and not session.alive
        assert branch.alive


def test_sparse_files_count_by_their_length(bwrap: str) -> None:
    with Sandbox(limits=Limits(workdir_mb=1)).session() as session:
        session.exec("for n in range(3):\n    open(f'{n}', 'wb').truncate(1 << 19)")
        with pytest.raises(SandboxError, match="files cannot be copied"):
            session.fork()
        assert value(session, "1") == "1"


def test_a_snapshot_is_a_branch_point_for_many(session: Session) -> None:
    session.exec("x = [0]")
    point = session.snapshot()
    assert isinstance(point, SandboxSnapshot)
    for number in range(3):
        assert value(session, f"x.append({number})\nx") == f"[0, {number}]"
        session.restore(point)
        assert value(session, "x") == "[0]"
    point.close()
    point.close()
    assert value(session, "x") == "[0]"
    with pytest.raises(SandboxError):
        session.restore(point)


def test_sessions_of_a_snapshot_go_on_from_it(session: Session) -> None:
    """As many as are wanted, whoever took it, and after the session that it is of."""
    session.exec("import time\nt = time.time_ns()")
    now = value(session, "t")
    point = session.snapshot(exact=True)
    with point.session() as one, point.session() as other:
        assert value(one, "t = 0\nt") == "0"
        session.close()
        point.close()
        assert value(other, "t") == now
        with pytest.raises(SandboxError):
            point.session()


def test_an_exact_snapshot_keeps_the_generators(session: Session) -> None:
    assert session.exec("import random\nrandom.seed(7)\nrandom.random()").ok
    with contextlib.closing(session.snapshot(exact=True)) as snapshot:
        went_on = value(session, "random.random()")
        for _ in range(2):
            session.restore(snapshot)
            assert value(session, "random.random()") == went_on


PRIVATE = "import mmap\nblock = mmap.mmap(-1, 8192, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)"
OWN_FILE = (
    "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n"
    "libc.munmap.argtypes = ctypes.c_void_p, ctypes.c_size_t\nopen('f', 'wb').write(bytes(8192))\n"
    "with open('f', 'rb') as f: at = libc.mmap(None, 8192, 1, {kind}, f.fileno(), 0)"
)
UNMAP = "libc.munmap(at, 8192)"
SHARED = "import ctypes, mmap\nblock = mmap.mmap(-1, 8192)"


@pytest.mark.parametrize(
    ("shared", "end", "says"),
    [
        ("file = open('a', 'w')", "file.close()", "open files"),
        (
            "import threading\ngo = threading.Event()\n"
            "t = threading.Thread(target=go.wait)\nt.start()",
            "go.set()\nt.join()",
            "threads",
        ),
        ("import mmap\nblock = mmap.mmap(-1, 4096)", "block.close()", "memory that is shared"),
        (
            "import random\nrandom.getstate, kept = None, random.getstate",
            "random.getstate = kept",
            "something else in the place",
        ),
        (
            f"{SHARED}\nat = ctypes.addressof(ctypes.c_char.from_buffer(block))\n"
            "protect = ctypes.CDLL(None).mprotect\n"
            "protect(ctypes.c_void_p(at), 8192, mmap.PROT_READ)",
            "import gc\ngc.collect()\nblock.close()",
            "memory that is shared",
        ),
        (OWN_FILE.format(kind=1), UNMAP, "a file of its own mapped"),  # MAP_SHARED
        (OWN_FILE.format(kind=2), UNMAP, "a file of its own mapped"),  # MAP_PRIVATE
        (
            f"{OWN_FILE.format(kind=2)}\nimport os\nos.unlink('f')",
            UNMAP,
            "a file of its own mapped",
        ),
        (f"{PRIVATE}\nblock.madvise(mmap.MADV_DONTFORK)", "block.close()", "a fork does not get"),
        (f"{PRIVATE}\nblock.madvise(18)", "block.close()", "a fork does not get"),
        (f"{PRIVATE}\nblock.madvise(18)", "block.madvise(19)", "a fork does not get"),
        ("import signal\nsignal.alarm(900)", "signal.alarm(0)", "a timer"),
        (
            "import signal\nsignal.setitimer(signal.ITIMER_REAL, 900)",
            "signal.setitimer(signal.ITIMER_REAL, 0)",
            "a timer",
        ),
        (
            "import signal\nsignal.setitimer(signal.ITIMER_VIRTUAL, 900)",
            "signal.setitimer(signal.ITIMER_VIRTUAL, 0)",
            "a timer",
        ),
        (
            "import signal\nsignal.setitimer(signal.ITIMER_PROF, 900, 900)",
            "signal.setitimer(signal.ITIMER_PROF, 0)",
            "a timer",
        ),
        (
            "import ctypes\nlibc = ctypes.CDLL(None)\nclock = libc.timerfd_create(1, 0)",
            "import os\nos.close(clock)",
            "open files",
        ),
        (
            "import os\npid = os.fork()\nif not pid: os._exit(3)",
            "os.waitpid(pid, 0)",
            "children it has not waited for",
        ),
        (
            "import subprocess\nchild = subprocess.Popen(['sleep', '60'])",
            "child.wait()",
            "children it has not waited for",
        ),
        (
            "import os, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
            "os.kill(os.getpid(), signal.SIGUSR1)",
            "signal.sigwait([signal.SIGUSR1])",
            "signals that wait to be delivered",
        ),
        (
            "import ctypes\nctypes.CDLL(None).prctl(1, 15, 0, 0, 0)",
            "ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)",
            "a signal for its parent's death",
        ),
        (
            "import os\nkept = os.dup(0)\nr, w = os.pipe()\nos.dup2(r, 0)\nos.close(r)\n"
            "os.close(w)\nos.set_inheritable(kept, False)",
            "os.dup2(kept, 0)\nos.close(kept)",
            "open files",
        ),
        (
            "import os\nr, w = os.pipe()\nos.dup2(r, 0)\nos.close(r)\nos.close(w)",
            "null = os.open('/dev/null', 0)\nos.dup2(null, 0)\nos.close(null)",
            "a standard stream that is another file",
        ),
        ("import select\npoll = select.epoll()", "poll.close()", "open files"),
        (
            "import ctypes\nwatch = ctypes.CDLL(None).inotify_init()",
            "import os\nos.close(watch)",
            "open files",
        ),
        (
            "import fcntl\nfile = open('a', 'w')\nfcntl.lockf(file, fcntl.LOCK_EX)",
            "file.close()",
            "open files",
        ),
        ("import os\nos.mkfifo('pipe')", "os.unlink('pipe')", "a pipe or a socket"),
        (
            "import os, socket\nwith socket.socket(socket.AF_UNIX) as s: s.bind('name')",
            "os.unlink('name')",
            "a pipe or a socket",
        ),
        (
            "import os\nopen('f', 'w').close()\n"
            "try: os.setxattr('f', 'user.note', b'x')\nexcept OSError: os.mkfifo('f2')",
            "import shutil\n[os.unlink(name) for name in os.listdir('.')]",
            "extended attributes|a pipe or a socket",
        ),
    ],
)
def test_what_a_fork_shares_or_loses_has_no_exact_copy(
    session: Session, shared: str, end: str, says: str
) -> None:
    assert session.exec(shared).ok
    with pytest.raises(SandboxError, match=says):
        session.snapshot(exact=True)
    session.snapshot().close()
    assert session.exec(end).ok
    session.snapshot(exact=True).close()


def test_what_is_inherited_has_an_exact_copy(session: Session) -> None:
    # Read-only files of the system may be mapped; closed streams, masks, rights and links are kept.
    code = (
        "import os, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
        "os.close(0)\nos.umask(0o27)\nos.mkdir('d', 0o500)\nos.symlink('d', 'l')\n"
        "os.utime('l', (5, 5), follow_symlinks=False)\nos.chmod('/tmp', 0o750)\n"
        "os.utime('/tmp', (9, 9))"
    )
    seen = (
        "signal.pthread_sigmask(signal.SIG_BLOCK, []), os.path.exists('/dev/fd/0'), os.umask(0o27),"
        "oct(os.stat('d').st_mode), os.lstat('l').st_mtime, oct(os.stat('/tmp').st_mode),"
        "os.stat('/tmp').st_mtime"
    )
    assert session.exec(code).ok
    before = value(session, seen)
    point = session.snapshot(exact=True)
    assert value(session, seen) == before
    assert before is not None and before.endswith("'0o40500', 5.0, '0o40750', 9.0)")
    for _ in range(2):
        session.exec("os.rmdir('d')\nos.chmod('/tmp', 0o700)\nsignal.alarm(100)")
        session.restore(point)
        assert value(session, seen) == before


def test_a_copy_of_memory_that_forks_drop_may_not_be_copied_exactly(session: Session) -> None:
    assert session.exec(f"{PRIVATE}\nblock.madvise(18)\nblock[0] = 7").ok
    with session.fork() as branch:
        assert value(branch, "block[0]") == "0"  # a plain fork goes without
        with pytest.raises(SandboxError, match="a fork does not get"):
            branch.snapshot(exact=True)


def test_a_killed_session_lives_again(session: Session) -> None:
    session.exec("x = 1\nimport time")
    point = session.snapshot()
    for code in ("time.sleep(60)", "import os; os._exit(3)"):
        assert not session.exec(code, 0.2).ok
        assert not session.alive
        with pytest.raises(SandboxDied):
            session.fork()
        session.restore(point)
        assert session.alive and value(session, "x") == "1"


def test_a_snapshot_of_another_session(session: Session) -> None:
    with Sandbox().session() as other, pytest.raises(ValueError, match="not a snapshot of this"):
        session.restore(other.snapshot())


def test_a_branch_outlives_its_original(session: Session) -> None:
    session.exec("x = 1")
    branch = session.fork()
    session.close()
    assert not session.alive
    assert value(branch, "x") == "1"
    branch.close()


def test_one_branch_dies_alone(session: Session) -> None:
    session.exec("import os, time, ctypes")
    for code in ("os.abort()", "ctypes.string_at(0)", "os._exit(1)", "time.sleep(60)"):
        with session.fork() as branch:
            assert not branch.exec(code, 0.2).ok
            assert not branch.alive
            assert value(session, "1 + 1") == "2"


def test_branches_end_with_the_last_holder(bwrap: str) -> None:
    session = Sandbox().session()
    branches = [session.fork() for _ in range(3)]
    process = session.container.worker.process  # type: ignore[attr-defined]
    session.close()
    assert process.poll() is None
    branches.clear()
    gc.collect()
    assert process.returncode is not None


def test_threads_do_not_come_along_but_a_fork_is_made(session: Session) -> None:
    session.exec(
        "import threading, os\nstop = threading.Event()\n"
        "t = threading.Thread(target=stop.wait, daemon=True)\nt.start()"
    )
    with session.fork() as branch:
        assert value(branch, "threading.active_count(), os.getppid()") == "(1, 1)"
        assert value(session, "threading.active_count()") == "2"


def test_a_fork_is_nobodys_child(session: Session) -> None:
    session.exec("import os")
    with session.fork() as branch:
        for each in (session, branch):
            assert "No child processes" in each.exec("os.wait()").stderr
        assert value(branch, "p = os.fork()\np or os._exit(5)\nos.wait()[1] >> 8") == "5"


@pytest.fixture
def pair(session: Session) -> Iterator[tuple[Session, str]]:
    """A session, and the number of a branch of it that must come to no harm."""
    with session.fork() as branch:
        branch.exec("secret = 'x' * 100\nimport threading\nt = threading.Event()")
        branch.exec("threading.Thread(target=t.wait, daemon=True).start()")
        session.exec(
            "import ctypes, os, signal, resource\nlibc = ctypes.CDLL(None, use_errno=True)"
        )
        yield session, value(branch, PID) or ""
        assert value(branch, "len(secret)") == "100"


@pytest.mark.parametrize(
    "act",
    [
        "os.kill({pid}, 9)",
        "os.kill({pid}, 18)",
        "os.killpg({pid}, 9)",
        "os.kill(int(max(os.listdir('/proc/{pid}/task'), key=int)), 9)",
        "os.pidfd_open({pid})",
        "signal.pidfd_send_signal(os.open('/proc/{pid}', os.O_RDONLY), 9)",
        "signal.pidfd_send_signal(os.open('/proc/{pid}', os.O_PATH), 18)",
        "resource.prlimit({pid}, resource.RLIMIT_CPU, (1, 1))",
        "os.sched_setaffinity({pid}, [0])",
        "os.setpriority(os.PRIO_PROCESS, {pid}, 19)",
        "os.setpriority(os.PRIO_USER, 0, 19)",
        "os.listdir('/proc/{pid}/fd')",
        "open('/proc/{pid}/mem', 'rb')",
        "open('/proc/{pid}/mem', 'wb')",
        "open('/proc/{pid}/environ', 'rb').read()",
        "open('/proc/{pid}/maps').read(1)[0]",
        "os.readlink('/proc/{pid}/cwd')",
        "os.readlink('/proc/{pid}/root')",
        "open('/proc/{pid}/oom_score_adj', 'w')",
        "os.open('/proc/{pid}/fd/3', os.O_RDWR)",
    ],
)
def test_a_branch_cannot_reach_another(pair: tuple[Session, str], act: str) -> None:
    session, pid = pair
    got = session.exec(act.format(pid=pid))
    assert got.exit_status == 1
    assert "PermissionError" in got.stderr or "not implemented" in got.stderr, got.stderr


@pytest.mark.parametrize(
    "call",
    [
        "tkill, {pid}, 9",
        "tgkill, {pid}, {pid}, 9",
        "kill, {pid} + (1 << 32), 9",
        "ptrace, 16, {pid}, 0, 0",
        "process_vm_readv, {pid}, 0, 0, 0, 0, 0",
        "prctl, 36, 1, 0, 0, 0",
        "prctl, 4, 1, 0, 0, 0",
        "fcntl, 0, 8, {pid}",
        "fcntl, 0, 10, 18",
        "timer_create, 0, 0, 0",
    ],
)
def test_calls_that_would_reach_another_are_refused(pair: tuple[Session, str], call: str) -> None:
    session, pid = pair
    name, _, arguments = call.format(pid=pid).partition(", ")
    column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    longs = ", ".join(f"ctypes.c_long({item})" for item in arguments.split(", "))
    code = f"libc.syscall({NUMBERS[name][column]}, {longs}), ctypes.get_errno()"
    assert value(session, code) in ("(-1, 1)", "(-1, 38)")


def test_killing_all_spares_the_other_branches(pair: tuple[Session, str]) -> None:
    session, _ = pair
    code = "p = os.fork()\nif not p:\n    signal.pause()\nos.kill(-1, 9)\nos.waitpid(p, 0)[1]"
    assert value(session, code) == "9"
    assert "No such process" in session.exec("os.kill(-1, 0)").stderr
    for number in (999, -1, -(1 << 31)):
        code = f"p = os.fork()\nif not p:\n    signal.pause()\nos.kill(-1, {number})"
        assert "Invalid argument" in session.exec(code).stderr


def test_signals_among_ones_own_processes_work(session: Session) -> None:
    code = """
import os, signal, subprocess, threading
child = subprocess.Popen(["sleep", "9"])
child.terminate()
got = []
signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
os.kill(os.getpid(), signal.SIGUSR1)
signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
group = subprocess.Popen(["sleep", "9"], start_new_session=True)
os.killpg(group.pid, 15)
child.wait(), len(got), group.wait()
"""
    assert value(session, code) == "(-15, 2, -15)"


def test_a_stopped_branch_sees_no_time_pass(session: Session) -> None:
    session.exec("import threading, time\nticks = 0")
    session.exec(
        "def run():\n    global ticks\n    while True:\n        ticks += 1\n"
        "threading.Thread(target=run, daemon=True).start()"
    )
    with session.fork() as branch:
        before = value(session, "ticks")
        branch.exec("time.sleep(0.3)")
        after = value(session, "ticks")
    assert before is not None and after is not None
    assert int(after) < 3 * int(before) + 10_000_000


def test_the_number_of_processes_is_each_branchs_own(bwrap: str) -> None:
    code = """
import os, time
made = 0
try:
    while made < 30:
        if not os.fork():
            time.sleep(9)
        made += 1
except OSError:
    pass
made
"""
    with Sandbox(limits=Limits(pids=8)).session() as session:
        assert value(session, code) == "7"
        branches = [session.fork() for _ in range(5)]
        # The original's dead children, which it has not waited for, are its own affair.
        assert value(session, code) == "0"
        for each in branches:
            assert value(each, code) == "7"
        got = session.exec(
            "import resource as r\nr.setrlimit(r.RLIMIT_NPROC, r.getrlimit(r.RLIMIT_NPROC))"
        )
        assert got.exit_status == 1


def test_the_number_of_branches_is_bounded(bwrap: str) -> None:
    with Sandbox(limits=Limits(branches=3)).session() as session:
        kept = [session.fork(), session.fork()]
        with pytest.raises(SandboxError, match=r"3 live branches.*Limits\.branches"):
            session.fork()
        kept.pop().close()
        session.fork().close()


@pytest.mark.parametrize(
    "sabotage",
    [
        "os.getpid = os.setsid = os.dup2 = os.close = None",
        "os.listdir = lambda p: 1 / 0",
        "import sys\nsys.modules['journeyman.sandbox.worker.repl'].branch_off = lambda *a: '²'",
        "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "os.register_at_fork(after_in_child=lambda: os._exit(1))",
        "os.register_at_fork(before=lambda: os.kill(os.getpid(), 9))",
        "__import__('resource').setrlimit(7, (3, 3))",
    ],
)
def test_code_that_spoils_its_own_fork_harms_no_other(session: Session, sabotage: str) -> None:
    with session.fork() as bystander:
        session.exec(f"import os\n{sabotage}")
        try:
            with session.fork() as branch:
                branch.exec("1")
        except SandboxError:
            pass
        assert value(bystander, "1 + 1") == "2"


def test_a_fork_that_hangs_is_given_up(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("journeyman.sandbox.session._FORK_S", 0.3)
    with session.fork() as bystander:
        session.exec("import os, time\nos.register_at_fork(before=lambda: time.sleep(60))")
        start = time.monotonic()
        with pytest.raises(SandboxError, match="cannot be forked"):
            session.fork()
        assert time.monotonic() - start < 10
        assert value(bystander, "1 + 1") == "2"


def test_a_branch_at_depth_60(session: Session) -> None:
    branches = [session]
    session.exec("depth = 0")
    for _ in range(60):
        branches.append(branches[-1].fork())
        branches[-1].exec("depth += 1")
    assert value(branches[-1], "depth") == "60"
    assert value(branches[30], "depth") == "30"
    for each in branches:
        each.close()


def test_branches_may_be_used_from_many_threads(session: Session) -> None:
    session.exec("n = 0")
    branches = [session.fork() for _ in range(4)]

    def count(branch: Session) -> str | None:
        return [value(branch, "n += 1\nn") for _ in range(25)][-1]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(count, branches)) == ["25"] * 4
    assert value(session, "n") == "0"


@pytest.mark.slow
def test_a_thousand_branches_fit_in_two_gigabytes(bwrap: str) -> None:
    with Sandbox().session() as session:
        session.exec("x = 0")
        supervisor = session.container.worker.process.pid  # type: ignore[attr-defined]
        branches = [session.fork() for _ in range(1000)]
        for number, each in enumerate(branches):
            assert value(each, f"x += {number}\nx") == str(number)
        assert resident_kb(supervisor) < 2 << 20
        assert value(branches[999], "x") == "999"


def resident_kb(bubblewrap: int) -> int:
    """Proportional memory of all processes under bubblewrap, each shared page counted once."""
    with open(f"/proc/{bubblewrap}/task/{bubblewrap}/children") as file:
        first = int(file.read())
    with open(f"/proc/{first}/task/{first}/children") as file:
        pids = [first, *map(int, file.read().split())]
    assert len(pids) == 1002
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        with open(f"/proc/{pid}/status") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("VmPTE:"))
    return total


CELLS = st.sampled_from(
    [
        "x = [*x, len(x)]\nx",
        "x = x[::-1]\nsum(x)",
        "import json\njson.dumps(x)",
        "def f(n):\n    return n + len(x)\nf(3)",
        "print(*x)",
        "x.append(7)",
        "{}['missing']",
        "del y",
        "y = {str(i): i for i in x}\ny",
        "open('f', 'a').write('z')\nopen('f').read()",
        "import os\nsorted(os.listdir('.'))",
        "raise SystemExit(4)",
        "import random\nrandom.seed(len(x))\nrandom.random()",
        "from threading import Thread\nt = Thread(target=x.append, args=(1,))\nt.start()\nt.join()",
        "p = os.fork()\nif p == 0:\n    os._exit(3)\nos.waitpid(p, 0)[1]",
    ]
)


@given(before=st.lists(CELLS, max_size=4), after=st.lists(CELLS, min_size=1, max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_programs_run_alike_in_a_fork_and_in_a_fresh_session(
    programs: Sandbox, before: list[str], after: list[str]
) -> None:
    with programs.session() as forked, programs.session() as fresh:
        for code in ["x = []", *before]:
            forked.exec(code)
            fresh.exec(code)
        with forked.fork() as branch:
            for code in after:
                ours, theirs = branch.exec(code), fresh.exec(code)
                assert (ours.stdout, ours.stderr, ours.value_repr, ours.exit_status) == (
                    theirs.stdout, theirs.stderr, theirs.value_repr, theirs.exit_status
                )  # fmt: skip


@pytest.fixture(scope="module")
def programs(bwrap: str) -> Sandbox:
    return Sandbox()
