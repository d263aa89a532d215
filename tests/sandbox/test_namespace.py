"""What only the namespace backend promises. Hostile code probes; it never acts on the machine."""

import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from journeyman.sandbox import (
    IsolationUnavailable,
    Limits,
    Sandbox,
    SandboxError,
    Session,
    seccomp,
)
from journeyman.sandbox.namespace import NamespaceBackend, backend, interpreter, network


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """Unlike tmp_path, one that the sandbox's user can read."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def program(directory: Path, text: str) -> str:
    path = directory / "bwrap"
    path.write_text(f"#!{interpreter.SYSTEM_PYTHON}\n{text}")
    path.chmod(0o755)
    return str(path)


# --- it fails closed --------------------------------------------------------------------------


def test_no_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(IsolationUnavailable, match="apt-get install bubblewrap"):
        Sandbox().session()


def test_a_bubblewrap_that_is_no_program(public_dir: Path) -> None:
    path = program(public_dir, "")
    Path(path).write_text("nonsense")
    with pytest.raises(IsolationUnavailable, match="cannot be started"):
        NamespaceBackend(path).session(Limits())


def test_a_bubblewrap_that_fails_is_quoted(public_dir: Path) -> None:
    path = program(public_dir, "raise SystemExit('bwrap: No permissions to create a namespace')")
    with pytest.raises(IsolationUnavailable, match=r"No permissions.*user\.max_user_namespaces"):
        NamespaceBackend(path).session(Limits())


def test_a_bubblewrap_that_lies_about_its_child(public_dir: Path) -> None:
    path = program(
        public_dir,
        "import os, sys\n"
        "fd = int(sys.argv[sys.argv.index('--info-fd') + 1])\n"
        "os.write(fd, b'{\"child-pid\": 1}')\nos.close(fd)\nsys.stdin.read()\n",
    )
    with pytest.raises(IsolationUnavailable, match="bubblewrap failed"):
        NamespaceBackend(path).session(Limits())


@pytest.mark.parametrize(
    ("option", "values", "missing"),
    [
        ("--seccomp", 1, "a seccomp filter"),
        ("--unshare-net", 0, "a net namespace"),
        ("--unshare-ipc", 0, "a ipc namespace"),
        ("--remount-ro", 1, "a read-only root"),
    ],
)
def test_a_wall_that_is_not_built_is_missed(
    bwrap: str, public_dir: Path, option: str, values: int, missing: str
) -> None:
    path = program(
        public_dir,
        "import os, sys\n"
        f"at = sys.argv.index({option!r})\n"
        f"del sys.argv[at : at + 1 + {values}]\n"
        f"os.execv({bwrap!r}, sys.argv)\n",
    )
    own = Path("/proc/sys/net/ipv4/tcp_max_tw_buckets")
    before = own.read_text()
    with pytest.raises(IsolationUnavailable, match=f"without: {missing}"):
        NamespaceBackend(path).session(Limits())
    assert own.read_text() == before  # what is set inside must not be set on the host instead


def test_nothing_is_set_in_a_network_namespace_of_the_callers_own() -> None:
    own = Path("/proc/sys/net/ipv4/tcp_max_tw_buckets")
    before = own.read_text()
    network.Settings(os.getpid()).finish()
    assert own.read_text() == before != "0\n"


def test_a_worker_that_does_not_start_is_quoted(
    bwrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = interpreter.Interpreter("/usr/bin/no-such-python")
    monkeypatch.setattr(backend, "find_interpreter", lambda uid: broken)
    with pytest.raises(IsolationUnavailable, match="no-such-python"):
        Sandbox().session()


def test_the_host_itself_would_not_pass_for_a_sandbox() -> None:
    kinds = ("user", "pid", "net", "mnt", "ipc", "uts")
    hello = {
        "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds},
        "pid": os.getpid(),
        "root_read_only": False,
    }
    with pytest.raises(IsolationUnavailable) as caught:
        backend.verify(os.getpid(), hello)
    for kind in kinds:
        assert f"a {kind} namespace" in str(caught.value)
    assert "process 1 as supervisor" in str(caught.value)


def test_a_process_that_is_gone_passes_no_check() -> None:
    with pytest.raises(IsolationUnavailable, match="a user other than root"):
        backend.verify(2**22 + 1, {})


def test_other_systems_have_no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(IsolationUnavailable, match="darwin has no namespaces"):
        Sandbox().session()


def test_no_seccomp_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    seccomp.program.cache_clear()
    with pytest.raises(IsolationUnavailable, match="apt-get install libseccomp2"):
        seccomp.program()


def test_root_is_never_the_sandboxes_user() -> None:
    with pytest.raises(ValueError, match="never runs as the host's root"):
        NamespaceBackend(uid=0)


def test_the_hosts_user_is_unprivileged(session: Session) -> None:
    pid = session.container.worker.process.pid  # type: ignore[attr-defined]
    expected = backend.UNUSED_UID if os.geteuid() == 0 else os.geteuid()
    assert Path(f"/proc/{pid}").stat().st_uid == expected != 0
    assert Path(f"/proc/{pid}/environ").read_bytes() == b"" or os.geteuid() != 0


def test_no_descriptor_leaks(bwrap: str, public_dir: Path) -> None:
    failing = NamespaceBackend(program(public_dir, "raise SystemExit('no')"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        Sandbox().exec("1")
        assert not Sandbox().exec("import os; os.abort()").ok
        with pytest.raises(SandboxError):
            Sandbox(packages=["no_such_package"]).session()
        with pytest.raises(IsolationUnavailable):
            failing.session(Limits())
    assert len(os.listdir("/proc/self/fd")) == before


# --- what the code meets inside ---------------------------------------------------------------


def guarded(code: str) -> str:
    """Runs an act only where process 1 is not the host's, whatever else is wrong."""
    own = os.readlink("/proc/self/ns/pid")
    return f"import os\nassert os.readlink('/proc/self/ns/pid') != {own!r}\n{code}"


@pytest.mark.parametrize("number", [9, 19, 15, 2, 1, 11, 24])
def test_no_signal_reaches_the_supervisor(session: Session, number: int) -> None:
    session.exec(guarded(f"os.kill(1, {number})"))
    assert session.exec("'here'").value_repr == "'here'"


def test_killing_all_kills_none_of_ours(session: Session) -> None:
    session.exec(guarded("os.kill(-1, 9)"))
    assert session.exec("'here'").value_repr == "'here'"


def test_i386_calls_are_fatal(session: Session) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("int 0x80 is x86's")
    # mov eax, 20 (getpid of i386); int 0x80; ret
    code = (
        "import ctypes, mmap\n"
        "page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
        "page.write(bytes.fromhex('b814000000cd80c3'))\n"
        "at = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(at)()"
    )
    got = session.exec(code)
    assert got.signal == 31  # SIGSYS


def test_x32_calls_are_fatal(session: Session) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("x32 is x86's")
    got = session.exec("import ctypes\nctypes.CDLL(None).syscall(0x40000000 + 39)")
    assert got.signal == 31


@pytest.mark.parametrize(
    "kind", ["RLIMIT_AS", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE"]
)
def test_rlimits_cannot_be_raised(session: Session, kind: str) -> None:
    code = (
        f"import resource as r\nh = r.getrlimit(r.{kind})[1]\nr.setrlimit(r.{kind}, (h + 1, h + 1))"
    )
    assert "not allowed to raise maximum limit" in session.exec(code).stderr


@pytest.mark.parametrize(
    "arguments",
    ["AF_INET, 1, 132", "AF_INET, 1, 262", "AF_INET6, 5", "AF_INET, 6 | SOCK_NONBLOCK, 0"],
)
def test_no_socket_makes_the_kernel_load_a_module(session: Session, arguments: str) -> None:
    got = session.exec(f"from socket import *\nsocket({arguments})")
    assert "Protocol not supported" in got.stderr
    assert session.exec("socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP).close(); socketpair(); 1").ok


def test_an_idle_session_uses_no_time(session: Session) -> None:
    session.exec("import threading, time\ndef spin():\n    while True: pass")
    session.exec("threading.Thread(target=spin, daemon=True).start()")
    before = session.exec("time.process_time()")
    time.sleep(0.3)
    after = session.exec("time.process_time()")
    assert float(after.value_repr or 9) - float(before.value_repr or 0) < 0.1


def test_descriptors_are_few_and_ones_own(session: Session) -> None:
    # /dev/null, stdout, stderr, the channel to the supervisor; one more does the listing.
    session.exec("import os")
    assert session.exec("len(os.listdir('/proc/self/fd'))").value_repr == "5"
    listing = "[os.readlink(f'/proc/self/fd/{fd}').partition(':')[0] for fd in range(3)]"
    assert session.exec(listing).value_repr == "['/dev/null', 'pipe', 'pipe']"


def test_an_insider_can_forge_no_more_than_its_own_word(session: Session) -> None:
    # It finds the nonce and the channel in the interpreter's frames: they are its own, after all.
    code = """
import sys
frame = sys._getframe()
while "channel" not in frame.f_locals:
    frame = frame.f_back
inside = frame.f_locals
nonce = inside["request"]["nonce"]
claim = f"{nonce} 0 = 'mine'"
lies = {"killed": "infra", "signal": 11, "cpu_s": -5.0, "ended": True, "killed_reason": "infra"}
inside["channel"].send(repr({"nonce": nonce, "exit_status": 0, **lies}).encode())
inside["channel"].send(claim.encode())
"""
    got = session.exec(code)
    assert got.value_repr == "'mine'" and got.exit_status == 0
    assert got.killed_reason is None and got.signal is None and 0 <= got.cpu_s < 5
    # The real answer, which came second, is not taken for the next call's.
    assert session.exec("'next'").value_repr == "'next'"


def test_no_configuration_of_the_host_is_visible(session: Session) -> None:
    paths = ["/etc", "/sys", "/home", "/var", "/boot", "/dev/shm/.", "/dev/pts"]
    code = f"import os\n[path for path in {paths} if os.path.exists(path)]"
    assert session.exec(code).value_repr == "['/dev/shm/.']"


def test_nothing_of_the_project_is_importable(session: Session) -> None:
    assert "ModuleNotFoundError" in session.exec("import journeyman").stderr


def test_the_interpreter_is_usable(session: Session) -> None:
    code = """
import asyncio, multiprocessing, subprocess, tempfile, threading
async def one(): return 1
async def two(): return 2
async def both(): return await asyncio.gather(one(), two())
with tempfile.TemporaryFile() as file:
    file.write(b"x")
with multiprocessing.Pool(2) as pool:
    squares = pool.map(abs, [-1, -2])
(asyncio.run(both()), squares, subprocess.check_output(["echo", "hi"]))
"""
    got = session.exec(code)
    assert got.value_repr == r"([1, 2], [1, 2], b'hi\n')", got.stderr


def test_packages_are_imported_before_the_code(bwrap: str) -> None:
    own_version = repr(tuple(sys.version_info[:2]))
    with Sandbox(packages=["decimal"]).session() as session:
        assert session.exec("import sys\n'decimal' in sys.modules").value_repr == "True"
        if session.exec("tuple(sys.version_info[:2])").value_repr != own_version:
            pytest.skip("the sandbox's Python cannot use this Python's packages")
    if not any(Path(path, "iniconfig").exists() for path in interpreter.package_directories(None)):
        pytest.skip("pytest was not installed beside the interpreter")
    with Sandbox(packages=["iniconfig"]).session() as session:
        assert session.exec("import sys\n'iniconfig' in sys.modules").value_repr == "True"


# --- the interpreter and the filter -----------------------------------------------------------


def test_what_other_users_can_read(public_dir: Path) -> None:
    path = public_dir / "file"
    path.write_text("")
    path.chmod(0o644)
    stranger = os.geteuid() + 1
    assert interpreter.readable(path, stranger)
    path.chmod(0o600)
    assert not interpreter.readable(path, stranger)
    assert interpreter.readable(path, os.geteuid())
    path.chmod(0o644)
    public_dir.chmod(stat.S_IRWXU)
    assert not interpreter.readable(path, stranger)
    assert not interpreter.readable(public_dir / "no-such", None)
    assert not interpreter.readable(public_dir / "no-such", stranger)


def test_a_readable_python_of_the_project_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "readable", lambda path, uid: True)
    monkeypatch.setattr(sys, "base_prefix", "/opt/python")
    found = interpreter.find_interpreter(1)
    assert found.mounts == ("/opt/python",)
    assert found.executable == f"/opt/python/bin/python3.{sys.version_info.minor}"
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert interpreter.find_interpreter(1).mounts == ()


def test_a_prefix_that_is_the_whole_system_is_not_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "readable", lambda path, uid: True)
    monkeypatch.setattr(sys, "base_prefix", "/home")
    assert interpreter.find_interpreter(1) == interpreter.Interpreter("/usr/bin/python3")


def test_no_python_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("readable", "showable"):
        monkeypatch.setattr(interpreter, name, lambda path, uid: False)
    with pytest.raises(IsolationUnavailable, match="apt-get install python3"):
        interpreter.find_interpreter(1)
    assert interpreter.package_directories(1) == {}
    assert interpreter.unseen_packages(1)


def test_the_filter_is_bpf() -> None:
    seccomp.program.cache_clear()
    compiled = seccomp.program()
    assert len(compiled) % 8 == 0 and 100 < len(compiled) // 8 < 4096
