"""Calls made against gold calls, in any order: which of them are the same, and how nearly.

Within a user turn order does not count, as in BFCL's check of parallel calls (Patil et al. 2025);
across user turns it does. Calls are the same on three levels: tool; tool and argument names; tool,
argument names and values. "The same" is transitive on each, so the largest matching is that of
multisets. Argument by argument it is not: there calls of one tool are paired so that most arguments
agree (an assignment problem: Kuhn 1955).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from journeyman.envs.types import Episode, Step
from journeyman.tools.types import UNREAD, CallStatus, ToolCall, ToolResult

NAMELESS = UNREAD | {CallStatus.UNKNOWN_TOOL}
"""Statuses of calls that name no tool of the environment; they match nothing."""


@dataclass(frozen=True, slots=True)
class Matching:
    """An episode's calls against its gold calls; counts over all user turns."""

    made: int
    """Attempted calls, malformed ones too."""
    wanted: int
    """Gold calls, also of user turns that were not reached."""
    tools: int
    """Pairs that agree on the tool."""
    names: int
    """Pairs that agree on tool and argument names."""
    values: int
    """Pairs that agree on tool, argument names and values."""
    needless: int
    """Calls that ran, beyond as many as gold has of their tool."""
    arguments: int
    """Arguments of gold calls that the calls paired with them have, with the same value."""
    wanted_arguments: int
    """Arguments of gold calls."""

    @property
    def missing(self) -> int:
        """Gold calls beyond as many as were attempted of their tool."""
        return self.wanted - self.tools


def user_turns(episode: Episode) -> list[list[Step]]:
    """Turns of the student that make calls, by user turn: one that makes none ends it."""
    turns: list[list[Step]] = [[]]
    for i, step in enumerate(episode.steps):
        if step.results:
            turns[-1].append(step)
        elif i + 1 < len(episode.steps):
            turns.append([])
    return turns


_last: tuple[Episode, Matching | None] | None = None


def matching(episode: Episode) -> Matching | None:
    """Match an episode's calls with its gold calls; None where gold is not known.

    Of a user who says more than gold has turns for, such as a simulated one, all turns count as
    one. Many measures ask for the same episode in a row, so the last answer is kept.
    """
    global _last
    if _last is None or _last[0] is not episode:
        _last = episode, _matching(episode)
    return _last[1]


def _matching(episode: Episode) -> Matching | None:
    if episode.gold is None:
        return None
    made = [[r for step in turn for r in step.results] for turn in user_turns(episode)]
    gold = list(episode.gold)
    if len(made) > len(gold):
        made = [[result for turn in made for result in turn]]
        gold = [tuple(call for turn in gold for call in turn)]
    made += [[]] * (len(gold) - len(made))
    counts = [_match(*turn) for turn in zip(made, gold, strict=True)]
    return Matching(*map(sum, zip(*counts, strict=True)))


def _match(made: Sequence[ToolResult], gold: Sequence[ToolCall]) -> tuple[int, ...]:
    """The counts of `Matching` in one user turn, in its order."""
    calls = [_Keys.of(result.call) for result in made if result.call.status not in NAMELESS]
    wanted = [_Keys.of(call) for call in gold]
    if calls == wanted and len(calls) == len(made) and all(result.ok for result in made):
        arguments = sum(len(keys.values) for keys in wanted)
        return (*[len(gold)] * 5, 0, arguments, arguments)
    ran = Counter(result.call.name for result in made if result.ok)
    tools = Counter(call.name for call in gold)
    arguments, total = _arguments(calls, wanted), sum(len(keys.values) for keys in wanted)
    return (
        len(made),
        len(gold),
        _common([keys.name for keys in calls], [keys.name for keys in wanted]),
        _common([keys.names for keys in calls], [keys.names for keys in wanted]),
        _common([keys.whole for keys in calls], [keys.whole for keys in wanted]),
        (ran - tools).total(),
        arguments,
        total,
    )


def _common(made: Sequence[object], wanted: Sequence[object]) -> int:
    """Size of the intersection of two multisets."""
    return (Counter(made) & Counter(wanted)).total()


@dataclass(frozen=True, slots=True)
class _Keys:
    """What a call is compared by."""

    name: str
    values: Mapping[str, str]
    """Arguments as canonical text."""

    @classmethod
    def of(cls, call: ToolCall) -> _Keys:
        return cls(call.name, {name: canonical(value) for name, value in call.arguments.items()})

    @property
    def names(self) -> tuple[str, frozenset[str]]:
        return self.name, frozenset(self.values)

    @property
    def whole(self) -> tuple[str, frozenset[tuple[str, str]]]:
        return self.name, frozenset(self.values.items())


def call_key(call: ToolCall) -> tuple[str, frozenset[tuple[str, str]]]:
    """The same for calls of the same tool, argument names and values."""
    return _Keys.of(call).whole


def canonical(value: Any) -> str:
    """An argument as text that is the same for values that JSON does not tell apart.

    5 and 5.0 are one number, a tuple is a list; 1 and true, or 1 and "1", are not the same.
    """
    if type(value) is str:  # most are, and JSON's way takes longer than all else here
        return f'"{value}"'
    if type(value) is int:
        return str(value)
    return json.dumps(_plain(value), sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):  # in some call syntaxes
        return sorted(map(canonical, value))
    return value


def _arguments(calls: Sequence[_Keys], wanted: Sequence[_Keys]) -> int:
    """Gold arguments that are given, when calls are paired so that they are most."""
    left = Counter(keys.whole for keys in calls)
    given = 0
    open_gold: defaultdict[str, list[_Keys]] = defaultdict(list)
    for keys in wanted:
        # A call is best paired with one that is its equal: whatever the two were paired with
        # instead agree with each other at least where both agree with them.
        if left[keys.whole]:
            left[keys.whole] -= 1
            given += len(keys.values)
        else:
            open_gold[keys.name].append(keys)
    open_calls: defaultdict[str, list[_Keys]] = defaultdict(list)
    for keys in calls:
        if left[keys.whole]:
            left[keys.whole] -= 1
            open_calls[keys.name].append(keys)
    for name, them in open_gold.items():
        agreeing = [
            [len(gold.values.items() & made.values.items()) for made in open_calls[name]]
            for gold in them
        ]
        given += greatest(agreeing)
    return given


def greatest(weights: Sequence[Sequence[int]]) -> int:
    """The greatest sum of entries of a matrix with at most one of each row and of each column.

    By shortest augmenting paths, O(rows² columns) (Jonker and Volgenant 1987).

    Args:
        weights: Rows of one length, 0 or more each.
    """
    if not weights or not weights[0]:
        return 0
    if len(weights) > len(weights[0]):
        weights = list(zip(*weights, strict=True))
    rows, columns = len(weights), len(weights[0])
    # Potentials of rows and columns, and which row each column has; place 0 stands for none.
    of_row, of_column = [0] * (rows + 1), [0] * (columns + 1)
    row_of, before = [0] * (columns + 1), [0] * (columns + 1)
    for row in range(1, rows + 1):
        row_of[0], column = row, 0
        least: list[float] = [float("inf")] * (columns + 1)
        seen = [False] * (columns + 1)
        while row_of[column]:
            seen[column] = True
            here, step, nearest = row_of[column], float("inf"), 0
            for other in range(1, columns + 1):
                if seen[other]:
                    continue
                cost = -weights[here - 1][other - 1] - of_row[here] - of_column[other]
                if cost < least[other]:
                    least[other], before[other] = cost, column
                if least[other] < step:
                    step, nearest = least[other], other
            for other in range(columns + 1):
                if seen[other]:
                    of_row[row_of[other]] += int(step)
                    of_column[other] -= int(step)
                else:
                    least[other] -= step
            column = nearest
        while column:
            row_of[column] = row_of[before[column]]
            column = before[column]
    return sum(weights[row - 1][column - 1] for column, row in enumerate(row_of) if column and row)
