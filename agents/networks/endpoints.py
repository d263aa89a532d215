"""The wire to a model's server: requests that wait out what passes, and words for what does not.

A server that is down, busy or restarting is waited for. Whoever asks (a teacher, a student) reads
the answers, and says in its own error what else went wrong. The server's key comes from the
environment, and stands in no message of ours, whatever the server says.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import json
import logging
import os
import re
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx
from tqdm import tqdm

from journeyman.agents.errors import AgentError, SettingError

T = TypeVar("T")
R = TypeVar("R")

# Hydra shows what libraries have to say, and this one says it of each request.
logging.getLogger("httpx").setLevel(logging.WARNING)

PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that another try may not meet."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds; each pause is twice the one before."""
LONGEST_ASKED = 600.0
"""Seconds of a pause that a server may ask for."""
LARGEST = 1 << 28
"""Bytes of an answer; one that has more never ends."""
SHOWN = 160
"""Characters of a strange answer that an error repeats."""

_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
"""What names of environment variables look like; all else may be a key, and is not repeated."""


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    text: str

    @functools.cached_property
    def data(self) -> Any:
        """The JSON in it; None if there is none."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            return None

    @property
    def said(self) -> str:
        """Its message, quoted: it may hold anything."""
        told = self.data
        told = told.get("error", told) if isinstance(told, dict) else self.text
        if isinstance(told, dict):
            told = told.get("message", self.text)
        return repr(shown(" ".join(str(told).split())))

    @property
    def pause(self) -> float:
        """Seconds of a Retry-After header, which may be a date."""
        value = self.headers.get("retry-after", "")
        try:
            seconds = float(value)
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except ValueError:
                return 0.0
        return min(seconds, LONGEST_ASKED) if seconds > 0 else 0.0  # nor is it NaN


class Endpoint:
    """One server of a model."""

    def __init__(
        self,
        base_url: str,
        who: str,
        error: type[AgentError],
        concurrency: int = 16,
        timeout: float = 120.0,
        patience: float = 3600.0,
        key: str | None = None,
        whole: bool = False,
    ) -> None:
        """Remember how to reach it; nothing is sent yet.

        Args:
            base_url: Such as http://127.0.0.1:8000/v1.
            who: Lives there: "teacher", "student" or "credit" (a judge), as the settings call it.
            error: What is raised where it cannot be worked with.
            concurrency: Requests under way at once.
            timeout: Seconds of silence that a request may bear.
            patience: Seconds without any answer after which the run ends; it can be resumed.
            key: Name of the environment variable that holds the server's key; None sends none.
            whole: An answer must be there in `timeout`, the whole of it: one that trickles is as
                good as none.

        Raises:
            SettingError: A value is out of its range, or there is no such variable.
        """
        if not _is_address(base_url):
            raise SettingError(f"base_url={base_url}: expected http://… or https://…, with /v1")
        if httpx.URL(base_url).userinfo:  # not repeated
            raise SettingError("base_url: expected no password in it: use key")
        if type(concurrency) is not int or concurrency < 1:
            raise SettingError(f"concurrency={concurrency}: expected a whole number, 1 or more")
        for name, seconds in (("timeout", timeout), ("patience", patience)):
            if not seconds > 0:
                raise SettingError(f"{name}={seconds}: expected seconds, more than 0")
        self._key = key
        self._secret = "" if key is None else secret_in(key)
        self.url = base_url.rstrip("/")
        self.patience = patience
        self.timeout = timeout
        self.who = who
        self.error = error
        self._concurrency = concurrency
        self._whole = whole
        # Connections are kept for as long as they are used: a server may be restarted between.
        self.connect = functools.partial(
            httpx.Client,
            headers={"Authorization": f"Bearer {self._secret}"} if self._secret else {},
            limits=httpx.Limits(max_connections=concurrency),
            verify=httpx.create_ssl_context(),  # made once: it takes longer than a row
        )
        self._outage = Outage(self.url, who, error)
        self._lines = _Lines()

    def __reduce__(self) -> tuple[type[Endpoint], tuple[Any, ...]]:
        """What is pickled is how to reach it; whoever reads that has the key in a variable too."""
        asked = (self._concurrency, self.timeout, self.patience, self._key, self._whole)
        return Endpoint, (self.url, self.who, self.error, *asked)

    @functools.cached_property
    def client(self) -> httpx.Client:
        """Connections that are kept for as long as this object is."""
        client = self.connect()
        weakref.finalize(self, client.close)
        return client

    def resume(self) -> None:
        """Ask again, if it was stopped."""
        self._outage.stopped.clear()
        self._lines.over = False

    def stop(self, now: bool = True) -> None:
        """Nobody asks any more: what waits for the server to be back ends.

        Args:
            now: Nobody wants the answers to what is under way either.
        """
        self._outage.stopped.set()
        if now:
            self._lines.cut()

    @property
    def stopped(self) -> threading.Event:
        """Set when nobody asks any more."""
        return self._outage.stopped

    def models(self) -> dict[str, int | None]:
        """Names of what it serves -> the longest row that each takes, where it says so.

        Raises:
            AgentError: Of the kind given; see `ask`.
        """
        with self.connect() as client:
            # Nothing is computed for it: a server that does not answer soon will not.
            answer = self.ask(client, "GET", "models", timeout=min(self.timeout, self.patience))
        found = answer.get("data")
        if not isinstance(found, list):
            raise self.strange("no list of models", answer)
        lengths = {str(it["id"]): it.get("max_model_len") for it in found if _has_id(it)}
        return {name: it if type(it) is int else None for name, it in lengths.items()}

    def listed(self, patience: float) -> list[str]:
        """Names of what it serves, to see whether it is there; not all servers list them.

        Args:
            patience: Seconds that it may be silent, where the endpoint's own are more.

        Raises:
            AgentError: Of the kind given: it cannot be reached, wants another key or money, or is
                no server of models.
        """
        usual = self.patience
        self.patience = min(usual, patience)
        try:
            timeout = min(self.timeout, self.patience)
            reply = self.send(self.client, "GET", "models", timeout=timeout)
        finally:
            self.patience = usual
        if reply.status in (401, 402, 403, 429):
            raise self.refusal(reply)
        found = self.content(reply).get("data") if reply.status < 400 else None
        listed = found if isinstance(found, list) else []
        return [str(it["id"]) for it in listed if isinstance(it, dict) and it.get("id")]

    def only(self, served: Sequence[str]) -> str:
        """The only one of what is served.

        Raises:
            AgentError: Of the kind given: there are several, or none.
        """
        if len(served) != 1:
            raise self.error(
                f"{self.url} serves {some_of(served) or 'nothing that it lists'}: choose one by "
                f"{self.who}.model=…"
            )
        return served[0]

    def side_by_side(self, ask: Callable[[httpx.Client, T], R], items: Sequence[T]) -> list[R]:
        """What is answered to each item, in their order; several are under way at once.

        Raises:
            Exception: What `ask` raised first, whichever item it was; nothing is asked any more.
        """
        self.resume()
        with self.connect() as client, ThreadPoolExecutor(self._concurrency, self.who) as pool:
            waiting = [pool.submit(ask, client, item) for item in items]
            try:
                for it in as_completed(waiting):
                    it.result()  # the first that has failed, whichever it is
            except BaseException:
                # It, or a person, has ended the run: the others must not be waited for.
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise
            return [it.result() for it in waiting]

    def ask(
        self,
        client: httpx.Client,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """One request, until it has been answered.

        Raises:
            AgentError: Of the kind given: it refused, or answered something else than an object of
                JSON, or nothing within `patience`.
        """
        reply = self.send(client, method, path, body, timeout)
        if reply.status >= 400:
            raise self.refusal(reply)
        return self.content(reply)

    def send(
        self,
        client: httpx.Client,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        tries: int = 0,
    ) -> Reply:
        """One request, until it has been answered, by a refusal perhaps.

        Args:
            client: See `connect`.
            method: GET or POST.
            path: Below the server's address.
            body: Sent as JSON.
            timeout: Another one than the endpoint's.
            tries: A request that breaks the server so often (status 500) is not sent again; 0 sends
                it as long as there is patience.

        Raises:
            AgentError: Of the kind given: there is no answer, or one that cannot be decoded.
        """
        broken = 0
        while True:
            begun = time.monotonic()
            try:
                reply = self._once(client, method, path, body, timeout or self.timeout)
            except httpx.DecodingError as error:
                raise self.error(
                    f"{self.url} gives an answer that is not encoded as it says: {error}"
                ) from error
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
                self._outage.pause(begun, reason, 0.0, self.patience)
                continue
            broken += reply.status == 500
            if reply.status in PASSING and broken != (tries or -1) and not _for_good(reply):
                reason = f"HTTP {reply.status}: {reply.said}"
                self._outage.pause(begun, reason, reply.pause, self.patience)
                continue
            self._outage.over()
            return reply

    def _once(
        self,
        client: httpx.Client,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        timeout: float,
    ) -> Reply:
        end = time.monotonic() + timeout
        read = bytearray()
        with client.stream(
            method,
            f"{self.url}/{path}",
            json=body,
            timeout=timeout,
            extensions={"trace": self._lines.opened},
        ) as reply:
            for chunk in reply.iter_bytes():
                read += chunk
                if len(read) > LARGEST:
                    raise self.error(f"{self.url} gives an answer that does not end")
                if self._whole and time.monotonic() > end:
                    raise httpx.ReadTimeout(f"no whole answer in {timeout:g} s")
        text = read.decode(reply.encoding or "utf-8", errors="replace")
        if self._secret:  # some servers repeat it
            text = text.replace(self._secret, "[key]")
        answered = Reply(reply.status_code, reply.headers, text)
        return replace(answered, status=_inner_status(answered))

    def content(self, reply: Reply) -> dict[str, Any]:
        """The object in an answer.

        Raises:
            AgentError: Of the kind given: there is none.
        """
        answer = reply.data
        if not isinstance(answer, dict):
            kind = reply.headers.get("content-type", "nothing")
            raise self.error(
                f"{self.url} answers {kind} and not JSON: {reply.said}; is {self.who}.base_url "
                f"right (it ends in /v1)"
            )
        return answer

    def refusal(self, reply: Reply) -> AgentError:
        """What to raise for an answer that refuses."""
        who = self.who
        hint = {
            401: f"; {who}.key names the environment variable that holds its key",
            403: f"; {who}.key names the environment variable that holds its key",
            404: f"; is {who}.base_url right (it ends in /v1), and {who}.model served there",
        }.get(reply.status, "")
        return self.error(f"{self.url} refuses ({reply.status}): {reply.said}{hint}")

    def strange(self, what: str, answer: Any) -> AgentError:
        """What to raise for an answer that says something else."""
        return self.error(f"{self.url} gives {what}: {shown(repr(answer))}")


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
                self._say(f"{self._url} does not answer ({reason}): waiting until it is back")
            if now - self._since > patience:
                raise self._error(
                    f"{self._url} has not answered for {now - self._since:.0f} s ({reason}): start "
                    f"it again, and the same command goes on from {_REACHED[self._who]}"
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
                self._say(f"back after {time.monotonic() - self._since:.0f} s")
                self._since = None
        finally:
            self._lock.release()

    def _say(self, line: str) -> None:
        tqdm.write(f"{self._who}: {line}", file=sys.stderr)

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


_CHECKPOINT = "the last checkpoint"
_REACHED = {"teacher": _CHECKPOINT, "credit": _CHECKPOINT, "student": "there"}
"""Where a run goes on whose server was gone."""


class _Lines:
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


def secret_in(key: str) -> str:
    """What an environment variable holds that a key is named by.

    Args:
        key: The variable's name; not repeated if it looks like a key itself.

    Raises:
        SettingError: There is no such variable, or it holds what no header may have.
    """
    named = f"key={key}" if _NAME.fullmatch(key) else "key"
    value = os.environ.get(key, "").strip()
    if not value:
        raise SettingError(
            f"{named}: no environment variable of that name; it holds the server's key"
        )
    if not (value.isascii() and value.isprintable()):  # errors of headers repeat them
        raise SettingError(f"{named}: it holds characters that no header may have")
    return value


def _inner_status(reply: Reply) -> int:
    """The status of an answer; some gateways say that all is well, and hand on an error."""
    told = reply.data if reply.status == 200 else None
    if not isinstance(told, dict) or not isinstance(told.get("error"), dict) or "choices" in told:
        return reply.status
    code = told["error"].get("code")
    if "output" in told:  # of OpenAI's Responses, whose codes are words
        return {"server_error": 500, "rate_limit_exceeded": 429}.get(str(code), 400)
    return code if type(code) is int and 400 <= code < 600 else 502


def _for_good(reply: Reply) -> bool:
    """True of "too many requests" where none will ever do: nothing is paid for."""
    return reply.status == 429 and "insufficient_quota" in reply.text


def _is_address(url: str) -> bool:
    try:
        return httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host)
    except httpx.InvalidURL:
        return False


def _has_id(it: Any) -> bool:
    return isinstance(it, dict) and it.get("id") is not None


def some_of(names: Sequence[str]) -> str:
    """The first names of a list, which may be long."""
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def shown(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
