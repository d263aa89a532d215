"""The process that watches: it starts REPLs, lets one run at a time, and decides what happened."""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import functools
import os
import resource
import select
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, NoReturn

from journeyman.sandbox.worker.files import Files, Kept
from journeyman.sandbox.worker.frames import PIECE, encode, receive, write_all
from journeyman.sandbox.worker.gate import Gate
from journeyman.sandbox.worker.processes import (
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    Branch,
    Processes,
    cpu_clock,
    prctl,
)
from journeyman.sandbox.worker.repl import MAX_ANSWER, UNCOPIED, repl

if TYPE_CHECKING:
    from collections.abc import Callable


TICK_S = 0.02
SOCKETS_S = 2.0  # how long the end of a branch that has sockets is waited for
F_SETPIPE_SZ, PIPE_BYTES = 1031, 64 << 10  # as a new pipe has; `fcntl` names it since Python 3.10


def parse_answer(raw: bytes, nonce: str) -> dict[str, Any] | None:
    """Takes a REPL's message at no more than its worth; None if it is not an answer at all."""
    parts = raw.split(b" ", 3)
    if len(parts) != 4 or parts[0] != nonce.encode():
        return None
    _, status, kind, value = parts
    if not (status.isdigit() and len(status) <= 3 and int(status) <= 255):
        return None
    if kind not in (b"-", b"=", b"<"):
        return None
    text = None if kind == b"-" else value.decode("utf-8", "replace")
    return {"exit_status": int(status), "value_repr": text, "truncated": kind == b"<"}


def uncopied_kind(claim: str | None) -> str | None:
    """Which of `UNCOPIED` an interpreter says that it has, if it says so at all."""
    for number, kind in enumerate(UNCOPIED, 1):
        if claim == f"-{number}":
            return kind
    return None


class Sockets:  # pragma: no cover - runs inside the sandbox
    """Counts the sockets of the network namespace, those that are bound to nothing included."""

    def __init__(self) -> None:
        self.file = -1
        with contextlib.suppress(OSError):
            self.file = os.open("/proc/net/sockstat", os.O_RDONLY)
        self.own = self._used() - 2  # but for the channel of the first REPL

    def _used(self) -> int:
        if self.file < 0:
            return 0
        return int(os.pread(self.file, 64, 0).split()[2])

    def extra(self, branches: int) -> bool:
        """Whether there are more than one channel for each branch takes."""
        return self._used() > self.own + 2 * branches


class Supervisor:  # pragma: no cover - runs inside the sandbox
    """Starts REPLs, passes them snippets, and decides what really happened."""

    def __init__(self, control: int, config: dict[str, Any], own_tasks: int) -> None:
        self.control = control
        self.config = config
        self.own_tasks = own_tasks  # threads of this process: the kernel counts them too
        self.limits: dict[str, Any] = config["limits"]
        self.processes = Processes(config["contained"])
        self.files = Files(config["area"], self.limits["workdir"])
        self.kept = Kept(self.limits["branch_files"])
        self.branches: dict[int, Branch] = {}
        self.in_place: Branch | None = None  # whose files are where they belong
        self.gate: Gate | None = None
        self.used_s = 0.0  # processor seconds of the call under way, when last looked at
        self.waiting: list[dict[str, Any]] = []  # requests that came before their turn
        self.outputs: list[int] = []  # the user's pipes

    # --- the first REPL ---

    def start(self) -> None:
        """Forks the REPL that all others descend from."""
        channel, theirs = self._channel()
        pid = os.fork()
        if pid == 0:
            self._become_repl(theirs)
        theirs.close()
        _, fds, _, _ = socket.recv_fds(channel, 1, 1)
        if self.config["filters"]:
            if not fds:
                raise OSError(errno.ENOSYS, "no seccomp listener came from the interpreter")
            self.gate = Gate(fds[0], self.processes)
        self._register(0, Branch(0, pid, channel))
        self.in_place = self.branches[0]
        self.sockets = Sockets()
        # Only REPLs write to the user's pipes from now on.
        self.outputs = [os.dup(1), os.dup(2)]
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)

    @staticmethod
    def _channel() -> tuple[socket.socket, socket.socket]:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def _register(self, number: int, branch: Branch) -> None:
        self.branches[number] = branch
        self.processes.add(branch)

    def _become_repl(self, channel: socket.socket) -> NoReturn:
        status = 1
        try:
            if self.config["contained"]:
                os.setsid()
            kept = sorted({0, 1, 2, channel.fileno()})
            for low, high in zip(kept, [*kept[1:], 1 << 16]):  # noqa: B905 - Python 3.9
                os.closerange(low + 1, high)
            self._confine_repl(channel)
            repl(channel)
            status = 0
        except OSError as error:
            write_all(2, f"the interpreter lost its channel to the supervisor: {error}\n".encode())
        finally:
            os._exit(status)

    def _confine_repl(self, channel: socket.socket) -> None:
        limits = self.limits
        signal.signal(signal.SIGINT, signal.default_int_handler)
        prctl(PR_SET_DUMPABLE, 1)  # or the next file could not be written
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # if memory runs out on the host, this goes first
        hard = {
            resource.RLIMIT_AS: limits["memory"],
            resource.RLIMIT_FSIZE: limits["workdir"],
            resource.RLIMIT_NOFILE: limits["open_files"],
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_MSGQUEUE: 0,
        }
        for kind, value in hard.items():
            resource.setrlimit(kind, (value, value))
        if self.config["contained"]:  # elsewhere it would count all processes of the host's user
            # The soft limit holds (the filter lets nobody raise it) and grows with the branches.
            soft = limits["pids"] + self.own_tasks
            resource.setrlimit(resource.RLIMIT_NPROC, (soft, soft + limits["branches"]))
            prctl(PR_SET_DUMPABLE, 0)
        fds = []
        if self.config["filters"]:
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            *plain, gated = map(bytes.fromhex, self.config["filters"])
            for program in plain:
                Gate.install(program, 0)
            fds.append(Gate.install(gated, Gate.NEW_LISTENER))
        socket.send_fds(channel, [b"."], fds)
        for fd in fds:
            os.close(fd)

    # --- the host's requests ---

    def serve(self) -> None:
        """Answers the host until it hangs up."""
        while True:
            request = self.waiting.pop(0) if self.waiting else receive(self.control)
            if request is None:
                return
            if request["op"] != "stop":  # else it crossed an answer
                for number in request["dropped"]:
                    self._drop(number)
                if request["op"] != "put" or request["at"] == 0:
                    self.files.abandon()
                write_all(self.control, encode(self._answer(request)))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Does what was asked. What goes wrong with a branch ends that branch, and no other."""
        answers = {"exec": self._exec, "fork": self._fork}
        answers.update(put=self._access, get=self._access)
        try:
            if not request.get("stopped"):
                return answers[request["op"]](request)
            why = "its time was over before its turn came"
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        branch = self.branches.get(request["branch"])
        if branch is not None:
            self.processes.kill(branch)
            self._forget(branch)
        return _reply(ended=True, signal=int(signal.SIGKILL), error=why)

    def _stopped(self) -> bool:
        """Reads what the host says during a call: to stop it, or what is to be done next.

        The host may have asked for more than it waits for, and stops only what it waits for: the
        last that it asked for.
        """
        request = receive(self.control)
        if request is None:
            os._exit(0)  # the host is gone, and with process 1 all the rest goes
        if request["op"] != "stop":
            self.waiting.append(request)
        elif self.waiting:
            self.waiting[-1]["stopped"] = True
        else:
            return True
        return False

    def _exec(self, request: dict[str, Any]) -> dict[str, Any]:
        branch = self.branches.get(request["branch"])
        if branch is None:  # nobody's fault but ours: a copy of a fresh interpreter failed
            return _reply(ended=True, killed="infra")
        return self._converse(branch, {"op": "exec", "code": request["code"]}, [])

    def _fork(self, request: dict[str, Any]) -> dict[str, Any]:
        source = self.branches.get(request["branch"])
        if source is None:
            return _reply(error="its interpreter is gone")
        number = request["to"]
        message = {"op": "fork", "lead": self.config["contained"]}
        message.update(warm=request["warm"], exact=request["exact"])
        # Without a gate nobody has heard whether the code has asked for such memory.
        message["dropping"] = source.dropping or self.gate is None
        try:
            channel, theirs = self._channel()
        except OSError as error:
            return _reply(error=f"no channel for another branch ({error})")
        with theirs:
            meet = functools.partial(self._meet, number, channel, request["warm"])
            reply = self._converse(source, message, [theirs.fileno()], meet)
        copy = self.branches.get(number)
        if copy is None:
            channel.close()
            what = uncopied_kind(reply["value_repr"])
            why = f"has {what}, of which there is no exact copy" if what else "did not fork"
            return {**reply, "error": f"its interpreter {why}"}
        copy.dropping = source.dropping
        try:
            copy.files = self.kept.hold(self.files.save(request["exact"]))
        except OSError as error:
            reply["error"] = f"its files cannot be copied ({error.strerror})"
        if reply["ended"] or "error" in reply:
            self._forget(copy)
        return reply

    def _drop(self, number: int) -> None:
        branch = self.branches.get(number)
        if branch is not None:
            binds = self.sockets.extra(len(self.branches))
            self._forget(branch, wait=binds)

    def _access(self, request: dict[str, Any]) -> dict[str, Any]:
        """Reads or writes a file of a branch, which rests meanwhile."""
        branch = self.branches.get(request["branch"])
        if branch is None:
            return _reply(ended=True, killed="infra")
        self._put_in_place(branch)
        if branch.doom is not None:
            self.processes.kill(branch)
            self._forget(branch)
            return _reply(ended=True, killed=branch.doom)
        try:
            if request["op"] == "get":
                data = self.files.read(request["path"], request["at"], request["count"])
                return _reply(data=base64.b64encode(data).decode("ascii"))
            data = base64.b64decode(request["data"])
            self.files.write(request["path"], request["at"], data, request["last"])
        except OSError as error:
            return _reply(errno=error.errno or errno.EIO)
        return _reply()

    def _forget(self, branch: Branch, wait: bool = False) -> None:
        self.processes.discard(branch)
        if wait:  # it may hold ports and names that the next one wants
            select.select([branch.handle], [], [], SOCKETS_S)
        del self.branches[branch.number]
        branch.channel.close()
        os.close(branch.handle)
        self.kept.drop(branch.files)
        if self.in_place is branch:
            self.in_place = None

    def _meet(self, number: int, channel: socket.socket, warm: bool, claim: str | None) -> None:
        """Registers a copy, if it is what its original claims."""
        number_like = claim is not None and claim.isascii() and claim.isdigit()
        pid = int(claim) if claim and number_like and len(claim) < 9 else 0
        if pid == 0 or (self.processes.contained and not self.processes.adopted(pid)):
            return
        if warm:
            poller = select.poll()
            poller.register(channel, select.POLLIN)
            poller.register(self.control, select.POLLIN)
            while channel.fileno() not in dict(poller.poll()):
                if self._stopped():
                    return
            with contextlib.suppress(ConnectionResetError):
                channel.recv(MAX_ANSWER)
        with contextlib.suppress(ProcessLookupError):
            self._register(number, Branch(number, pid, channel))

    # --- letting a branch run ---

    def _converse(
        self,
        branch: Branch,
        message: dict[str, Any],
        fds: list[int],
        meet: Callable[[str | None], None] | None = None,
    ) -> dict[str, Any]:
        """Lets a branch run until it has answered or must end; all rests again afterwards."""
        processes = self.processes
        message["moved"] = self._put_in_place(branch)
        processes.reap()
        before = processes.seconds(branch) + processes.stray_s
        with contextlib.suppress(OSError):  # it is dead, or dies as we speak
            self._set_rlimits(branch, forks=meet is not None)
        nonce = message["nonce"] = os.urandom(16).hex()
        answer, reason = None, branch.doom
        if branch.status is None and reason is None:
            self._restore_outputs()
            processes.wake(branch)
            if self._deliver(branch, encode(message), fds):
                answer, reason = self._watch(branch, nonce, before)
        reply = _reply()
        if answer is not None:
            reply.update(answer)
            if meet is not None:
                meet(answer["value_repr"])
            reason = self._over_limits(branch, before, processes.rest())
        if answer is None or reason is not None:
            processes.kill(branch)
            self.used_s = processes.usage(branch, processes.strays())[0] - before
        reply["cpu_s"] = self.used_s
        if branch.status is not None:
            reply.update(killed=self._describe_end(branch, reply, reason), ended=True)
            self._forget(branch)
        return reply

    def _restore_outputs(self) -> None:
        """Sets the pipes, which all branches share, as they were at first."""
        for fd in self.outputs:
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_WRONLY)
            with contextlib.suppress(OSError):  # the user's pipes have too many pages: it is slower
                fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES)

    def _put_in_place(self, branch: Branch) -> bool:
        """Gives a branch its files; returns whether they are new copies."""
        if self.in_place is branch:
            return False
        if self.in_place is not None:
            try:
                self.in_place.files = self.kept.hold(self.files.save())
            except OSError:
                self.in_place.doom = "disk"
        try:
            self.files.clear()
            self.files.restore(branch.files)
        except OSError:
            branch.doom = "disk"
        self.in_place = branch
        moved = len(branch.files) > 1
        self.kept.drop(branch.files)
        branch.files = ()
        return moved

    def _set_rlimits(self, branch: Branch, forks: bool) -> None:
        # A second string to the count by `_over_limits`, for each process alone.
        spent = time.clock_gettime(cpu_clock(branch.pid))
        if branch.cpu_limit < spent + self.limits["cpu"] + 1:
            branch.cpu_limit = int(spent + self.limits["cpu"]) + 3
            self._prlimit(branch, resource.RLIMIT_CPU, branch.cpu_limit)
        # The kernel counts all branches and the supervisor; a fork is made in two steps.
        others = sum(each.tasks for each in self.branches.values() if each is not branch)
        most = self.limits["pids"] + self.own_tasks + others + (2 if forks else 0)
        if self.processes.contained and most != branch.process_limit:
            branch.process_limit = most
            self._prlimit(branch, resource.RLIMIT_NPROC, most)

    @staticmethod
    def _prlimit(branch: Branch, kind: int, soft: int) -> None:
        _, hard = resource.prlimit(branch.pid, kind)
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        resource.prlimit(branch.pid, kind, (soft, hard))

    def _deliver(self, branch: Branch, data: bytes, fds: list[int]) -> bool:
        """Sends a request, though its receiver may not take it; False if it did not arrive."""
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        poller.register(branch.handle, select.POLLIN)
        poller.register(branch.channel, select.POLLOUT)
        at = 0
        while at < len(data):
            events = dict(poller.poll())
            if branch.handle in events or (self.control in events and self._stopped()):
                return False
            if branch.channel.fileno() not in events:
                continue
            try:
                socket.send_fds(branch.channel, [data[at : at + PIECE]], fds if at == 0 else [])
            except OSError:  # it closed its end; it may run on, to no avail
                return False
            at += PIECE
        return True

    def _watch(
        self, branch: Branch, nonce: str, before: float
    ) -> tuple[dict[str, Any] | None, str | None]:
        """Waits for an answer, or the REPL's end, or a reason to end it."""
        channel, gate = branch.channel.fileno(), self.gate
        poller = select.poll()
        for fd in (self.control, channel, branch.handle):
            poller.register(fd, select.POLLIN)
        if gate is not None:
            poller.register(gate.listener, select.POLLIN)
        check_at = time.monotonic() + TICK_S
        while True:
            events = dict(poller.poll(max(0.0, check_at - time.monotonic()) * 1000))
            if self.control in events and self._stopped():
                return None, None
            if gate is not None and gate.listener in events:
                gate.answer(branch)
            heard = events.get(channel, 0)
            if heard & select.POLLIN:  # first, for what was said before the end still counts
                raw = b""
                with contextlib.suppress(ConnectionResetError):  # it ended, its request unread
                    raw = branch.channel.recv(MAX_ANSWER)
                answer = parse_answer(raw, nonce)
                if answer is not None:
                    return answer, None
                if not raw and heard & select.POLLHUP:
                    # The code closed the REPL's only way to answer; it may run to its end yet.
                    poller.unregister(channel)
            elif branch.handle in events:
                return None, None
            if time.monotonic() >= check_at:
                self.processes.reap()
                reason = self._over_limits(branch, before, self.processes.strays())
                if reason is not None:
                    return None, reason
                check_at = time.monotonic() + TICK_S

    def _over_limits(self, branch: Branch, before: float, strays: list[int]) -> str | None:
        seconds, resident = self.processes.usage(branch, strays)
        self.used_s = seconds - before
        if self.used_s > self.limits["cpu"]:
            return "cpu"
        if resident > self.limits["memory"]:
            return "memory"
        if self.config["contained"]:
            disk = os.fstatvfs(self.files.area)
            if disk.f_files - disk.f_ffree > self.limits["inodes"]:
                return "disk"
        return None

    def _describe_end(
        self, branch: Branch, reply: dict[str, Any], reason: str | None
    ) -> str | None:
        status = branch.status
        assert status is not None
        if os.WIFSIGNALED(status):
            reply.update(exit_status=None, signal=os.WTERMSIG(status))
            if reply["signal"] == signal.SIGXCPU and reply["cpu_s"] >= self.limits["cpu"]:
                return "cpu"
        else:
            reply["exit_status"] = os.WEXITSTATUS(status)
        return reason


def _reply(**changes: Any) -> dict[str, Any]:  # pragma: no cover - runs inside the sandbox
    reply = {"exit_status": None, "signal": None, "value_repr": None, "truncated": False}
    return {**reply, "killed": None, "cpu_s": 0.0, "ended": False, **changes}
