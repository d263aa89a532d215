"""The page while a run trains: served to this machine alone, read anew as the run writes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from journeyman.agents.errors import RunFileError
from journeyman.agents.evaluation.lost import SEARCHES
from journeyman.agents.evaluation.printing import complain
from journeyman.agents.evaluation.records import EPISODES
from journeyman.agents.evaluation.viewer.document import as_json, page, policy
from journeyman.agents.evaluation.viewer.overview import METRICS

HOST = "127.0.0.1"
_PATIENCE = 5.0
"""Reading takes at most one part in so many of the time, however often a run writes."""


class LiveData:
    """The data of some runs, read again when their files have changed."""

    def __init__(
        self,
        runs: list[Path],
        read: Callable[[], dict[str, Any]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read it for the first time.

        Args:
            runs: Folders to watch.
            read: Gives the data.
            clock: Seconds.

        Raises:
            RunFileError: A file holds something else.
        """
        self._runs, self._read, self._clock = runs, read, clock
        self._lock = Lock()
        self._again()

    def _again(self) -> None:
        state, started = self._state(), self._clock()
        self._text = as_json(self._read()).encode("utf-8", "backslashreplace")
        now = self._clock()
        self._seen, self._next = state, now + _PATIENCE * (now - started)
        self._version = getattr(self, "_version", 0) + 1

    def _state(self) -> list[tuple[int, int]]:
        """Size and time of every file that is read."""
        found = []
        for run in self._runs:
            for name in (EPISODES, METRICS, SEARCHES):
                try:
                    stat = (run / name).stat()
                except OSError:  # not there yet, or being replaced
                    found.append((0, 0))
                else:
                    found.append((stat.st_size, stat.st_mtime_ns))
        return found

    def version(self) -> int:
        """Goes up whenever there is something new."""
        with self._lock:
            if self._clock() >= self._next and self._state() != self._seen:
                try:
                    self._again()
                except (RunFileError, OSError) as error:  # the run may be in the middle of it
                    complain(f"view: {error}")
                    self._seen = self._state()
            return self._version

    def data(self) -> bytes:
        """The newest data as JSON."""
        with self._lock:
            return self._text


class PageServer(ThreadingHTTPServer):
    """Answers whoever asks on this machine by its own name; writes nothing."""

    daemon_threads = True

    def __init__(self, reading: LiveData, port: int = 0) -> None:
        """Listen.

        Args:
            reading: What is served.
            port: 0 takes a free one.

        Raises:
            OSError: The port is taken.
        """
        self.reading = reading
        super().__init__((HOST, port), _Handler)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """For a browser."""
        return f"http://{HOST}:{self.port}/"


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = 10.0
    server_version = "journeyman"
    sys_version = ""

    def do_GET(self) -> None:
        # A page of another site may send its visitors here under a name of its own.
        names = {f"{HOST}:{self.server.port}", f"localhost:{self.server.port}"}
        if self.headers.get("Host") not in names:
            self._say(HTTPStatus.MISDIRECTED_REQUEST, b"ask for " + self.server.url.encode())
        elif self.path == "/":
            self._say(HTTPStatus.OK, page(None).encode(), "text/html; charset=utf-8")
        elif self.path == "/version":
            version = str(self.server.reading.version()).encode()
            self._say(HTTPStatus.OK, version, "application/json")
        elif self.path == "/data":
            self._say(HTTPStatus.OK, self.server.reading.data(), "application/json")
        else:
            self._say(HTTPStatus.NOT_FOUND, b"nothing here")

    def _refuse(self) -> None:
        self._say(HTTPStatus.METHOD_NOT_ALLOWED, b"GET only")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse

    def _say(self, status: HTTPStatus, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", f"{policy(True)}; frame-ancestors 'none'")
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: who looks at a page needs no log of it."""
