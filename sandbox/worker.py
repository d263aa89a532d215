"""What runs inside a sandbox: a supervisor, and the interpreter (REPL) that it watches.

The host hands this file's source to another Python (3.9 or later), which may have nothing but
the standard library; one file, because it goes through the wall as one. Two processes come of it:

* The **supervisor** holds the control socket. In the namespace backend it is process 1, which
  no signal from within can kill or stop, and not dumpable, so that nobody can reach its memory
  or descriptors through /proc. It never runs the user's code.
* The **REPL** runs the user's code and so belongs to it. It holds three pipes of the user's own
  and the two channels to the supervisor. All that it says is taken for hearsay: a message counts
  only if it is well-formed, bounded and carries the current call's nonce (so that bytes written
  blindly to every descriptor do nothing), and it can claim no more than an exit status and a repr.

Between calls every process but the REPL is killed and the REPL is stopped: an idle session uses
no processor time, and nothing that a snippet left behind runs on unwatched.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import gc
import importlib
import json
import linecache
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback
import types
from typing import Any, NoReturn

HEADER = struct.Struct(">I")
MAX_FRAME = 16 << 20
# A repr is escaped (six bytes for one at worst) into ONE datagram, and Linux grants 208 KiB.
MAX_REPR = 32 << 10
MAX_RESULT = MAX_REPR * 6 + 1024
TICK_S = 0.02
# A stopped REPL can have itself continued (by a timer's signal, say): the time that it may run
# unwatched before that is noticed, and the processor time that noticing takes for proof.
IDLE_TICKS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
IDLE_CPU_S = 0.02
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def encode(message: dict[str, Any]) -> bytes:
    """Frames a message: its length, then JSON in ASCII."""
    body = json.dumps(message).encode("ascii")
    if len(body) > MAX_FRAME:
        raise ValueError(f"a message of {len(body)} bytes; the most is {MAX_FRAME}")
    return HEADER.pack(len(body)) + body


def receive(fd: int) -> dict[str, Any] | None:
    """Reads one framed message from a blocking descriptor; None at its end."""
    head = _read_exactly(fd, HEADER.size)
    if head is None:
        return None
    (length,) = HEADER.unpack(head)
    body = _read_exactly(fd, length)
    if body is None:
        return None
    message: dict[str, Any] = json.loads(body)
    return message


def _read_exactly(fd: int, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = os.read(fd, count - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


# --- The REPL ---------------------------------------------------------------------------------


def run_cell(code: str, namespace: dict[str, Any], filename: str) -> tuple[int, str | None, bool]:
    """Runs one snippet as a REPL would.

    Args:
        code: The source.
        namespace: The globals it runs in.
        filename: What tracebacks call it.

    Returns:
        The exit status, the repr of the last expression, and whether that was cut.
    """
    # Tracebacks quote the source, which is in no file.
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    try:
        return (0, *_evaluate(code, namespace, filename))
    except SystemExit as stop:
        return _exit_status(stop.code), None, False
    except BaseException as error:  # KeyboardInterrupt too: no exception may end the loop
        _print_trimmed(error)
        return 1, None, False


def _evaluate(code: str, namespace: dict[str, Any], filename: str) -> tuple[str | None, bool]:
    tree = ast.parse(code, filename)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    # dont_inherit: this file's own __future__ imports are not the user's.
    exec(compile(tree, filename, "exec", dont_inherit=True), namespace)
    if last is None:
        return None, False
    value = eval(compile(last, filename, "eval", dont_inherit=True), namespace)
    if value is None:
        return None, False
    raw = repr(value).encode("utf-8", "backslashreplace")
    return raw[:MAX_REPR].decode("utf-8", "ignore"), len(raw) > MAX_REPR


def _exit_status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _print_trimmed(error: BaseException) -> None:
    """Prints a traceback that starts at the user's first frame, not at ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, ast.__file__):
        trace = trace.tb_next
    try:
        traceback.print_exception(type(error), error, trace)
    except BaseException:  # the exception's own __str__ failed, or memory is out
        with contextlib.suppress(BaseException):
            print(f"{type(error).__name__} (its traceback could not be printed)", file=sys.stderr)


def repl(requests: int, results: socket.socket) -> None:
    """Answers requests to run snippets until there are no more."""
    # Bound early: the user's code can replace any attribute of any module.
    me, getpid, leave, dumps = os.getpid(), os.getpid, os._exit, json.dumps
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    number = 0
    while True:
        request = receive(requests)
        if request is None:
            return
        number += 1
        status, value, cut = run_cell(request["code"], module.__dict__, f"<cell {number}>")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        if getpid() != me:
            leave(status)  # the snippet forked and this is the child: the answer is not its to give
        answer = {"nonce": request["nonce"], "status": status, "value": value, "cut": cut}
        results.send(dumps(answer).encode("ascii"))


def warm_up() -> None:
    """Touches once what every snippet needs: page faults and imports are most of the latency."""
    saved, sys.stderr = sys.stderr, open(os.devnull, "w")  # noqa: SIM115
    try:
        run_cell("x = [i * 2 for i in range(9)]\nimport math\nmath.pi", {}, "<warm-up>")
        run_cell("def f():\n    return 1 // 0\nf()", {}, "<warm-up>")
        run_cell("def", {}, "<warm-up>")
    finally:
        sys.stderr.close()
        sys.stderr = saved
        linecache.cache.pop("<warm-up>", None)
    json.dumps({"warm": "\n"})


# --- The supervisor ---------------------------------------------------------------------------
# Out of coverage's sight from here on: it runs as another process, as a rule in a namespace that
# cannot even see the project. The tests meet it through real sessions.


def _set_dumpable(on: bool) -> None:  # pragma: no cover - runs inside the sandbox
    pr_set_dumpable = 4
    ctypes.CDLL(None).prctl(pr_set_dumpable, int(on), 0, 0, 0)


def _cpu_clock(pid: int) -> int:
    """The kernel's clock of another process: nanoseconds, where /proc has hundredths."""
    return (~pid << 3) | 2


def parse_result(raw: bytes, nonce: str) -> dict[str, Any] | None:
    """Takes a REPL's message at no more than its worth; None if it is not an answer at all."""
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or message.get("nonce") != nonce:
        return None
    status, value, cut = message.get("status"), message.get("value"), message.get("cut")
    if type(status) is not int or not 0 <= status <= 255 or type(cut) is not bool:
        return None
    if value is not None and not isinstance(value, str):
        return None
    return {"exit_status": status, "value_repr": value, "truncated": cut}


class Processes:  # pragma: no cover - runs inside the sandbox
    """Counts and ends the processes of the session."""

    def __init__(self, contained: bool) -> None:
        # Out of a pid namespace "all processes" would mean the host's: then only the REPL counts.
        self.contained = contained
        assert not contained or os.getpid() == 1
        self.repl = 0
        self.status: int | None = None

    def others(self) -> list[int]:
        """All but the supervisor."""
        if not self.contained:
            return [self.repl] if self.status is None else []
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]

    def reap(self) -> None:
        """Takes the dead in; as process 1 that means every orphan."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.repl:
                    self.status = status

    def usage(self) -> tuple[float, int]:
        """Processor seconds so far, dead children's included, and bytes resident now."""
        dead = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds, resident = dead.ru_utime + dead.ru_stime, 0
        for pid in self.others():
            try:
                with open(f"/proc/{pid}/stat", "rb") as file:
                    stat = file.read().rpartition(b")")[2].split()
                with open(f"/proc/{pid}/statm", "rb") as file:
                    statm = file.read().split()
            except OSError:  # gone meanwhile
                continue
            own, children = (
                (int(stat[at]) + int(stat[at + 1])) / _TICKS_PER_SECOND for at in (11, 13)
            )
            with contextlib.suppress(OSError):  # none for a zombie
                own = time.clock_gettime(_cpu_clock(pid))
            seconds += own + children
            resident += (int(statm[1]) - int(statm[2])) * _PAGE
        return seconds, resident

    def rest(self) -> None:
        """Leaves only the REPL, stopped."""
        if not self.contained:
            return
        # One call stops all at once, forks under way included, so that none can outrun the kill.
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGSTOP)
        for pid in self.others():
            if pid != self.repl:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        """Ends all but the supervisor, and waits for the REPL."""
        with contextlib.suppress(ProcessLookupError):
            if self.contained:
                os.kill(-1, signal.SIGKILL)
            elif self.status is None:
                os.kill(self.repl, signal.SIGKILL)
        while self.status is None:
            pid, status = os.waitpid(-1, 0)
            if pid == self.repl:
                self.status = status


class Supervisor:  # pragma: no cover - runs inside the sandbox
    """Starts the REPL, passes it snippets, and decides what really happened."""

    def __init__(self, control: int, config: dict[str, Any]) -> None:
        self.control = control
        self.config = config
        self.limits: dict[str, Any] = config["limits"]
        self.processes = Processes(config["contained"])
        self.requests = -1
        self.results: socket.socket
        self.repl_handle = -1
        self.unruly = False

    def start(self) -> None:
        """Forks the REPL."""
        requests, self.requests = os.pipe()
        self.results, results = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        results.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_RESULT)
        pid = os.fork()
        if pid == 0:
            self._become_repl(requests, results)
        os.close(requests)
        results.close()
        self.processes.repl = pid
        self.repl_handle = os.pidfd_open(pid)
        # Only the REPL writes to the user's pipes from now on.
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)

    def _become_repl(self, requests: int, results: socket.socket) -> NoReturn:
        status = 1
        try:
            kept = sorted({0, 1, 2, requests, results.fileno()})
            for low, high in zip(kept, [*kept[1:], 1 << 16]):  # noqa: B905 - Python 3.9
                os.closerange(low + 1, high)
            self._confine_repl()
            repl(requests, results)
            status = 0
        except OSError as error:
            _write_all(2, f"the interpreter lost its channel to the supervisor: {error}\n".encode())
        finally:
            os._exit(status)

    def _confine_repl(self) -> None:
        limits = self.limits
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _set_dumpable(True)  # its own /proc/self must work, as programs expect
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
        if self.config["contained"]:  # elsewhere it would count all processes of the host's user
            hard[resource.RLIMIT_NPROC] = limits["pids"] + 1  # the supervisor is one more
        for kind, value in hard.items():
            resource.setrlimit(kind, (value, value))

    def serve(self) -> None:
        """Answers the host until it hangs up or the session is over."""
        while True:
            request = receive(self.control)
            if request is None:
                return
            if request["op"] != "exec":  # a stop that crossed an answer
                continue
            reply = self._exec(request["code"])
            _write_all(self.control, encode(reply))
            if reply["ended"]:
                return
            self._idle()

    def _idle(self) -> None:
        """Waits for the host; ends a REPL that does not rest meanwhile."""
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        at_rest, _ = self.processes.usage()
        ticks = iter(IDLE_TICKS_S)
        tick = IDLE_TICKS_S[0]
        while not poller.poll(tick * 1000):
            tick = next(ticks, IDLE_TICKS_S[-1])
            used = self.processes.usage()[0] - at_rest
            if self.processes.contained and used > IDLE_CPU_S:
                self.processes.kill()
                self.unruly = True
                return

    def _exec(self, code: str) -> dict[str, Any]:
        processes = self.processes
        processes.reap()
        before, _ = processes.usage()
        self._limit_cpu()
        nonce = os.urandom(16).hex()
        if processes.status is None:
            os.kill(processes.repl, signal.SIGCONT)
            with contextlib.suppress(BrokenPipeError):
                _write_all(self.requests, encode({"code": code, "nonce": nonce}))
        reply: dict[str, Any] = {"exit_status": None, "signal": None}
        reply.update(value_repr=None, truncated=False)
        answer, reason = self._watch(nonce, before)
        if answer is not None:
            reply.update(answer)
            processes.rest()
            reason = self._over_limits(before)
        if answer is None or reason is not None:
            processes.kill()
        cpu = processes.usage()[0] - before
        if processes.status is not None:
            reason = "cpu" if self.unruly else self._describe_end(reply, reason, cpu)
        reply.update(killed=reason, cpu_s=cpu, ended=processes.status is not None)
        return reply

    def _limit_cpu(self) -> None:
        """A second string to the count by `_over_limits`, for each process alone."""
        if self.processes.status is None:
            spent = time.clock_gettime(_cpu_clock(self.processes.repl))
            soft = int(spent + self.limits["cpu"]) + 2
            _, hard = resource.prlimit(self.processes.repl, resource.RLIMIT_CPU)
            if hard == resource.RLIM_INFINITY or soft < hard:
                resource.prlimit(self.processes.repl, resource.RLIMIT_CPU, (soft, hard))

    def _watch(self, nonce: str, before: float) -> tuple[dict[str, Any] | None, str | None]:
        """Waits for an answer, or the REPL's end, or a reason to end it."""
        poller = select.poll()
        for fd in (self.control, self.results.fileno(), self.repl_handle):
            poller.register(fd, select.POLLIN)
        check_at = time.monotonic() + TICK_S
        while True:
            events = dict(poller.poll(max(0.0, check_at - time.monotonic()) * 1000))
            if self.control in events:
                if receive(self.control) is None:
                    os._exit(0)  # the host is gone, and with process 1 all the rest goes
                return None, None  # it said stop
            heard = events.get(self.results.fileno(), 0)
            if heard & select.POLLIN:  # first, for what was said before the end still counts
                raw = self.results.recv(MAX_RESULT)
                answer = parse_result(raw, nonce)
                if answer is not None:
                    return answer, None
                if not raw and heard & select.POLLHUP:
                    # The code closed the REPL's only way to answer; it may run to its end yet.
                    poller.unregister(self.results.fileno())
            elif self.repl_handle in events:
                return None, None
            if time.monotonic() >= check_at:
                reason = self._over_limits(before)
                if reason is not None:
                    return None, reason
                check_at = time.monotonic() + TICK_S

    def _over_limits(self, before: float) -> str | None:
        self.processes.reap()
        seconds, resident = self.processes.usage()
        if seconds - before > self.limits["cpu"]:
            return "cpu"
        if resident > self.limits["memory"]:
            return "memory"
        if self.config["contained"]:
            disk = os.statvfs(".")
            if disk.f_files - disk.f_ffree > self.limits["inodes"]:
                return "disk"
        return None

    def _describe_end(self, reply: dict[str, Any], reason: str | None, cpu: float) -> str | None:
        status = self.processes.status
        assert status is not None
        if os.WIFSIGNALED(status):
            reply.update(exit_status=None, signal=os.WTERMSIG(status))
            if reply["signal"] == signal.SIGXCPU and cpu >= self.limits["cpu"]:
                return "cpu"
        else:
            reply["exit_status"] = os.WEXITSTATUS(status)
        return reason


def describe_self() -> dict[str, Any]:  # pragma: no cover - runs inside the sandbox
    """What the host compares with itself before it trusts the walls."""
    kinds = ("user", "pid", "net", "mnt", "ipc", "uts")
    root = os.statvfs("/")
    return {
        "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds},
        "pid": os.getpid(),
        "root_read_only": bool(root.f_flag & os.ST_RDONLY),
        "python": sys.version.split()[0],
    }


def main(control: int) -> None:  # pragma: no cover - runs inside the sandbox
    """Runs the supervisor on an inherited socket."""
    os.set_inheritable(control, False)
    _set_dumpable(False)
    # Python's own handler would let the session's processes interrupt the supervisor.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    config = receive(control)
    if config is None:
        return
    sys.path[:0] = config["extra_path"] if config["python"] == list(sys.version_info[:2]) else []
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        for name in config["packages"]:
            importlib.import_module(name)
    except Exception as error:
        _write_all(control, encode({"error": f"importing {name}: {type(error).__name__}: {error}"}))
        return
    warm_up()
    gc.collect()
    gc.freeze()  # so that the collector does not touch, and copy, every shared page
    hello = describe_self()
    supervisor = Supervisor(control, config)
    supervisor.start()
    _write_all(control, encode(hello))
    supervisor.serve()


if __name__ == "__main__":  # pragma: no cover - runs inside the sandbox
    main(int(sys.argv[1]))
