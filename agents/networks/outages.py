"""What is done while a model's server gives no answer: pauses, and words for a person."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from journeyman.agents.errors import AgentError

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds; each pause is twice the one before."""


def pause_after(tries: int) -> float:
    """Seconds until what has failed is tried again."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(tries, 20))


class Outage:
    """One pause for all requests under way: the first that fails waits, the others wait for it."""

    def __init__(self, url: str, who: str, error: type[AgentError]) -> None:
        """Of one server; `who` lives there, and `error` is raised when patience is over."""
        self.stopped = threading.Event()
        """Set when nobody wants the answers any more."""
        self._url = url
        self._who = who
        self._error = error
        self._lock = threading.Lock()
        self._since: float | None = None
        self._pauses = 0
        self._tried_again = 0.0
        self._answered = 0.0

    def pause(self, begun: float, reason: str, asked: float, patience: float) -> None:
        """Wait before another try.

        Args:
            begun: When the request that failed began.
            reason: Why it failed.
            asked: Seconds that the server asked for.
            patience: Seconds without an answer that are borne.

        Raises:
            AgentError: Of the kind given: they are over.
        """
        with self._lock:
            if self.stopped.is_set():
                raise self._error(f"{self._url} is asked no more")  # and nobody hears it
            if self._tried_again > begun:
                return  # another request has waited since
            now = time.monotonic()
            if self._since is None:
                self._since, self._pauses = max(begun, self._answered), 0
                say(self._who, f"{self._url} does not answer ({reason}): waiting until it is back")
            if now - self._since > patience:
                raise self._error(
                    f"{self._url} has not answered for {now - self._since:.0f} s ({reason}): start "
                    f"it again, and the same command goes on from {REACHED[self._who]}"
                )
            delay = max(asked, pause_after(self._pauses))
            self._pauses += 1
            self._count_down(min(delay, max(0.0, self._since + patience - now)))
            self._tried_again = time.monotonic()

    def over(self) -> None:
        """A request was answered."""
        self._answered = time.monotonic()
        # While another request waits, this one goes its way: that one says so when it is answered.
        if self._since is None or not self._lock.acquire(blocking=False):
            return
        try:
            if self._since is not None:
                say(self._who, f"back after {time.monotonic() - self._since:.0f} s")
                self._since = None
        finally:
            self._lock.release()

    def _count_down(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        shows = sys.stderr.isatty()  # elsewhere nothing can be taken back
        while (left := end - time.monotonic()) > 0 and not self.stopped.is_set():
            if shows:
                line = f"\r{self._who}: next try in {left:2.0f} s"
                print(line, end="", file=sys.stderr, flush=True)
            self.stopped.wait(min(1.0, left))
        if shows:
            print("\r" + " " * 27, end="\r", file=sys.stderr, flush=True)


def say(who: str, line: str) -> None:
    """Tell a person what becomes of a server."""
    tqdm.write(f"{who}: {line}", file=sys.stderr)


_CHECKPOINT = "the last checkpoint"
REACHED = {"teacher": _CHECKPOINT, "credit": _CHECKPOINT, "student": "there"}
"""Where a run goes on whose server was gone."""


class Lines:
    """Connections under way: a thread that waits at one is woken by nothing but its end."""

    def __init__(self) -> None:
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.over = False
        """Connections that are opened from now on end too."""

    def opened(self, event: str, told: Mapping[str, Any]) -> None:
        """What httpx traces."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._sockets.add(told["return_value"].get_extra_info("socket"))
            if self.over:
                self.cut()

    def cut(self) -> None:
        """End them all, and those that are opened from now on."""
        self.over = True
        for it in list(self._sockets):
            with contextlib.suppress(OSError):  # it has ended already
                it.shutdown(socket.SHUT_RDWR)
