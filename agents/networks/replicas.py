"""Several servers of one model, asked side by side as if they were one.

Each request goes to the replica with the fewest under way. One that dies, hangs or breaks rests,
and what it was asked is asked of the others; it is looked at again, after longer and longer pauses,
and serves again once it is found to be what it was at the start. Only when none answers do requests
wait, and after `patience` the run ends. Whoever asks is told by which replica it was answered in
`Reply.url`, and by nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import httpx

from journeyman.agents.errors import AgentError
from journeyman.agents.networks.addresses import addresses
from journeyman.agents.networks.endpoints import Endpoint, R, T, UnansweredError
from journeyman.agents.networks.outages import REACHED, pause_after, say
from journeyman.agents.networks.replies import Reply

STRIKES = 3
"""Errors in a row after which a replica rests."""
BREAKING = (408, 425, 500, 502, 504)
"""Statuses that may be of the request: they strike. One that cannot be reached, is silent or says
that it is busy (429, 503) rests at once."""
OF_THE_REPLICA = (401, 402, 403, 404)
"""Refusals that another replica may not have: another key, another model."""


def _is_of_the_replica(reply: Reply) -> bool:
    """True of what another may answer otherwise: some gateways give a page while theirs starts."""
    return reply.status in OF_THE_REPLICA or (reply.status < 400 and type(reply.data) is not dict)


def reach(
    base_url: str | Sequence[str],
    who: str,
    error: type[AgentError],
    concurrency: int = 16,
    timeout: float = 120.0,
    patience: float = 3600.0,
    key: str | None = None,
    whole: bool = False,
) -> Endpoint:
    """A model where it is served, in one place or in several; nothing is sent yet.

    Args:
        base_url: One address, or a list of them that serve the same.
        who: See `Endpoint`; this and the rest. `concurrency` is of each replica.
        error: See `Endpoint`.
        concurrency: See `Endpoint`.
        timeout: See `Endpoint`.
        patience: See `Endpoint`.
        key: See `Endpoint`.
        whole: See `Endpoint`.

    Raises:
        SettingError: A value is out of its range, or there is no such variable.
    """
    urls = addresses(base_url)
    told = (who, error, concurrency, timeout, patience, key, whole)
    return Endpoint(urls[0], *told) if len(urls) == 1 else Replicas(urls, *told)


class _Replica(Endpoint):
    """One of several: it waits for nothing, since others can be asked."""

    # All below is guarded by `Replicas._changed`.
    up = True
    """It may be asked; else it rests, and is looked at when `due`."""
    probed = False
    """Somebody looks at it now."""
    since = float("-inf")
    """When it was found up last: requests from before say nothing of it."""
    due = 0.0
    busy = 0
    """Requests under way."""
    asked = 0
    """Requests so far."""
    strikes = 0
    rests = 0
    """Without an answer between them."""
    gone_since: float | None = None
    """Set while a person has been told that it is gone."""
    reason = "nothing was asked"
    """Why it gave no answer last."""

    def send(
        self,
        client: httpx.Client,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        tries: int = 0,
    ) -> Reply:
        """See `Endpoint.attempt`."""
        return self.attempt(client, method, path, body, timeout)

    def side_by_side(self, ask: Callable[[httpx.Client, T], R], items: Sequence[T]) -> list[R]:
        """See `Endpoint.side_by_side`; one by one: what fails here stops nobody."""
        with self.connect() as client:
            return [ask(client, it) for it in items]


class Replicas(Endpoint):
    """See the module; each replica has `concurrency` requests under way at most."""

    def __init__(
        self,
        urls: Sequence[str],
        who: str,
        error: type[AgentError],
        concurrency: int,
        *told: Any,
    ) -> None:
        """Remember how to reach them; see `reach`, which names what is `told`.

        Raises:
            SettingError: See `reach`.
        """
        self._replicas = [_Replica(url, who, error, concurrency, *told) for url in urls]
        super().__init__(urls[0], who, error, concurrency * len(urls), *told)
        self.url = " and ".join(self.urls)
        self._each = concurrency
        self._changed = threading.Condition()
        """Guards all that replicas know of themselves; told when a request may go on."""
        self._silent_since: float | None = None
        """Since when none has answered, once a request has failed."""
        self._answered = float("-inf")
        self._told = False
        """A person knows that all are gone."""
        self._check: Callable[[Endpoint], object] = Endpoint.models

    def __reduce__(self) -> tuple[type[Replicas], tuple[Any, ...]]:
        """See `Endpoint.__reduce__`."""
        asked = (self._each, self.timeout, self.patience, self._key, self._whole)
        return Replicas, (self.urls, self.who, self.error, *asked)

    @property
    def urls(self) -> tuple[str, ...]:
        """See `Endpoint.urls`."""
        return tuple(it.url for it in self._replicas)

    def figures(self) -> dict[str, float]:
        """Of all of them, and of each by its number from 1; see `Endpoint.figures`."""
        own = [it.figures() for it in self._replicas]
        total = {name: sum(it[name] for it in own) for name in own[0]}
        by_replica = {
            f"replica_{n}/{name}": value
            for n, it in enumerate(own, 1)
            for name, value in it.items()
        }
        return total | by_replica

    def resume(self) -> None:
        """See `Endpoint.resume`; patience begins anew, and who rests is looked at now if all do."""
        super().resume()
        for it in self._replicas:
            it.resume()
        with self._changed:
            self._silent_since = None
            if not self._up():
                for it in self._replicas:
                    it.due, it.rests = 0.0, 0

    def stop(self, now: bool = True) -> None:
        """See `Endpoint.stop`."""
        super().stop(now)
        for it in self._replicas:
            it.stop(now)
        with self._changed:
            self._changed.notify_all()

    def each(self, check: Callable[[Endpoint], object], patience: float) -> None:
        """Look at each of them; those that are silent rest, as long as one is there.

        Args:
            check: Asks one; raises where it is not what it should be, or not what the others are.
                It is asked again of each that has rested, at any time and in another thread.
            patience: Seconds that one may be silent.

        Raises:
            AgentError: What `check` raised, or that none is there.
        """
        self._check = check
        self.resume()
        begun, rounds = time.monotonic(), 0
        patience = min(patience, self.patience)
        for it in self._replicas:
            it.patience = patience
        silent = self._replicas
        while silent := [it for it in silent if not self._is_there(it)]:
            left = begun + patience - time.monotonic()
            if left <= 0:
                break
            self.stopped.wait(min(pause_after(rounds), left))
            rounds += 1
        if len(silent) == len(self._replicas):
            raise self._gone(time.monotonic() - begun)
        with self._changed:
            for it in self._replicas:
                it.up, it.since = True, time.monotonic()
            for it in silent:
                self._rest(it, 0.0)

    def _is_there(self, replica: _Replica) -> bool:
        try:
            self._check(replica)
        except UnansweredError as error:
            replica.reason = str(error)
            return False
        return True

    def find(self, model: str | None, patience: float) -> tuple[str, list[str]]:
        """See `Endpoint.find`; all must serve the same, and take rows as long.

        Raises:
            AgentError: Of the kind given: see `Endpoint.find`; or two of them differ.
        """
        first: dict[str, tuple[str, dict[str, int | None]]] = {}
        lock = threading.Lock()

        def check(it: Endpoint) -> None:
            listed = it.listed()
            name = model or it.only(listed)
            with lock:
                url, known = first.setdefault(it.who, (it.url, listed))
            if model is None and name not in known:
                raise self._differ(url, f"serves {self.only(known)}", it.url, f"{name}")
            if (name in known) is not (name in listed):
                has, lacks = (url, it.url) if name in known else (it.url, url)
                raise self._differ(has, f"serves {name}", lacks, "does not")
            if known.get(name) != listed.get(name):
                raise self._differ(
                    url, f"takes rows of {known[name]} tokens", it.url, f"of {listed[name]}"
                )

        self.each(check, patience)
        _, listed = first[self.who]
        return model or self.only(listed), list(listed)

    def _differ(self, url: str, says: str, other: str, says_other: str) -> AgentError:
        return self.error(
            f"{url} {says}, and {other} {says_other}: all of {self.who}.base_url must serve one "
            f"model"
        )

    def send(
        self,
        client: httpx.Client,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        tries: int = 0,
    ) -> Reply:
        """See `Endpoint.send`: by one of them."""
        broken, rounds = 0, 0
        failed: set[_Replica] = set()
        while True:
            replica = self._take(failed)
            begun = time.monotonic()
            try:
                reply = replica.attempt(client, method, path, body, timeout)
            except UnansweredError as error:
                broken += error.reply is not None and error.reply.status == 500
                if error.reply is not None and 0 < tries <= broken:
                    self._answer(replica)
                    return error.reply
                self._fail(replica, begun, error)
            except BaseException:
                self._answer(replica)  # whatever it is, it is no silence
                raise
            else:
                if not _is_of_the_replica(reply) or not self._up() - {replica}:
                    self._answer(replica)
                    return reply
                refusal = UnansweredError(f"HTTP {reply.status}: {reply.said}", reply)
                self._fail(replica, begun, refusal)
            failed.add(replica)
            if self._up() <= failed:
                # It may be the request that breaks them: it must not go round and round.
                failed.clear()
                self.stopped.wait(pause_after(rounds))
                rounds += 1

    def _up(self) -> set[_Replica]:
        with self._changed:
            return {it for it in self._replicas if it.up}

    def _take(self, failed: Set[_Replica]) -> _Replica:
        """The least busy replica, once one is free.

        Args:
            failed: Taken only where no other is up.

        Raises:
            AgentError: Of the kind given: none has answered for as long as there is patience.
        """
        with self._changed:
            while True:
                if self.stopped.is_set():
                    raise self.error(f"{self.url} are asked no more")  # and nobody hears it
                soon = self._look_after()
                up = self._up()
                wanted = up - failed or up
                free = [it for it in self._replicas if it in wanted and it.busy < self._each]
                if free:
                    chosen = min(free, key=lambda it: (it.busy, it.asked))
                    chosen.busy += 1
                    chosen.asked += 1
                    return chosen
                if not up:
                    self._bear()
                self._changed.wait(soon)

    def _bear(self) -> None:
        """Wait on while none is up, as long as there is patience."""
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        silent = time.monotonic() - self._silent_since
        if silent > self.patience:
            raise self._gone(silent)
        if not self._told:
            self._told = True
            say(self.who, f"none of {len(self._replicas)} answers: waiting until one is back")

    def _gone(self, seconds: float) -> AgentError:
        reasons = ", ".join(f"{it.url} ({it.reason})" for it in self._replicas)
        return self.error(
            f"none of {self.who}.base_url has answered for {seconds:.0f} s: {reasons}; start one "
            f"again, and the same command goes on from {REACHED[self.who]}"
        )

    def _answer(self, replica: _Replica) -> None:
        """A request was answered."""
        with self._changed:
            replica.busy -= 1
            self._silent_since, self._answered = None, time.monotonic()
            if replica.up:
                replica.strikes = replica.rests = 0
                self._told = False
                if replica.gone_since is not None:
                    seconds = time.monotonic() - replica.gone_since
                    say(self.who, f"{replica.url} is back after {seconds:.0f} s")
                    replica.gone_since = None
            self._changed.notify_all()

    def _fail(self, replica: _Replica, begun: float, error: UnansweredError) -> None:
        """A request was not.

        Args:
            replica: Was asked.
            begun: When.
            error: Why there is no answer.
        """
        with self._changed:
            replica.busy -= 1
            if self.stopped.is_set():
                return  # its line was cut, and that says nothing of it
            replica.reason = str(error)
            if self._silent_since is None:
                self._silent_since = max(begun, self._answered)
            if replica.up and begun >= replica.since:
                replica.strikes += 1
                status = None if error.reply is None else error.reply.status
                if status not in BREAKING or replica.strikes >= STRIKES:
                    self._rest(replica, error.pause)
            self._changed.notify_all()

    def _rest(self, replica: _Replica, asked: float) -> None:
        """Ask it nothing for a while, for as long as it asks for at least; the lock is held."""
        replica.up = False
        replica.due = time.monotonic() + max(asked, pause_after(replica.rests))
        replica.rests += 1
        if replica.gone_since is None:
            replica.gone_since = time.monotonic()
            up, all_of_them = len(self._up()), len(self._replicas)
            left = f": {up} of {all_of_them} go on without it" if up else ", nor does another"
            say(self.who, f"{replica.url} does not answer ({replica.reason}){left}")

    def _look_after(self) -> float:
        """Have those looked at that have rested, and say when to do so again; the lock is held."""
        now, soon = time.monotonic(), 1.0
        for it in self._replicas:
            if it.up or it.probed:
                continue
            if it.due > now:
                soon = min(soon, it.due - now)
                continue
            it.probed = True
            # In a thread of its own: whoever wants an answer asks the others meanwhile.
            threading.Thread(target=self._look_at, args=(it,), daemon=True).start()
        return soon

    def _look_at(self, replica: _Replica) -> None:
        why, pause = "its check broke off", 0.0
        try:
            self._check(replica)
            why = ""
        except (UnansweredError, AgentError) as error:
            why, pause = str(error), getattr(error, "pause", 0.0)
        finally:
            with self._changed:
                replica.probed = False
                if why:
                    replica.reason = why
                    self._rest(replica, pause)
                else:
                    replica.up, replica.since, replica.strikes = True, time.monotonic(), 0
                self._changed.notify_all()
