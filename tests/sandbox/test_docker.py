"""The docker backend: on a real engine (marker `docker`), and what of it needs none."""

import gc
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from journeyman.sandbox import (
    IsolationUnavailable,
    KilledReason,
    Limits,
    Sandbox,
    Session,
    conformance,
    image,
)
from journeyman.sandbox.docker import LABEL, DockerBackend, _frames, _owner, _verify, _worker, reap
from journeyman.sandbox.worker.relay import Relay

docker = pytest.importorskip("docker")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    engine = docker.from_env()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def backend() -> Iterator[DockerBackend]:
    yield DockerBackend()


@pytest.fixture
def session(backend: DockerBackend) -> Iterator[Session]:
    with Sandbox(backend).session() as live:
        yield live


def containers(client: Any) -> list[Any]:
    return client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


@pytest.mark.docker
def test_docker_conforms(backend: DockerBackend) -> None:
    results = conformance.check(backend)
    assert [f"{each.name}: {each.detail}" for each in results if not each.passed] == []
    assert {each.name for each in results if each.skipped} == {
        "a user namespace is the session's own"
    }


@pytest.mark.docker
def test_it_is_hardened(session: Session, client: Any) -> None:
    (container,) = containers(client)
    made = container.attrs["HostConfig"]
    assert made["NetworkMode"] == "none" and made["ReadonlyRootfs"] and made["AutoRemove"]
    assert made["CapDrop"] == ["ALL"] and not made["CapAdd"] and not made["Privileged"]
    assert made["SecurityOpt"] == ["no-new-privileges:true"]
    assert made["PidsLimit"] > 0 and made["Memory"] > 0 and made["NanoCpus"] == 10**9
    assert made["MemorySwap"] == made["Memory"] and made["IpcMode"] == "none"
    assert made["Binds"] is None


@pytest.mark.docker
def test_a_closed_session_leaves_no_container(backend: DockerBackend, client: Any) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Sandbox(backend).session() as session:
        assert len(containers(client)) == 1
        session.exec("import os\nfor _ in range(5):\n    if not os.fork(): break\n")
        got = session.exec("import time; time.sleep(60)", 0.2)
        assert got.killed_reason is KilledReason.WALL
    assert containers(client) == []
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the client keeps a connection


HOST = """
import sys
from journeyman.sandbox import Sandbox
session = Sandbox("docker").session()
print("up", flush=True)
{then}
"""


@pytest.mark.docker
@pytest.mark.parametrize("then", ["sys.stdin.read()", "session.exec('while True: pass')"])
def test_a_killed_caller_leaves_no_container(client: Any, then: str) -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST.format(then=then)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with host:
        assert host.stdout is not None and host.stdout.readline() == b"up\n"
        assert len(containers(client)) == 1
        host.send_signal(signal.SIGKILL)
    wait_for(lambda: containers(client) == [])


@pytest.mark.docker
def test_the_reaper_takes_only_what_is_nobodys(client: Any) -> None:
    name = image.ensure(client)
    mine, other = _owner(os.getpid()), "some-other-boot 1 1"
    gone = mine.replace(f" {os.getpid()} ", f" {2**22 + 1} ")
    reused = f"{mine.rsplit(' ', 1)[0]} 1"
    made = [client.containers.create(name, ["true"], labels={LABEL: owner})
            for owner in (gone, reused, mine, other)]  # fmt: skip
    try:
        assert set(reap(client)) == {container.id for container in made[:2]}
        assert {container.id for container in containers(client)} == {
            container.id for container in made[2:]
        }
    finally:
        for container in made[2:]:
            container.remove()


@pytest.mark.docker
def test_what_cannot_start_is_told(client: Any) -> None:
    with pytest.raises(IsolationUnavailable, match=r"no-such-image|No such image"):
        DockerBackend("no-such-image").session(Limits())
    assert containers(client) == []


@pytest.mark.docker
def test_packages_are_mounted(backend: DockerBackend) -> None:
    with Sandbox(backend, packages=["decimal"]).session() as session:
        assert session.exec("import sys\n'decimal' in sys.modules").value_repr == "True"


@pytest.mark.docker
def test_a_long_request_and_much_output_pass(session: Session) -> None:
    assert session.exec("#" * 3_000_000 + "\n'long'").value_repr == "'long'"
    got = session.exec("import sys\nfor _ in range(100):\n    print('x' * 600)")
    assert got.stdout == ("x" * 600 + "\n") * 100
    data = bytes(range(256)) * 20_000
    session.put("f", data)
    assert session.get("f") == data


@pytest.mark.docker
def test_the_engines_kill_is_infra(session: Session, client: Any) -> None:
    (container,) = containers(client)
    container.kill()
    got = session.exec("1")
    assert got.killed_reason is KilledReason.INFRA and not session.alive


# --- without an engine ------------------------------------------------------------------------


def test_no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # docker-py leaves its socket open
        with pytest.raises(IsolationUnavailable, match=r"no Docker engine answers.*docker\.io"):
            Sandbox("docker").session()
        gc.collect()


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(IsolationUnavailable, match="docker-py is not installed"):
        Sandbox("docker").session()


class FakeContainer:
    """A container of no engine."""

    def __init__(self, fails: Exception) -> None:
        self.fails = fails
        self.refuses = False
        self.removed = 0
        self.ours, theirs = socket.socketpair()
        self.attached = SimpleNamespace(_sock=theirs, close=lambda: None)

    def attach_socket(self, params: dict[str, int]) -> Any:
        return self.attached

    def start(self) -> None:
        raise self.fails

    def remove(self, force: bool) -> None:
        self.removed += 1
        if self.refuses:
            raise self.fails


@pytest.mark.parametrize("error", [BrokenPipeError("gone"), docker.errors.DockerException("no")])
def test_what_fails_to_start_is_removed(error: Exception) -> None:
    container = FakeContainer(error)
    client = SimpleNamespace(containers=SimpleNamespace(create=lambda *_, **__: container))
    with pytest.raises((BrokenPipeError, IsolationUnavailable)):
        DockerBackend("any")._start(client, Limits(), packages=False)
    assert container.removed == 1
    container.ours.close()
    container.attached._sock.close()


def test_a_container_that_is_not_removed_loses_its_stream() -> None:
    container = FakeContainer(docker.errors.APIError("the engine is busy"))
    container.refuses = True
    worker = _worker(container, container.attached, container.attached._sock)
    with pytest.raises(docker.errors.APIError):
        worker.kill()
    with container.ours as ours:
        assert ours.recv(1) == b""  # by which its process 1 knows that it is to end
    worker.kill()
    for end in (worker.control, worker.stdout, worker.stderr):
        end.close()


def test_processors_must_be_positive() -> None:
    with pytest.raises(ValueError, match="cpus=0"):
        DockerBackend(cpus=0)


def test_the_host_would_not_pass_for_a_container() -> None:
    kinds = ("pid", "net", "mnt", "ipc", "uts")
    spaces = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
    with pytest.raises(IsolationUnavailable) as caught:
        _verify({"namespaces": spaces, "pid": 7, "root_read_only": False, "status": {}})
    for wall in ("user other than root", "read-only root", "process 1", "a net namespace"):
        assert wall in str(caught.value)


def test_frames_may_come_in_any_pieces() -> None:
    data = b"".join(Relay.HEADER.pack(kind, 3) + b"abc" for kind in (0, 1, 2))
    buffer, found = bytearray(), []
    for at in range(len(data)):
        buffer += data[at : at + 1]
        found += _frames(buffer, Relay.HEADER)
    assert found == [(0, b"abc"), (1, b"abc"), (2, b"abc")] and not buffer


def test_an_owner_is_one_process() -> None:
    assert _owner(os.getpid()) == _owner(os.getpid()) != _owner(os.getppid())
