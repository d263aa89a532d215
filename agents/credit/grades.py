"""What judges were paid for, on disk: each is asked about the same thing once.

One file for all who ask: processes of a job, or runs that are given the same file. An answer is
there once it has been given, whatever becomes of the process that asked.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from journeyman.agents.errors import RunFileError

WAIT = 60.0
"""Seconds for which another process may keep the file to itself."""


class GradeBook:
    """Answers by what was asked; safe in several threads and processes."""

    def __init__(self, path: Path | None) -> None:
        """Nothing is opened yet.

        Args:
            path: Of the file; None keeps answers as long as this object lives.
        """
        self._path = path
        self._lock = threading.Lock()
        self._opened: sqlite3.Connection | None = None

    def find(self, key: str) -> str | None:
        """What was answered to this; None if it was never asked.

        Raises:
            RunFileError: The file is something else.
        """
        with self._lock:
            return self._find(key)

    def add(self, key: str, answer: str) -> str:
        """Keep an answer, and give the one that counts: the first, if another process was faster.

        Raises:
            RunFileError: The file is something else, or cannot be written.
        """
        with self._lock:
            self._do("INSERT OR IGNORE INTO answers VALUES (?, ?)", key, answer)
            kept = self._find(key)
        assert kept is not None
        return kept

    def damaged(self, key: str) -> RunFileError:
        """What to raise for an answer that is none."""
        return RunFileError(f"{self._path}, answer {key} holds no grades: delete the file")

    def _find(self, key: str) -> str | None:
        found = self._do("SELECT answer FROM answers WHERE key = ?", key)
        return str(found[0][0]) if found else None

    def _do(self, statement: str, *values: str) -> list[tuple[str]]:
        try:
            if self._opened is None:
                self._opened = self._open()
            return self._opened.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise RunFileError(
                f"{self._path} cannot be used for grades ({error}): delete it, or choose another "
                f"credit.cache=…"
            ) from error

    def _open(self) -> sqlite3.Connection:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        # Each statement is a transaction of its own: what a kill interrupts is not there. What was
        # written need not reach the disk at once: it would only be lost with the machine.
        opened = sqlite3.connect(
            ":memory:" if self._path is None else self._path,
            timeout=WAIT,
            isolation_level=None,
            check_same_thread=False,
        )
        opened.execute("PRAGMA synchronous = OFF")
        opened.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT)")
        return opened
