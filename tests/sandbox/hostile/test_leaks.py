"""What one program may not leave to, or learn of, another: snippets, branches, sessions, hosts."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from journeyman.sandbox import Sandbox, Session

BACKENDS = ["namespace", pytest.param("docker", marks=pytest.mark.docker)]


@pytest.fixture(params=BACKENDS)
def pair(bwrap: str, request: pytest.FixtureRequest) -> Iterator[tuple[Session, Session]]:
    """Two sessions of one sandbox."""
    sandbox = Sandbox(request.param)
    with sandbox.session() as one, sandbox.session() as two:
        for each in (one, two):
            assert each.exec("import os, socket, time, threading").ok
        yield one, two


def value(session: Session, code: str) -> str | None:
    got = session.exec(code)
    assert got.ok, got
    return got.value_repr


def test_nothing_leaks_between_sessions(pair: tuple[Session, Session]) -> None:
    one, two = pair
    one.exec("secret = 1\nopen('f', 'w').write('x')\nos.environ['LEAK'] = '1'")
    one.exec("s = socket.socket(socket.AF_UNIX)\ns.bind(chr(0) + 'leak')\ns.listen()")
    one.exec("t = socket.create_server(('127.0.0.1', 9999))")
    assert value(two, "'secret' in globals(), os.listdir('.'), 'LEAK' in os.environ") == (
        "(False, [], False)"
    )
    assert (
        "Connection refused"
        in two.exec("socket.socket(socket.AF_UNIX).connect(chr(0) + 'leak')").stderr
    )
    assert "refused" in two.exec("socket.create_connection(('127.0.0.1', 9999), 1)").stderr
    assert value(one, "os.readlink('/proc/self/ns/pid')") != value(
        two, "os.readlink('/proc/self/ns/pid')"
    )


def test_nothing_leaks_between_branches(pair: tuple[Session, Session]) -> None:
    one, _ = pair
    with one.fork() as left, one.fork() as right:
        left.exec("secret = 1\nopen('f', 'w').write('x')\nos.mkdir('d')\nprint('unread')")
        left.exec("os.umask(0)\nos.environ['LEAK'] = '1'\nimport random\nrandom.seed(7)")
        seen = "'secret' in globals(), os.listdir('.'), 'LEAK' in os.environ"
        got = right.exec(seen)
        assert (got.value_repr, got.stdout) == ("(False, [], False)", "")
        assert value(one, seen) == "(False, [], False)"


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_leaks_between_one_shot_programs(bwrap: str, backend: str) -> None:
    with Sandbox(backend) as sandbox:
        for _ in range(3):
            got = sandbox.exec(
                "import os, sys\nold = os.listdir('.'), hasattr(sys, 'leak'), 'x' in globals()\n"
                "x = sys.leak = 1\nopen('f', 'w').close()\n"
                "if os.fork() == 0:\n    os.setsid()\n    while True: pass\nold"
            )
            assert got.value_repr == "([], False, False)"


def test_a_snippets_children_do_not_see_the_next_one(pair: tuple[Session, Session]) -> None:
    one, _ = pair
    one.exec(
        "r, w = os.pipe()\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n        os.setsid()\n"
        "        if os.fork() == 0:\n"
        "            while True: os.write(w, b'x'); time.sleep(0.01)\n        os._exit(0)"
    )
    one.exec("os.set_blocking(r, False)\nos.read(r, 1 << 16)")  # what they wrote while it ran
    assert "Resource temporarily unavailable" in one.exec("time.sleep(0.1)\nos.read(r, 9)").stderr


def test_output_after_the_end_is_nobodys(pair: tuple[Session, Session]) -> None:
    one, _ = pair
    one.exec(
        "go = threading.Event()\n"
        "def late():\n    go.wait()\n    os.write(1, b'late')\n"
        "threading.Thread(target=late, daemon=True).start()"
    )
    with one.fork() as branch:
        assert branch.exec("time.sleep(0.05)").stdout == ""


def test_what_is_written_at_a_fork_is_nobodys(pair: tuple[Session, Session]) -> None:
    one, _ = pair
    with one.fork() as bystander:
        one.exec("os.register_at_fork(before=lambda: os.write(1, b'early'))")
        one.fork().close()
        assert bystander.exec("print('mine')").stdout == "mine\n"


PACKETS = """
import fcntl, os
fcntl.fcntl(1, 1031, 1 << 20)  # F_SETPIPE_SZ
fcntl.fcntl(1, fcntl.F_SETFL, os.O_WRONLY | os.O_NONBLOCK | os.O_DIRECT)
try:
    while True: os.write(1, b'planted')
except BlockingIOError: pass
"""
NARROW = "import fcntl, os\nos.set_blocking(1, False)\nfcntl.fcntl(1, 1031, 4096)"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spoil", [PACKETS, NARROW], ids=["packets", "narrow"])
def test_one_program_cannot_spoil_the_output_of_the_next(
    bwrap: str, backend: str, spoil: str
) -> None:
    with Sandbox(backend) as sandbox:
        for _ in range(2):
            assert sandbox.exec(spoil).exit_status == 0
            assert sandbox.exec("print('x' * 20_000)").stdout == "x" * 20_000 + "\n"


NOTE = "import os\nos.setxattr('/tmp', 'user.note', b'x')\nos.utime('/tmp', (42, 42))"
LOCK = """
import os, struct
rights = ((1, 0), (4, 0), (0x20, 0))  # owner, group, others: none
rules = b"".join(struct.pack("<HHI", who, what, 0xFFFFFFFF) for who, what in rights)
os.setxattr("/tmp", "system.posix_acl_default", struct.pack("<I", 2) + rules)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_program_cannot_mark_the_directory_of_the_next(bwrap: str, backend: str) -> None:
    with Sandbox(backend) as sandbox:
        for mark in (NOTE, LOCK):
            sandbox.exec(mark)  # where the file system has no such thing, so much the better
            got = sandbox.exec(
                "import os\nopen('f', 'w').write('x')\n"
                "os.listxattr('/tmp'), os.stat('/tmp').st_mtime > 42, open('f').read()"
            )
            assert got.value_repr == "([], True, 'x')", got


ENDS_OF_CHILDREN = {
    "no child": "",
    "its exit signal": "import ctypes\n"
    "if ctypes.CDLL(None).syscall({'x86_64': 56, 'aarch64': 220}[os.uname().machine],"
    " *map(ctypes.c_long, (18, 0, 0, 0, 0))) == 0:\n    time.sleep(60)",
    # The interpreter's group is orphaned when the last of those dies whose children are in it.
    "a group it orphans": "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    "group = os.getpid()\nr, w = os.pipe()\n"
    "try:\n    while True: os.wait()\nexcept ChildProcessError: pass\n"
    "for _ in range(8):\n"
    "    if not os.fork():\n        os.setpgid(0, 0)\n"
    "        if not os.fork():\n            os.setpgid(0, group)\n            os.write(w, b'x')\n"
    "        time.sleep(60)\n"
    "    os.read(r, 1)",
}


@pytest.mark.parametrize("ends", ENDS_OF_CHILDREN)
def test_the_end_of_a_child_wakes_no_branch(pair: tuple[Session, Session], ends: str) -> None:
    one, _ = pair
    with one.fork() as spy, one.fork() as bystander:
        spy.exec(
            "seen = set()\ndef spin():\n    while True:\n"
            "        seen.update(os.listdir('.'))\n        time.sleep(0.001)\n"
            "threading.Thread(target=spin, daemon=True).start()"
        )
        for _ in range(4):  # which of two dies first is a matter of luck
            assert spy.exec(ENDS_OF_CHILDREN[ends]).ok
            assert value(bystander, "open('secret', 'w').close()\ntime.sleep(0.05)\n1") == "1"
        assert value(spy, "seen") == "set()"


@pytest.mark.parametrize("stream", [1, 2])
def test_the_rest_of_a_flood_is_nobodys(pair: tuple[Session, Session], stream: int) -> None:
    one, _ = pair
    widen = f"import fcntl\nfcntl.fcntl({stream}, 1031, 1 << 20)"  # F_SETPIPE_SZ
    for code in (widen, "pass"):
        with one.fork() as flood:
            flood.exec(code)
            got = flood.exec(f"while True: os.write({stream}, b'x' * 65536)")
            assert got.killed_reason == "output"
        got = one.exec("1")
        assert (got.stdout, got.stderr) == ("", "")


HOST = """
import sys
from journeyman.sandbox import Sandbox
sessions = [Sandbox("{backend}").session() for _ in range(2)]
branches = [each.fork() for each in sessions]
print("up", flush=True)
branches[0].exec("import os, time\\nfor _ in range(4): os.fork()\\ntime.sleep(60)")
"""


def sandboxed() -> set[str]:
    """Processes whose first argument shows that they are a worker of ours."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes()
            state = path.with_name("stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if (b"/run/worker.py" in text or b"\0relay\0" in text) and state not in "ZX":
            found.add(path.parent.name)
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_host_leaves_no_orphan(bwrap: str, backend: str) -> None:
    before = sandboxed()
    host = subprocess.Popen(
        [sys.executable, "-c", HOST.format(backend=backend)], stdout=subprocess.PIPE
    )
    with host:
        assert host.stdout is not None and host.stdout.readline() == b"up\n"
        wait_for(lambda: len(sandboxed() - before) >= 6)
        host.send_signal(signal.SIGKILL)
    wait_for(lambda: sandboxed() <= before)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
