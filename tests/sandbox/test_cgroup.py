"""Control groups: real where the machine has them, and as the kernel's files would look."""

import os
import subprocess
from pathlib import Path

import pytest

from journeyman.sandbox import KilledReason, Limits, Sandbox
from journeyman.sandbox.namespace import NamespaceBackend, cgroup


def leftovers() -> list[str]:
    return [str(path) for path in cgroup.ROOT.rglob(f"journeyman-{os.getpid()}-*")]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for groups; the caller's own group is its root."""
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    monkeypatch.setattr(cgroup, "_own", lambda: {"": "", "memory": "", "pids": ""})
    return tmp_path


def kernel(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Makes directories come with files, as the kernel's do."""
    mkdir, rmdir = Path.mkdir, Path.rmdir

    def make(path: Path) -> None:
        mkdir(path)
        for name in names:
            (path / name).touch()

    def remove(path: Path) -> None:
        for name in path.iterdir():
            name.unlink()
        rmdir(path)

    monkeypatch.setattr(Path, "mkdir", make)
    monkeypatch.setattr(Path, "rmdir", remove)


def test_version_2(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "cgroup.subtree_control").write_text("cpu memory pids\n")
    kernel(monkeypatch, "memory.max", "pids.max", "cgroup.procs", "memory.events")
    limits = Limits(memory_mb=100, workdir_mb=16, branches=11, branch_files_mb=8, pids=5)
    made = cgroup.make(limits)
    assert made.version == "v2" and made.memory is not None and made.memory.parent == tree
    assert (made.memory / "memory.max").read_text() == str((100 + 16 + 8 + 64 + 20) << 20)
    assert (made.memory / "pids.max").read_text() == "18"
    made.add(7)
    assert (made.memory / "cgroup.procs").read_text() == "7"
    assert made.oom_kills() == 0
    (made.memory / "memory.events").write_text("oom 3\noom_kill 2\n")
    assert made.oom_kills() == 2
    made.remove()
    made.remove()
    assert not made.memory.exists()


def test_version_1(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("memory", "pids"):
        (tree / name).mkdir()
    kernel(monkeypatch, "memory.limit_in_bytes", "pids.max", "cgroup.procs", "memory.oom_control")
    made = cgroup.make(Limits())
    assert made.version == "v1" and made.memory is not None and made.pids is not None
    assert made.memory.parent == tree / "memory" and made.pids.parent == tree / "pids"
    (made.memory / "memory.oom_control").write_text("under_oom 0\noom_kill 1\n")
    assert made.oom_kills() == 1


def test_neither(tree: Path) -> None:
    made = cgroup.make(Limits())
    assert made == cgroup.Cgroup() and made.version == "none" and made.oom_kills() == 0
    made.add(1)
    made.remove()


def test_one_that_cannot_be_limited_is_removed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "cgroup.subtree_control").write_text("memory pids\n")
    kernel(monkeypatch, "memory.max")  # but no pids.max
    assert cgroup.make(Limits()).version == "none"
    assert [path.name for path in tree.iterdir()] == ["cgroup.subtree_control"]


def test_what_killed_callers_left_is_removed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "cgroup.subtree_control").write_text("memory pids\n")
    gone = subprocess.Popen(["true"])
    gone.wait()
    stale, ours = tree / f"journeyman-{gone.pid}-0", tree / f"journeyman-{os.getpid()}-x"
    for path in (stale, ours):
        path.mkdir()
    kernel(monkeypatch, "memory.max", "pids.max")
    cgroup.make(Limits())
    assert ours.exists() and not stale.exists()


def test_the_caller_is_in_some_group() -> None:
    assert {"", "memory", "pids"} <= set(cgroup._own())


def test_sessions_leave_no_group(bwrap: str) -> None:
    said = NamespaceBackend().describe()["cgroup"]
    with Sandbox().session() as session:
        groups = leftovers()
        assert bool(groups) != said.startswith("none")
        process = session.container.worker.process  # type: ignore[attr-defined]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        for group in groups:
            assert (
                children.read_text().split()[0] in Path(group, "cgroup.procs").read_text().split()
            )
    assert leftovers() == []


def test_a_group_that_takes_no_process_is_done_without(
    bwrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: cgroup.Cgroup, pid: int) -> None:
        raise PermissionError

    monkeypatch.setattr(cgroup.Cgroup, "add", refuse)
    with Sandbox().session() as session:
        assert session.exec("1 + 1").value_repr == "2"
        assert leftovers() == []


def test_the_kernels_kill_for_memory_is_told_from_the_programs_own(bwrap: str) -> None:
    with Sandbox().session() as session:
        kills = [0]
        worker = session.container.worker  # type: ignore[attr-defined]
        object.__setattr__(worker, "oom_kills", lambda: kills[0])
        with session.fork() as branch:
            got = branch.exec("import os; os.kill(os.getpid(), 9)")
            assert (got.signal, got.killed_reason) == (9, None)
        kills[0] = 1
        got = session.exec("import os; os.kill(os.getpid(), 9)")
        assert (got.signal, got.killed_reason) == (9, KilledReason.MEMORY)
