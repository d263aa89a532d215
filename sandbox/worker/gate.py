"""The filter of system calls that every REPL runs under, and who decides what it stops."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct

from journeyman.sandbox.worker.processes import Branch, Processes


class Gate:  # pragma: no cover - runs inside the sandbox
    """Decides, for the kernel, which process may signal which.

    The filter that every REPL runs under stops each call whose first argument is a process (`kill`
    and its kin, `pidfd_open`) until the supervisor has spoken. A `madvise` that keeps memory from
    forks is only taken note of: an exact copy must look for such memory, which takes it a while.
    """

    RECEIVE, SEND = 0xC0502100, 0xC0182101
    NEW_LISTENER, CONTINUE = 8, 1
    MADVISE = {"x86_64": 28, "aarch64": 233}.get(os.uname().machine)
    NOTICE = struct.Struct("=QIIiIQ6Q")
    VERDICT = struct.Struct("=QqiI")

    def __init__(self, listener: int, processes: Processes) -> None:
        self.listener = listener
        self.processes = processes

    @staticmethod
    def install(program: bytes, flags: int) -> int:
        """Puts a filter on this process and all it will fork; returns its listener, if any."""
        code = ctypes.create_string_buffer(program, len(program))
        descriptor = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
        number = {"x86_64": 317, "aarch64": 277}[os.uname().machine]
        set_mode_filter = 1
        call = ctypes.CDLL(None, use_errno=True).syscall
        listener: int = call(number, set_mode_filter, flags, descriptor)
        if listener < 0:
            raise OSError(ctypes.get_errno(), "the kernel takes no such seccomp filter")
        return listener

    def answer(self, branch: Branch) -> None:
        """Answers one call that a process of the running branch waits in."""
        notice = bytearray(self.NOTICE.size)
        try:
            fcntl.ioctl(self.listener, self.RECEIVE, notice, True)
            known, caller, _, call, _, _, target, argument, *_ = self.NOTICE.unpack(notice)
            if call == self.MADVISE:
                branch.dropping = True
                error, flags = 0, self.CONTINUE
            else:
                error, flags = self._verdict(branch, caller, target, argument)
            verdict = bytearray(self.VERDICT.pack(known, 0, -error, flags))
            fcntl.ioctl(self.listener, self.SEND, verdict, True)
        except (FileNotFoundError, ProcessLookupError):  # whoever asked is dead
            pass

    def _verdict(self, branch: Branch, caller: int, target: int, argument: int) -> tuple[int, int]:
        pid = _as_int(target)
        if pid == -1:
            return self._signal_all(branch, caller, _as_int(argument)), 0
        if pid > 0:
            leader = _leader(pid)
            barred = leader in self.processes.repls and leader != branch.pid
        else:
            group = -pid or os.getpgid(caller)
            repls = [each for each in self.processes.repls if each != branch.pid]
            barred = any(os.getpgid(each) == group for each in repls)
        return (errno.EPERM, 0) if barred else (0, self.CONTINUE)

    def _signal_all(self, branch: Branch, caller: int, number: int) -> int:
        """What kill(-1) means in a branch: all of its processes but the caller."""
        found = errno.ESRCH
        for pid in {branch.pid, *self.processes.strays()} - {caller, _leader(caller)}:
            with contextlib.suppress(ProcessLookupError):
                try:
                    os.kill(pid, number)
                except OSError as error:
                    return error.errno or errno.EINVAL
                found = 0
        return found


def _as_int(register: int) -> int:  # pragma: no cover - runs inside the sandbox
    """What the kernel takes a register for where it expects a C int."""
    (value,) = struct.unpack("=i", struct.pack("=I", register & 0xFFFFFFFF))
    return int(value)


def _leader(pid: int) -> int:  # pragma: no cover - runs inside the sandbox
    """The process that a thread belongs to."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("Tgid:"):
                return int(line[5:])
    return pid
