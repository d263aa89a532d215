"""What a student's server was paid for: its answers on disk, what they cost, and what they may.

A run that is started again finds its answers by what was asked, whatever became of the episodes
they were given in: nothing is paid for twice.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from journeyman.agents.errors import BudgetSpentError, ParcelError, RunFileError, SettingError
from journeyman.envs.types import Usage

FILE = "answers.jsonl"


@dataclass(frozen=True, slots=True)
class Answer:
    """One turn of a server's."""

    text: str
    truncated: bool
    ids: tuple[str, ...]
    """Of its calls, as the server named them."""
    prompt: int | None
    """Tokens that it read, as it counts; None where it does not say."""
    cached: int | None
    """Of these, what it had read before."""
    completion: int | None
    """Tokens that it wrote."""
    items: tuple[Mapping[str, Any], ...] = ()
    """All of it as it came, where the server wants that back."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Money for a million tokens."""

    prompt: float
    completion: float
    cached: float | None = None
    """Of prompt tokens that the server had read before; None is as all others."""

    def __post_init__(self) -> None:
        """No price is negative."""
        for name in ("prompt", "completion", "cached"):
            value = getattr(self, name)
            if value is None and name == "cached":
                continue
            if type(value) not in (int, float) or not 0 <= value < float("inf"):
                raise SettingError(f"prices.{name}={value}: expected a number, 0 or more")

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Prices:
        """Prices as a config has them.

        Raises:
            SettingError: One is missing, not known, or no price.
        """
        if not {"prompt", "completion"} <= set(given) <= {"prompt", "completion", "cached"}:
            raise SettingError(
                f"prices={dict(given)}: expected prompt and completion, cached perhaps, as money "
                f"for a million tokens"
            )
        return cls(**given)

    def of(self, answer: Answer) -> float | None:
        """What an answer cost; None where its tokens are not known."""
        if answer.prompt is None or answer.completion is None:
            return None
        known = min(answer.cached or 0, answer.prompt)
        cached = self.prompt if self.cached is None else self.cached
        read = (answer.prompt - known) * self.prompt + known * cached
        return (read + answer.completion * self.completion) / 1e6


class Answers:
    """All answers of a student; safe in several threads."""

    def __init__(self, prices: Prices | None = None, budget: float | None = None) -> None:
        """Nothing is paid yet, and nothing is kept on disk.

        Args:
            prices: Of its server.
            budget: What all answers may cost: money if there are prices, else tokens.

        Raises:
            SettingError: The budget is nothing.
        """
        if budget is not None and not budget > 0:
            raise SettingError(f"budget={budget}: expected a number above 0, or null")
        self.prices = prices
        self.budget = budget
        self.spent = 0.0
        """In the unit of the budget, by what the server counted."""
        self.count = 0
        """Answers, those of earlier runs in the folder too."""
        self._path: Path | None = None
        self._found: dict[str, Answer] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Answers], tuple[Prices | None]]:
        """What is pickled begins anew, with the same prices.

        Raises:
            ParcelError: There is a budget.
        """
        if self.budget is not None:
            raise ParcelError(
                f"student.budget={self.budget:g} is counted in one process: leave it out and set "
                f"one at the server, or play here (rollouts=local)"
            )
        return Answers, (self.prices,)

    def keep_in(self, folder: Path) -> None:
        """Keep answers in a run's folder from now on, and find those that are there.

        Raises:
            RunFileError: A line of the file is no answer.
        """
        self._path = folder / FILE
        text = self._path.read_bytes() if self._path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):  # a kill cut the last line short
            self._path.write_bytes(whole)
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                key = record.pop("key")
                lists = {name: tuple(record[name]) for name in ("ids", "items") if name in record}
                answer = Answer(**record | lists)
                self._count(answer)
            except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
                raise RunFileError(
                    f"{self._path}, line {number} is no answer ({error!r}): delete the line"
                ) from error
            self._found[key] = answer

    def find(self, key: str) -> Answer | None:
        """What was answered to the same question, by this run or one before it."""
        with self._lock:
            return self._found.get(key)

    def add(self, key: str, answer: Answer) -> None:
        """Write an answer down.

        Raises:
            OSError: It could not be written.
        """
        with self._lock:
            self._count(answer)
            if self._path is None:
                return  # a question is asked once in a process
            self._found[key] = answer
            told = {"key": key, **asdict(answer)}
            if not answer.items:
                del told["items"]
            line = json.dumps(told, separators=(",", ":"))
            with self._path.open("ab") as file:
                file.write(f"{line}\n".encode())

    def usage(self, answer: Answer) -> Usage:
        """Tokens and money of an answer."""
        cost = None if self.prices is None else self.prices.of(answer)
        return Usage(answer.prompt, answer.completion, cost)

    def check_budget(self) -> None:
        """See that there is something left.

        Raises:
            BudgetSpentError: There is not.
        """
        if self.budget is not None and self.spent >= self.budget:
            unit = "tokens" if self.prices is None else "in money"
            kept = "" if self._path is None else f", which are in {self._path}"
            raise BudgetSpentError(
                f"student.budget={self.budget:g} ({unit}) is spent: {self.spent:.6g} for "
                f"{self.count} answers{kept}; the same command with a larger one goes on from there"
            )

    def _count(self, answer: Answer) -> None:
        used = self.usage(answer)
        tokens = (used.prompt or 0) + (used.completion or 0)
        self.spent += tokens if self.prices is None else used.cost or 0.0
        self.count += 1


class Pace:
    """So many requests a minute, evenly, whoever asks."""

    def __init__(self, per_minute: float | None) -> None:
        """None sets no pace.

        Raises:
            SettingError: It is nothing.
        """
        if per_minute is not None and not per_minute > 0:
            raise SettingError(f"requests_per_minute={per_minute}: expected above 0, or null")
        self._per_minute = per_minute
        self._gap = 0.0 if per_minute is None else 60.0 / per_minute
        self._next = 0.0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Pace], tuple[None]]:
        """What is pickled sets no pace.

        Raises:
            ParcelError: There is one.
        """
        if self._per_minute is not None:
            raise ParcelError(
                f"student.requests_per_minute={self._per_minute:g} is kept by one process: leave "
                f"it out, and let the server refuse (429), or play here (rollouts=local)"
            )
        return Pace, (None,)

    def wait(self, stopped: threading.Event) -> None:
        """Until it is the caller's turn, or nobody wants an answer any more."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._gap
        if start > now:
            stopped.wait(start - now)


def question(*parts: Any) -> str:
    """A key of what is asked, parts of JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
