"""What a program leaves, counts for, or takes from those that run after it in the same sandbox.

The single acts are in tests/sandbox/hostile/residue.py; here are the figures: how much memory, how
many places, which branch pays.
"""

import fcntl
import json
import os
import re
import socket
import time
from pathlib import Path

import pytest

from journeyman.sandbox import ExecResult, KilledReason, Limits, Sandbox, SandboxError, Session
from journeyman.sandbox.worker.files import Entry, Kept

LEADERLESS = """
import ctypes, os, threading, time
def leaderless(work, wait=True):
    pid = os.fork()
    if not pid:
        try: threading.Thread(target=work).start()
        except RuntimeError: os._exit(1)
        exit_thread = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
        ctypes.CDLL(None).syscall(exit_thread, 0)
    while wait and b") Z " not in open(f"/proc/{pid}/stat", "rb").read(): time.sleep(0.001)
    return pid
def hoard(megabytes):
    def work():
        block = bytearray(b"x") * (megabytes << 20)
        time.sleep(60)
    return work
"""
OTHERS = """
import os
sorted(int(pid) for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid())
"""
GONE = f"""
import os, time
end = time.monotonic() + 10
while (others := ({OTHERS.strip().splitlines()[1]})[2:]) and time.monotonic() < end:
    time.sleep(0.001)
others
"""


def value(session: Session | Sandbox, code: str) -> str | None:
    got = session.exec(code)
    assert got.ok, got
    return got.value_repr


# --- processes whose first thread has exited --------------------------------------------------


def test_a_leaderless_process_ends_with_its_call(bwrap: str) -> None:
    with Sandbox().session() as session:
        made = value(session, f"{LEADERLESS}\n[leaderless(lambda: time.sleep(60)) for _ in '123']")
        assert made is not None and len(json.loads(made)) == 3
        # Dead children stay until they are waited for, as anybody's do, but without any thread.
        seen = f"[len(os.listdir(f'/proc/{{pid}}/task')) for pid in {made}]"
        assert value(session, seen) == "[1, 1, 1]"
        assert value(session, f"[os.waitpid(pid, 0)[1] for pid in {made}]") == "[9, 9, 9]"
        assert value(session, OTHERS) == "[1]"


def test_memory_counts_wherever_the_threads_are(bwrap: str) -> None:
    limits = Limits(memory_mb=256, wall_s=10)
    with Sandbox(limits=limits) as sandbox:
        code = f"{LEADERLESS}\nfor _ in range(8): leaderless(hoard(100), False)\ntime.sleep(60)"
        got = sandbox.exec(code)
        assert got.killed_reason is KilledReason.MEMORY, got
        code = f"{LEADERLESS}\nfor _ in range(2): leaderless(hoard(60), False)\ntime.sleep(0.5)"
        assert sandbox.exec(code).ok  # within the limit
        assert value(sandbox, "1 + 1") == "2"


def test_processor_time_counts_wherever_the_threads_are(bwrap: str) -> None:
    with Sandbox(limits=Limits(cpu_s=0.3, wall_s=10)) as sandbox:
        code = f"{LEADERLESS}\ndef spin():\n    while True: pass\nleaderless(spin)\ntime.sleep(60)"
        got = sandbox.exec(code)
        assert got.killed_reason is KilledReason.CPU and got.cpu_s >= 0.3, got


def test_places_are_free_again_after_each_call(bwrap: str) -> None:
    takes_all = f"""{LEADERLESS}
try:
    while True: leaderless(lambda: time.sleep(60), False); time.sleep(0.001)
except OSError:
    pass
"""
    honest = (
        "import subprocess, threading\nthread = threading.Thread(target=int)\nthread.start()\n"
        "thread.join()\nsubprocess.check_output(['echo', 'here'], text=True)"
    )
    with Sandbox(limits=Limits(pids=12)) as sandbox:
        for _ in range(3):
            assert sandbox.exec(takes_all).ok
            assert value(sandbox, honest) == r"'here\n'"
            # Process 1 and one to copy; what a call leaves is killed, and goes in its own time.
            assert value(sandbox, GONE) == "[]"


def test_a_survivor_tells_the_next_program_nothing(bwrap: str) -> None:
    writer = (
        f"{LEADERLESS}\ndef write():\n    while True:\n"
        "        try: open('/tmp/secret', 'w').write('x')\n        except OSError: pass\n"
        "leaderless(write)"
    )
    with Sandbox() as sandbox:
        assert sandbox.exec(writer).ok
        reader = (
            "import os, signal, time\nfor pid in os.listdir('/proc'):\n"
            "    if pid.isdigit() and int(pid) not in (1, os.getpid()):\n"
            "        try: os.kill(int(pid), signal.SIGCONT)\n        except OSError: pass\n"
            "time.sleep(0.2)\nos.listdir('/tmp')"
        )
        assert value(sandbox, reader) == "[]"


# --- a program's own output ------------------------------------------------------------------


STEAL = """
import os, time
def both(number):
    reader = os.open(f"/proc/self/fd/{number}", os.O_RDONLY | os.O_NONBLOCK)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        os.write(number, b"x")
        try: os.read(reader, 1)
        except BlockingIOError: pass
both(1), both(2)
"""


def test_who_reads_its_own_output_changes_nothing_for_the_next(bwrap: str) -> None:
    long = "x" * 50_000
    with Sandbox(limits=Limits(wall_s=5)) as sandbox:
        for _ in range(2):
            assert sandbox.exec(STEAL).ok
            got = sandbox.exec(f"import sys\nprint({long!r})\nprint({long!r}, file=sys.stderr)")
            assert (got.stdout, got.stderr) == (f"{long}\n", f"{long}\n")
            assert got.duration_s < 3
            # A flood is still seen for what it is, and is not left to block.
            got = sandbox.exec("while True: print('x' * 9999)")
            assert got.killed_reason is KilledReason.OUTPUT


def test_the_standard_streams_can_be_opened_by_name(bwrap: str) -> None:
    with Sandbox() as sandbox:
        got = sandbox.exec("import os\nos.system('echo out > /dev/stdout; echo err > /dev/stderr')")
        assert (got.stdout, got.stderr, got.value_repr) == ("out\n", "err\n", "0")


# --- the files of branches -------------------------------------------------------------------


def supervisor_mb(session: Session) -> float:
    process = session.container.worker.process  # type: ignore[attr-defined]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    status = Path(f"/proc/{children.split()[0]}/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0]) / 1024


FILL = "import os\nfor n in range({count}): open(f'f{{n}}', 'wb').write(os.urandom(1 << 20))"


def test_branches_with_the_same_files_share_them(bwrap: str) -> None:
    limits = Limits(memory_mb=64, workdir_mb=16, branches=64, branch_files_mb=48)
    with Sandbox(limits=limits).session() as session:
        assert session.exec(FILL.format(count=12)).ok
        branches = [session.fork() for _ in range(25)]  # 300 MB, were each to have its own
        assert supervisor_mb(session) < 64 + limits.branch_files_mb
        for each in (branches[0], branches[-1], session):
            assert value(each, "len(os.listdir('.')), len(open('f11', 'rb').read())") == (
                "(12, 1048576)"
            )


def test_the_files_of_all_branches_are_bounded(bwrap: str) -> None:
    limits = Limits(memory_mb=64, workdir_mb=16, branches=64, branch_files_mb=32)
    with Sandbox(limits=limits).session() as session:
        kept: list[Session] = []
        with pytest.raises(SandboxError, match=r"may take 32 MB.*Limits\.branch_files_mb"):
            for _ in range(9):
                assert session.exec(FILL.format(count=10)).ok
                kept.append(session.fork())
        assert 1 <= len(kept) <= 3 and supervisor_mb(session) < 64 + 32
        assert session.alive and value(session, "len(os.listdir('.'))") == "10"
        kept.pop().close()  # what the message says mends it
        session.exec("[os.unlink(name) for name in os.listdir('.')]")
        session.fork().close()


def test_who_writes_beyond_the_bound_ends_and_no_other(bwrap: str) -> None:
    limits = Limits(memory_mb=64, workdir_mb=16, branch_files_mb=24)
    with Sandbox(limits=limits).session() as session:
        branches = [session.fork() for _ in range(4)]
        ends: list[ExecResult] = []
        for each in branches:
            assert each.exec(FILL.format(count=10)).ok
        for each in branches:
            ends.append(each.exec("1 + 1"))
        reasons = {got.killed_reason for got in ends}
        assert reasons == {None, KilledReason.DISK}
        assert value(session, "1 + 1") == "2"


def tree(*contents: bytes) -> list[Entry]:
    return [(f"f{number}", 0o100600, 7, content) for number, content in enumerate(contents)]


def test_contents_count_once_and_until_they_are_dropped() -> None:
    kept = Kept(1 << 20)
    first = kept.hold(tree(b"x" * 1000, b"y"))
    used = kept.used
    assert kept.hold(tree(b"x" * 1000, b"y")) is first and kept.used == used
    second = kept.hold(tree(b"x" * 1000))
    assert used < kept.used < used + 1000
    for each in (first, first, second, ()):
        kept.drop(each)
    assert (kept.used, kept._contents, kept._trees) == (0, {}, {})


def test_a_tree_beyond_the_bound_is_not_held() -> None:
    kept = Kept(10_000)
    small = kept.hold(tree(b"x" * 5000))
    used = kept.used
    with pytest.raises(OSError, match="may take"):
        kept.hold(tree(b"x" * 5000, b"y" * 5000))
    with pytest.raises(OSError, match="may take"):  # names and times take room, too
        kept.hold(tree(*[b""] * 20))
    assert kept.used == used
    kept.drop(small)
    assert kept.used == 0


# --- files that the host puts ----------------------------------------------------------------

LISTING = "import os\nsorted(os.path.join(d, n)[2:] for d, x, f in os.walk('.') for n in [*x, *f])"


def test_a_file_that_does_not_fit_leaves_what_was_there(bwrap: str) -> None:
    with Sandbox(limits=Limits(workdir_mb=8)).session() as session:
        session.put("a/f", b"old")
        for path in ("a/f", "new/deep/f"):
            with pytest.raises(OSError):
                session.put(path, bytes(10 << 20))
        assert value(session, LISTING) == "['a', 'a/f']"
        assert session.get("a/f") == b"old"
        session.put("a/f", bytes(5 << 20))  # all room is free again
        assert len(session.get("a/f")) == 5 << 20


def test_an_interrupted_put_leaves_nothing(bwrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox().session() as session:
        whole = type(session)._file

        def interrupted(self: Session, path: str, request: dict[str, object]) -> object:
            if request.get("at"):
                raise KeyboardInterrupt
            return whole(self, path, request)  # type: ignore[attr-defined]

        monkeypatch.setattr(type(session), "_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.put("f", bytes(9 << 20))
        monkeypatch.undo()
        with session.fork() as branch:
            for each in (session, branch):
                assert value(each, LISTING) == "[]"
        assert value(session, "os.statvfs('.').f_blocks == os.statvfs('.').f_bfree") == "True"


@pytest.mark.parametrize(
    ("make", "path"),
    [("os.mkdir('x')", "x"), ("os.symlink('y', 'x')", "x"), ("open('x', 'w').close()", "x/f")],
)
def test_what_cannot_be_put_makes_nothing(bwrap: str, make: str, path: str) -> None:
    with Sandbox().session() as session:
        session.exec(f"import os\n{make}")
        with pytest.raises(OSError):
            session.put(path, b"new")
        assert value(session, LISTING) == "['x']"


def test_a_file_put_again_keeps_its_rights_and_its_closed_directory(bwrap: str) -> None:
    with Sandbox().session() as session:
        session.put("d/f", b"old")
        session.exec("import os\nos.chmod('d/f', 0o750)\nos.chmod('.', 0o500)")
        session.put("d/f", b"new")
        seen = "oct(os.stat('d/f').st_mode), oct(os.stat('.').st_mode), open('d/f').read()"
        assert value(session, seen) == "('0o100750', '0o40500', 'new')"
        session.exec("os.chmod('d/f', 0o400)")
        with pytest.raises(PermissionError):
            session.put("d/f", b"newer")
        with pytest.raises(PermissionError):
            session.put("f", b"")


# --- the host's files ------------------------------------------------------------------------


def test_no_program_holds_a_lock_on_a_file_of_the_host(bwrap: str) -> None:
    with Sandbox().session() as session:
        path = value(session, "import fcntl, os\nfile = open(os.__file__, 'rb')\nos.__file__")
        assert path is not None
        for kind in ("EX", "SH"):
            got = session.exec(f"fcntl.flock(file, fcntl.LOCK_{kind} | fcntl.LOCK_NB)")
            assert "Function not implemented" in got.stderr
        with open(path[1:-1], "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_programs_that_lock_their_own_files_by_byte_still_can(bwrap: str) -> None:
    code = """
import sqlite3
with sqlite3.connect("base") as base:
    base.execute("create table t (x)")
    base.execute("insert into t values (7)")
base.execute("select x from t").fetchall()
"""
    with Sandbox() as sandbox:
        assert value(sandbox, code) == "[(7,)]"


def test_locks_by_byte_end_with_the_program(bwrap: str) -> None:
    # They cannot be told from those on its own files, which SQLite needs: docs/sandbox.md has it.
    code = "import fcntl, os\nfile = open(os.__file__, 'rb')\nfcntl.lockf(file, fcntl.LOCK_SH)"
    with Sandbox() as sandbox:
        assert sandbox.exec(code).ok
        path = value(sandbox, "import os\nos.__file__")
        assert path is not None
        lock = f":{Path(path[1:-1]).stat().st_ino} "
        end = time.monotonic() + 5  # a dropped program ends, but nobody waits for it
        while lock in Path("/proc/locks").read_text() and time.monotonic() < end:
            sandbox.exec("1")
        assert lock not in Path("/proc/locks").read_text()


# --- ports and names -------------------------------------------------------------------------

SERVE = """
import os, socket
server = socket.socket()
server.bind(("127.0.0.1", 8765))
server.listen()
client = socket.create_connection(("127.0.0.1", 8765))
there, _ = server.accept()
there.close()
client.close()
name = socket.socket(socket.AF_UNIX)
name.bind(chr(0) + "name")
name.listen()
"""


def test_ports_and_names_are_free_for_every_program(bwrap: str) -> None:
    with Sandbox() as sandbox:
        for _ in range(8):
            got = sandbox.exec(SERVE)
            assert got.ok, got.stderr
        words = value(sandbox, "open('/proc/net/sockstat').read().split()")
        assert words is not None and "'tw', '0'" in words and "'orphan', '0'" in words


def test_ports_are_free_again_when_a_session_is_set_back(bwrap: str) -> None:
    with Sandbox().session() as session:
        point = session.snapshot(exact=True)
        for _ in range(4):
            got = session.exec(SERVE)
            assert got.ok, got.stderr
            session.restore(point)


def test_live_branches_share_ports_as_the_docs_say(bwrap: str) -> None:
    with Sandbox().session() as session, session.fork() as branch:
        assert session.exec(SERVE).ok
        assert "Address already in use" in branch.exec(SERVE).stderr
        session.close()
        assert branch.exec(SERVE).ok


def test_sandboxes_and_the_host_share_no_port(bwrap: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as ours,
        Sandbox().session() as one,
        Sandbox().session() as two,
    ):
        port = ours.getsockname()[1]
        for each in (one, two):
            assert each.exec(SERVE.replace("8765", str(port))).ok


def test_the_host_keeps_nothing_of_a_session(bwrap: str) -> None:
    before = Path("/proc/self/mounts").read_text(), len(os.listdir("/proc/self/fd"))
    with Sandbox() as sandbox:
        sandbox.exec(SERVE)
    after = Path("/proc/self/mounts").read_text(), len(os.listdir("/proc/self/fd"))
    assert after == before
