"""How long a tool may take and how much it may say.

A tool that may wait for something outside of this process (`ToolEnv.waits`, or a time limit of its
own) runs in a thread, which is left alone once its time is up: whatever it returns then is not
looked at. All others run where they are called, at no cost worth mentioning, and are interrupted:
an exception is raised within them, which ends a loop of Python's but no call into C.

Either way the state stays what it was before the call, for tools return a new one, and the model is
told. A tool with limits of its own (a sandbox, a server) has `timeout_s=math.inf`.

What is raised within a call can be lost there: to an `except BaseException`, or to a finalizer or
a callback of the garbage collector, whose errors Python prints and drops. So it is raised again,
every tick, until the call has ended.
"""

from __future__ import annotations

import contextvars
import ctypes
import itertools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import get_ident
from typing import Any, TypeVar

from journeyman.tools.errors import ToolServerError, ToolTimeout

Value = TypeVar("Value")

MAX_HANGING = 256
"""Calls left alone that have not ended, above which no more are made."""
_TICK_S = 0.1
"""How often overdue calls are looked for."""
_PATIENCE = 10
"""Ticks without a call after which nobody looks."""


@dataclass(frozen=True, slots=True)
class CallLimits:
    """What one call may cost; a tool may say otherwise."""

    timeout_s: float = 30.0
    """Longest wait, in seconds; infinity never stops a call."""
    result_chars: int = 32_000
    """Longest result; of a longer one both ends are shown, and how much is left out between."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Naming the value and what was expected.
        """
        number = type(self.timeout_s) in (int, float)
        if not number or not self.timeout_s > 0:
            raise ValueError(f"timeout_s={self.timeout_s!r}: expected seconds, above 0")
        if type(self.result_chars) is not int or self.result_chars < 100:
            raise ValueError(f"result_chars={self.result_chars!r}: expected 100 or more")


DEFAULT = CallLimits()


def shorten(text: str, limit: int) -> str:
    """The text; of one that is longer both ends, with a note of how much is left out between."""
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


Call = Callable[[Any, Any], Value]
"""A call of two arguments: of a tool, with state and arguments."""


def run_within(timeout_s: float, waits: bool, call: Call[Value], state: Any, given: Any) -> Value:
    """Call a tool and return what it returns.

    Args:
        timeout_s: Longest wait, in seconds.
        waits: Call it in a thread of its own that can be left alone.
        call: What to call.
        state: Its first argument.
        given: Its second.

    Raises:
        ToolTimeout: It took longer.
        ToolServerError: Too many calls hang.
    """
    if timeout_s > threading.TIMEOUT_MAX:  # centuries, or infinity
        return call(state, given)
    if waits:
        return _aside(timeout_s, call, state, given)
    # Written out: a tool of the mock APIs takes no longer than a few calls of methods.
    number = next(_watch.numbers)
    _watch.running[number] = (get_ident(), timeout_s)
    if not _watch.awake:
        _watch.wake()
    try:
        try:
            return call(state, given)
        finally:
            _watch.running.pop(number, None)
            if number in _watch.overdue:
                raise _Overdue  # whatever the call returned or raised
    except _Overdue:
        if number not in _watch.overdue:
            raise  # it is meant for a call around this one
        try:
            _watch.settle(number)
        except _Overdue:  # raised again just before
            _watch.settle(number)
        raise _late(timeout_s) from None


def _late(timeout_s: float) -> ToolTimeout:
    return ToolTimeout(f"no result within {timeout_s:g} s; the call was stopped")


_hanging: list[threading.Thread] = []


def _aside(timeout_s: float, call: Call[Value], state: Any, given: Any) -> Value:
    """Call in a thread that ends with the interpreter, whatever it does by then."""
    outcome: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            try:
                outcome.put((True, context.run(call, state, given)))
            except BaseException as error:
                outcome.put((False, error))
        except _Overdue:  # came a moment too late
            pass

    _hanging[:] = [thread for thread in _hanging if thread.is_alive()]
    if len(_hanging) >= MAX_HANGING:
        raise ToolServerError(f"{MAX_HANGING} calls of tools hang; no more are made")
    thread = threading.Thread(
        target=work, name=f"{threading.current_thread().name}-tool", daemon=True
    )
    thread.start()
    try:
        done, value = outcome.get(timeout=timeout_s)
    except queue.Empty:
        _hanging.append(thread)
        # While an exception waits for a thread that is deep in C, no traced thread of CPython 3.11
        # gets into a function (its tracing begins each anew): a debugger would stand still.
        if sys.gettrace() is None:
            _interrupt(thread.ident, _Overdue)
        raise _late(timeout_s) from None
    if done:
        return value  # type: ignore[no-any-return]
    raise value


class _Watch:
    """A thread that interrupts calls whose time is up; it ends when there are none for a while.

    A call that it took out of `running` is `overdue`, whatever it returns by then, until it has
    seen so itself (`settle`).
    """

    def __init__(self) -> None:
        self.clear()
        os.register_at_fork(after_in_child=self.clear)

    def clear(self) -> None:
        """Begin anew: no thread outlives a fork."""
        self.numbers = itertools.count()
        self.running: dict[int, tuple[int, float]] = {}
        """Thread and time limit of each call; since when it runs, this thread sees."""
        self.overdue: dict[int, int] = {}
        """Thread of each call that is being interrupted; written under the lock."""
        self.awake = False
        self._lock = threading.Lock()

    def wake(self) -> None:
        """See to it that there is a thread."""
        with self._lock:
            if not self.awake:
                self.awake = True
                threading.Thread(target=self._look, name="journeyman-limits", daemon=True).start()

    def settle(self, number: int) -> None:
        """See to it that no exception is on its way to an overdue call, which is over.

        It cannot be taken back: CPython would go on looking for it, at each step of every thread,
        and a traced thread of 3.11 would get into no function any more. So it is let arrive.
        """
        while True:
            try:
                with self._lock:
                    self.overdue.pop(number, None)  # from here on no other is sent
                    _interrupt(get_ident(), _Overdue)  # instead of one that has not arrived
                while True:
                    pass  # it arrives here at the latest
            except _Overdue:
                if number not in self.overdue:
                    return

    def _look(self) -> None:
        seen: dict[int, float] = {}
        """Latest end of each call that goes on."""
        idle = 0
        while True:
            time.sleep(_TICK_S)
            now, running = time.monotonic(), list(self.running.items())
            seen = {number: seen.get(number, now + limit) for number, (_, limit) in running}
            with self._lock:
                for number, (thread, _) in running:
                    if now >= seen[number]:
                        self.overdue[number] = thread  # before the call could miss itself in both
                        if self.running.pop(number, None) is None:  # it has ended
                            self.overdue.pop(number, None)
                for thread in self.overdue.values():
                    _interrupt(thread, _Overdue)
            idle = 0 if running or self.overdue else idle + 1
            if idle > _PATIENCE:
                # Whoever begins a call now sees either that nobody watches, or is seen.
                self.awake = False
                if not self.running:
                    return
                self.awake = True


def _interrupt(thread: int | None, error: type[BaseException]) -> None:
    """Raise an error in a thread as soon as it is at Python code, instead of one that waits."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread or 0), ctypes.py_object(error))


_watch = _Watch()
