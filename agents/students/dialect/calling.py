"""How a family's calls are written under its chat template, and whether they are read again."""

from __future__ import annotations

import functools

from journeyman.agents.errors import DialectError
from journeyman.agents.students.dialect.template import (
    GOLD,
    USER,
    ChatTemplate,
    as_call,
    gold_in,
)
from journeyman.agents.students.dialect.traits import FamilyTraits
from journeyman.tools import ToolCall

_BEFORE = "contentbefore"


class Calling:
    """A family's calls, as the chat template shows them."""

    def __init__(self, chat: ChatTemplate, family: type[FamilyTraits], foreign: bool) -> None:
        """Have the template show one; `foreign` says that it is another family's."""
        self._chat, self._family = chat, family
        text = chat.calling(as_call(family.id_of(GOLD.name, 0), GOLD))
        self.shown = text.removeprefix(chat.shown([USER], True))
        """How the template writes a call, or "" if it shows none."""
        found = gold_in(self.shown, family.form) if text else None
        same = found is not None and (found.name, found.arguments) == (GOLD.name, GOLD.arguments)
        gold = found if same else None
        self.another_form = foreign or (bool(text) and gold is None)
        """The template tells the student to call in another form than is read."""
        self.around = ("", "")
        """What the template writes before and after the calls of a turn, beside the form's own."""
        if gold is not None and gold.span is not None:
            written = self.shown[slice(*gold.span)]
            opened, bare, closed = written.partition(family.form.render(GOLD))
            self.around = (opened, closed) if bare else ("", "")

    def check(self) -> None:
        """A call that the chat template writes must be read as itself.

        Raises:
            DialectError: It is not; it says what was written and what was read.
        """
        if not self.another_form:
            return
        read = ", ".join(map(_in_words, self._family.form(self.shown))) or "an answer"
        raise DialectError(
            f"the chat template writes a call as {self.shown[-200:]!r}, which the dialect "
            f"{self._family.name} reads as {read}: name the dialect that reads it by "
            f"student.dialect=, or any (such as hermes) to have the student told to call in that "
            f"form instead"
        )

    def write(self, *calls: ToolCall) -> str:
        """The text that makes a call, or several in one turn."""
        opened, closed = self.around
        return f"{opened}{self._family.form.render(*calls)}{closed}"

    @functools.cached_property
    def joint(self) -> str:
        """What the chat template writes between what is said and the calls of a turn."""
        call = as_call(self._family.id_of(GOLD.name, 0), GOLD)
        after = self._chat.calling(call, content=_BEFORE).partition(_BEFORE)[2]
        found = self._family.form(after)
        between = after[: found[0].span[0]] if found and found[0].span else "\n"
        return "\n" if between.strip() else between


def _in_words(call: ToolCall) -> str:
    return f"a call of {call.name!r}" if call.error is None else f"an error ({call.error})"
