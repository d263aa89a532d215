"""A turn cut into spans, so that models with different tokenizers find the same texts probable.

Spans are characters first: what stands before a call, its name, each of its arguments, every line
of an answer. Each begins where a token does, on both sides where there are two: a cut inside a
token is moved to the first place after it where no token is cut. So a span is whole tokens to
either model, every character of a turn is in one span, and their log-probabilities add up to those
of the turn.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from journeyman.envs import Episode, Step

Decode = Callable[[Sequence[int]], str]

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LINE = re.compile(r"\n+")


def number_spans(row: Episode, decode: Decode) -> Tensor:
    """The span of each token that the student chose, where a teacher has the student's tokenizer.

    Args:
        row: Of T tokens.
        decode: Of the student.

    Returns:
        [T] numbers from 0 on, in order; -1 elsewhere.
    """
    numbers = torch.full((len(row.tokens),), -1)
    count = 0
    for step in row.steps:
        start, end = step.span
        edges = token_edges(row.tokens[start : end - 1], decode, step.text)
        for first, last in char_spans(step, edges):
            numbers[start + edges[first] : start + edges[last]] = count
            count += 1
        numbers[end - 1] = count  # the end of the turn
        count += 1
    return numbers.masked_fill(~torch.tensor(row.mask, dtype=torch.bool), -1)


def char_spans(step: Step, edges: Collection[int]) -> list[tuple[int, int]]:
    """Half-open ranges of a turn's characters, one a span; together they are the whole turn.

    Args:
        step: Has the turn's text, and its calls.
        edges: Characters at which spans may begin or end, 0 and the text's length among them; none
            gives no spans.
    """
    if not edges:
        return []
    allowed = sorted(edges)
    places = {allowed[bisect_left(allowed, cut)] for cut in _cuts(step)} | {allowed[-1]}
    ends = sorted(places)
    return list(itertools.pairwise(ends))


def _cuts(step: Step) -> set[int]:
    """Where parts of a turn begin.

    Names of arguments are looked for in what was written, whatever the call form. One that is not
    found stays with what stands before it; one that stands in a value too may be cut there. Neither
    makes the numbers wrong: the texts on both sides are the same.
    """
    text, calls = step.text, [result.call for result in step.results]
    cuts, outside = {0}, 0
    for call in calls:
        if call.span is None:
            continue
        start, end = call.span
        cuts |= {start, end, *_lines(text, outside, start)}
        place = start if (named := text.find(call.name, start, end)) < 0 else named + len(call.name)
        for name in call.arguments:
            key = rf"[\"']?(?<![\w\\]){re.escape(name)}(?!\w)[\"']?\s*(?:[:=>]|</)"
            if match := re.compile(key).search(text, place, end):
                cuts.add(match.start())
                place = match.end()
        outside = end
    return cuts | _lines(text, outside, len(text))


def _lines(text: str, start: int, end: int) -> set[int]:
    return {match.end() for match in _LINE.finditer(text, start, end)}


def token_edges(ids: Sequence[int], decode: Decode, text: str) -> dict[int, int]:
    """Characters of a text at which a token ends, and how many tokens there are up to there.

    Tokens that end inside a character are no edge; those that write nothing go with what follows.

    Args:
        ids: Tokens of the text.
        decode: Theirs.
        text: What they should say.

    Returns:
        From 0 and 0 to the whole text and all tokens; empty if they say something else.
    """
    pieces = [decode([token]) for token in ids]
    if "".join(pieces) == text and not any(_BROKEN in piece for piece in pieces):
        ends = list(itertools.accumulate(map(len, pieces), initial=0))
        whole = {end: count for count, end in reversed(list(enumerate(ends)))}
        return _to_the_end(whole, ids, text)
    edges, known = {0: 0}, ""
    start = end = 0  # tokens decoded together: some write a space only where others stand before
    before = ""
    for count in range(1, len(ids) + 1):
        said = decode(ids[start:count])
        if said.endswith(_BROKEN) and count < len(ids):
            continue
        known += said[len(before) :]
        edges.setdefault(len(known), count)
        start, end = end, count
        before = decode(ids[start:end])
    return _to_the_end(edges, ids, text) if known == text else {}


def _to_the_end(edges: dict[int, int], ids: Sequence[int], text: str) -> dict[int, int]:
    """With tokens at the end that write nothing, which nothing follows."""
    return edges | {len(text): len(ids)} if text else edges
