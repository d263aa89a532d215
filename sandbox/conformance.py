"""What every backend must do, as checks that run for real against one.

Every check is safe even where nothing isolates: it probes (opens without writing, calls with
arguments that cannot succeed, forks a bounded number of sleepers) and never performs an act that
would change the machine.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from journeyman.sandbox import probes
from journeyman.sandbox.base import (
    Backend,
    ExecResult,
    KilledReason,
    Limits,
    Sandbox,
    Session,
)
from journeyman.sandbox.errors import SandboxDied
from journeyman.sandbox.registry import resolve_backend

_OLD, _NEW = "([1], 'old')", "([1, 2], 'new')"


@dataclass(frozen=True)
class ConformanceResult:
    """The outcome of one check.

    Attributes:
        name: What was claimed.
        family: behaviour, limits, isolation or protocol.
        passed: Whether it held.
        detail: If not, what was seen instead.
        duration_s: How long the check took.
        skipped: Why it was not run, if it does not apply to the backend.
    """

    name: str
    family: str
    passed: bool
    detail: str
    duration_s: float
    skipped: str = ""


class _Failed(Exception):
    """A claim did not hold."""


@dataclass(frozen=True)
class _Check:
    name: str
    family: str
    run: Callable[[Backend], None]


_CHECKS: list[_Check] = []


def _check(name: str, family: str) -> Callable[[Callable[[Backend], None]], None]:
    def register(run: Callable[[Backend], None]) -> None:
        _CHECKS.append(_Check(name, family, run))

    return register


def names() -> list[str]:
    """The names of all checks, in the order they run."""
    return [check.name for check in _CHECKS]


def check(backend: str | Backend, only: str | None = None) -> list[ConformanceResult]:
    """Runs the checks on a backend.

    Args:
        backend: A backend or its name.
        only: The name of a single check to run.

    Returns:
        One result for each check, failures included.

    Raises:
        IsolationUnavailable: The backend cannot run here at all.
    """
    chosen = resolve_backend(backend) if isinstance(backend, str) else backend
    chosen.session(Limits(), ()).close()  # so that a missing piece is not 30 failures
    return [_run(item, chosen) for item in _CHECKS if only in (None, item.name)]


def _run(item: _Check, backend: Backend) -> ConformanceResult:
    if item.name in backend.lacks:
        return ConformanceResult(item.name, item.family, True, "", 0.0, backend.lacks[item.name])
    start = time.monotonic()
    detail = ""
    try:
        item.run(backend)
    except Exception as error:  # a broken backend may raise anything, and that is a finding
        kind = "" if isinstance(error, _Failed) else f"{type(error).__name__}: "
        detail = f"{kind}{error}" or "failed"
    return ConformanceResult(item.name, item.family, not detail, detail, time.monotonic() - start)


def _session(backend: Backend, **limits: Any) -> Session:
    return Sandbox(backend, Limits(**limits)).session()


def _expect(holds: bool, seen: object) -> None:
    if not holds:
        raise _Failed(f"saw {seen}")


def _probe(session: Session, code: str) -> Any:
    """Runs a probe that prints JSON."""
    result = session.exec(code)
    if not result.ok:
        raise _Failed(f"the probe failed: {result.stderr.strip() or result}")
    return json.loads(result.stdout)


def _expect_nothing(backend: Backend, code: str) -> None:
    """Expects a probe that lists breaches to list none."""
    with _session(backend) as session:
        found = _probe(session, code)
        _expect(not found, found)


def _expect_killed(result: ExecResult, session: Session, reason: KilledReason) -> None:
    _expect(result.killed_reason == reason, result)
    _expect(not session.alive, "a session that is still alive")


# --- behaviour --------------------------------------------------------------------------------


@_check("state is kept between calls", "behaviour")
def _state(backend: Backend) -> None:
    with _session(backend) as session:
        session.exec("import math\ndef area(r):\n    return math.pi * r * r")
        result = session.exec("round(area(2), 2)")
        _expect(result.value_repr == "12.57", result)


@_check("the last expression's value is shown", "behaviour")
def _value(backend: Backend) -> None:
    with _session(backend) as session:
        _expect((got := session.exec("1\n'a' 'b'")).value_repr == "'ab'", got)
        _expect((got := session.exec("None")).value_repr is None, got)
        _expect((got := session.exec("y = 1")).value_repr is None, got)


@_check("stdout and stderr are captured apart", "behaviour")
def _streams(backend: Backend) -> None:
    with _session(backend) as session:
        session.exec("import os, sys")
        got = session.exec("print('a')\nprint('b', file=sys.stderr)\nos.system('echo c')")
        _expect((got.stdout, got.stderr) == ("a\nc\n", "b\n"), got)
        got = session.exec("sys.stdout.buffer.write(b'\\xff\\x00')")
        _expect(got.stdout == "\ufffd\x00", got)
        _expect((got := session.exec("print('\\ud800')")).ok, got)


@_check("a traceback shows the user's code alone", "behaviour")
def _traceback(backend: Backend) -> None:
    with _session(backend) as session:
        got = session.exec("def f():\n    return {}['key']\nf()")
        _expect(got.exit_status == 1 and session.alive, got)
        _expect("return {}['key']" in got.stderr and "KeyError: 'key'" in got.stderr, got)
        _expect("worker" not in got.stderr, got)
        got = session.exec("1 +")
        _expect(got.exit_status == 1 and "SyntaxError" in got.stderr, got)
        _expect("worker" not in got.stderr and "ast.py" not in got.stderr, got)


@_check("exit statuses are reported and leave the session alive", "behaviour")
def _statuses(backend: Backend) -> None:
    with _session(backend) as session:
        _expect((got := session.exec("raise SystemExit(3)")).exit_status == 3, got)
        _expect((got := session.exec("exit()")).exit_status == 0, got)
        _expect(session.alive, "a dead session")


@_check("programs run alike in every session", "behaviour")
def _alike(backend: Backend) -> None:
    code = "import sys\nprint(set(map(str, range(99))))\n'' in sys.path"
    seen = []
    for _ in range(2):
        with _session(backend) as session:
            got = session.exec(code)
            _expect(got.value_repr == "False", got)
            seen.append(got.stdout)
    _expect(seen[0] == seen[1], seen)


@_check("input is empty", "behaviour")
def _stdin(backend: Backend) -> None:
    with _session(backend) as session:
        _expect("EOFError" in (got := session.exec("input()")).stderr, got)


@_check("the interpreter's own end is the program's, and ends the session", "behaviour")
def _ends(backend: Backend) -> None:
    for code, status, number in (
        ("import os; os._exit(7)", 7, None),
        ("import os; os.abort()", None, 6),
        ("import ctypes; ctypes.string_at(0)", None, 11),
        ("import os; os.closerange(3, 256)", 1, None),
    ):
        with _session(backend) as session:
            got = session.exec(code)
            _expect((got.exit_status, got.signal) == (status, number), got)
            _expect(got.killed_reason is None and not session.alive, got)
            try:
                _expect(False, session.exec("1"))
            except SandboxDied:
                continue


@_check("a fork has the state, files included, and goes its own way", "behaviour")
def _fork(backend: Backend) -> None:
    with _session(backend) as session:
        session.exec("seen = [1]\nopen('note', 'w').write('old')")
        with session.fork() as branch:
            branch.exec("seen.append(2)\nopen('note', 'w').write('new')")
            _expect((got := branch.exec("seen, open('note').read()")).value_repr == _NEW, got)
            _expect((got := session.exec("seen, open('note').read()")).value_repr == _OLD, got)


@_check("a snapshot can be restored again and again, even by a killed session", "behaviour")
def _snapshot(backend: Backend) -> None:
    with _session(backend) as session:
        session.exec("import time\nx = 1")
        snapshot = session.snapshot()
        for code in ("x = 2", "time.sleep(60)"):
            session.exec(code, timeout=0.3)
            session.restore(snapshot)
            _expect((got := session.exec("x")).value_repr == "1", got)
        snapshot.close()


# --- limits -----------------------------------------------------------------------------------


@_check("wall time ends a sleeper", "limits")
def _wall(backend: Backend) -> None:
    with _session(backend) as session:
        session.exec("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)")
        got = session.exec("print('on')\ntime.sleep(60)", timeout=0.3)
        _expect_killed(got, session, KilledReason.WALL)
        _expect(got.stdout == "on\n" and got.duration_s < 3, got)


@_check("processor time ends a loop", "limits")
def _cpu(backend: Backend) -> None:
    with _session(backend, cpu_s=0.2, wall_s=20) as session:
        got = session.exec("while True:\n    pass")
        _expect_killed(got, session, KilledReason.CPU)
        _expect(got.cpu_s >= 0.2, got)


@_check("too much output is cut", "limits")
def _output(backend: Backend) -> None:
    with _session(backend, output_kb=4) as session:
        got = session.exec("print('x' * 10_000)\n'y' * 100_000")
        _expect(got.truncated and len(got.stdout) == 4096, len(got.stdout))
        _expect(got.value_repr is not None and len(got.value_repr) < 100_000, "the whole repr")
        _expect((got := session.exec("print('z')")).stdout == "z\n" and not got.truncated, got)


@_check("a flood of output is ended", "limits")
def _flood(backend: Backend) -> None:
    with _session(backend, output_kb=4) as session:
        got = session.exec("while True:\n    print('x' * 4000)")
        _expect_killed(got, session, KilledReason.OUTPUT)
        _expect(len(got.stdout) == 4096, len(got.stdout))


@_check("one process cannot take too much memory", "limits")
def _memory(backend: Backend) -> None:
    with _session(backend) as session:
        _expect("MemoryError" in (got := session.exec("bytearray(1 << 30)")).stderr, got)
        _expect((got := session.exec("1 + 1")).value_repr == "2", got)


@_check("many processes cannot take too much memory", "limits")
def _memory_of_all(backend: Backend) -> None:
    with _session(backend, memory_mb=64) as session:
        _expect_killed(session.exec(probes.SHARE_MEMORY), session, KilledReason.MEMORY)


@_check("processes and threads are counted", "limits")
def _pids(backend: Backend) -> None:
    with _session(backend, pids=8) as session:
        forks = _probe(session, probes.FORK_SLEEPERS)
        _expect(forks == 7, f"{forks} processes beside the interpreter")


@_check("the writable directory has a size", "limits")
def _disk(backend: Backend) -> None:
    with _session(backend, workdir_mb=1) as session:
        _expect(bool(_probe(session, probes.FILL_DISK)), "no error after 3 MB")


@_check("the writable directory has a number of files", "limits")
def _inodes(backend: Backend) -> None:
    with _session(backend, workdir_inodes=200) as session:
        code = "import time\nfor n in range(300):\n    open(f'{n}', 'w').close()\ntime.sleep(0.5)"
        got = session.exec(code)  # ended by sampling, or refused by the mount
        _expect("No space left" in got.stderr or got.killed_reason == KilledReason.DISK, got)


@_check("nothing outlives a call", "limits")
def _left_over(backend: Backend) -> None:
    with _session(backend) as session:
        session.exec("import os, time\npid = os.fork()\nif not pid:\n    time.sleep(10)")
        got = session.exec("time.sleep(0.05)\nos.waitpid(pid, os.WNOHANG) == (pid, 9)")
        _expect(got.value_repr == "True", got)


# --- isolation --------------------------------------------------------------------------------


@_check("the network is out of reach", "isolation")
def _network(backend: Backend) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("")  # the kernel picks an abstract name
        abstract.listen()
        addresses = [tcp.getsockname()[:2], abstract.getsockname().decode("latin-1")]
        _expect_nothing(backend, probes.CONNECT.format(addresses=addresses))


@_check("socket families other than unix and inet do not exist", "isolation")
def _families(backend: Backend) -> None:
    _expect_nothing(backend, probes.SOCKET_FAMILIES)


@_check("the host's files are out of sight", "isolation")
def _files(backend: Backend) -> None:
    with tempfile.NamedTemporaryFile() as canary:
        Path(canary.name).chmod(0o644)
        paths = [canary.name, str(Path.cwd()), str(Path(__file__)), "/etc/shadow"]
        _expect_nothing(backend, probes.EXISTING.format(paths=paths))


@_check("the root is read-only", "isolation")
def _root(backend: Backend) -> None:
    _expect_nothing(backend, probes.WRITABLE)


@_check("kernel settings cannot be opened for writing", "isolation")
def _sysctls(backend: Backend) -> None:
    _expect_nothing(backend, probes.SYSCTLS)


@_check("the host's environment is not visible", "isolation")
def _environment(backend: Backend) -> None:
    tame = {"HOME", "PATH", "LANG", "TMPDIR", "PWD", "LC_CTYPE"}
    tame |= {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    ours = {f"{name}={value}" for name, value in os.environ.items() if name not in tame}
    with _session(backend) as session:
        found = ours & set(_probe(session, probes.ENVIRONMENTS))
        _expect(not found, sorted(found))


@_check("namespaces are the session's own", "isolation")
def _namespaces(backend: Backend) -> None:
    _expect_own(backend, ("pid", "net", "mnt", "ipc", "uts"))


@_check("a user namespace is the session's own", "isolation")
def _user_namespace(backend: Backend) -> None:
    _expect_own(backend, ("user",))


def _expect_own(backend: Backend, kinds: tuple[str, ...]) -> None:
    ours = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]
    with _session(backend) as session:
        theirs = _probe(session, probes.NAMESPACES.format(kinds=kinds))
        shared = [kind for kind, a, b in zip(kinds, ours, theirs, strict=True) if a == b]
        _expect(not shared, f"{shared} shared with the host")


@_check("no capability is held or can be gained", "isolation")
def _capabilities(backend: Backend) -> None:
    _expect_nothing(backend, probes.PRIVILEGES)


@_check("dangerous system calls are refused", "isolation")
def _system_calls(backend: Backend) -> None:
    _expect_nothing(backend, probes.SYSTEM_CALLS)


@_check("other processes' memory and descriptors are out of reach", "isolation")
def _ancestors(backend: Backend) -> None:
    _expect_nothing(backend, probes.ANCESTORS)


@_check("sessions do not see each other's files", "isolation")
def _apart(backend: Backend) -> None:
    with _session(backend) as one, _session(backend) as two:
        one.exec("open('note', 'w').write('secret')")
        got = two.exec("import os; os.path.exists('note')")
        _expect(got.value_repr == "False", got)


@_check("branches are out of each other's reach", "isolation")
def _branches(backend: Backend) -> None:
    with _session(backend) as session, session.fork() as branch:
        pid = branch.exec("import os\nos.getpid()").value_repr
        found = _probe(session, probes.REACH_BRANCH.format(pid=pid))
        _expect(not found, found)


# --- protocol ---------------------------------------------------------------------------------


@_check("no program can forge what the host is told", "protocol")
def _forgery(backend: Backend) -> None:
    with _session(backend) as session:
        got = session.exec(probes.FORGE)
        _expect(got.value_repr == "'the truth'" and got.exit_status == 0, got)
        _expect(got.killed_reason is None and got.signal is None and got.cpu_s < 100, got)
        _expect((got := session.exec("1 + 1")).value_repr == "2", got)


@_check("a forked child cannot answer for its parent", "protocol")
def _forked(backend: Backend) -> None:
    with _session(backend) as session:
        got = session.exec("import os\npid = os.fork()\npid and os.waitpid(pid, 0)\npid != 0")
        _expect(got.value_repr == "True", got)
        _expect((got := session.exec("2 + 2")).value_repr == "4", got)


@_check("a program that breaks its own interpreter breaks no other", "protocol")
def _sabotage(backend: Backend) -> None:
    with _session(backend) as session:
        session.exec("import json, os, sys")
        got = session.exec("sys.stdout = json.dumps = os.getpid = os._exit = None\n'ok'")
        _expect(got.value_repr == "'ok'" and got.killed_reason is None, got)
    with _session(backend) as session:
        _expect((got := session.exec("'fine'")).value_repr == "'fine'", got)
