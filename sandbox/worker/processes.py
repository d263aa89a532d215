"""The processes of a session: counted, timed, stopped, ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import time
from typing import Any

PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# How long killed processes may take to be gone before their remains are left to the next call: none
# of them runs on, but their memory and their places are still taken.
_GONE_S = 2.0
# How often to see if a process has stopped before it is slept over.
_STOP_LOOKS = 200
_WALL = 0x40000000  # of `wait4`: children too that end without SIGCHLD


def prctl(option: int, value: int) -> None:  # pragma: no cover - runs inside the sandbox
    """Changes what the kernel lets this process do, or do to it."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def cpu_clock(pid: int) -> int:
    """The kernel's clock of another process: nanoseconds, where /proc has hundredths."""
    return (~pid << 3) | 2


def _read_proc(pid: int, name: str) -> bytes:  # pragma: no cover - runs inside the sandbox
    """One of the short files about a process; empty if it is gone."""
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""
    finally:
        os.close(fd)


class Branch:  # pragma: no cover - runs inside the sandbox
    """A REPL, as the supervisor knows it."""

    def __init__(self, number: int, pid: int, channel: socket.socket) -> None:
        self.number = number
        self.pid = pid
        self.channel = channel
        self.handle = os.pidfd_open(pid)
        self.files: tuple[Any, ...] = ()  # while another branch's are in place
        self.dropping = False  # its code has had memory that no fork is to have
        self.status: int | None = None  # what `waitpid` said of its end
        self.doom: str | None = None  # the limit it was found beyond when it was put away
        self.tasks = 1  # threads, and children it has not waited for
        self.waited_s = 0.0  # processor seconds of the children that it has waited for
        self.cpu_limit = 0.0
        self.process_limit = 0


class Processes:  # pragma: no cover - runs inside the sandbox
    """Counts and ends the processes of the session."""

    def __init__(self, contained: bool) -> None:
        # Out of a pid namespace "all processes" would mean the host's: then only REPLs count.
        self.contained = contained
        assert not contained or os.getpid() == 1
        self.repls: dict[int, Branch] = {}
        self.awake: set[Branch] = set()  # may run since the last rest
        self.dying: set[int] = set()  # killed, but not yet gone
        # Processor seconds: of those that were waited for here; of strays, when last looked at.
        self.dead_s = self.stray_s = 0.0

    def add(self, branch: Branch) -> None:
        """Takes a REPL in, which runs."""
        self.repls[branch.pid] = branch
        self.awake.add(branch)

    def wake(self, branch: Branch) -> None:
        """Lets a REPL run until the next rest."""
        self.awake.add(branch)
        os.kill(branch.pid, signal.SIGCONT)

    def strays(self) -> list[int]:
        """All but the supervisor and the REPLs: what the running one has started."""
        if not self.contained:
            return []
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        ours = {1, *self.dying}
        return [pid for pid in pids if pid not in ours and pid not in self.repls]

    @staticmethod
    def stat(pid: int) -> list[bytes]:
        """What /proc says of a process, from its state on; empty if it is gone."""
        return _read_proc(pid, "stat").rpartition(b")")[2].split()

    @staticmethod
    def lives(stat: list[bytes]) -> bool:
        """Whether a process has a thread that runs, be it that its first one has exited.

        Such a process looks like a zombie but for the number of its threads.
        """
        return bool(stat) and (stat[0] not in (b"Z", b"X") or int(stat[17]) > 1)

    @staticmethod
    def resident(pid: int, stat: list[bytes]) -> int:
        """Bytes of memory that a process takes; what files it maps is not its own.

        Memory that processes share counts for each of those that have touched it. Of a process
        whose first thread has exited, only the other threads show it.
        """
        names = [b"%d" % pid]
        if stat[0] == b"Z" and int(stat[17]) > 1:
            with contextlib.suppress(OSError):
                names += map(os.fsencode, os.listdir(f"/proc/{pid}/task"))
        kinds = (b"RssAnon:", b"RssShmem:", b"VmSwap:", b"HugetlbPages:")
        for name in names:
            lines = _read_proc(pid, f"task/{name.decode()}/status").splitlines()
            found = [int(line.split()[1]) << 10 for line in lines if line.startswith(kinds)]
            if found:
                return sum(found)
        return 0

    def adopted(self, pid: int) -> bool:
        """Whether it is a stray that is the supervisor's own child."""
        return pid in self.strays() and self.stat(pid)[1:2] == [b"1"]

    def reap(self) -> None:
        """Takes the dead in; as process 1 that means every orphan."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, used = os.wait4(-1, os.WNOHANG | _WALL)
                if pid == 0:
                    return
                if pid in self.dying:  # a branch that is nobody's any more: not to be charged
                    self.dying.remove(pid)
                    continue
                self.dead_s += used.ru_utime + used.ru_stime
                if pid in self.repls:
                    self.repls[pid].status = status

    def seconds(self, branch: Branch) -> float:
        """Processor seconds of a REPL and of all the dead."""
        seconds = self.dead_s
        if branch.status is None:
            seconds += branch.waited_s
            with contextlib.suppress(OSError):  # none for a zombie
                seconds += time.clock_gettime(cpu_clock(branch.pid))
        return seconds

    def usage(self, branch: Branch, strays: list[int]) -> tuple[float, int]:
        """Processor seconds so far, the dead's included, and bytes resident now."""
        self.stray_s, resident, remains = 0.0, 0, 0
        for pid in [*strays, *([branch.pid] if branch.status is None else [])]:
            fields = self.stat(pid)
            if not fields:
                continue
            resident += self.resident(pid, fields)
            own, waited = (
                (int(fields[at]) + int(fields[at + 1])) / _TICKS_PER_SECOND for at in (11, 13)
            )
            if pid == branch.pid:
                branch.tasks, branch.waited_s = int(fields[17]), waited
                continue
            remains += fields[1] == b"%d" % branch.pid and not self.lives(fields)
            with contextlib.suppress(OSError):  # none for a zombie
                own = time.clock_gettime(cpu_clock(pid))
            self.stray_s += own + waited
        branch.tasks += remains
        return self.stray_s + self.seconds(branch), resident

    def rest(self) -> list[int]:
        """Leaves only the REPLs, stopped, and such dead as they have not waited for: the result."""
        if not self.contained:
            return []
        deadline = time.monotonic() + _GONE_S
        while True:
            # One call stops all at once, forks under way included, so that none can outrun the
            # kill. A REPL that is stopped before and after nothing else is left will stay so: the
            # end of a process could wake it (the kernel continues a group that it orphans).
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGSTOP)
            self.reap()
            stopped = self._all_stopped()
            strays = self.strays()
            running = [pid for pid in strays if self.lives(self.stat(pid))]
            gone = not running or time.monotonic() > deadline
            if stopped and gone and self._all_stopped():
                self.awake.clear()
                return strays
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.0005)

    def _all_stopped(self) -> bool:
        """Whether no thread of a REPL runs on: it may be in the midst of a system call.

        The kernel tells a parent of a stop when the last thread has stopped. That takes some
        microseconds, which are waited for here.
        """
        for _ in range(_STOP_LOOKS):
            if all(map(self._is_stopped, self.awake)):
                return True
            os.sched_yield()
        return False

    @staticmethod
    def _is_stopped(branch: Branch) -> bool:
        look = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        return branch.status is not None or os.waitid(os.P_PID, branch.pid, look) is not None

    def discard(self, branch: Branch) -> None:
        """Ends a REPL that rests, without waiting for its end."""
        if branch.status is None:
            os.kill(branch.pid, signal.SIGKILL)
            self.dying.add(branch.pid)
        self.awake.discard(branch)
        del self.repls[branch.pid]

    def kill(self, branch: Branch) -> None:
        """Ends a REPL and all that it has started."""
        self.rest()
        if branch.status is None:
            os.kill(branch.pid, signal.SIGKILL)
        while branch.status is None:
            self.reap()
            if branch.status is None:
                select.select([branch.handle], [], [], 1.0)
