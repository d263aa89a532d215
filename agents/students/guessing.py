"""Tokens that are likely to come next, guessed from what was written before.

Calls of tools are written in few forms, over and over. What followed a pair of tokens the last time
it was written, in any conversation of the batch, is read ahead of being sampled; as far as the dice
then draw the same, several tokens come of one pass. This is speculative decoding without a second
model (prompt lookup; Saxena 2023), and it changes nothing that is drawn: the die of a token is the
same whether it was guessed or not, so that a guess is right or is thrown away.
"""

from __future__ import annotations


class Guesses:
    """What was written last after each pair of tokens."""

    def __init__(self) -> None:
        """Know nothing."""
        self._next: dict[tuple[int, int], int] = {}

    def note(self, before: int, last: int, token: int) -> None:
        """A token was written behind two others."""
        self._next[before, last] = token

    def after(self, before: int, last: int, count: int) -> list[int]:
        """What may come behind two tokens.

        Args:
            before: The token before the last.
            last: The last.
            count: Guesses, at most.
        """
        guesses: list[int] = []
        for _ in range(count):
            token = self._next.get((before, last))
            if token is None:
                break
            guesses.append(token)
            before, last = last, token
        return guesses
