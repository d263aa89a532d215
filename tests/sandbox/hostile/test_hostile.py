"""Every attack, for real, on every backend: it must fail, and the host must be as it was.

The namespace backend is attacked twice, as root's and as an ordinary user's (in a forked child
that has given root up). Docker's attacks carry the marker `docker`.
"""

import contextlib
import json
import os
import pickle
import re
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import cases
import protocol
import residue
import surfaces

from journeyman.sandbox import Backend, ExecResult, KilledReason, Limits, Sandbox, Session, seccomp
from journeyman.sandbox.namespace import NamespaceBackend
from journeyman.sandbox.worker import worker_source

sys.path.remove(str(Path(__file__).parent))

FAMILIES = {
    "time": cases.TIME,
    "resources": cases.RESOURCES,
    "files": surfaces.FILES,
    "processes": surfaces.PROCESSES,
    "network": surfaces.NETWORK,
    "calls": surfaces.SYSTEM_CALLS,
    "protocol": protocol.PROTOCOL,
    "accounts": residue.ACCOUNTS,
}
CASES = [
    pytest.param(case, id=f"{family}: {case.name}")
    for family, group in FAMILIES.items()
    for case in group
]
ORDINARY_UID = 61001
BACKENDS = [
    "namespace",
    pytest.param(
        "ordinary",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(os.geteuid() != 0, reason="'namespace' ran as this ordinary user"),
        ],
    ),
    pytest.param("docker", marks=pytest.mark.docker),
]
# What these say changes by itself.
VOLATILE = re.compile(
    r"random/|dentry-state|inode-nr|inode-state|file-nr|aio-nr|ns_last_pid|pty/nr|quota/|seq_hit"
    r"|net/(ipv4|ipv6)/(conf|neigh)/|nf_conntrack_count|net/netfilter|cad_pid|stat_refresh|ip_forward"
    r"|bridge|flush|sched_domain|latency|perf_event_max_sample_rate|perf_cpu_time|mglru|drop_caches"
)

Reached = dict[str, Any]


@pytest.fixture(scope="module")
def host_things() -> Iterator[Reached]:
    """Things of the host that an attack must not reach."""
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as abstract,
        pytest.MonkeyPatch.context() as patch,
    ):
        abstract.bind("")  # the kernel picks an abstract name
        abstract.listen()
        canary = Path("/var/tmp", f"journeyman-canary-{os.getpid()}")
        canary.write_text("as it was")
        canary.chmod(0o666)
        patch.setenv("JOURNEYMAN_SECRET", "x")
        yield {
            "canary": str(canary),
            "project": str(Path(Sandbox.exec.__code__.co_filename).parent),
            "tcp": tcp.getsockname()[:2],
            "abstract": abstract.getsockname().decode("latin-1"),
        }
        assert canary.read_text() == "as it was"
        canary.unlink()


def sysctls() -> dict[str, bytes]:
    """All settings of the kernel that stay as they are."""
    found = {}
    for directory, _, names in os.walk("/proc/sys"):
        for path in (f"{directory}/{name}" for name in names):
            if not VOLATILE.search(path):
                with contextlib.suppress(OSError):
                    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                    try:
                        found[path] = os.read(fd, 1 << 16)
                    finally:
                        os.close(fd)
    return found


@pytest.fixture(scope="module", autouse=True)
def unchanged_settings() -> Iterator[None]:
    before = sysctls()
    assert len(before) > 100
    yield
    after = sysctls()
    assert {key: after.get(key) for key in before} == before


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found |= {child} | descendants(child)
    return found


def host_state() -> dict[str, Any]:
    """What of the host is compared around every single attack."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    paths = ["/", "/etc", "/etc/passwd", "/etc/shadow", "/usr", "/usr/bin"]
    return {
        "processes": descendants(os.getpid()),
        "mounts": [line for line in mounts if "docker" not in line],
        "files": {path: (os.stat(path).st_mode, os.stat(path).st_mtime_ns) for path in paths},
        "names": sorted(os.listdir("/")),
        "host": os.uname(),
        "core_pattern": Path("/proc/sys/kernel/core_pattern").read_bytes(),
    }


def as_ordinary_user(act: Callable[[], Any]) -> Any:
    """Calls something in a child that has given root up, and returns what it returned."""
    worker_source()  # this and the filters come from places that only root may be able to read
    seccomp.program(), seccomp.branch_program()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(ORDINARY_UID, ORDINARY_UID, ORDINARY_UID)
            os.setresuid(ORDINARY_UID, ORDINARY_UID, ORDINARY_UID)
            answer: tuple[bool, Any] = (True, act())
        except BaseException:
            answer = (False, traceback.format_exc())
        with os.fdopen(writer, "wb") as file:
            pickle.dump(answer, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    done, answer_or_trace = pickle.loads(data)
    assert done, answer_or_trace
    return answer_or_trace


@pytest.fixture(scope="module")
def containers() -> Iterator[dict[Limits, Session]]:
    """Containers are dear: one for each set of limits, and a branch of it for each attack."""
    opened: dict[Limits, Session] = {}
    yield opened
    for session in opened.values():
        session.close()


def run(
    backend: str, limits: Limits, codes: list[str], containers: dict[Limits, Session]
) -> tuple[list[ExecResult], bool]:
    """Runs programs in one fresh session; says too if that lives on."""
    if backend == "docker":
        if limits not in containers or not containers[limits].alive:
            containers[limits] = Sandbox("docker", limits).session()
        session = containers[limits].fork()
    else:
        session = Sandbox(NamespaceBackend(), limits).session()
    with session:
        results = []
        for code in codes:
            results.append(session.exec(code))
            if not session.alive:
                break
        return results, session.alive


Shared = tuple[Sandbox, dict[str, Any]]


@pytest.fixture(scope="module")
def sandboxes() -> Iterator[dict[str, Shared]]:
    """One for each backend: what an act leaves is there for all that come after it."""
    opened: dict[str, Shared] = {}
    yield opened
    for sandbox, _ in opened.values():
        sandbox.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_an_attack_fails_and_the_host_is_as_it_was(
    bwrap: str,
    case: cases.Case,
    backend: str,
    host_things: Reached,
    containers: dict[Limits, Session],
    sandboxes: dict[str, Shared],
) -> None:
    if backend in case.without:
        pytest.skip(case.without[backend])
    while sandboxes:  # in another order of the tests they stand by here, and renew their processes
        sandboxes.popitem()[1][0].close()
    program = case.program
    if "{" in program and any(f"{{{name}!r}}" in program for name in host_things):
        for name, value in host_things.items():
            program = program.replace(f"{{{name}!r}}", repr(value))
    limits = Limits(**{"wall_s": 10.0, "workdir_mb": 4, **case.limits})
    before = host_state()

    def act() -> tuple[list[ExecResult], bool]:
        return run(backend, limits, [cases.PRELUDE, program, "1 + 1"], containers)

    results, alive = as_ordinary_user(act) if backend == "ordinary" else act()
    prelude, attack, *after = results
    assert prelude.ok, prelude
    assert case.failure(attack) == ""
    assert attack.killed_reason is not KilledReason.INFRA  # no attack may pass for our failure
    if alive:
        assert after[0].value_repr == "2"
    now = host_state()
    assert now == before


def shared_sandbox(backend: str | Backend) -> Shared:
    """A sandbox for many programs, and what the first of them finds."""
    sandbox = Sandbox(backend, Limits(wall_s=5, pids=16, workdir_mb=4, workdir_inodes=2000))
    return sandbox, json.loads(sandbox.exec(residue.probe()).stdout)


def found_of(case: cases.Case, shared: Shared) -> str:
    """Runs an act, and says what is wrong with it, or what the next program finds of it."""
    sandbox, before = shared
    got = sandbox.exec(f"{cases.PRELUDE}\n{case.program}")
    if case.failure(got) or got.killed_reason is KilledReason.INFRA:
        return case.failure(got) or f"{case.name}: {got}"
    got = sandbox.exec(residue.probe(before["sockets"]))
    if not got.ok:
        return f"after {case.name}: {got}"
    after = json.loads(got.stdout)
    changed = {key: after[key] for key in after if after[key] != before[key]}
    return f"after {case.name}: {changed}" if changed else ""


@pytest.mark.parametrize("backend", [each for each in BACKENDS if "ordinary" not in str(each)])
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in residue.RESIDUE])
def test_the_next_program_finds_nothing_of_an_act(
    bwrap: str, case: cases.Case, backend: str, sandboxes: dict[str, Shared]
) -> None:
    if backend in case.without:
        pytest.skip(case.without[backend])
    if backend not in sandboxes:
        sandboxes[backend] = shared_sandbox(backend)
    before = host_state()
    before.pop("processes")  # a sandbox whose interpreter was lost opens another
    assert found_of(case, sandboxes[backend]) == ""
    now = host_state()
    now.pop("processes")
    assert now == before


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="'namespace' ran as this ordinary user")
def test_an_ordinary_users_programs_find_nothing_of_an_act(bwrap: str) -> None:
    def acts() -> list[str]:
        # Not by name: what offers it may be where only root can read.
        shared = shared_sandbox(NamespaceBackend())
        found = [found_of(case, shared) for case in residue.RESIDUE]
        shared[0].close()
        return [each for each in found if each]

    assert as_ordinary_user(acts) == []


def test_there_are_enough_attacks() -> None:
    assert len(CASES) >= 90
    assert len(residue.RESIDUE) >= 60
    assert len({case.name for case in residue.RESIDUE}) == len(residue.RESIDUE)
    assert len({param.id for param in CASES}) == len(CASES)
