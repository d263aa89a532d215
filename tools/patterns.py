"""Regular expressions of JSON Schemas (ECMA-262), matched with the `regex` library.

Python's `re` knows neither Unicode's categories nor a time limit, and its `$` matches before a last
newline too.
"""

from __future__ import annotations

import functools
from typing import Any

import regex

MATCH_S = 0.5
"""Longest match, in seconds: an argument may be made to take for ever."""

_TOKEN = regex.compile(r"\\c[A-Za-z]|\\u\{[0-9A-Fa-f]{1,6}\}|\\.|\[\^?\]?|.", regex.DOTALL)
# Letters that mean more to Python or `regex` than the plain ASCII sets of ECMA-262.
_SETS = {"d": "0-9", "w": "0-9A-Za-z_", "s": r"\t-\r \u00a0\u2028\u2029\ufeff\p{Zs}"}


@functools.lru_cache(1024)
def compiled(pattern: str) -> Any:
    """The expression, ready to search with.

    Raises:
        ValueError: It is none; the message says why.
    """
    try:
        return regex.compile(_translated(pattern), regex.VERSION0)
    except (regex.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None


def matches(pattern: str, text: str) -> bool:
    """True if the pattern matches anywhere in the text.

    Raises:
        TimeoutError: After `MATCH_S`.
    """
    return compiled(pattern).search(text, timeout=MATCH_S) is not None


def _translated(pattern: str) -> str:
    """What `regex` has to read to match as ECMA-262 says."""
    parts, inside = [], False
    for token in _TOKEN.findall(pattern):
        if not inside and token.startswith("["):
            # `[]` matches nothing and `[^]` everything.
            inside = not token.endswith("]")
            parts.append({"[]": "(?!)", "[^]": r"[\s\S]"}.get(token, token))
        elif token == "]":
            inside = False
            parts.append(token)
        elif token.startswith("\\"):
            parts.append(_escape(token, inside))
        elif inside and token.startswith("["):
            parts.append("\\" + token)  # a bracket in brackets is itself
            inside = not token.endswith("]")
        else:
            parts.append(r"\Z" if token == "$" and not inside else token)
    return "".join(parts)


def _escape(token: str, inside: bool) -> str:
    letter = token[1:2]
    if letter in _SETS:
        return _SETS[letter] if inside else f"[{_SETS[letter]}]"
    if letter.lower() in _SETS and not inside:
        return f"[^{_SETS[letter.lower()]}]"
    if token.startswith("\\c") and len(token) == 3:
        return f"\\x{ord(token[2]) % 32:02x}"
    if token == "\\k" and not inside:
        return r"\g"  # a named group again
    if token.startswith("\\u{"):
        return f"\\U{int(token[3:-1], 16):08x}"
    return token
