"""Tokens that are likely to come next, guessed from what was written before.

Calls of tools are written in few forms, over and over. What followed a pair of tokens the last time
it was written, in any conversation of the batch, is read ahead of being sampled; as far as the dice
then draw the same, several tokens come of one pass. This is speculative decoding without a second
model (prompt lookup; Saxena 2023), and it changes nothing that is drawn: the die of a token is the
same whether it was guessed or not, so that a guess is right or is thrown away.

A pass reads ahead as far as that makes most tokens of its time, by how often each pair was
followed by the same token again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Guess = tuple[int, float]
"""A token, and the chance that all guesses up to it are right."""


class Guesses:
    """What was written last after each pair of tokens, and how often it was the same again."""

    def __init__(self) -> None:
        """Know nothing."""
        self._next: dict[tuple[int, int], tuple[int, int, int]] = {}
        """By pair: the token written behind it last; guesses that were right, of how many."""

    def note(self, written: Iterable[tuple[int, int, int]]) -> None:
        """What came of one pass: two tokens, and the one behind them.

        Whether a guess is right is asked of what was known before the pass: rows that write the
        same at once do not make each other predictable.
        """
        known: dict[tuple[int, int], int | None] = {}
        for before, last, token in written:
            pair = before, last
            newest, right, seen = self._next.get(pair, (None, 0, 0))
            guess = known.setdefault(pair, newest)
            if guess is None:
                self._next[pair] = token, 0, 0
            else:
                self._next[pair] = token, right + (guess == token), seen + 1

    def after(self, before: int, last: int, count: int) -> list[Guess]:
        """What may come behind two tokens.

        Args:
            before: The token before the last.
            last: The last.
            count: Guesses, at most.
        """
        guesses, chance = list[Guess](), 1.0
        for _ in range(count):
            known = self._next.get((before, last))
            if known is None:
                break
            token, right, seen = known
            chance *= (right + 1) / (seen + 2)  # Laplace's rule of succession
            guesses.append((token, chance))
            before, last = last, token
        return guesses


def tokens_to_read(guesses: Sequence[Sequence[Guess]], row_cost: float) -> int:
    """How many tokens of each row a pass should read: the last one, and guesses behind it.

    All rows of a pass are equally wide. Of all widths that which is expected to write most tokens
    in its time, which is reckoned as `row_cost` plus the width, for each row.

    Args:
        guesses: Of each row, of which there is at least one.
        row_cost: What a row costs beside its tokens, in tokens: its states, and its share of what
            the pass costs whatever is read.
    """
    expected = float(len(guesses))
    best, rate = 1, expected / (row_cost + 1)
    for count in range(1, max(map(len, guesses)) + 1):
        expected += sum(row[count - 1][1] for row in guesses if len(row) >= count)
        if expected / (row_cost + 1 + count) > rate:
            best, rate = 1 + count, expected / (row_cost + 1 + count)
    return best
