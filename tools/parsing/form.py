"""`CallFormat`: the one interface of every model family's calls, text to calls and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from journeyman.tools.parsing.source import MoreText, Source
from journeyman.tools.parsing.tokens import locate, token_ends
from journeyman.tools.parsing.values import typed
from journeyman.tools.types import ToolCall, ToolSpec

Scanner = Callable[[Source, int], list[ToolCall]]
"""The calls of the next block (one call, or a list of them) at or after a place; none if there is
no more. The place is the start of the turn or the end of the last block. Raises `MoreText` if the
text so far does not decide."""


@dataclass(frozen=True)
class CallFormat:
    """How a family of models writes calls. Call it to parse a turn."""

    name: str
    """What configs and `get_parser` know it by."""
    scan: Scanner
    write: Callable[[Sequence[ToolCall]], str]
    """The text of a turn's calls."""
    last: str
    """Characters a call can end in: a stream looks for calls only when one of them came."""
    untyped: bool = False
    """True if arguments are written as plain text, so that their types are in the schema only."""

    def __call__(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[ToolCall]:
        """Every attempted call of a turn, in order, malformed and truncated ones too.

        Args:
            text: The assistant's turn, special tokens included.
            tools: Where forms without types look them up.

        Returns:
            Calls with status, error and character span; never raises.
        """
        stream = self.stream(tools)
        stream.add(text)
        return stream.finish()

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

    def render(self, *calls: ToolCall) -> str:
        """The text of one turn's calls, as the family's models are trained to write it.

        Parsing gives the calls back, but for what a form cannot say: a text value that holds the
        form's own markers where the form has no quotes.
        """
        return self.write(calls)

    def stream(self, tools: Sequence[ToolSpec] = ()) -> CallStream:
        """A parser for text that arrives piece by piece."""
        return CallStream(self, tools)


class CallStream:
    """Parses a growing turn; all its calls together are those of the whole text.

    A call is given out once no further text can change it. A malformed one may have to wait for
    the end, where `finish` settles it.
    """

    def __init__(self, form: CallFormat, tools: Sequence[ToolSpec] = ()) -> None:
        """Start a turn."""
        self._form = form
        self._tools = tools
        self._text = ""
        self._new: list[str] = []  # joined when looked at: text grows by single characters
        self._start = 0

    def feed(self, text: str) -> list[ToolCall]:
        """Add text; returns the calls that are finished by it."""
        self.add(text)
        if not any(character in text for character in self._form.last):
            return []
        return self._advance(final=False)

    def add(self, text: str) -> None:
        """Add text without looking at it yet."""
        self._new.append(text)

    def finish(self) -> list[ToolCall]:
        """The turn is over: returns what was still open."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> list[ToolCall]:
        self._text = "".join((self._text, *self._new))
        self._new.clear()
        source = Source(self._text, len(self._text), final)
        calls: list[ToolCall] = []
        try:
            while block := self._form.scan(source, self._start):
                calls += block
                span = block[-1].span
                assert span is not None  # every scanner says where its calls stand
                self._start = span[1]
        except MoreText:
            pass
        return [typed(c, self._tools) for c in calls] if self._form.untyped else calls
