"""How a family reasons under its chat template: between which marks, and which a prompt writes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from journeyman.agents.students.dialect.template import (
    REASONING_FIELDS,
    SAID,
    SPOKEN,
    THOUGHT,
    USER,
    ChatTemplate,
)
from journeyman.tools.parsing import MARKS, Marks, begun_in


def marks_of(template: str, own: Sequence[Marks]) -> tuple[Marks, ...]:
    """A family's own marks of reasoning, and those of others that its chat template has."""
    told = (pair for pair in MARKS if pair.open in template or pair.close in template)
    return tuple(dict.fromkeys((*own, *told)))


class Thinking:
    """What a chat template makes of reasoning."""

    def __init__(
        self, chat: ChatTemplate, marks: Sequence[Marks], after_result: str, probed: str, lead: str
    ) -> None:
        """Look at its prompts.

        Args:
            chat: The template.
            marks: What the family reasons between.
            after_result: How a prompt goes on after a tool's result.
            probed: A user's message and an answer, rendered.
            lead: What opens an answer.
        """
        self._chat, self._marks, self._lead = chat, marks, lead
        prompt = chat.render([USER], True)
        self.begins = tuple(begun_in(it, marks) for it in (prompt, after_result))
        """The reasoning that prompts begin, after a user's message and after a tool's."""
        self.none = self._none(prompt, probed)
        """How a turn begins that only ends the reasoning that its prompt began."""

    def _none(self, prompt: str, probed: str) -> str:
        begun = self.begins[0] or self.begins[1]
        if begun is None:
            return ""
        written = probed[len(prompt) :].rpartition(SAID)[0]
        ended = probed.startswith(prompt) and written.strip() == begun.close
        return written if ended else f"\n{begun.close}\n\n"

    @functools.cached_property
    def around(self) -> tuple[str, str, str] | None:
        """What stands before and after reasoning, and what of the former a prompt may begin.

        None where the chat template shows no reasoning, or more around it than its marks.
        """
        fields = dict.fromkeys(REASONING_FIELDS, THOUGHT)
        written = self._chat.shown([USER, {**SPOKEN, **fields}])
        before, _, after = written.partition(THOUGHT)
        closed = after.partition(SAID)[0].removesuffix(self._lead)
        prompt = self._chat.render([USER], True)
        begun = self.begins[0]
        head = len(prompt) if begun is None else prompt.rindex(begun.open)
        opened = before[head:]
        marks = {(pair.open, pair.close) for pair in self._marks}
        known = (opened.strip(), closed.strip()) in marks
        return (opened, prompt[head:], closed) if known and before[:head] == prompt[:head] else None
