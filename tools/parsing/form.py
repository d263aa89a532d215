"""`CallFormat`: the one interface of every model family's calls, text to calls and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from journeyman.tools.parsing.tokens import locate, token_ends
from journeyman.tools.parsing.values import typed
from journeyman.tools.parsing.within import CallPlaces, Within, nowhere
from journeyman.tools.types import ToolCall, ToolSpec

Scanner = Callable[[str, int], list[ToolCall]]
"""The calls of the next block (one call, or a list of them) at or after a place; none if there is
no more. The place is the start of the turn or the end of the last block."""


@dataclass(frozen=True)
class CallFormat:
    """How a family of models writes calls. Call it to parse a turn."""

    name: str
    """What configs and `get_parser` know it by."""
    scan: Scanner
    write: Callable[[Sequence[ToolCall]], str]
    """The text of a turn's calls."""
    untyped: bool = False
    """True if arguments are written as plain text, so that their types are in the schema only."""
    within: Within = nowhere
    """Where in a call's text its parts stand."""

    def __call__(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[ToolCall]:
        """Every attempted call of a turn, in order, malformed and truncated ones too.

        Args:
            text: The assistant's turn, special tokens included.
            tools: Where forms without types look them up.

        Returns:
            Calls with status, error and character span; never raises.
        """
        calls: list[ToolCall] = []
        start = 0
        while block := self.scan(text, start):
            calls += block
            span = block[-1].span
            assert span is not None  # every scanner says where its calls stand
            start = span[1]
        return [typed(call, tools) for call in calls] if self.untyped else calls

    def parse_ids(
        self,
        ids: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        tools: Sequence[ToolSpec] = (),
    ) -> list[ToolCall]:
        """Parse a turn of token ids: the calls have token spans too.

        Args:
            ids: The assistant's tokens.
            decode: Token ids to text, special tokens kept.
            tools: Where forms without types look them up.
        """
        return locate(self(decode(ids), tools), token_ends(ids, decode))

    def places(self, text: str, call: ToolCall) -> CallPlaces:
        """Where in a turn the parts of one of its calls stand; nothing of a call without a span.

        Args:
            text: The turn that the call was parsed from.
            call: One of its calls.
        """
        if call.span is None:
            return CallPlaces()
        first, last = call.span
        found = self.within(text[first:last])
        return CallPlaces(
            found.name and (first + found.name[0], first + found.name[1]),
            {key: (first + start, first + end) for key, (start, end) in found.arguments.items()},
        )

    def render(self, *calls: ToolCall) -> str:
        """The text of one turn's calls, as the family's models are trained to write it.

        Parsing gives the calls back, but for what a form cannot say: a text value that holds the
        form's own markers where the form has no quotes.
        """
        return self.write(calls)
