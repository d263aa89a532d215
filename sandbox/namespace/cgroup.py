"""A control group around a session, where this machine lets the caller make one.

A second string: the supervisor's sampling, rlimits and the sized tmpfs hold without it. With it no
moment between two samples is left to take more memory than allowed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

from journeyman.sandbox.base import Limits

ROOT = Path("/sys/fs/cgroup")
_PREFIX = "journeyman-"
_REMOVE_S = 0.5
# Beside what the running branch may hold: the supervisor and page tables; an idle branch.
_OVERHEAD_MB = 64
_BRANCH_MB = 2
_numbers = itertools.count()


@dataclass(frozen=True)
class Cgroup:
    """What bounds a session, and its one or (version 1: a hierarchy each) two directories.

    Attributes:
        version: "v2" or "v1"; "none" where none could be made.
        memory: The directory with the memory controller.
        pids: The directory with the pids controller.
    """

    version: str = "none"
    memory: Path | None = None
    pids: Path | None = None

    @property
    def _directories(self) -> set[Path]:
        return {each for each in (self.memory, self.pids) if each is not None}

    def add(self, pid: int) -> None:
        """Puts a process, and all that it will start, under the limits."""
        for directory in self._directories:
            _write(directory, "cgroup.procs", pid)

    def oom_kills(self) -> int:
        """How often the kernel killed in it for want of memory."""
        name = "memory.events" if self.version == "v2" else "memory.oom_control"
        if self.memory is not None:
            for line in (self.memory / name).read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return 0

    def remove(self) -> None:
        """Removes it, once the last process has left."""
        deadline = time.monotonic() + _REMOVE_S
        for directory in self._directories:
            while not _removed(directory) and time.monotonic() < deadline:
                time.sleep(0.002)


def make(limits: Limits) -> Cgroup:
    """Makes a control group; where that is not possible, one that does nothing."""
    for attempt in (_make_v2, _make_v1):
        with contextlib.suppress(OSError):
            return attempt(limits)
    return Cgroup()


def _make_v2(limits: Limits) -> Cgroup:
    own = _own()[""]
    for base in (ROOT / own, (ROOT / own).parent):
        with contextlib.suppress(OSError):
            controllers = (base / "cgroup.subtree_control").read_text().split()
            if {"memory", "pids"} <= set(controllers):
                directory = _directory(base)
                made = Cgroup("v2", directory, directory)
                return _limited(made, limits, "memory.max", "memory.swap.max")
    raise FileNotFoundError("no version 2 group with the controllers below it")


def _make_v1(limits: Limits) -> Cgroup:
    own = _own()
    memory = _directory(ROOT / "memory" / own["memory"])
    try:
        made = Cgroup("v1", memory, _directory(ROOT / "pids" / own["pids"]))
    except OSError:
        memory.rmdir()
        raise
    swap = "memory.memsw.limit_in_bytes"
    return _limited(made, limits, "memory.limit_in_bytes", swap)


def _own() -> dict[str, str]:
    """The caller's group in each hierarchy; version 2's is called ''."""
    found = {"": "", "memory": "", "pids": ""}
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            found |= dict.fromkeys(controllers.split(","), path.lstrip("/"))
    return found


def _limited(made: Cgroup, limits: Limits, memory: str, swap: str) -> Cgroup:
    idle = _BRANCH_MB * (limits.branches - 1)
    files = limits.workdir_mb + limits.branch_files_mb
    most = (limits.memory_mb + files + _OVERHEAD_MB + idle) << 20
    try:
        assert made.memory is not None and made.pids is not None
        _write(made.memory, memory, most)
        with contextlib.suppress(OSError):  # kernels without swap accounting have no such file
            _write(made.memory, swap, 0 if made.version == "v2" else most)
        _write(made.pids, "pids.max", limits.pids + limits.branches + 2)
    except BaseException:
        made.remove()
        raise
    return made


def _directory(base: Path) -> Path:
    """A new group under `base`; those of callers that were killed are removed on the way."""
    for old in base.glob(f"{_PREFIX}*"):
        owner = old.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            _removed(old)
    made = base / f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
    made.mkdir()
    return made


def _write(directory: Path, name: str, value: int) -> None:
    # Not created: these files are the kernel's.
    with open(directory / name, "r+") as file:
        file.write(str(value))


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
