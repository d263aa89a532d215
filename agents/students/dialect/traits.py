"""What a model family is, for those who speak it: data, of which `families.py` has a class each."""

from __future__ import annotations

from typing import ClassVar

from journeyman.envs.types import Role
from journeyman.tools.parsing import THINK, CallFormat, Marks, get_parser


class FamilyTraits:
    """One model family's calls, reasoning and answers, and what tells its chat template."""

    name: ClassVar[str] = "hermes"
    """What `student.dialect=` knows it by."""
    form: ClassVar[CallFormat] = get_parser("hermes")
    """How it writes calls."""
    marks: ClassVar[tuple[str, ...]] = ()
    """Texts of which any in a chat template tells this family from the others."""
    hint: ClassVar[str] = ""
    """How to call, for a model that was not trained on the form; empty derives it from the form."""
    reasoning: ClassVar[tuple[Marks, ...]] = (THINK,)
    """What it reasons between, beside the marks that its chat template names."""
    results_as: ClassVar[Role] = "tool"
    """Who tells it what tools said; "user" is also taken where the chat template knows no tools."""
    with_marks: ClassVar[tuple[str, ...]] = ()
    """Texts that all stand in its chat template as well, where one of `marks` does."""
    marks_in_vocabulary: ClassVar[bool] = False
    """Any of `marks` in the vocabulary tells it too, where no template does."""
    answers: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Marks before and after an answer, in a template that writes them."""
    unsaid: ClassVar[tuple[str, ...]] = ()
    """Marks of a turn that are no part of what it says."""
    call_ends: ClassVar[tuple[str, ...]] = ()
    """Marks of its calls that end a turn."""
    call_id: ClassVar[str] = "call{number:05d}"
    """Of a call, by its `name` and `number`, for templates that ask."""
    calls_before_results: ClassVar[bool] = False
    """The chat template tells a result by the call before it; others are asked both ways."""

    @classmethod
    def mark_in(cls, template: str) -> str | None:
        """The mark that tells this family in a chat template."""
        if not all(mark in template for mark in cls.with_marks):
            return None
        return next((mark for mark in cls.marks if mark in template), None)

    @classmethod
    def id_of(cls, name: str, number: int) -> str:
        """What a call is called in a template that asks."""
        return cls.call_id.format(name=name, number=number)
