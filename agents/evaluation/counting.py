"""What one episode adds to a figure: numerator and denominator, None if it is not about it.

`measures.py` gives these functions names and sums up what they say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from operator import attrgetter

from journeyman.agents.evaluation.matching import (
    NAMELESS,
    call_key,
    matching,
    user_turns,
)
from journeyman.envs.types import Episode, StopReason, Usage
from journeyman.tools.types import UNREAD, CallStatus, ToolCall

VALID = frozenset({CallStatus.OK, CallStatus.TOOL_ERROR, CallStatus.TIMEOUT})
"""Statuses of calls that reached a tool; the others were malformed."""

Parts = tuple[float, float]
"""Numerator and denominator."""
Count = Callable[[Episode], Parts | None]


def episodes(holds: Callable[[Episode], bool]) -> Count:
    """Share of episodes for which something holds."""
    return lambda episode: (float(holds(episode)), 1.0)


def ended(stop: StopReason) -> Count:
    """Share of episodes that ended so."""
    return episodes(lambda episode: episode.stop is stop)


def mean(amount: Callable[[Episode], float]) -> Count:
    """Mean of an episode."""
    return lambda episode: (amount(episode), 1.0)


def calls(statuses: frozenset[CallStatus]) -> Count:
    """Share of attempted calls that have one of the statuses."""

    def count(episode: Episode) -> Parts:
        found = [result.call.status for step in episode.steps for result in step.results]
        return float(sum(status in statuses for status in found)), float(len(found))

    return count


def against_gold(above: str, below: str) -> Count:
    """Ratio of two counts of a `Matching`, by their names; of episodes whose gold is known."""
    counts = attrgetter(above, below)

    def count(episode: Episode) -> Parts | None:
        found = matching(episode)
        return None if found is None else counts(found)

    return count


def exact(pairs: str) -> Count:
    """Share of episodes with as many calls as gold, and as many pairs of that name."""
    pairs_of = attrgetter(pairs)

    def count(episode: Episode) -> Parts | None:
        found = matching(episode)
        if found is None:
            return None
        return float(found.made == found.wanted == pairs_of(found)), 1.0

    return count


def score(episode: Episode) -> Parts | None:
    """Mean score."""
    return None if episode.score is None else (episode.score, 1.0)


def recovery(episode: Episode) -> Parts:
    """Share of failed calls that a later turn of the student makes good.

    It does if, before the user speaks again, it calls the tool and the call runs; of a failed call
    that names no tool, if any call runs. Turned-down calls that gold has as such did not fail.
    """
    turned_down = {call_key(it) for turn in episode.gold or () for it in turn if _refused(it)}
    failed = recovered = 0
    for turn in user_turns(episode):
        later: set[str] = set()
        for step in reversed(turn):
            for call in (result.call for result in step.results if not result.ok):
                if turned_down and _refused(call) and call_key(call) in turned_down:
                    continue
                failed += 1
                recovered += bool(later) if call.status in NAMELESS else call.name in later
            later.update(result.call.name for result in step.results if result.ok)
    return float(recovered), float(failed)


def _refused(call: ToolCall) -> bool:
    return call.status is CallStatus.TOOL_ERROR


def irrelevance(episode: Episode) -> Parts | None:
    """Share without a readable call, of episodes whose gold has none."""
    if episode.gold is None or any(episode.gold):
        return None
    return float(not _calls_something(episode)), 1.0


def relevance(episode: Episode) -> Parts | None:
    """Share with a readable call, of episodes whose gold has one."""
    if episode.gold is None or not any(episode.gold):
        return None
    return float(_calls_something(episode)), 1.0


def _calls_something(episode: Episode) -> bool:
    return any(r.call.status not in UNREAD for step in episode.steps for r in step.results)


def attempted(episode: Episode) -> int:
    """Attempted calls."""
    return sum(len(step.results) for step in episode.steps)


def tool_seconds(episode: Episode) -> float:
    """Seconds spent in tools."""
    return math.fsum(result.latency_s for step in episode.steps for result in step.results)


def tokens(episode: Episode) -> float:
    """Tokens that the student chose; where a server wrote them, by its count."""
    usages = _usages(episode)
    return _total(usage.completion for usage in usages) if usages else episode.chosen


def billed(part: Callable[[Usage], float | None]) -> Count:
    """Mean of what a server counted, over episodes in which one wrote a turn."""

    def count(episode: Episode) -> Parts | None:
        usages = _usages(episode)
        return (_total(map(part, usages)), 1.0) if usages else None

    return count


def _usages(episode: Episode) -> list[Usage]:
    return [step.usage for step in episode.steps if step.usage is not None]


def _total(parts: Iterable[float | None]) -> float:
    """The sum; NaN if one of them is not known."""
    listed = list(parts)
    return math.nan if None in listed else math.fsum(part for part in listed if part is not None)


def truncated(episode: Episode) -> Parts:
    """Share of turns that hit their token limit."""
    return float(sum(step.truncated for step in episode.steps)), float(len(episode.steps))


def unplayed(episode: Episode) -> bool:
    """True if the prompt left no room for a turn."""
    return episode.stop is StopReason.CONTEXT_FULL and not episode.steps
