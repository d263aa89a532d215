"""What runs the user's code and so belongs to it: the loop of an interpreter, and its forks."""

from __future__ import annotations

import ast
import contextlib
import ctypes
import errno
import functools
import json
import linecache
import os
import signal
import socket
import sys
import traceback
import types
from typing import TYPE_CHECKING, Any

from journeyman.sandbox.worker.frames import receive_pieces

if TYPE_CHECKING:
    from collections.abc import Callable

# Goes in ONE datagram.
MAX_REPR = 32 << 10
MAX_ANSWER = MAX_REPR + 64
UNCOPIED = (
    "something else in the place of what tells its state",
    "threads",
    "open files",
    "a standard stream that is another file",
    "memory that is shared",
    "a file of its own mapped into memory",
    "memory that a fork does not get",
    "a timer",
    "children it has not waited for",
    "signals that wait to be delivered",
    "a signal for its parent's death",
)
"""What a fork does not copy, or shares."""
# Unlike a CDLL's, its calls keep the interpreter's lock: after a fork the copy must hold it.
_PYTHON = ctypes.PyDLL(None)


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
    cwd = area = getcwd()
    standard = [identity(stream) for stream in range(3)]
    while True:
        request, fds = receive_pieces(channel)
        if request is None:
            return
        if request["op"] == "fork":
            look = None
            if request["exact"]:
                own = {channel.fileno(), *fds}  # where 0 is closed, a new one is 0
                look = functools.partial(uncopied, own, standard, area, request["dropping"])
            pid = branch_off(channel, fds[0], request["lead"], look)
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


def branch_off(
    channel: socket.socket, fd: int, lead: bool, look: Callable[[], str | None] | None
) -> int:
    """Forks the REPL.

    Args:
        channel: The REPL's own, under whose number the copy finds its own.
        fd: The copy's channel.
        lead: The copy is to lead a session, as its original does.
        look: For an exact copy: says what there is that a fork does not copy.

    Returns:
        0 in the copy; else the copy's number, or -n if there is something that a fork does not
        copy: the n-th of `UNCOPIED`.
    """
    state = None
    if look is not None:
        what: str | None = UNCOPIED[0]
        with contextlib.suppress(Exception):  # the user's code put something else there
            chance = sys.modules.get("random")
            state = chance.getstate() if chance is not None else None
            what = look()
        if what is not None:
            os.close(fd)
            return -1 - UNCOPIED.index(what)
    pid = fork_sibling()
    if pid == 0:
        if lead:
            os.setsid()
        os.dup2(fd, channel.fileno(), inheritable=False)
        # Python reseeds `random` itself; generators made by the user's code stay as they are.
        if state is not None:
            sys.modules["random"].setstate(state)
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None and look is None:
            numpy_random.seed()
    os.close(fd)
    return pid


def identity(fd: int) -> tuple[int, int] | None:
    """What tells a descriptor's file from others; None if it is closed."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def uncopied(
    own: set[int], standard: list[tuple[int, int] | None], area: str, dropping: bool
) -> str | None:
    """Says what there is that a fork does not copy, in the words of `UNCOPIED`; None if nothing.

    Args:
        own: The descriptors that are not the user's.
        standard: What the standard streams were at first.
        area: Where the user's files are: another branch has copies.
        dropping: There may be memory that forks do not get.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        return "threads"
    streams = [fd for fd in range(3) if fd not in own]
    if len(set(map(int, os.listdir("/proc/self/fd"))) - own - set(streams)) > 1:
        return "open files"  # but for one, which reads the list
    if any(identity(fd) not in (None, standard[fd]) for fd in streams):
        return "a standard stream that is another file"
    with open("/proc/self/maps") as file:
        for line in file:
            _, rights, _, _, _, *rest = line.rstrip("\n").split(None, 5)
            path = rest[0] if rest else ""
            if path.startswith(f"{area}/"):
                return "a file of its own mapped into memory"
            # Though it cannot be written to now: rights can be changed back, and others may write.
            if rights[3] == "s" and not (os.path.exists(path) and not os.access(path, os.W_OK)):
                return "memory that is shared"
    if dropping:
        with open("/proc/self/smaps") as file:
            for line in file:
                flags = line.split()
                # Droppable memory (dp), libc's own, may vanish at any time: it holds no state.
                if flags[0] == "VmFlags:" and "dp" not in flags and {"dc", "wf"} & set(flags):
                    return "memory that a fork does not get"
    return _uncopied_by_the_kernel()


def _uncopied_by_the_kernel() -> str | None:
    timers = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
    if any(signal.getitimer(timer)[0] for timer in timers):
        return "a timer"
    with contextlib.suppress(OSError), open("/proc/self/timers") as file:
        if file.read(1):
            return "a timer"
    any_kind = os.WEXITED | os.WSTOPPED | os.WCONTINUED | 0x40000000  # __WALL
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_ALL, 0, any_kind | os.WNOHANG | os.WNOWAIT)
        return "children it has not waited for"
    if signal.sigpending():
        return "signals that wait to be delivered"
    get_death_signal, number = 2, ctypes.c_int()
    _PYTHON.prctl(get_death_signal, ctypes.byref(number), 0, 0, 0)
    return "a signal for its parent's death" if number.value else None


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
