"""The vocabulary of the sandbox: limits, results, sessions, backends, and the entry point."""

from __future__ import annotations

import abc
import contextlib
import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Literal, Protocol, Self, runtime_checkable

from journeyman.sandbox.registry import resolve_backend


class KilledReason(enum.StrEnum):
    """Why the sandbox ended a session; a program that merely fails has no such reason.

    `PIDS` is for backends that end a session with too many processes; those of this package refuse
    it the process, which its code sees as an ordinary exception.
    """

    WALL = "wall"
    CPU = "cpu"
    MEMORY = "memory"
    PIDS = "pids"
    OUTPUT = "output"
    DISK = "disk"
    INFRA = "infra"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one session may use. Time and output are counted afresh for every `exec`.

    Attributes:
        wall_s: Elapsed seconds of one `exec`.
        cpu_s: Processor seconds of one `exec`, over all its processes.
        memory_mb: Address space of one process, and resident memory of all of them together.
        pids: Processes and threads alive at once, the interpreter included.
        output_kb: Text kept of each of stdout and stderr; more is cut, a flood is killed.
        workdir_mb: Size of the writable directory, which /tmp and /dev/shm share.
        workdir_inodes: Files and directories in it.
        open_files: Descriptors one process may hold.
        branches: Forks and snapshots of one session alive at once, itself included.
        branch_files_mb: Size of the files that the branches of one session have while others run,
            all together; those that are alike count once.
        network: Only "none" exists: a loopback device that nobody else is on.
    """

    wall_s: float = 5.0
    cpu_s: float = 5.0
    memory_mb: int = 256
    pids: int = 32
    output_kb: int = 64
    workdir_mb: int = 16
    workdir_inodes: int = 4096
    open_files: int = 128
    branches: int = 1024
    branch_files_mb: int = 256
    network: Literal["none"] = "none"

    def __post_init__(self) -> None:
        if self.network != "none":
            raise ValueError(f"network={self.network!r}: no backend gives network access")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "network":
                continue
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise ValueError(f"{field.name}={value!r}: expected a positive, finite number")
            if field.name not in ("wall_s", "cpu_s") and not isinstance(value, int):
                raise ValueError(f"{field.name}={value!r}: expected a whole number")


@dataclass(frozen=True, kw_only=True)
class ExecResult:
    """What came of one `exec`.

    `stdout`, `stderr`, `value_repr` and, while the interpreter lives, `exit_status` are the
    program's own word. `signal`, `killed_reason` and the times are observed from outside it.

    Attributes:
        stdout: Captured text, cut at `Limits.output_kb`.
        stderr: Likewise; an uncaught exception's traceback stands here.
        value_repr: `repr` of the last expression, None if there was none or it was None.
        exit_status: 0, or 1 after an uncaught exception, or the status that the code exited
            with; None if a signal ended it.
        signal: The signal that ended the interpreter, if one did.
        duration_s: Elapsed seconds, measured by the host.
        cpu_s: Processor seconds of all processes of the session during this call.
        truncated: Some text was cut from stdout, stderr or value_repr.
        killed_reason: Why the sandbox ended the session, or None.
    """

    stdout: str
    stderr: str
    value_repr: str | None
    exit_status: int | None
    signal: int | None
    duration_s: float
    cpu_s: float
    truncated: bool
    killed_reason: KilledReason | None

    @property
    def ok(self) -> bool:
        """Whether the code ran to its end without an uncaught exception."""
        return self.exit_status == 0 and self.killed_reason is None


@runtime_checkable
class SandboxSnapshot(Protocol):
    """The state of a session at one moment, to be restored any number of times.

    One that is merely dropped ends as one that is closed.
    """

    def session(self) -> Session:
        """Makes a session that goes on from here, whoever took the snapshot.

        Raises:
            SandboxError: The snapshot is closed, or cannot be copied.
        """

    def close(self) -> None:
        """Gives its memory back; sessions that were restored from it go on."""


@runtime_checkable
class Session(Protocol):
    """A live interpreter: what one `exec` defines, the next one sees."""

    @property
    def alive(self) -> bool:
        """Whether `exec` can still be called."""

    def exec(self, code: str, timeout: float | None = None) -> ExecResult:
        """Runs `code`.

        Failures of the code are data in the result. The call that ends the session (a limit
        was passed, or the code ended its own interpreter) still returns a result.

        Args:
            code: Python source, run as in a REPL.
            timeout: Elapsed seconds for this call; can only shorten `Limits.wall_s`.

        Raises:
            SandboxDied: The session had ended before this call.
        """

    def fork(self) -> Session:
        """Makes a branch: a session in the same state, files included, which goes its own way.

        The generators of `random` and `numpy.random` are reseeded. Threads do not come along;
        descriptors open at the fork, and memory that was mapped to be shared (`mmap`,
        `multiprocessing`), stay shared. Branches of one session take turns: one of
        them runs at a time.

        Raises:
            SandboxDied: The session had ended before this call.
            SandboxError: It has too many branches, or its code keeps it from being copied.
        """

    def spare(self) -> Session:
        """Makes a branch ahead of its use, and returns before it is finished.

        For a session that has run no foreign code: what goes wrong shows in the first `exec`.
        """

    def snapshot(self, exact: bool = False) -> SandboxSnapshot:
        """Keeps the state of this moment.

        Args:
            exact: What is restored from it goes on just as this session would: the generators
                keep their state, and a session is refused that has what no fork copies: threads,
                open files, shared memory, timers, children not waited for, pending signals,
                memory kept from forks, pipes and extended attributes among its files. Only the
                clocks of its processor time start anew.

        Raises:
            SandboxDied: The session had ended before this call.
            SandboxError: As of `fork`, or no exact copy can be made.
        """

    def restore(self, snapshot: SandboxSnapshot) -> None:
        """Goes back to a snapshot of this session or of a fork; a killed session lives again.

        Raises:
            ValueError: The snapshot is another session's.
            SandboxError: The snapshot is closed, or cannot be copied.
        """

    def put(self, path: str, data: bytes) -> None:
        """Writes a file below the working directory, and the directories it is to be in.

        All of it or nothing: the old file is there, and takes room, until the new one is whole.

        Args:
            path: Relative, without "..", and through no symbolic link.
            data: Its content.

        Raises:
            OSError: As `open` would; ELOOP or ENOTDIR where a part of it is a symbolic link.
            SandboxDied: The session had ended before this call.
        """

    def get(self, path: str) -> bytes:
        """Reads a regular file below the working directory; see `put`."""

    def close(self) -> None:
        """Ends every process of the session; returns when none is left. May be repeated."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@runtime_checkable
class Backend(Protocol):
    """A way to run a session apart from the host."""

    @property
    def name(self) -> str:
        """The word that selects this backend in a config."""

    @property
    def lacks(self) -> Mapping[str, str]:
        """Checks of `journeyman.sandbox.conformance` that do not apply to it, and why not."""

    def describe(self) -> dict[str, str]:
        """What isolates sessions on this machine, by layer; for people to read."""

    def session(self, limits: Limits, packages: tuple[str, ...]) -> Session:
        """Starts a session, or raises `IsolationUnavailable`; never isolates less than told."""


class Closing(abc.ABC):
    """What is closed at the end of its `with` block."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sandbox(Closing):
    """Runs untrusted Python under limits.

    Example:
        >>> with Sandbox().session() as session:  # doctest: +SKIP
        ...     session.exec("x = 20")
        ...     session.exec("x + 1").value_repr
        '21'
    """

    def __init__(
        self,
        backend: str | Backend = "namespace",
        limits: Limits | None = None,
        packages: Iterable[str] = (),
    ) -> None:
        """Picks a backend; starts nothing yet.

        Args:
            backend: A backend's name, or a backend.
            limits: Defaults to `Limits()`.
            packages: Modules to import into every session before it is used.
        """
        self.backend = resolve_backend(backend) if isinstance(backend, str) else backend
        self.limits = limits if limits is not None else Limits()
        self.packages = tuple(packages)
        self._idle: list[tuple[Session, Session]] = []  # a fresh session and a copy of it

    def __reduce__(self) -> tuple[type[Sandbox], tuple[Backend, Limits, tuple[str, ...]]]:
        """What is pickled leaves the sessions behind: another process starts its own."""
        return Sandbox, (self.backend, self.limits, self.packages)

    def session(self) -> Session:
        """Starts a session, whose state lasts until it is closed or killed."""
        return self.backend.session(self.limits, self.packages)

    def exec(self, code: str, timeout: float | None = None) -> ExecResult:
        """Runs `code` in a session of its own.

        That session is a copy of a fresh one, made ahead; the fresh one is kept for later calls
        (one for each thread that calls at once) until the sandbox is closed or dropped.
        """
        fresh, spare = self._ready()
        try:
            result = spare.exec(code, timeout)
            spare.close()
            if fresh.alive and result.killed_reason is not KilledReason.INFRA:
                self._idle.append((fresh, fresh.spare()))
                return result
        except BaseException:
            fresh.close()
            spare.close()
            raise
        fresh.close()
        return result

    def _ready(self) -> tuple[Session, Session]:
        """A fresh session and a copy of it: kept ones that live, or new ones."""
        with contextlib.suppress(IndexError):
            while True:
                fresh, spare = self._idle.pop()
                if fresh.alive:
                    return fresh, spare
                spare.close()
                fresh.close()
        fresh = self.session()
        return fresh, fresh.spare()

    def close(self) -> None:
        """Ends what was kept for `exec`; sessions go on. The sandbox can be used again."""
        while self._idle:
            for session in self._idle.pop():
                session.close()
