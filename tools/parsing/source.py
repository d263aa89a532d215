"""The text of a turn as scanners read it: whole, or still growing.

A scanner must give the same calls however the text arrives. So a question that more text could
answer otherwise raises `MoreText` while the text still grows; every other answer holds for good.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace


class MoreText(Exception):
    """The text so far does not decide."""


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number


DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)
"""Strict JSON: no NaN, no infinities, nor what Python would round to one (1e999)."""

_SPACE = re.compile(r"[ \t\n\r]*")
_BRACKETS = {"{": "}", "[": "]", "(": ")"}
# A JSON error this far before the end is there to stay. What more text can still mend is shorter:
# the longest is a pair of surrogates, `\ud83e\udd9c`.
_UNDECIDED = 16

JSON_STRINGS = r'"[^"\\]*(?:\\.[^"\\]*)*"'
PYTHON_STRINGS = "|".join(
    (
        r'"""[^"\\]*(?:(?:\\.|"{1,2}(?!"))[^"\\]*)*"""',
        r"'''[^'\\]*(?:(?:\\.|'{1,2}(?!'))[^'\\]*)*'''",
        JSON_STRINGS,
        JSON_STRINGS.replace('"', "'"),
    )
)


@functools.cache
def _any_of(markers: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, markers)))


@functools.cache
def _lexer(strings: str, stops: tuple[str, ...]) -> re.Pattern[str]:
    parts = [strings, *stops, r"[\[\](){},\"']"]
    return re.compile("|".join(parts), re.DOTALL)


@dataclass(frozen=True, slots=True)
class Source:
    """A turn's text up to `end`."""

    text: str
    end: int
    final: bool = True
    """False while more text may follow."""

    def until(self, end: int) -> Source:
        """What stands before a place that is certain: nothing can be added to it."""
        return replace(self, end=end, final=True)

    def at(self, start: int, *markers: str) -> int | None:
        """The end of the marker that stands at `start`, whitespace before it aside.

        Raises:
            MoreText: What stands there may become one of them.
        """
        begin = self.skip_space(start)
        for marker in markers:
            if self.text.startswith(marker, begin, self.end):
                return begin + len(marker)
        rest = self.text[begin : min(self.end, begin + 64)]
        if not self.final and any(m.startswith(rest) for m in markers):
            raise MoreText
        return None

    def skip_space(self, start: int) -> int:
        """The first place that is not whitespace."""
        match = _SPACE.match(self.text, start, self.end)
        return match.end() if match else start

    def find(self, start: int, *markers: str) -> tuple[int, str] | None:
        """Place and text of the first of the markers; None if there is none.

        Raises:
            MoreText: One of them may still come.
        """
        match = _any_of(markers).search(self.text, start, self.end)
        if match is None and not self.final:
            raise MoreText
        return (match.start(), match[0]) if match else None

    def value_end(self, start: int, closer: str, *followers: str) -> int | None:
        """Where an unquoted value ends: at the first closer that one of the followers follows.

        Raises:
            MoreText: More text may end it.
        """
        while found := self.find(start, closer):
            start = found[0] + len(closer)
            if self.at(start, *followers) is not None:
                return found[0]
        return None

    def object_end(self, start: int) -> int | None:
        """Where the JSON object ends that stands at `start`; None if it is not well-formed.

        Raises:
            MoreText: The object is not whole yet.
        """
        begin = self.skip_space(start)
        if not self.text.startswith("{", begin, self.end):
            if begin == self.end and not self.final:
                raise MoreText
            return None
        try:
            return DECODER.raw_decode(self.text, begin)[1]
        except json.JSONDecodeError as error:
            if self.final or self._lasting(error):
                return None
        except (ValueError, RecursionError):  # a number too long, or that is none; too deep
            if self.final:
                return None
        raise MoreText

    def _lasting(self, error: json.JSONDecodeError) -> bool:
        if error.msg.startswith("Unterminated string"):
            return False
        return error.pos < len(self.text.rstrip()) - _UNDECIDED

    def item_end(
        self, start: int, closer: str, strings: str, stops: Sequence[str] = (), comma: bool = True
    ) -> tuple[int, str]:
        """Where an item of a bracketed list ends, well-formed or not.

        Args:
            start: Inside the bracket.
            closer: The bracket that closes it.
            strings: Pattern of the strings, in which nothing counts.
            stops: Patterns of what ends the item wherever it stands.
            comma: Whether a comma ends the item.

        Returns:
            Place and text of the comma, the closing bracket or the stop that ends it; the end of
            the text and "" if nothing does.

        Raises:
            MoreText: Nothing ends it yet.
        """
        expected = [closer]
        for token in _lexer(strings, tuple(stops)).finditer(self.text, start, self.end):
            mark = token[0]
            if mark in _BRACKETS:
                expected.append(_BRACKETS[mark])
            elif mark in expected:  # brackets left open within it end with it
                while expected.pop() != mark:
                    pass
            elif mark == "," and comma and len(expected) == 1:
                return token.start(), mark
            elif mark[0] in "\"'":
                # A lone quote may still become a string, and an empty string a triple quote.
                if not self.final and (len(mark) == 1 or token.end() == self.end):
                    raise MoreText
            elif mark not in (",", ")", "]", "}"):
                return token.start(), mark
            if not expected:
                return token.start(), mark
        if not self.final:
            raise MoreText
        return self.end, ""
