"""The wire to a completions server: rows of token ids out, log-probabilities in.

What passes by itself (a server that is down, busy or restarting) is waited for: no row is left out
and none is made up. What does not (a wrong address, model or answer) is an error of one line.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from journeyman.agents.errors import TeacherServerError
from journeyman.agents.networks.endpoints import Endpoint
from journeyman.agents.networks.replicas import reach

IMPOSSIBLE = -9999.0
"""What vLLM writes for a log-probability of -inf, which JSON has no word for."""


@dataclass(frozen=True)
class Reading:
    """What a server says of one row of T tokens."""

    logprobs: list[dict[int, float]]
    """Of each place, by token id: the row's own token and the most probable ones; the first place,
    which nothing precedes, is empty."""
    texts: dict[int, str] = field(default_factory=dict)
    """What the server takes ids for, where it says so."""
    url: str = ""
    """Of the server; of one of its replicas."""


class CompletionsServer:
    """An OpenAI-compatible completions server that gives `prompt_logprobs`, as vLLM does.

    Or several that serve the same model: a row is read by any of them.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str | None = None,
        concurrency: int = 16,
        timeout: float = 120.0,
        patience: float = 3600.0,
        key: str | None = None,
    ) -> None:
        """Remember how to reach it; nothing is sent yet.

        Args:
            base_url: Such as http://127.0.0.1:8000/v1; or a list of them.
            model: Its name there; None takes the only one.
            concurrency: Rows under way at once, at each.
            timeout: Seconds of silence that a request may bear.
            patience: Seconds without any answer after which the run ends; it can be resumed.
            key: Name of the environment variable that holds the server's key; None sends none.

        Raises:
            SettingError: A value is out of its range, or there is no such variable.
        """
        self._endpoint: Endpoint = reach(
            base_url, "teacher", TeacherServerError, concurrency, timeout, patience, key
        )
        self.url = self._endpoint.url
        self.model = model

    def each(self, check: Callable[[CompletionsServer], object], patience: float) -> None:
        """See `Endpoint.each`: each of them, as one that is alone.

        Raises:
            TeacherServerError: None is there.
        """
        self._endpoint.each(lambda one: check(self._at(one)), patience)

    def _at(self, endpoint: Endpoint) -> CompletionsServer:
        other = copy.copy(self)
        other._endpoint, other.url = endpoint, endpoint.url
        return other

    def figures(self) -> dict[str, float]:
        """See `Endpoint.figures`."""
        return self._endpoint.figures()

    def models(self) -> dict[str, int | None]:
        """Names of what it serves -> the longest row that each takes, where it says so.

        Raises:
            TeacherServerError: See `read`.
        """
        return self._endpoint.models()

    def read(self, rows: Sequence[Sequence[int]], k: int) -> list[Reading]:
        """Log-probabilities of rows, several under way at once.

        Args:
            rows: Token ids.
            k: Most probable tokens that are named at each place beside the row's own; 0 names none.

        Raises:
            TeacherServerError: It refused, or answered something else, or nothing within
                `patience`.
        """
        return self._endpoint.side_by_side(lambda client, row: self._read(client, row, k), rows)

    def next_token(self, row: Sequence[int]) -> tuple[int, float] | None:
        """The most probable token after a row, and its log-probability; None if it names no ids.

        Raises:
            TeacherServerError: See `read`.
        """
        with self._endpoint.connect() as client:
            choice, _ = self._complete(client, row, logprobs=1, return_tokens_as_token_ids=True)
        told = choice.get("logprobs") or {}
        try:
            name, logprob = str(told["tokens"][0]), float(told["token_logprobs"][0])
        except (KeyError, IndexError, TypeError, ValueError):
            return None
        prefix, _, number = name.rpartition(":")
        return (int(number), logprob) if prefix == "token_id" and number.isdigit() else None

    def _read(self, client: httpx.Client, row: Sequence[int], k: int) -> Reading:
        choice, url = self._complete(client, row, prompt_logprobs=k)
        places = choice.get("prompt_logprobs")
        if not isinstance(places, list):
            raise TeacherServerError(
                f"{url} gives no prompt_logprobs: a teacher needs a server that does, such as "
                f"vLLM (journeyman teacher serve MODEL)"
            )
        if len(places) != len(row):
            raise TeacherServerError(
                f"{url} gives log-probabilities of {len(places)} tokens for a row of "
                f"{len(row)}: it must take prompts as token ids, and add none"
            )
        try:
            return _reading(places, url)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            told = "log-probabilities that cannot be read"
            raise self._endpoint.strange(told, places, url) from None

    def _complete(
        self, client: httpx.Client, row: Sequence[int], **asked: Any
    ) -> tuple[dict[str, Any], str]:
        """What is written, and where."""
        body = {"model": self.model, "prompt": list(row), "max_tokens": 1, "temperature": 0.0}
        reply = self._endpoint.send(client, "POST", "completions", body | asked)
        if reply.status >= 400:
            raise self._endpoint.refusal(reply)
        answer = self._endpoint.content(reply)
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise self._endpoint.strange("no choices", answer, reply.url)
        return choices[0], reply.url


def _reading(places: Sequence[Any], url: str) -> Reading:
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
    return Reading(logprobs, texts, url)
