"""How long a tool may take and how much it may say.

A tool that may wait for something outside of this process (`ToolEnv.waits`, or a time limit of its
own) runs in a thread, which is left alone once its time is up: whatever it returns then is not
looked at. All others run where they are called, at no cost worth mentioning, and are interrupted:
an exception is raised within them, which ends a loop of Python's but no call into C.

Either way the state stays what it was before the call, for tools return a new one, and the model is
told. A tool with limits of its own (a sandbox, a server) has `timeout_s=math.inf`.
"""

from __future__ import annotations

import contextvars
import ctypes
import itertools
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from journeyman.tools.errors import ToolTimeout

Value = TypeVar("Value")

_TICK_S = 0.1
"""How often overdue calls are looked for."""
_PATIENCE = 10
"""Ticks without a call after which nobody looks."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may cost; a tool may say otherwise."""

    timeout_s: float = 60.0
    """Longest wait, in seconds; infinity never stops a call."""
    result_chars: int = 32_000
    """Longest result; of a longer one both ends are shown, and how much is left out between."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Naming the value and what was expected.
        """
        if isinstance(self.timeout_s, bool) or not self.timeout_s > 0:
            raise ValueError(f"timeout_s={self.timeout_s!r}: expected seconds, above 0")
        if type(self.result_chars) is not int or self.result_chars < 100:
            raise ValueError(f"result_chars={self.result_chars!r}: expected 100 or more")


DEFAULT = Limits()


def shorten(text: str, limit: int) -> str:
    """The text; both ends of one that is longer than the limit, with a note of what is not there."""
    if len(text) <= limit:
        return text
    # The note is longer or shorter by a digit or two at most.
    room = limit - len(_note(len(text)))
    head = room - room // 3
    return text[:head] + _note(len(text) - room) + text[len(text) - room // 3 :]


def _note(left_out: int) -> str:
    return f"\n… [{left_out:,} characters left out] …\n"


class _Overdue(BaseException):
    """Raised within a call whose time is up; no `except Exception` of a tool's is meant."""


def run_within(
    timeout_s: float, waits: bool, function: Callable[..., Value], *arguments: Any
) -> Value:
    """Call a function and return what it returns.

    Args:
        timeout_s: Longest wait, in seconds.
        waits: Run it in a thread of its own that can be left alone.
        function: What to call.
        arguments: Its arguments.

    Raises:
        ToolTimeout: It took longer.
    """
    if timeout_s == math.inf:
        return function(*arguments)
    if waits:
        return _aside(timeout_s, function, *arguments)
    return _here(timeout_s, function, *arguments)


def _late(timeout_s: float) -> ToolTimeout:
    return ToolTimeout(f"no result within {timeout_s:g} s; the call was stopped")


def _aside(timeout_s: float, function: Callable[..., Value], *arguments: Any) -> Value:
    """Call in a thread that ends with the interpreter, whatever it does by then."""
    outcome: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    context = contextvars.copy_context()

    def call() -> None:
        try:
            try:
                outcome.put((True, context.run(function, *arguments)))
            except BaseException as error:
                outcome.put((False, error))
        except _Overdue:  # came a moment too late
            pass

    thread = threading.Thread(target=call, name="journeyman-tool", daemon=True)
    thread.start()
    try:
        done, value = outcome.get(timeout=timeout_s)
    except queue.Empty:
        _interrupt(thread.ident, _Overdue)
        raise _late(timeout_s) from None
    if done:
        return value  # type: ignore[no-any-return]
    raise value


def _here(timeout_s: float, function: Callable[..., Value], *arguments: Any) -> Value:
    """Call in this thread, under the eyes of another."""
    number, mine = _watch.begin(timeout_s), False
    try:
        try:
            return function(*arguments)
        finally:
            mine = _watch.end(number)
            if not mine:
                raise _Overdue
    except _Overdue:
        if mine or _watch.end(number):
            raise  # it is meant for a call around this one
        raise _late(timeout_s) from None


class _Watch:
    """A thread that interrupts calls whose time is up; it ends when there are none for a while.

    Whoever takes a call's entry out of `running` decides how it ends: the call itself, or this
    thread, which then holds the lock until the exception is on its way.
    """

    def __init__(self) -> None:
        self.clear()
        os.register_at_fork(after_in_child=self.clear)

    def clear(self) -> None:
        """Begin anew: no thread outlives a fork."""
        self._numbers = itertools.count()
        self._running: dict[int, tuple[int, float]] = {}
        """Thread and latest end of each call."""
        self._lock = threading.Lock()
        self._watching = False

    def begin(self, timeout_s: float) -> int:
        """Note a call of this thread; returns its number."""
        number = next(self._numbers)
        self._running[number] = (threading.get_ident(), time.monotonic() + timeout_s)
        if not self._watching:
            self._start()
        return number

    def end(self, number: int) -> bool:
        """The call is over; returns whether it was in time."""
        if self._running.pop(number, None) is not None:
            return True
        with self._lock:  # the exception is on its way, or was raised
            _interrupt(threading.get_ident(), None)
        return False

    def _start(self) -> None:
        with self._lock:
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._look, name="journeyman-limits", daemon=True).start()

    def _look(self) -> None:
        idle = 0
        while True:
            time.sleep(_TICK_S)
            idle = 0 if self._running else idle + 1
            now = time.monotonic()
            for number, (thread, end) in list(self._running.items()):
                if now >= end:
                    with self._lock:
                        if self._running.pop(number, None) is not None:
                            _interrupt(thread, _Overdue)
            if idle > _PATIENCE:
                # Whoever begins a call now sees either that nobody watches, or is seen.
                self._watching = False
                if not self._running:
                    return
                self._watching = True


def _interrupt(thread: int | None, error: type[BaseException] | None) -> None:
    """Raise an error in a thread as soon as it is at Python code; None takes back what waits."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread or 0), None if error is None else ctypes.py_object(error)
    )


_watch = _Watch()
