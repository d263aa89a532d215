"""Starts processes from a thread that lives as long as the interpreter.

Sandboxes ask the kernel to kill them when their parent dies (`bwrap --die-with-parent`), and to
the kernel the parent is the THREAD that forked: one started from a pool's thread would be killed
when that thread retires. A thread can also see the machine otherwise than the rest of its process
does; each such view has a thread of its own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol


class View(Protocol):
    """How a thread sees the machine; equal ones share a thread."""

    def enter(self) -> None:
        """Called once, on the thread."""


_executors: dict[View | None, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def popen(
    arguments: list[str], view: View | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """`subprocess.Popen`, called on the lasting thread that has this view."""
    with _lock:
        executor = _executors.get(view)
        if executor is None:
            executor = ThreadPoolExecutor(1, thread_name_prefix="sandbox-spawn")
            if view is not None:
                try:
                    executor.submit(view.enter).result()
                except BaseException:
                    executor.shutdown()
                    raise
            _executors[view] = executor
    return executor.submit(_popen, arguments, options).result()


def _popen(arguments: list[str], options: dict[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(arguments, **options)


def _forget() -> None:
    """A forked child has the executors but not their threads."""
    global _lock
    _executors.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def memory_file(name: str, content: bytes) -> Iterator[int]:
    """A descriptor of a file that only who inherits it can see; open until the block ends."""
    fd = os.memfd_create(name)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(content)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)
