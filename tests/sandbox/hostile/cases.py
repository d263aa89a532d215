"""Hostile programs, and what must come of each. They run inside a sandbox only.

An act that could change the machine if a wall were missing is probed: opened and not written,
called with arguments that cannot succeed. A case says what it expects:

* `refused`: the statement raises OSError (with one of the given errnos);
* `ended`: the sandbox killed it for one of the reasons, or it died of one of the signals;
* `raises`: an exception of the given name reaches the top;
* `prints`: it runs to its end and prints just that;
* `bounded`: it runs to its end, where it asserts that it was stopped, or is `ended`.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Any

from journeyman.sandbox import ExecResult, KilledReason, probes

REFUSALS = {errno.EPERM, errno.ENOSYS}
"""What a filter answers: not what the call itself would, had it been let through."""

PRELUDE = """
import ctypes, errno, mmap, os, resource, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
def call(numbers, *arguments):
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(numbers[column], *longs)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""


@dataclass(frozen=True)
class Case:
    """One attack.

    Attributes:
        name: What is tried.
        code: Python, run after `PRELUDE`.
        expect: See the module's docstring; with `reasons`, `text` or `errnos` as it needs.
        limits: Changes to the suite's limits.
        without: Backends that cannot express it, and why.
    """

    name: str
    code: str
    expect: str = "refused"
    errnos: frozenset[int] = frozenset()
    reasons: tuple[KilledReason | int, ...] = ()
    text: str = ""
    limits: dict[str, Any] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)

    @property
    def program(self) -> str:
        """What is run in the sandbox."""
        if self.expect != "refused":
            return self.code
        body = "\n".join(f"    {line}" for line in self.code.splitlines())
        return (
            f"try:\n{body}\nexcept OSError as error:\n    print('refused', error.errno)\n"
            "else:\n    print('IT WORKED')"
        )

    def failure(self, result: ExecResult) -> str:
        """Says what is wrong with a result; empty if the attack failed as it should."""
        if self.expect == "refused":
            word, _, number = result.stdout.strip().partition(" ")
            held = word == "refused" and (not self.errnos or int(number) in self.errnos)
        elif self.expect == "ended":
            held = result.killed_reason in self.reasons or result.signal in self.reasons
        elif self.expect == "bounded":
            held = result.ok or result.killed_reason in self.reasons
        elif self.expect == "raises":
            held = result.exit_status == 1 and self.text in result.stderr
        else:
            held = result.exit_status == 0 and result.stdout.strip() == self.text
        return "" if held else f"{self.name}: {result}"


def refused(name: str, code: str, *errnos: int, **more: Any) -> Case:
    """An act that raises OSError."""
    return Case(name, code, errnos=frozenset(errnos), **more)


def filtered(name: str, x86_64: int, aarch64: int, arguments: str, **more: Any) -> Case:
    """A system call that the filter answers."""
    code = f"call(({x86_64}, {aarch64}), {arguments})"
    return Case(name, code, errnos=frozenset(REFUSALS), **more)


def ended(name: str, code: str, *reasons: KilledReason | int, **limits: Any) -> Case:
    """A program that the sandbox, or a signal, ends."""
    return Case(name, code, "ended", reasons=reasons, limits=limits)


def raises(name: str, code: str, text: str, **limits: Any) -> Case:
    """A program that an ordinary exception ends."""
    return Case(name, code, "raises", text=text, limits=limits)


def prints(name: str, code: str, text: str, **more: Any) -> Case:
    """A program that finds out nothing."""
    return Case(name, code, "prints", text=text, **more)


CPU, WALL, MEMORY = KilledReason.CPU, KilledReason.WALL, KilledReason.MEMORY
SHORT = {"cpu_s": 0.3, "wall_s": 3.0}

TIME = [
    ended("an endless loop", "while True: pass", CPU, **SHORT),
    ended(
        "a sleeper that ignores every signal",
        "for n in set(range(1, 65)) - {9, 19, 32, 33}:\n    signal.signal(n, signal.SIG_IGN)\n"
        "time.sleep(60)",
        WALL,
        wall_s=0.4,
    ),
    ended("a big integer inside one C call", "3 ** (10 ** 9)", CPU, MEMORY, **SHORT),
    ended("a regular expression that backtracks",
          "import re\nre.match('(a+)+$', 'a' * 60 + 'b')", CPU, **SHORT),
    ended("a destructor that hangs",
          "class X:\n    def __del__(self):\n        while True: pass\nX()", CPU, **SHORT),
    ended("a loop that swallows interrupts",
          "while True:\n    try: time.sleep(60)\n    except BaseException: pass", WALL, wall_s=0.4),
    ended("a process that stops itself", "os.kill(os.getpid(), signal.SIGSTOP)", WALL, wall_s=0.4),
    ended("a storm of timer signals",
          "signal.signal(signal.SIGALRM, lambda *_: None)\n"
          "signal.setitimer(signal.ITIMER_REAL, 1e-6, 1e-6)\nwhile True: pass", CPU, WALL, **SHORT),
    ended("processor time spread over children",
          "for _ in range(6):\n    if not os.fork():\n        while True: pass\ntime.sleep(60)",
          CPU, **SHORT),
    ended("an exit that hangs", "import atexit\nwhile True:\n    try: sys.exit()\n    except: pass",
          CPU, **SHORT),
    ended("a daemonised grandchild that keeps the call waiting",
          "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n"
          "    os._exit(0)\ntime.sleep(60)", WALL, wall_s=0.4),
]  # fmt: skip

RESOURCES = [
    Case("a fork bomb",
         "try:\n    for _ in range(999):\n        os.fork() or time.sleep(9)\n"
         "    assert False, 'IT WORKED'\nexcept BlockingIOError: pass",
         "bounded", reasons=(MEMORY,)),
    ended("a fork bomb whose children fork on",
          "while True:\n    try: os.fork()\n    except OSError: pass", CPU, WALL, MEMORY, **SHORT),
    raises("a thread bomb",
           "while True:\n    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
           "can't start new thread"),
    raises("a list that grows", "a = []\nwhile True:\n    a.append(bytearray(1 << 20))",
           "MemoryError"),
    raises("one huge allocation", "bytearray(1 << 42)", "MemoryError"),
    refused("one huge mapping", "mmap.mmap(-1, 1 << 36)", errno.ENOMEM),
    ended("memory shared out among children", probes.SHARE_MEMORY, MEMORY, memory_mb=64),
    ended("shared memory of many children",
          "for _ in range(3):\n    if not os.fork():\n        block = mmap.mmap(-1, 30 << 20)\n"
          "        for at in range(0, 30 << 20, 4096): block[at] = 1\n        time.sleep(9)\n"
          "time.sleep(9)", MEMORY, memory_mb=64),
    raises("a bomb of zeros in a zip",
           "import zlib\nbomb = zlib.compress(bytes(1 << 27), 9)\n"
           "a = [zlib.decompress(bomb) for _ in range(9)]", "MemoryError"),
    refused("filling the working directory",
            "with open('f', 'wb') as f:\n    for _ in range(64):\n        f.write(bytes(1 << 20))"),
    refused("filling it with many files",
            "for n in range(9):\n    with open(f'{n}', 'wb') as f: f.write(bytes(3 << 20))",
            errno.ENOSPC),
    refused("filling /dev/shm",
            "with open('/dev/shm/f', 'wb') as f:\n"
            "    for _ in range(64):\n        f.write(bytes(1 << 20))"),
    refused("filling /dev", "open('/dev/filler', 'wb')", errno.EROFS, errno.EACCES),
    refused("a huge sparse file", "os.truncate(os.open('f', os.O_CREAT | os.O_WRONLY), 1 << 40)"),
    refused("many descriptors", "a = [os.open('/dev/null', 0) for _ in range(9999)]",
            errno.EMFILE),
    refused("locking memory", "if libc.mlockall(3): raise OSError(ctypes.get_errno(), '')",
            errno.EPERM, errno.ENOMEM),
    refused("a huge pipe", "import fcntl\nfcntl.fcntl(os.pipe()[1], 1031, 1 << 30)"),
    ended("a flood on stdout", "while True: print('x' * 9999)", KilledReason.OUTPUT),
    ended("a flood on stderr", "while True: os.write(2, b'x' * 9999)", KilledReason.OUTPUT),
    ended("a flood from a child",
          "if os.fork() == 0:\n    while True: os.write(1, b'x' * 9999)\ntime.sleep(60)",
          KilledReason.OUTPUT),
    raises("deep recursion", "def f(): f()\nf()", "RecursionError"),
    ended("deep recursion without Python's guard",
          "sys.setrecursionlimit(10 ** 9)\n"
          "class A:\n    def __repr__(self): return repr([self])\nrepr(A())",
          11, MEMORY, CPU, **SHORT),
    Case("ten thousand files",
         "n = 0\ntry:\n    while n < 10000:\n        open(f'f{n}', 'w').close()\n        n += 1\n"
         "except OSError: pass\ntime.sleep(0.2)\nassert n < 10000, 'IT WORKED'",
         "bounded", reasons=(KilledReason.DISK,), limits={"workdir_inodes": 300}),
    prints("a core file", "pid = os.fork()\nif not pid: os.abort()\nos.waitpid(pid, 0)\n"
           "print(os.listdir('.'))", "[]"),
]  # fmt: skip
