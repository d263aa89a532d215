"""The wire to a model's server: requests that wait out what passes, and words for what does not.

A server that is down, busy or restarting is waited for. Whoever asks (a teacher, a student) reads
the answers, and says in its own error what else went wrong. The server's key comes from the
environment, and stands in no message of ours, whatever the server says.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import httpx

from journeyman.agents.errors import AgentError, SettingError
from journeyman.agents.networks.outages import Lines, Outage
from journeyman.agents.networks.replies import (
    PASSING,
    Reply,
    for_good,
    inner_status,
    shown,
    some_of,
)

T = TypeVar("T")
R = TypeVar("R")

# Hydra shows what libraries have to say, and this one says it of each request.
logging.getLogger("httpx").setLevel(logging.WARNING)

LARGEST = 1 << 28
"""Bytes of an answer; one that has more never ends."""

_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
"""What names of environment variables look like; all else may be a key, and is not repeated."""


class UnansweredError(Exception):
    """A request has no answer, or one that another try may not meet."""

    def __init__(self, reason: str, reply: Reply | None = None) -> None:
        """Say why, and what came instead of an answer."""
        super().__init__(reason)
        self.reply = reply

    @property
    def pause(self) -> float:
        """Seconds that the server asks for."""
        return 0.0 if self.reply is None else self.reply.pause


@dataclass
class Traffic:
    """What was asked of a server."""

    requests: int = 0
    """Those that were answered."""
    retries: int = 0
    """Those that had to be sent again, there or to another."""
    seconds: float = 0.0
    """From request to answer, of all that were answered."""


class Endpoint:
    """One server of a model; of several: `replicas.py`."""

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
        self._lines = Lines()
        self._spent, self._counting = Traffic(), threading.Lock()

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

    @property
    def urls(self) -> tuple[str, ...]:
        """Where it is; several places if there are several of it."""
        return (self.url,)

    def figures(self) -> dict[str, float]:
        """What was asked since this was read last; see `Traffic`."""
        with self._counting:
            spent, self._spent = self._spent, Traffic()
        return {name: float(value) for name, value in asdict(spent).items()}

    def each(self, check: Callable[[Endpoint], object], patience: float) -> None:
        """See, before anything is played, whether it is what it should be.

        Args:
            check: Asks it; raises where it is not.
            patience: Seconds that it may be silent, where the endpoint's own are more.

        Raises:
            AgentError: What `check` raised, or that nobody is there.
        """
        usual = self.patience
        self.patience = min(usual, patience)
        try:
            check(self)
        finally:
            self.patience = usual

    def find(self, model: str | None, patience: float) -> tuple[str, list[str]]:
        """The name of what is to be asked, and of all that it lists.

        Args:
            model: The name, if it was chosen; one that is not listed may be served all the same.
            patience: See `each`.

        Raises:
            AgentError: Of the kind given: see `listed`; or it serves several and nobody chose.
        """
        listed: dict[str, int | None] = {}
        self.each(lambda it: listed.update(it.listed()), patience)
        return model or self.only(listed), list(listed)

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
        return _lengths(found)

    def listed(self) -> dict[str, int | None]:
        """The same, to see whether it is there: not all servers list what they serve.

        Raises:
            AgentError: Of the kind given: it cannot be reached, wants another key or money, or is
                no server of models.
        """
        timeout = min(self.timeout, self.patience)
        reply = self.send(self.client, "GET", "models", timeout=timeout)
        if reply.status in (401, 402, 403, 429):
            raise self.refusal(reply)
        found = self.content(reply).get("data") if reply.status < 400 else None
        return _lengths(found if isinstance(found, list) else [])

    def only(self, served: Collection[str]) -> str:
        """The only one of what is served.

        Raises:
            AgentError: Of the kind given: there are several, or none.
        """
        if len(served) != 1:
            raise self.error(
                f"{self.url} serves {some_of(list(served)) or 'nothing that it lists'}: choose one "
                f"by {self.who}.model=…"
            )
        return next(iter(served))

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
                reply = self.attempt(client, method, path, body, timeout)
            except UnansweredError as error:
                broken += error.reply is not None and error.reply.status == 500
                if error.reply is None or not tries or broken < tries:
                    self._outage.pause(begun, str(error), error.pause, self.patience)
                    continue
                reply = error.reply
            self._outage.over()
            return reply

    def attempt(
        self,
        client: httpx.Client,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Reply:
        """One request, sent once; see `send`.

        Raises:
            UnansweredError: It may be sent again.
            AgentError: Of the kind given: the answer cannot be decoded.
        """
        begun = time.monotonic()
        try:
            reply = self._once(client, method, path, body, timeout or self.timeout)
            if reply.status in PASSING and not for_good(reply):
                raise UnansweredError(f"HTTP {reply.status}: {reply.said}", reply)
        except httpx.DecodingError as error:
            raise self.error(
                f"{self.url} gives an answer that is not encoded as it says: {error}"
            ) from error
        except (httpx.TransportError, UnansweredError) as error:
            with self._counting:
                self._spent.retries += 1
            if isinstance(error, UnansweredError):
                raise
            raise UnansweredError(str(error) or type(error).__name__) from error
        with self._counting:
            self._spent.requests += 1
            self._spent.seconds += time.monotonic() - begun
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
        answered = Reply(reply.status_code, reply.headers, text, self.url)
        return replace(answered, status=inner_status(answered))

    def content(self, reply: Reply) -> dict[str, Any]:
        """The object in an answer.

        Raises:
            AgentError: Of the kind given: there is none.
        """
        answer = reply.data
        if not isinstance(answer, dict):
            kind = reply.headers.get("content-type", "nothing")
            raise self.error(
                f"{reply.url} answers {kind} and not JSON: {reply.said}; is {self.who}.base_url "
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
        return self.error(f"{reply.url} refuses ({reply.status}): {reply.said}{hint}")

    def strange(self, what: str, answer: Any, url: str | None = None) -> AgentError:
        """What to raise for an answer (of one of several) that says something else."""
        return self.error(f"{url or self.url} gives {what}: {shown(repr(answer))}")


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


def _is_address(url: str) -> bool:
    try:
        return httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host)
    except httpx.InvalidURL:
        return False


def _lengths(found: Sequence[Any]) -> dict[str, int | None]:
    """Of a list of models: names, and the longest row of each where it is told."""
    known = [it for it in found if isinstance(it, dict) and it.get("id") is not None]
    told = {str(it["id"]): it.get("max_model_len") for it in known}
    return {name: it if type(it) is int else None for name, it in told.items()}
