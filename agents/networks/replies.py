"""What a model's server answers: its status, its words, and what they mean for whoever asked."""

from __future__ import annotations

import email.utils
import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that another try may not meet."""
LONGEST_ASKED = 600.0
"""Seconds of a pause that a server may ask for."""
SHOWN = 160
"""Characters of a strange answer that an error repeats."""


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    text: str
    url: str = ""
    """Of the server."""

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


def inner_status(reply: Reply) -> int:
    """The status of an answer; some gateways say that all is well, and hand on an error."""
    told = reply.data if reply.status == 200 else None
    if not isinstance(told, dict) or not isinstance(told.get("error"), dict) or "choices" in told:
        return reply.status
    code = told["error"].get("code")
    if "output" in told:  # of OpenAI's Responses, whose codes are words
        return {"server_error": 500, "rate_limit_exceeded": 429}.get(str(code), 400)
    return code if type(code) is int and 400 <= code < 600 else 502


def for_good(reply: Reply) -> bool:
    """True of "too many requests" where none will ever do: nothing is paid for."""
    return reply.status == 429 and "insufficient_quota" in reply.text


def some_of(names: Sequence[str]) -> str:
    """The first names of a list, which may be long."""
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def shown(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
