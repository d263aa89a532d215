"""What runs the user's code and so belongs to it: the loop of an interpreter, and its forks."""

from __future__ import annotations

import ast
import contextlib
import ctypes
import errno
import json
import linecache
import os
import signal
import socket
import sys
import traceback
import types
from typing import Any

from journeyman.sandbox.worker.frames import receive_pieces

# Goes in ONE datagram.
MAX_REPR = 32 << 10
MAX_ANSWER = MAX_REPR + 64
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
    """Whether a fork copies all there is: threads end with it, files and some memory are shared.

    Args:
        own: The descriptors that are not the user's.
    """
    with open("/proc/self/maps") as file:
        for rights in (line.split()[1] for line in file):
            if rights[1] == "w" and rights[3] == "s":
                return False
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
