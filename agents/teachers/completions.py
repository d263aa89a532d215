"""The wire to a completions server: rows of token ids out, log-probabilities in.

What passes by itself (a server that is down, busy or restarting) is waited for: no row is left out
and none is made up. What does not (a wrong address, model or answer) is an error of one line.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import httpx
from tqdm import tqdm

from journeyman.agents.errors import SettingError, TeacherServerError

# Hydra shows what libraries have to say, and this one says it of each request.
logging.getLogger("httpx").setLevel(logging.WARNING)

PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that another try may not meet."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds; each pause is twice the one before."""
IMPOSSIBLE = -9999.0
"""What vLLM writes for a log-probability of -inf, which JSON has no word for."""
SHOWN = 160
"""Characters of a strange answer that an error repeats."""


@dataclass(frozen=True)
class Reading:
    """What a server says of one row of T tokens."""

    logprobs: list[dict[int, float]]
    """Of each place, by token id: the row's own token and the most probable ones; the first place,
    which nothing precedes, is empty."""
    texts: dict[int, str] = field(default_factory=dict)
    """What the server takes ids for, where it says so."""


class CompletionsServer:
    """An OpenAI-compatible completions server that gives `prompt_logprobs`, as vLLM does."""

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        concurrency: int = 16,
        timeout: float = 120.0,
        patience: float = 3600.0,
        key: str | None = None,
    ) -> None:
        """Remember how to reach it; nothing is sent yet.

        Args:
            base_url: Such as http://127.0.0.1:8000/v1.
            model: Its name there; None takes the only one.
            concurrency: Rows under way at once.
            timeout: Seconds of silence that a request may bear.
            patience: Seconds without any answer after which the run ends; it can be resumed.
            key: Name of the environment variable that holds the server's key; None sends none.

        Raises:
            SettingError: A value is out of its range, or there is no such variable.
        """
        if not _is_address(base_url):
            raise SettingError(f"base_url={base_url}: expected http://… or https://…, with /v1")
        if type(concurrency) is not int or concurrency < 1:
            raise SettingError(f"concurrency={concurrency}: expected a whole number, 1 or more")
        for name, seconds in (("timeout", timeout), ("patience", patience)):
            if not seconds > 0:
                raise SettingError(f"{name}={seconds}: expected seconds, more than 0")
        headers = {}
        if key is not None:
            value = os.environ.get(key, "").strip()
            if not value:
                raise SettingError(
                    f"key={key}: no environment variable of that name; it holds the server's key"
                )
            if not (value.isascii() and value.isprintable()):  # errors of headers repeat them
                raise SettingError(f"key={key}: it holds characters that no header may have")
            headers["Authorization"] = f"Bearer {value}"
        self.url = base_url.rstrip("/")
        self.model = model
        self.patience = patience
        self._concurrency = concurrency
        self._timeout = timeout
        # Connections are kept for as long as a rollout is read: a server may be restarted between.
        self._connect = functools.partial(
            httpx.Client,
            headers=headers,
            limits=httpx.Limits(max_connections=concurrency),
            verify=httpx.create_ssl_context(),  # made once: it takes longer than a row
        )
        self._outage = _Outage(self.url)
        self._lines = _Lines()

    def models(self) -> dict[str, int | None]:
        """Names of what it serves -> the longest row that each takes, where it says so.

        Raises:
            TeacherServerError: See `read`.
        """
        with self._connect() as client:
            # Nothing is computed for it: a server that does not answer soon will not.
            answer = self._ask(client, "GET", "models", timeout=min(self._timeout, self.patience))
        found = answer.get("data")
        if not isinstance(found, list):
            raise self._strange("no list of models", answer)
        lengths = {str(it["id"]): it.get("max_model_len") for it in found if _has_id(it)}
        return {name: it if type(it) is int else None for name, it in lengths.items()}

    def read(self, rows: Sequence[Sequence[int]], k: int) -> list[Reading]:
        """Log-probabilities of rows, several under way at once.

        Args:
            rows: Token ids.
            k: Most probable tokens that are named at each place beside the row's own; 0 names none.

        Raises:
            TeacherServerError: It refused, or answered something else, or nothing within
                `patience`.
        """
        self._outage.stopped.clear()
        self._lines = _Lines()
        with self._connect() as client, ThreadPoolExecutor(self._concurrency, "teacher") as pool:
            waiting = [pool.submit(self._read, client, row, k) for row in rows]
            try:
                for it in as_completed(waiting):
                    it.result()  # the first that has failed, whichever row it is
            except BaseException:
                # It, or a person, has ended the run: the others must not be waited for.
                self._outage.stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                self._lines.cut()
                raise
            return [it.result() for it in waiting]

    def next_token(self, row: Sequence[int]) -> tuple[int, float] | None:
        """The most probable token after a row, and its log-probability; None if it names no ids.

        Raises:
            TeacherServerError: See `read`.
        """
        with self._connect() as client:
            choice = self._complete(client, row, logprobs=1, return_tokens_as_token_ids=True)
        told = choice.get("logprobs") or {}
        try:
            name, logprob = str(told["tokens"][0]), float(told["token_logprobs"][0])
        except (KeyError, IndexError, TypeError, ValueError):
            return None
        prefix, _, number = name.rpartition(":")
        return (int(number), logprob) if prefix == "token_id" and number.isdigit() else None

    def _read(self, client: httpx.Client, row: Sequence[int], k: int) -> Reading:
        choice = self._complete(client, row, prompt_logprobs=k)
        places = choice.get("prompt_logprobs")
        if not isinstance(places, list):
            raise TeacherServerError(
                f"{self.url} gives no prompt_logprobs: a teacher needs a server that does, such as "
                f"vLLM (journeyman teacher serve MODEL)"
            )
        if len(places) != len(row):
            raise TeacherServerError(
                f"{self.url} gives log-probabilities of {len(places)} tokens for a row of "
                f"{len(row)}: it must take prompts as token ids, and add none"
            )
        try:
            return _reading(places)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise self._strange("log-probabilities that cannot be read", places) from None

    def _complete(self, client: httpx.Client, row: Sequence[int], **asked: Any) -> dict[str, Any]:
        body = {"model": self.model, "prompt": list(row), "max_tokens": 1, "temperature": 0.0}
        answer = self._ask(client, "POST", "completions", body | asked)
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise self._strange("no choices", answer)
        found: dict[str, Any] = choices[0]
        return found

    def _ask(
        self,
        client: httpx.Client,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """One request, until it has been answered."""
        while True:
            begun = time.monotonic()
            try:
                reply = client.request(
                    method,
                    f"{self.url}/{path}",
                    json=body,
                    timeout=self._timeout if timeout is None else timeout,
                    extensions={"trace": self._lines.opened},
                )
            except httpx.DecodingError as error:
                raise TeacherServerError(
                    f"{self.url} gives an answer that is not encoded as it says: {error}"
                ) from error
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
                self._outage.pause(begun, reason, 0.0, self.patience)
                continue
            if reply.status_code in PASSING:
                reason = f"HTTP {reply.status_code}: {_said(reply)}"
                self._outage.pause(begun, reason, _asked_pause(reply), self.patience)
                continue
            self._outage.over()
            return self._content(reply)

    def _content(self, reply: httpx.Response) -> dict[str, Any]:
        if reply.status_code >= 400:
            hint = {
                401: "; teacher.key names the environment variable that holds its key",
                403: "; teacher.key names the environment variable that holds its key",
                404: "; is teacher.base_url right (it ends in /v1), and teacher.model served there",
            }.get(reply.status_code, "")
            raise TeacherServerError(
                f"{self.url} refuses ({reply.status_code}): {_said(reply)}{hint}"
            )
        try:
            answer = reply.json()
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            kind = reply.headers.get("content-type", "nothing")
            raise TeacherServerError(
                f"{self.url} answers {kind} and not JSON: {_said(reply)}; is teacher.base_url "
                f"right (it ends in /v1)"
            )
        return answer

    def _strange(self, what: str, answer: Any) -> TeacherServerError:
        return TeacherServerError(f"{self.url} gives {what}: {_short(repr(answer))}")


class _Outage:
    """One pause for all requests under way: the first that fails waits, the others wait for it."""

    def __init__(self, url: str) -> None:
        self.stopped = threading.Event()
        """Set when nobody wants the answers any more."""
        self._url = url
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
            TeacherServerError: They are over.
        """
        with self._lock:
            if self.stopped.is_set():
                raise TeacherServerError(f"{self._url} is asked no more")  # and nobody hears it
            if self._tried_again > begun:
                return  # another request has waited since
            now = time.monotonic()
            if self._since is None:
                self._since, self._pauses = max(begun, self._answered), 0
                _say(f"teacher: {self._url} does not answer ({reason}): waiting until it is back")
            if now - self._since > patience:
                raise TeacherServerError(
                    f"{self._url} has not answered for {now - self._since:.0f} s ({reason}): start "
                    f"it again, and the same command goes on from the last checkpoint"
                )
            delay = max(asked, min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._pauses))
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
                _say(f"teacher: back after {time.monotonic() - self._since:.0f} s")
                self._since = None
        finally:
            self._lock.release()

    def _count_down(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        shown = sys.stderr.isatty()  # elsewhere nothing can be taken back
        while (left := end - time.monotonic()) > 0 and not self.stopped.is_set():
            if shown:
                print(f"\rteacher: next try in {left:2.0f} s", end="", file=sys.stderr, flush=True)
            self.stopped.wait(min(1.0, left))
        if shown:
            print("\r" + " " * 27, end="\r", file=sys.stderr, flush=True)


class _Lines:
    """Connections under way: a thread that waits at one is woken by nothing but its end."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._over = False

    def opened(self, event: str, told: Mapping[str, Any]) -> None:
        """What httpx traces."""
        if event == "connection.connect_tcp.complete":
            self._sockets.append(told["return_value"].get_extra_info("socket"))
            if self._over:
                self.cut()

    def cut(self) -> None:
        """End them all, and those that are opened from now on."""
        self._over = True
        for it in self._sockets:
            with contextlib.suppress(OSError):  # it has ended already
                it.shutdown(socket.SHUT_RDWR)


def _is_address(url: str) -> bool:
    try:
        return httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host)
    except httpx.InvalidURL:
        return False


def _has_id(it: Any) -> bool:
    return isinstance(it, dict) and it.get("id") is not None


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def _reading(places: Sequence[Any]) -> Reading:
    logprobs: list[dict[int, float]] = []
    texts: dict[int, str] = {}
    for place in places:
        found: dict[int, float] = {}
        for name, told in (place or {}).items():
            logprob = float(told["logprob"])
            if math.isnan(logprob) or int(name) < 0:
                raise ValueError(name)
            found[int(name)] = logprob if logprob > IMPOSSIBLE else -math.inf
            if told.get("decoded_token") is not None:
                texts[int(name)] = str(told["decoded_token"])
        logprobs.append(found)
    return Reading(logprobs, texts)


def _asked_pause(reply: httpx.Response) -> float:
    """Seconds of a Retry-After header; dates are not read."""
    value = reply.headers.get("retry-after", "")
    return min(float(value), LONGEST_PAUSE) if value.isdigit() else 0.0


def _said(reply: httpx.Response) -> str:
    """The message of an answer, quoted: it may hold anything."""
    try:
        told: Any = reply.json()
        told = told.get("error", told)
        text = str(told["message"] if isinstance(told, dict) else told)
    except (ValueError, KeyError, AttributeError, RecursionError):
        text = reply.text
    return repr(_short(" ".join(text.split())))


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
