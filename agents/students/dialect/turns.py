"""Whole turns as tokens: a family's marks are control tokens where it calls, reasons and answers.

In the arguments of a call they are text, as all other control tokens are anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from journeyman.agents.students.contents import ContentGuard, clean, mapped
from journeyman.tools import ToolCall
from journeyman.tools.parsing import CallFormat, Marks, read_turn


class TurnWriter:
    """Turns of one family's students."""

    def __init__(
        self,
        guard: ContentGuard,
        form: CallFormat,
        around: tuple[str, str],
        reasoning: Sequence[Marks],
        own: Sequence[str],
    ) -> None:
        """Look at what the family writes with.

        Args:
            guard: Knows the tokenizer's control tokens.
            form: The family's calls.
            around: What the family writes before and after its calls, beside the form's own marks.
            reasoning: What it reasons between.
            own: Texts of which each control token is one that its students may write.
        """
        self._guard, self._form, self._around, self._reasoning = guard, form, around, reasoning
        self._own = {token for text in own for token in guard.found(text)}

    def encode(self, text: str) -> list[int]:
        """Tokens of a turn, without the one that ends it."""
        text = clean(text)
        return self._guard.encode(text, self.veil(text) if self._guard.found(text) else text)

    def veil(self, text: str) -> str:
        """A turn with all veiled but the marks that it calls, reasons and answers by."""
        text = clean(text)
        veiled = list(self._guard.veil(text))
        arguments = self._arguments(text)
        for start, end, token in self._guard.places(text):
            if token in self._own and not arguments.intersection(range(start, end)):
                veiled[start:end] = token
        return "".join(veiled)

    def _arguments(self, text: str) -> set[int]:
        """Critical places in the arguments of calls."""
        calls = [
            (call, *call.span)
            for call in read_turn(text, self._form, self._reasoning)[0]
            if call.error is None and call.span is not None
        ]
        if not calls:
            return set()
        begin, end = calls[0][1], calls[-1][2]
        # As they are written here, be it one by one or in one block: all but their own marks.
        together = self._hidden([call for call, *_ in calls], text[begin:end], begin)
        if together is not None:
            return together
        found: set[int] = set()
        for call, start, stop in calls:
            alone = self._hidden([call], text[start:stop], start)
            if alone is None:  # another spelling: then no mark in an argument is the family's
                places = self._form.places(text, call).arguments.values()
                alone = {i for first, last in places for i in range(first, last)}
            found |= alone
        return found

    def _hidden(self, calls: Sequence[ToolCall], text: str, start: int) -> set[int] | None:
        """Places that differ when the calls are written of veiled words; None if they cannot be."""
        opened, closed = self._around
        if text.startswith(opened) and text.endswith(closed):
            start, text = start + len(opened), text[len(opened) : len(text) - len(closed)]
        if not self._guard.found(self._form.render(*calls)):  # a form without marks
            same = text == self._form.render(*calls)
            return set(range(start, start + len(text))) if same else None
        veil = self._guard.veil
        written = self._form.render(
            *(ToolCall(veil(call.name), mapped(call.arguments, veil)) for call in calls)
        )
        if self._guard.unveil(written) != text:
            return None
        pairs = enumerate(zip(written, text, strict=True), start)
        return {i for i, (there, bare) in pairs if there != bare}
