"""From characters to tokens: which tokens of a turn spell a call."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace

from journeyman.tools.types import ToolCall


def token_ends(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """Character position after each token: `ends[i] = len(decode(ids[:i + 1]))`.

    A token that ends inside a multi-byte character counts the replacement character away: its end
    is that of the last whole character, so ends never decrease.
    """
    pieces = [decode([i]) for i in ids]
    # The usual case, and linear; a tokenizer may also drop spaces or split a character.
    if "".join(pieces) == decode(ids):
        return list(itertools.accumulate(map(len, pieces)))
    ends: list[int] = []
    for i in range(len(ids)):
        text = decode(ids[: i + 1]).rstrip("\ufffd")
        ends.append(max(len(text), ends[-1] if ends else 0))
    return ends


def locate(calls: Sequence[ToolCall], ends: Sequence[int]) -> list[ToolCall]:
    """Add token spans: the smallest token range that covers each call's characters.

    Args:
        calls: Calls with character spans.
        ends: `token_ends` of the same text.
    """
    located = []
    for call in calls:
        if call.span is None:
            located.append(call)
            continue
        located.append(replace(call, token_span=covering(call.span, ends)))
    return located


def covering(span: tuple[int, int], ends: Sequence[int]) -> tuple[int, int]:
    """The smallest range of tokens that covers some characters.

    Args:
        span: Half-open range of characters.
        ends: `token_ends` of the text.
    """
    start, end = span
    first = bisect_right(ends, start)  # the first token that reaches beyond `start`
    last = bisect_left(ends, end)  # the first token that reaches `end`
    return first, min(last + 1, len(ends))
