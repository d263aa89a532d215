"""The wire to a completions server: rows of token ids out, log-probabilities in.

What passes by itself (a server that is down, busy or restarting) is waited for: no row is left out
and none is made up. What does not (a wrong address, model or answer) is an error of one line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from journeyman.agents.errors import TeacherServerError
from journeyman.agents.networks.endpoints import Endpoint

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
        self._endpoint = Endpoint(
            base_url, "teacher", TeacherServerError, concurrency, timeout, patience, key
        )
        self.url = self._endpoint.url
        self.model = model

    @property
    def patience(self) -> float:
        """Seconds without any answer after which the run ends."""
        return self._endpoint.patience

    @patience.setter
    def patience(self, seconds: float) -> None:
        self._endpoint.patience = seconds

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
            raise self._endpoint.strange("log-probabilities that cannot be read", places) from None

    def _complete(self, client: httpx.Client, row: Sequence[int], **asked: Any) -> dict[str, Any]:
        body = {"model": self.model, "prompt": list(row), "max_tokens": 1, "temperature": 0.0}
        answer = self._endpoint.ask(client, "POST", "completions", body | asked)
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise self._endpoint.strange("no choices", answer)
        found: dict[str, Any] = choices[0]
        return found


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
