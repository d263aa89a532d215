"""What the scanners stand on: where markers, values, objects and the items of a list end."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Sequence


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
    # A quote that begins no string is a token too: it is skipped like a string.
    parts = [strings, *stops, r"[\[\](){},\"']"]
    return re.compile("|".join(parts), re.DOTALL)


def skip_space(text: str, start: int) -> int:
    """The first place that is not whitespace."""
    match = _SPACE.match(text, start)
    return match.end() if match else start


def marker_end(text: str, start: int, *markers: str) -> int | None:
    """The end of the marker that stands at `start`, whitespace before it aside."""
    begin = skip_space(text, start)
    return next((begin + len(m) for m in markers if text.startswith(m, begin)), None)


def next_marker(text: str, start: int, *markers: str) -> tuple[int, str]:
    """Place and text of the first of the markers; the end of the text and "" if there is none."""
    match = _any_of(markers).search(text, start)
    return (match.start(), match[0]) if match else (len(text), "")


def value_end(text: str, start: int, closer: str, *followers: str) -> int | None:
    """Where an unquoted value ends: at the first closer that one of the followers follows."""
    while (end := text.find(closer, start)) >= 0:
        start = end + len(closer)
        if marker_end(text, start, *followers) is not None:
            return end
    return None


def object_end(text: str, start: int) -> int | None:
    """Where the JSON object ends that stands at `start`; None if it is not well-formed."""
    begin = skip_space(text, start)
    if not text.startswith("{", begin):
        return None
    try:
        return DECODER.raw_decode(text, begin)[1]
    except (ValueError, RecursionError):
        return None


def item_end(
    text: str,
    start: int,
    closer: str,
    strings: str,
    stops: Sequence[str] = (),
    comma: bool = True,
) -> tuple[int, str]:
    """Where an item of a bracketed list ends, well-formed or not.

    Args:
        text: The turn.
        start: Inside the bracket.
        closer: The bracket that closes it.
        strings: Pattern of the strings, in which nothing counts.
        stops: Patterns of what ends the item wherever it stands.
        comma: Whether a comma ends the item.

    Returns:
        Place and text of the comma, the closing bracket or the stop that ends it; the end of the
        text and "" if nothing does.
    """
    expected = [closer]
    for token in _lexer(strings, tuple(stops)).finditer(text, start):
        mark = token[0]
        if mark in _BRACKETS:
            expected.append(_BRACKETS[mark])
        elif mark in expected:
            while expected.pop() != mark:  # brackets left open within it end with it
                pass
            if not expected:
                return token.start(), mark
        elif mark == ",":
            if comma and len(expected) == 1:
                return token.start(), mark
        elif mark[0] not in ")]}\"'":
            return token.start(), mark
    return len(text), ""
