"""What a failed episode lacks: the state reached beside the state wanted, and each answer.

`ToolEnv.shortfall` makes one when an episode ends unsolved; the rollout writes it into the episode,
where `agents/evaluation/failures.py` and every display read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from journeyman.envs.hashing import canonical

MOST_DIFFERENCES = 20
"""Of one episode; the rest is counted."""
_LONGEST_TEXT = 160
"""Characters of a value; a difference says what is wrong, and the transcript has the rest."""
_LONGEST_ANSWER = 1000


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where the state reached is not the state wanted."""

    path: str
    """Where, such as "accounts/A17.balance": "/" before a key, "." before a field, "[2]" an item;
    of the last of a long list, "and 7 more"."""
    reached: str | None
    """What is there, as short text; None if nothing is."""
    wanted: str | None
    """What should be there."""


@dataclass(frozen=True, slots=True)
class AnswerCheck:
    """What the student answered to one user turn."""

    given: str | None
    """Its answer; None if it gave none."""
    wanted: str | None
    """The value that is asked for; None if any answer will do."""
    right: bool
    """True if it was given and is the one that is wanted."""

    @classmethod
    def of(cls, given: str | None, wanted: str | None, right: bool) -> AnswerCheck:
        """A check whose texts are cut to what a page can show."""
        return cls(_cut(given, _LONGEST_ANSWER), _cut(wanted, _LONGEST_ANSWER), right)


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why an episode was not solved, as far as its environment can tell."""

    state: tuple[Difference, ...] = ()
    """Where the state differs from the one wanted."""
    answers: tuple[AnswerCheck, ...] = ()
    """One a user turn."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "state": [
                {"path": d.path, "reached": d.reached, "wanted": d.wanted} for d in self.state
            ],
            "answers": [
                {"given": a.given, "wanted": a.wanted, "right": a.right} for a in self.answers
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Shortfall:
        """Read what `to_dict` wrote."""
        return cls(
            tuple(Difference(d["path"], d["reached"], d["wanted"]) for d in data["state"]),
            tuple(AnswerCheck(a["given"], a["wanted"], a["right"]) for a in data["answers"]),
        )


def differences(reached: Any, wanted: Any, root: str = "state") -> tuple[Difference, ...]:
    """Where two frozen values differ, as `digest` tells values apart.

    Mappings are compared by key, dataclasses of one class by field, sets by member, sequences by
    place between what they have in common at both ends; all else as a whole. What both values share
    as one object is passed over at once.

    Args:
        reached: What is there.
        wanted: What should be there.
        root: How the values themselves are called, where they differ as a whole.

    Returns:
        At most `MOST_DIFFERENCES`, and then one that counts the rest.
    """
    found = [
        Difference(path or root, _text(one), _text(other))
        for path, one, other in _walk("", reached, wanted)
    ]
    if len(found) <= MOST_DIFFERENCES:
        return tuple(found)
    rest = len(found) - MOST_DIFFERENCES
    return (*found[:MOST_DIFFERENCES], Difference(f"and {rest} more", None, None))


_ABSENT = object()


def _walk(path: str, reached: Any, wanted: Any) -> Iterator[tuple[str, Any, Any]]:
    if reached is wanted:
        return
    if isinstance(reached, Mapping) and isinstance(wanted, Mapping):
        for key in sorted({*reached, *wanted}, key=canonical):
            pair = reached.get(key, _ABSENT), wanted.get(key, _ABSENT)
            yield from _walk(f"{path}/{key}" if path else f"{key}", *pair)
    elif is_dataclass(wanted) and type(reached) is type(wanted):
        for name in (f.name for f in fields(wanted)):
            pair = getattr(reached, name), getattr(wanted, name)
            yield from _walk(f"{path}.{name}" if path else name, *pair)
    elif _is_sequence(reached) and _is_sequence(wanted):
        yield from _walk_items(path, reached, wanted)
    elif isinstance(reached, Set) and isinstance(wanted, Set):
        for item in sorted(reached ^ wanted, key=canonical):
            yield path, *((item, _ABSENT) if item in reached else (_ABSENT, item))
    elif not _same(reached, wanted):
        yield path, reached, wanted


def _walk_items(
    path: str, reached: Sequence[Any], wanted: Sequence[Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Items between the common start and the common end of both."""
    shorter = min(len(reached), len(wanted))
    start = 0
    while start < shorter and _same(reached[start], wanted[start]):
        start += 1
    end = 0
    while end < shorter - start and _same(reached[-1 - end], wanted[-1 - end]):
        end += 1
    for i in range(start, max(len(reached), len(wanted)) - end):
        one = reached[i] if i < len(reached) - end else _ABSENT
        other = wanted[i] if i < len(wanted) - end else _ABSENT
        yield from _walk(f"{path}[{i}]", one, other)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if one is _ABSENT or other is _ABSENT:
        return False
    try:
        return canonical(one) == canonical(other)
    except TypeError:  # no part of a state that is a value
        return bool(one == other)


def _text(value: Any) -> str | None:
    return None if value is _ABSENT else _cut(_written(value), _LONGEST_TEXT)


def _written(value: Any) -> str:
    """A value as Python writes it, but sets in order, and no addresses of objects."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = (f"{f.name}={_written(getattr(value, f.name))}" for f in fields(value))
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_written(k)}: {_written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Set):
        return "{" + ", ".join(sorted(map(_written, value))) + "}"
    if _is_sequence(value):
        return "[" + ", ".join(map(_written, value)) + "]"
    if isinstance(value, (str, bytes)):
        return repr(value[: 2 * _LONGEST_TEXT])
    try:
        return repr(value) if isinstance(value, (int, float, type(None))) else type(value).__name__
    except ValueError:  # an integer of more digits than Python writes
        return hex(value)


def _cut(text: str | None, longest: int) -> str | None:
    if text is None or len(text) <= longest:
        return text
    return f"{text[: longest - 1]}…"
