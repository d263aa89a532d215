"""What runs inside a sandbox: a supervisor, and the interpreters (REPLs) that it watches.

The host hands this file's source to another Python (3.9 or later), which may have nothing but
the standard library; one file, because it goes through the wall as one. Two kinds of processes
come of it:

* The **supervisor** holds the control socket. In the namespace backend it is process 1, which
  no signal from within can kill or stop, and not dumpable, so that nobody can reach its memory
  or descriptors through /proc. It never runs the user's code.
* A **REPL** runs the user's code and so belongs to it. It holds three pipes of the user's own
  and one channel to the supervisor. All that it says is taken for hearsay: a message counts
  only if it is well-formed, bounded and carries the current call's nonce (so that bytes written
  blindly to every descriptor do nothing), and it can claim no more than an exit status and a repr.

The supervisor imports and warms up everything first; each REPL is forked from it, or from another
REPL: that is a **branch**, a copy of live state. All branches share the namespaces, so one at a
time runs; the others are stopped, have no processes beside them, and what a running one could
reach them by is shut:

* signals: a seccomp filter asks the supervisor (the `Gate`) about every call that names a target;
* /proc: no REPL is dumpable, and so none can be read by another;
* files: each branch's files are put in place when it runs, and taken away when another does.

Between calls every process but the REPLs is killed and the REPLs are stopped: an idle session
uses no processor time, and nothing that a snippet left behind runs on unwatched.
"""

from __future__ import annotations

import _thread  # `threading` would double what a copy does after its fork
import ast
import base64
import contextlib
import ctypes
import errno
import fcntl
import functools
import gc
import importlib
import itertools
import json
import linecache
import os
import resource
import select
import signal
import socket
import stat
import struct
import sys
import time
import traceback
import types
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEADER = struct.Struct(">I")
MAX_FRAME = 16 << 20
# Goes in ONE datagram.
MAX_REPR = 32 << 10
MAX_ANSWER = MAX_REPR + 64
# Requests may be longer than a datagram: they go in pieces.
_PIECE = 64 << 10
# A pipe holds 1 MiB at most (/proc/sys/fs/pipe-max-size).
_MOST_READS = 32
TICK_S = 0.02
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
# Unlike a CDLL's, its calls keep the interpreter's lock: after a fork the copy must hold it.
_PYTHON = ctypes.PyDLL(None)
# How long killed processes may take to be gone before their remains are left to the next call.
_GONE_S = 0.5


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


def receive_pieces(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Reads one framed message that came in datagrams, and the descriptors that came along."""
    piece, fds, _, _ = socket.recv_fds(channel, _PIECE, 1)
    if not piece:
        return None, fds
    (length,) = HEADER.unpack_from(piece)
    data = bytearray(piece)
    while len(data) < HEADER.size + length:
        data += channel.recv(_PIECE)
    message: dict[str, Any] = json.loads(data[HEADER.size :])
    return message, fds


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


def repl(channel: socket.socket) -> None:
    """Answers requests, to run snippets or to branch off, until there are no more."""
    # Bound early: the user's code can replace any attribute of any module.
    getpid, getcwd, chdir, leave, pack = os.getpid, os.getcwd, os.chdir, os._exit, pack_answer
    me = getpid()
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    number = 0
    cwd = getcwd()
    while True:
        request, fds = receive_pieces(channel)
        if request is None:
            return
        if request["op"] == "fork":
            pid = branch_off(channel, fds[0], request["lead"], request["exact"])
            if pid == 0:
                me = getpid()
                if not request["warm"]:
                    continue
                warm_up_copy()
            answer = pack(request["nonce"], 0, str(pid))
        else:
            number += 1
            if request["moved"]:  # the directory is another one, by the same name
                with contextlib.suppress(OSError):
                    chdir(cwd)
            status, value, cut = run_cell(request["code"], module.__dict__, f"<cell {number}>")
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(BaseException):
                    stream.flush()
            with contextlib.suppress(OSError):
                cwd = getcwd()
            if getpid() != me:
                leave(status)  # the snippet forked, this is the child: not its turn to answer
            answer = pack(request["nonce"], status, value, cut)
        channel.send(answer)


def pack_answer(nonce: str, status: int, value: str | None, cut: bool = False) -> bytes:
    """A REPL's message. Not JSON: so much code, run right after a fork, copies 36 pages more."""
    kind = "-" if value is None else "<" if cut else "="
    return f"{nonce} {status} {kind} {value or ''}".encode()


def branch_off(channel: socket.socket, fd: int, lead: bool, exact: bool) -> int:
    """Forks the REPL.

    Returns:
        0 in the copy, whose channel is `fd`; else the copy's number, or -1 if an exact copy was
        asked for and there is something that a fork does not copy.
    """
    state = None
    if exact:
        try:
            chance = sys.modules.get("random")
            state = chance.getstate() if chance is not None else None
            copied = all_copied({0, 1, 2, channel.fileno(), fd})
        except Exception:  # the user's code put something else there
            copied = False
        if not copied:
            os.close(fd)
            return -1
    pid = fork_sibling()
    if pid == 0:
        if lead:
            os.setsid()
        os.dup2(fd, channel.fileno(), inheritable=False)
        # Python reseeds `random` itself; generators made by the user's code stay as they are.
        if state is not None:
            sys.modules["random"].setstate(state)
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None and not exact:
            numpy_random.seed()
    os.close(fd)
    return pid


def all_copied(own: set[int]) -> bool:
    """Whether a fork copies all there is: threads end with it, open files become shared.

    Args:
        own: The descriptors that are not the user's.
    """
    opened = set(map(int, os.listdir("/proc/self/fd"))) - own
    return len(opened) == 1 and len(os.listdir("/proc/self/task")) == 1  # one reads the list


def fork_sibling() -> int:
    """Forks so that the copy is the parent's child: the user's `os.wait()` must not find it."""
    if len(os.listdir("/proc/self/task")) > 1:
        return _fork_orphan()
    clone_parent = 0x8000
    number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    _PYTHON.PyOS_BeforeFork()
    pid: int = _PYTHON.syscall(number, clone_parent | int(signal.SIGCHLD), 0, 0, 0, 0)
    if pid == 0:
        _PYTHON.PyOS_AfterFork_Child()
    else:
        _PYTHON.PyOS_AfterFork_Parent()
    if pid < 0:
        raise BlockingIOError(errno.EAGAIN, "no further process")
    return pid


def _fork_orphan() -> int:
    """Forks where other threads may hold locks of libc, which only libc's fork sees to.

    It has no flag for the parent: that is changed by a second fork, at ten times the price.
    """
    reader, writer = os.pipe()
    first = os.fork()
    if first:
        os.close(writer)
        with contextlib.suppress(ChildProcessError):  # the user's code ignores SIGCHLD
            os.waitpid(first, 0)
        pid = int(os.read(reader, 16))
        os.close(reader)
        return pid
    second = os.fork()
    if second:
        os.write(writer, b"%d" % second)
        os._exit(0)
    os.close(reader)
    os.close(writer)
    return 0


def warm_up() -> None:
    """Touches once what every snippet needs: page faults and imports are most of the latency."""
    saved, sys.stderr = sys.stderr, open(os.devnull, "w")  # noqa: SIM115
    try:
        run_cell("def f():\n    return 1 // 0\nf()", {}, "<warm-up>")
        run_cell("def", {}, "<warm-up>")
    finally:
        sys.stderr.close()
        sys.stderr = saved
    warm_up_copy()


def warm_up_copy() -> None:
    """Touches what nearly every snippet needs, so that a copy has these pages before its use."""
    run_cell("x = [i * 2 for i in range(9)]\nimport math\nmath.pi", {}, "<warm-up>")
    linecache.cache.pop("<warm-up>", None)
    json.loads(json.dumps({"warm": "\n"}))


# --- The supervisor ---------------------------------------------------------------------------
# Out of coverage's sight from here on: it runs as another process, as a rule in a namespace that
# cannot even see the project. The tests meet it through real sessions.

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38


def _prctl(option: int, value: int) -> None:  # pragma: no cover - runs inside the sandbox
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def _cpu_clock(pid: int) -> int:
    """The kernel's clock of another process: nanoseconds, where /proc has hundredths."""
    return (~pid << 3) | 2


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


class Gate:  # pragma: no cover - runs inside the sandbox
    """Decides, for the kernel, which process may signal which.

    The filter that every REPL runs under stops each call whose first argument is a process (`kill`
    and its kin, `pidfd_open`) until the supervisor has spoken.
    """

    RECEIVE, SEND = 0xC0502100, 0xC0182101
    NEW_LISTENER, CONTINUE = 8, 1
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
            known, caller, _, _, _, _, target, argument, *_ = self.NOTICE.unpack(notice)
            error, flags = self._verdict(branch, caller, target, argument)
            verdict = bytearray(self.VERDICT.pack(known, 0, -error, flags))
            fcntl.ioctl(self.listener, self.SEND, verdict, True)
        except (FileNotFoundError, ProcessLookupError):  # whoever asked is dead
            pass

    def _verdict(self, branch: Branch, caller: int, target: int, argument: int) -> tuple[int, int]:
        (pid,) = struct.unpack("=i", struct.pack("=I", target & 0xFFFFFFFF))
        if pid == -1:
            return self._signal_all(branch, caller, argument & 0xFFFFFFFF), 0
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


def _leader(pid: int) -> int:  # pragma: no cover - runs inside the sandbox
    """The process that a thread belongs to."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("Tgid:"):
                return int(line[5:])
    return pid


class Files:  # pragma: no cover - runs inside the sandbox
    """Takes the files of one branch away and puts those of another in their place.

    Nothing of the user's runs meanwhile, so there are no races here, but any tree must be
    expected. Pipes and sockets have no content to keep and are dropped.
    """

    MAX_DEPTH = 64
    MAX_PATH = 4000

    def __init__(self, area: str, max_bytes: int) -> None:
        self.area = os.open(area, os.O_RDONLY | os.O_DIRECTORY)
        self.max_bytes = max_bytes

    def save(self) -> list[Any]:
        """Reads the tree.

        Raises:
            OSError: It is deeper, or longer in all, than a branch's files may be.
        """
        os.fchmod(self.area, 0o700)
        entries: list[Any] = []
        self._left = self.max_bytes
        self._first: dict[int, str] = {}  # where each inode was met first
        self._walk(self.area, "", 0, entries)
        return entries

    def _walk(self, directory: int, path: str, depth: int, entries: list[Any]) -> None:
        if depth > self.MAX_DEPTH or len(os.fsencode(path)) > self.MAX_PATH:
            raise OSError(errno.ENAMETOOLONG, "directories nested too deep to branch")
        for name in os.listdir(directory):
            status = os.lstat(name, dir_fd=directory)
            place, mode, times = path + name, status.st_mode, status.st_mtime_ns
            if stat.S_ISDIR(mode):
                entries.append((place, mode, times, None))
                os.chmod(name, 0o700, dir_fd=directory)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
                os.fchmod(inner, 0o700)
                try:
                    self._walk(inner, place + "/", depth + 1, entries)
                finally:
                    os.fchmod(inner, stat.S_IMODE(mode))
                    os.close(inner)
            elif stat.S_ISLNK(mode):
                entries.append((place, mode, times, os.readlink(name, dir_fd=directory)))
            elif stat.S_ISREG(mode):
                first = self._first.setdefault(status.st_ino, place)
                data = self._read(directory, name, status) if first == place else first
                entries.append((place, mode, times, data))

    def _read(self, directory: int, name: str, status: os.stat_result) -> bytes:
        self._left -= status.st_size  # holes count: a copy fills them
        if self._left < 0:
            raise OSError(errno.EFBIG, "files too long to branch")
        os.chmod(name, 0o600, dir_fd=directory)
        with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=directory), "rb") as file:
            os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
            return file.read()

    @contextlib.contextmanager
    def _opened(self, path: str, flags: int) -> Iterator[int]:
        """Opens a regular file, through no symbolic link; makes its directories if it makes it."""
        *parents, name = path.split("/")
        directory = os.dup(self.area)
        try:
            for parent in parents:
                if flags & os.O_CREAT:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(parent, 0o700, dir_fd=directory)
                kind = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                inner = os.open(parent, kind, dir_fd=directory)
                os.close(directory)
                directory = inner
            # Not blocking: it may be a pipe that nobody else has open.
            flags |= os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(name, flags, 0o600, dir_fd=directory)
        finally:
            os.close(directory)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EISDIR, "no regular file")
            yield fd
        finally:
            os.close(fd)

    def read(self, path: str, at: int, count: int) -> bytes:
        """Reads a part of a file."""
        with self._opened(path, os.O_RDONLY) as fd:
            return os.pread(fd, count, at)

    def write(self, path: str, at: int, data: bytes) -> None:
        """Writes a part of a file, which ends there."""
        with self._opened(path, os.O_WRONLY | os.O_CREAT) as fd:
            os.ftruncate(fd, at)
            os.lseek(fd, at, os.SEEK_SET)
            _write_all(fd, data)

    def clear(self) -> bool:
        """Removes all, however deep, and says if there was anything."""
        os.fchmod(self.area, 0o700)
        prefix, numbers = os.urandom(8).hex(), itertools.count()
        found = False
        while True:
            names = os.listdir(self.area)
            if not names:
                return found
            found = True
            for name in names:
                if not stat.S_ISDIR(os.lstat(name, dir_fd=self.area).st_mode):
                    os.unlink(name, dir_fd=self.area)
                    continue
                os.chmod(name, 0o700, dir_fd=self.area)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.area)
                try:
                    for child in os.listdir(inner):  # moved up: no path grows long
                        if stat.S_ISDIR(os.lstat(child, dir_fd=inner).st_mode):
                            os.chmod(child, 0o700, dir_fd=inner)
                        up = f"{prefix}{next(numbers)}"
                        os.rename(child, up, src_dir_fd=inner, dst_dir_fd=self.area)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=self.area)

    def restore(self, entries: list[Any]) -> None:
        """Writes a tree that `save` read."""
        for place, mode, _, data in entries:
            if data is None:
                os.mkdir(place, 0o700, dir_fd=self.area)
            elif stat.S_ISLNK(mode):
                os.symlink(data, place, dir_fd=self.area)
            elif isinstance(data, str):
                os.link(data, place, src_dir_fd=self.area, dst_dir_fd=self.area)
            else:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                with os.fdopen(os.open(place, flags, 0o600, dir_fd=self.area), "wb") as file:
                    file.write(data)
        for place, mode, times, _ in reversed(entries):  # a directory is closed after its content
            if not stat.S_ISLNK(mode):
                os.utime(place, ns=(times, times), dir_fd=self.area)
                os.chmod(place, stat.S_IMODE(mode), dir_fd=self.area)


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
        self.files: list[Any] = []  # while another branch's are in place
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
        self.dying: set[int] = set()  # killed, but not yet gone
        # Processor seconds: of those that were waited for here; of strays, when last looked at.
        self.dead_s = self.stray_s = 0.0

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

    def adopted(self, pid: int) -> bool:
        """Whether it is a stray that is the supervisor's own child."""
        return pid in self.strays() and self.stat(pid)[1:2] == [b"1"]

    def reap(self) -> None:
        """Takes the dead in; as process 1 that means every orphan."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, used = os.wait4(-1, os.WNOHANG)
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
                seconds += time.clock_gettime(_cpu_clock(branch.pid))
        return seconds

    def usage(self, branch: Branch, strays: list[int]) -> tuple[float, int]:
        """Processor seconds so far, the dead's included, and bytes resident now."""
        self.stray_s, resident, remains = 0.0, 0, 0
        for pid in [*strays, *([branch.pid] if branch.status is None else [])]:
            fields = self.stat(pid)
            if not fields:
                continue
            statm = _read_proc(pid, "statm").split()
            if statm:
                resident += (int(statm[1]) - int(statm[2])) * _PAGE
            own, waited = (
                (int(fields[at]) + int(fields[at + 1])) / _TICKS_PER_SECOND for at in (11, 13)
            )
            if pid == branch.pid:
                branch.tasks, branch.waited_s = int(fields[17]), waited
                continue
            remains += fields[:2] == [b"Z", b"%d" % branch.pid]
            with contextlib.suppress(OSError):  # none for a zombie
                own = time.clock_gettime(_cpu_clock(pid))
            self.stray_s += own + waited
        branch.tasks += remains
        return self.stray_s + self.seconds(branch), resident

    def rest(self) -> list[int]:
        """Leaves only the REPLs, stopped, and such dead as they have not waited for: the result."""
        if not self.contained:
            return []
        deadline = time.monotonic() + _GONE_S
        # One call stops all at once, forks under way included, so that none can outrun the kill.
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGSTOP)
        while True:
            self.reap()
            strays = self.strays()
            running = [pid for pid in strays if self.stat(pid)[:1] != [b"Z"]]
            if not running or time.monotonic() > deadline:
                return strays
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.0005)

    def discard(self, branch: Branch) -> None:
        """Ends a REPL that rests, without waiting for its end."""
        if branch.status is None:
            os.kill(branch.pid, signal.SIGKILL)
            self.dying.add(branch.pid)
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


class Supervisor:  # pragma: no cover - runs inside the sandbox
    """Starts REPLs, passes them snippets, and decides what really happened."""

    def __init__(self, control: int, config: dict[str, Any], own_tasks: int) -> None:
        self.control = control
        self.config = config
        self.own_tasks = own_tasks  # threads of this process: the kernel counts them too
        self.limits: dict[str, Any] = config["limits"]
        self.processes = Processes(config["contained"])
        self.files = Files(config["area"], self.limits["workdir"])
        self.branches: dict[int, Branch] = {}
        self.in_place: Branch | None = None  # whose files are where they belong
        self.gate: Gate | None = None
        self.used_s = 0.0  # processor seconds of the call under way, when last looked at
        self.waiting: list[dict[str, Any]] = []  # requests that came before their turn

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
        # Only REPLs write to the user's pipes from now on.
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)

    @staticmethod
    def _channel() -> tuple[socket.socket, socket.socket]:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def _register(self, number: int, branch: Branch) -> None:
        self.branches[number] = branch
        self.processes.repls[branch.pid] = branch

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
            _write_all(2, f"the interpreter lost its channel to the supervisor: {error}\n".encode())
        finally:
            os._exit(status)

    def _confine_repl(self, channel: socket.socket) -> None:
        limits = self.limits
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _prctl(_PR_SET_DUMPABLE, 1)  # or the next file could not be written
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
            _prctl(_PR_SET_DUMPABLE, 0)
        fds = []
        if self.config["filters"]:
            _prctl(_PR_SET_NO_NEW_PRIVS, 1)
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
        answers = {"exec": self._exec, "fork": self._fork}
        answers.update(put=self._access, get=self._access)
        while True:
            request = self.waiting.pop(0) if self.waiting else receive(self.control)
            if request is None:
                return
            if request["op"] in answers:  # not a stop that crossed an answer
                for number in request["dropped"]:
                    self._drop(number)
                _write_all(self.control, encode(answers[request["op"]](request)))

    def _stopped(self) -> bool:
        """Reads what the host says during a call: to stop, or what is to be done next."""
        request = receive(self.control)
        if request is None:
            os._exit(0)  # the host is gone, and with process 1 all the rest goes
        if request["op"] == "stop":
            return True
        self.waiting.append(request)
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
            why = (
                "did not fork, or has threads or open files" if request["exact"] else "did not fork"
            )
            return {**reply, "error": f"its interpreter {why}"}
        try:
            copy.files = self.files.save()
        except OSError as error:
            reply["error"] = f"its files cannot be copied ({error.strerror})"
        if reply["ended"] or "error" in reply:
            self._forget(copy)
        return reply

    def _drop(self, number: int) -> None:
        branch = self.branches.get(number)
        if branch is not None:
            self._forget(branch)

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
            self.files.write(request["path"], request["at"], data)
        except OSError as error:
            return _reply(errno=error.errno or errno.EIO)
        return _reply()

    def _forget(self, branch: Branch) -> None:
        self.processes.discard(branch)
        del self.branches[branch.number]
        branch.channel.close()
        os.close(branch.handle)
        if self.in_place is branch:
            self.in_place = None

    def _meet(self, number: int, channel: socket.socket, warm: bool, claim: str | None) -> None:
        """Registers a copy, if it is what its original claims."""
        pid = int(claim) if claim and claim.isdigit() else 0
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
            os.kill(branch.pid, signal.SIGCONT)
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

    def _put_in_place(self, branch: Branch) -> bool:
        """Gives a branch its files; returns whether they are new copies."""
        if self.in_place is branch:
            return False
        if self.in_place is not None:
            try:
                self.in_place.files = self.files.save()
            except OSError:
                self.in_place.doom = "disk"
        try:
            self.files.clear()
            self.files.restore(branch.files)
        except OSError:
            branch.doom = "disk"
        self.in_place = branch
        moved, branch.files = bool(branch.files), []
        return moved

    def _set_rlimits(self, branch: Branch, forks: bool) -> None:
        # A second string to the count by `_over_limits`, for each process alone.
        spent = time.clock_gettime(_cpu_clock(branch.pid))
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
                socket.send_fds(branch.channel, [data[at : at + _PIECE]], fds if at == 0 else [])
            except OSError:  # it closed its end; it may run on, to no avail
                return False
            at += _PIECE
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


class Relay:  # pragma: no cover - runs inside the sandbox
    """Carries the control channel and the code's output over the one stream that there is.

    For a worker whose host is at the other end of its standard input and output. What the code
    wrote goes before the answer that came after it.
    """

    HEADER = struct.Struct(">BI")
    CONTROL = 0

    def __init__(self) -> None:
        self.inward, self.outward = os.dup(0), os.dup(1)
        self.ours, self.theirs = socket.socketpair()
        self.ended = _thread.allocate_lock()
        self.streams: dict[int, int] = {}
        for number in (1, 2):
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            os.dup2(writer, number)
            os.close(writer)
            self.streams[reader] = number
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)

    def start(self) -> None:
        """Starts the thread that carries."""
        self.ended.acquire()
        _thread.start_new_thread(self._run, ())

    def finish(self) -> None:
        """Waits until the last word is passed on."""
        self.theirs.close()
        self.ended.acquire()

    def _run(self) -> None:
        try:
            self._carry()
        finally:
            self.ended.release()

    def _carry(self) -> None:
        poller = select.poll()
        for fd in (self.inward, self.ours.fileno(), *self.streams):
            poller.register(fd, select.POLLIN)
        while True:
            events = dict(poller.poll())
            answered = self.ours.fileno() in events
            for fd in [fd for fd in self.streams if fd in events or answered]:
                if not self._pass_on(fd, all_of_it=answered):
                    poller.unregister(fd)
                    del self.streams[fd]
            if answered:
                data = self.ours.recv(_PIECE)
                if not data:
                    return
                self._send(self.CONTROL, data)
            if self.inward in events:
                data = os.read(self.inward, _PIECE)
                if not data:
                    os._exit(0)  # the host is gone, and with process 1 all the rest goes
                self.ours.sendall(data)

    def _pass_on(self, fd: int, all_of_it: bool) -> bool:
        """Passes on what is in a pipe; False at its end.

        Once the supervisor answers, whoever wrote is stopped and all of it is at most what a pipe
        holds; before that it may never end, and the host's word to stop must be heard.
        """
        for _ in range(_MOST_READS if all_of_it else 1):
            try:
                data = os.read(fd, _PIECE)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._send(self.streams[fd], data)
        return True

    def _send(self, kind: int, data: bytes) -> None:
        _write_all(self.outward, self.HEADER.pack(kind, len(data)) + data)


def describe_self() -> dict[str, Any]:  # pragma: no cover - runs inside the sandbox
    """What the host compares with itself before it trusts the walls."""
    kinds = ("user", "pid", "net", "mnt", "ipc", "uts")
    root = os.statvfs("/")
    with open("/proc/self/status") as file:
        parts = [line.partition(":") for line in file]
    return {
        "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds},
        "pid": os.getpid(),
        "root_read_only": bool(root.f_flag & os.ST_RDONLY),
        "python": sys.version.split()[0],
        "status": {name: value.strip() for name, _, value in parts},
    }


def main(link: str) -> None:  # pragma: no cover - runs inside the sandbox
    """Runs the supervisor.

    Args:
        link: The number of an inherited socket, or "relay" for standard input and output.
    """
    control = 0 if link == "relay" else int(link)
    os.set_inheritable(control, False)
    _prctl(_PR_SET_DUMPABLE, 0)
    # Python's own handler would let the session's processes interrupt the supervisor.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    config = receive(control)
    if config is None:
        return
    relay = Relay() if link == "relay" else None
    if relay is not None:
        control = relay.theirs.fileno()
    if not config["contained"]:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two for each branch
    sys.path[:0] = config["extra_path"] if config["python"] == list(sys.version_info[:2]) else []
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    supervisor = None
    hello = _import_packages(config["packages"])
    if not hello:
        warm_up()
        gc.collect()
        gc.freeze()  # so that the collector does not touch, and copy, every shared page
        hello = describe_self()
        supervisor = Supervisor(control, config, 1 if relay is None else 2)
        supervisor.start()
    if relay is not None:
        relay.start()  # after the fork: threads do not mix
    _write_all(control, encode(hello))
    if supervisor is not None:
        supervisor.serve()
    if relay is not None:
        relay.finish()


def _import_packages(names: list[str]) -> dict[str, Any]:  # pragma: no cover - inside the sandbox
    try:
        for name in names:
            importlib.import_module(name)
    except Exception as error:
        return {"error": f"importing {name}: {type(error).__name__}: {error}"}
    return {}


if __name__ == "__main__":  # pragma: no cover - runs inside the sandbox
    main(sys.argv[1])
