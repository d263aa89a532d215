"""Ten thousand executions, some of them hostile: nothing is lost, left over or leaked."""

import contextlib
import gc
import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from journeyman.sandbox import ExecResult, KilledReason, Limits, Sandbox
from journeyman.sandbox.namespace import cgroup

sys.path.insert(0, str(Path(__file__).parent / "hostile"))
import cases
import residue

sys.path.remove(str(Path(__file__).parent / "hostile"))

COUNT = 10_000
HOSTILE = [
    "import os; os.abort()",
    "import os; os.kill(os.getpid(), 9)",
    "import ctypes; ctypes.string_at(0)",
    "import os; os._exit(3)",
    "import time; time.sleep(60)",
    "while True: pass",
    "while True: print('x' * 9999)",
    "import os\ntry:\n    while True: os.fork()\nexcept OSError: pass\nimport time; time.sleep(60)",
    "a = []\nwhile True: a.append(bytearray(1 << 20))",
    "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass\n1 / 0",
    "import os; os.closerange(0, 99)\nraise SystemExit(1)",
    "import sys; sys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()",
    "for n in range(9999): open(str(n), 'w')",
]
LEAVING = [f"{cases.PRELUDE}\n{case.program}" for case in residue.RESIDUE]
EVERY = 20  # one in so many is hostile, or leaves something
PROBES = 500  # how often is looked inside for what is left


def resident_mb() -> float:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def leftovers() -> dict[str, list[str]]:
    """What an execution could leave on the host."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    children: list[str] = []
    for task in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended
            children += task.read_text().split()
    return {
        "processes": children,
        # But for those of an engine, whose containers are not this test's.
        "mounts": [line for line in mounts if "docker" not in line],
        "groups": [str(path) for path in cgroup.ROOT.rglob(f"journeyman-{os.getpid()}-*")],
        "files": sorted(os.listdir(tempfile.gettempdir())),
        "descriptors": os.listdir("/proc/self/fd"),
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_executions(
    bwrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other tests leave things in the usual
    acts = [*HOSTILE, *LEAVING]

    def execute(number: int) -> ExecResult:
        if number % PROBES == 1:
            return sandbox.exec(residue.probe(inside["sockets"]))
        if number % EVERY:
            return sandbox.exec(f"x = {number}\nprint(x)\nx * 2")
        act = number // EVERY % len(acts)
        return sandbox.exec(acts[act], timeout=0.2 if act < len(HOSTILE) else None)

    def check(number: int, got: ExecResult) -> None:
        if number % PROBES == 1:
            assert got.ok and json.loads(got.stdout) == inside, got
        elif number % EVERY:
            assert (got.stdout, got.value_repr) == (f"{number}\n", str(number * 2)), got
        else:
            assert got.killed_reason is not KilledReason.INFRA, got
            assert got.ok or number // EVERY % len(acts) < len(HOSTILE), got

    before = leftovers()
    with (
        Sandbox(limits=Limits(memory_mb=256, pids=16)) as sandbox,
        ThreadPoolExecutor(2) as threads,
    ):
        results = 0
        inside = json.loads(sandbox.exec(residue.probe()).stdout)
        for number, got in enumerate(threads.map(execute, range(COUNT))):
            check(number, got)
            results += 1
            if number == COUNT // 10:
                settled = resident_mb()
        assert results == COUNT
        assert resident_mb() - settled < 20
    assert leftovers() == before
