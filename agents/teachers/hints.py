"""What a privileged teacher reads beside the student's prompt, by name.

A hint is text for one row: the task's solution, or something of this very episode. It goes to the
end of the prompt's last message, as content: no word of it becomes a control token
(`privileged.py`). Another package adds one under the entry-point group `journeyman.hints`.
"""

from __future__ import annotations

import difflib
import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from journeyman.agents.errors import SettingError
from journeyman.agents.students.dialect import Dialect
from journeyman.envs import Episode, Step, StopReason, answer_text
from journeyman.envs.task import Task
from journeyman.tools import CallStatus, ToolCall
from journeyman.tools.doors import load_group

ENTRY_POINTS = "journeyman.hints"


class Hint(ABC):
    """Says what the student is not told."""

    ahead: ClassVar[bool] = False
    """True if it hangs on the task alone: who reads it can then play, too."""

    @abstractmethod
    def tell(self, task: Task, dialect: Dialect, row: Episode | None) -> str | None:
        """The hint to a row.

        Args:
            task: What is played.
            dialect: The student's, which says how calls are written.
            row: What was played; None, to a hint that is known `ahead`, before anything was.

        Returns:
            Text; None where there is nothing to tell.
        """


class GoldProgram(Hint):
    """`gold`: the calls and answers that solve the task (OPSD, arXiv:2601.18734)."""

    ahead = True

    def tell(self, task: Task, dialect: Dialect, row: Episode | None) -> str:
        """One call or answer a line, in the dialect's form."""
        lines = ["It is solved by:"]
        for turn in task.turns:
            lines += [dialect.write_call(call) for call in turn.gold]
            lines.append(answer_text(turn))
        return "\n".join(lines)


class FinalAnswers(Hint):
    """`answer`: the values that are asked for, and nothing of how to come to them."""

    ahead = True

    def tell(self, task: Task, dialect: Dialect, row: Episode | None) -> str | None:
        """One answer a line; None where no value is asked for."""
        lines = [answer_text(turn) for turn in task.turns if turn.answer is not None]
        return "\n".join(["It ends with:", *lines]) if lines else None


class ErrorsMet(Hint):
    """`error`: the calls of this very episode that went wrong, with what was said to them."""

    def tell(self, task: Task, dialect: Dialect, row: Episode | None) -> str | None:
        """None where every call went well; what could not be read is told as it was written."""
        lines = [
            f"{_as_written(step, result.call, dialect)}\n{result.content}"
            for step in (row.steps if row is not None else ())
            for result in step.results
            if result.call.status is not CallStatus.OK
        ]
        return "\n".join(["These calls go wrong:", *dict.fromkeys(lines)]) if lines else None


def _as_written(step: Step, call: ToolCall, dialect: Dialect) -> str:
    """A call's own text: one that cannot be read has no name or arguments to write it by."""
    return dialect.write_call(call) if call.span is None else step.text[slice(*call.span)]


_ENDS = {
    StopReason.ANSWERED: "what it did or what it answered is wrong",
    StopReason.MAX_TURNS: "it takes too many turns",
    StopReason.CONTEXT_FULL: "it gets too long",
}


class HowItEnds(Hint):
    """`outcome`: whether this very episode succeeds, and what it fails by (SDPO, 2601.20802)."""

    def tell(self, task: Task, dialect: Dialect, row: Episode | None) -> str | None:
        """One sentence; None for an episode that an environment broke."""
        if row is None or row.stop is StopReason.INFRA_ERROR:
            return None
        if row.success:
            return "The attempt below succeeds."
        return f"The attempt below fails: {_ENDS[row.stop]}."


_OURS: Mapping[str, type[Hint]] = {
    "answer": FinalAnswers,
    "gold": GoldProgram,
    "error": ErrorsMet,
    "outcome": HowItEnds,
}


@functools.cache
def hints() -> Mapping[str, type[Hint]]:
    """All hints by name, those of other packages too; ours keep their names."""
    return {**load_group(ENTRY_POINTS, _objection), **_OURS}


def _objection(loaded: object) -> str | None:
    """What is wrong with what a package offers as a hint."""
    if isinstance(loaded, type) and issubclass(loaded, Hint):
        return None
    return f"expected a subclass of Hint, not {loaded!r}"


def hint_of(name: str | Hint) -> Hint:
    """The hint of that name; one that is made already is taken as it is.

    Raises:
        SettingError: There is none.
    """
    if isinstance(name, Hint):
        return name
    known = hints()
    if str(name) not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        told = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        raise SettingError(f"hint={name}: no such hint; {told}")
    return known[name]()
