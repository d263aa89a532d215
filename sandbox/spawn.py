"""Starts processes from a thread that lives as long as the interpreter.

Sandboxes ask the kernel to kill them when their parent dies (`bwrap --die-with-parent`), and to
the kernel the parent is the THREAD that forked: one started from a pool's thread would be killed
when that thread retires.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_executor: ThreadPoolExecutor | None = None


def popen(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """`subprocess.Popen`, called on the lasting thread."""
    global _executor
    if _executor is None:
        _executor = ThreadPoolExecutor(1, thread_name_prefix="sandbox-spawn")
    return _executor.submit(_popen, arguments, options).result()


def _popen(arguments: list[str], options: dict[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(arguments, **options)


def _forget() -> None:
    """A forked child has the executor but not its thread."""
    global _executor
    _executor = None


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
