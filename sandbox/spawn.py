"""Starts processes from a thread that lives as long as the interpreter.

Sandboxes ask the kernel to kill them when their parent dies (`bwrap --die-with-parent`), and to
the kernel the parent is the THREAD that forked: one started from a pool's thread would be killed
when that thread retires.
"""

from __future__ import annotations

import os
import subprocess
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
