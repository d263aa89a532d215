"""Why an episode failed: the first of a list of rules that holds (`RULES`).

Read from the record alone, so that an episode of another machine is classed the same. The rules ask
first for what stopped the student from being heard, then for what it did beside or instead of the
gold calls, and last for what it said. `metrics.py` counts them, `journeyman show` prints them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from journeyman.agents.evaluation.matching import canonical
from journeyman.envs.task import mentions
from journeyman.envs.types import Episode, StopReason
from journeyman.tools import UNREAD, CallStatus, ToolCall

INFRASTRUCTURE = "infrastructure"
UNEXPLAINED = "unexplained"
"""Of an episode that no rule explains: of an environment that does not say what it wants, or of a
file from before gold calls were kept."""

PROGRAMS = frozenset({"python", "shell", "sql"})
"""Tools that take a program. Many do the same, so no call of one is held against a gold call."""

_REFUSED = frozenset({CallStatus.UNKNOWN_TOOL, CallStatus.INVALID_ARGUMENTS, CallStatus.TOOL_ERROR})


def failure(episode: Episode) -> str | None:
    """The name of what an episode failed by; None if it succeeded.

    Args:
        episode: Played by anybody, fresh or read from a file.

    Returns:
        A name of `RULES`, `INFRASTRUCTURE` or `UNEXPLAINED`.
    """
    if episode.stop is StopReason.INFRA_ERROR:
        return INFRASTRUCTURE
    if episode.success:
        return None
    case = _Case.of(episode)
    return next((name for name, holds in RULES.items() if holds(case)), UNEXPLAINED)


@dataclass(frozen=True, slots=True)
class _Case:
    """A failed episode, its calls set beside the gold calls: each is used up by one equal to it."""

    episode: Episode
    missing: tuple[ToolCall, ...]
    """Gold calls that were not even tried; not those that are meant to be refused."""
    refused: bool
    """A gold call was tried as often as it should be made, and accepted less often."""
    extra: tuple[ToolCall, ...]
    """Calls that could be read, and are none of the gold calls; programs are none of them."""
    state_differs: bool
    """The environment says so."""
    answers_right: bool
    """All of them; where the environment says nothing, nothing is known to be wrong."""

    @classmethod
    def of(cls, episode: Episode) -> _Case:
        wanted: dict[str, ToolCall] = {}
        count, in_vain = Counter[str](), Counter[str]()
        for call in (call for turn in episode.gold or () for call in turn):
            key = _key(call)
            if call.status is CallStatus.TOOL_ERROR:
                in_vain[key] += 1
            else:
                wanted[key] = call
                count[key] += 1
        tried, accepted, extra = Counter[str](), Counter[str](), []
        for call in (result.call for result in episode.calls):
            if call.status in UNREAD:
                continue
            key = _key(call)
            tried[key] += 1
            accepted[key] += call.status is CallStatus.OK
            once_more = call.status is CallStatus.OK and accepted[key] > count[key]
            unasked = key not in count and key not in in_vain
            if call.name not in PROGRAMS and (once_more or unasked):
                extra.append(call)
        short = [key for key in count if accepted[key] < count[key]]
        untried = [key for key in short if tried[key] - in_vain[key] < count[key]]
        lacks = episode.shortfall
        return cls(
            episode,
            tuple(wanted[key] for key in untried),
            len(untried) < len(short),
            tuple(extra),
            lacks is not None and bool(lacks.state),
            lacks is None or all(check.right for check in lacks.answers),
        )

    @property
    def answered(self) -> bool:
        """It came to an end of its own."""
        return self.episode.stop is StopReason.ANSWERED

    @property
    def state_to_blame(self) -> bool:
        """The state is wrong; or nothing else is, and nobody says how the state is."""
        return self.state_differs or self.answers_right

    def cut_off(self) -> bool:
        steps = self.episode.steps
        return bool(steps) and steps[-1].truncated

    def silent(self) -> bool:
        steps = self.episode.steps
        return bool(steps) and not any(s.results or s.said.strip() for s in steps)

    def in_other_words(self) -> bool:
        lacks = self.episode.shortfall
        if not self.answered or self.state_differs or self.answers_right or lacks is None:
            return False
        wrong = [check for check in lacks.answers if not check.right]
        return all(c.given and c.wanted and mentions(c.given, c.wanted) for c in wrong)

    def malformed(self) -> bool:
        """Never got over: nothing was accepted after the last, or else all that was is gold."""
        statuses = [result.call.status for result in self.episode.calls]
        last = max((i for i, s in enumerate(statuses) if s in UNREAD), default=None)
        if last is None:
            return False
        return CallStatus.OK not in statuses[last:] or bool(self.missing and not self.extra)

    def refused_again(self) -> bool:
        """A call was turned down twice in a user turn, and nothing was accepted after that."""
        seen: set[str] = set()
        again = False
        for step in self.episode.steps:
            if not step.results:
                seen.clear()  # the user goes on
            for call in (result.call for result in step.results):
                if call.status is CallStatus.OK:
                    again = False
                elif call.status in _REFUSED:
                    again = again or _key(call) in seen
                    seen.add(_key(call))
        return again

    def needless(self) -> bool:
        harm = self.state_to_blame or not self.answered
        return self._knows_gold and not self.missing and bool(self.extra) and harm

    def full(self) -> bool:
        return self.episode.stop is StopReason.CONTEXT_FULL

    def late(self) -> bool:
        return self.episode.stop is StopReason.MAX_TURNS

    def wrong_argument(self) -> bool:
        names = {call.name for call in self.missing}
        return any(call.name in names for call in self.extra)

    def wrong_tool(self) -> bool:
        return bool(self.missing and self.extra)

    def incomplete(self) -> bool:
        return bool(self.missing)

    def turned_down(self) -> bool:
        return self.refused

    def wrong_answer(self) -> bool:
        return not self.answers_right and not self.state_differs

    def wrong_program(self) -> bool:
        called = {result.call.name for result in self.episode.calls}
        return self.state_to_blame and not called.isdisjoint(PROGRAMS)

    def wrong_order(self) -> bool:
        return self._knows_gold and self.state_differs

    @property
    def _knows_gold(self) -> bool:
        return self.episode.gold is not None


def _key(call: ToolCall) -> str:
    """Equal for calls that `matching` calls equal, and for all of a tool that takes a program."""
    if call.name in PROGRAMS:
        return call.name
    return f"{call.name} {canonical(call.arguments)}"


RULES: Mapping[str, Callable[[_Case], bool]] = MappingProxyType(
    {
        "cut off": _Case.cut_off,
        "silent": _Case.silent,
        "answer in other words": _Case.in_other_words,
        "malformed calls": _Case.malformed,
        "refused calls repeated": _Case.refused_again,
        "needless calls": _Case.needless,
        "context full": _Case.full,
        "turn limit": _Case.late,
        "wrong argument": _Case.wrong_argument,
        "wrong tool": _Case.wrong_tool,
        "missing calls": _Case.incomplete,
        "refused calls": _Case.turned_down,
        "wrong answer": _Case.wrong_answer,
        "wrong program": _Case.wrong_program,
        "wrong order": _Case.wrong_order,
    }
)
"""Name of a failure -> whether it holds, in the order they are asked; docs/evaluation.md has each
in words."""
