"""Near-misses: gold programs with one call dropped, changed or too many, or with another answer.

Where success is decided too loosely, work that was not done is rewarded. So every near-miss must
fail. It may succeed only if that does no harm: the episode ends in the very state that the gold
program leads to, or the class says why (`ToolEnv.harmless`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from journeyman.envs.core import Action, Snapshot, ToolEnv
from journeyman.envs.hashing import digest
from journeyman.envs.task import ANSWER, Task, UserTurn, answer_text
from journeyman.tools import ToolCall, ToolResult

Edit = Literal["dropped", "changed", "added", "answer"]

_PROPOSALS = 40
"""How often a call too many is drawn until the tools accept one that changes the state."""


@dataclass(frozen=True, slots=True)
class NearMiss:
    """One near-miss as it was played."""

    task: Task
    edit: Edit
    what: ToolCall | str
    """The call that was dropped, changed (as it became) or added; or the other answer."""
    success: bool
    harmless: str | None
    """Why its success does no harm; None if it did not succeed, or if it does harm."""

    def __str__(self) -> str:
        """Where it is and what was done."""
        what = self.what.canonical() if isinstance(self.what, ToolCall) else repr(self.what)
        return f"task {self.task.id} ({self.task.kind}) with {self.edit} {what}"


def program(turns: Sequence[UserTurn]) -> Iterator[tuple[UserTurn, Action]]:
    """The gold program as assistant turns: the calls one by one, then each user turn's answer."""
    for turn in turns:
        yield from ((turn, [call]) for call in turn.gold)
        yield turn, answer_text(turn)


def near_misses(
    env: ToolEnv, task: Task, donors: Sequence[ToolCall], rng: random.Random
) -> Iterator[NearMiss]:
    """Play a task's near-misses: every call dropped, every call and answer changed, a call added.

    Args:
        env: Plays them; its turn limit is raised where they need it.
        task: Its gold program must succeed.
        donors: Calls of any tasks of the environment: what a call too many is made from.
        rng: Draws the other arguments and answers, and the call too many with its place.
    """
    steps, end = _play_gold(env, task)
    values = Values(task, env)
    actions = [step.action for step in steps]

    def play(start: int, edit: Edit, what: ToolCall | str, edited: Sequence[Action]) -> NearMiss:
        env.restore(steps[start].before)
        for action in edited:
            success = env.step(action)[4]["success"]
        final = digest(env.hashed_state())
        harmless = _harmless(env, task, edit, what, steps[start], final == end)
        return NearMiss(task, edit, what, success, harmless if success else None)

    for i, step in enumerate(steps):
        if step.call is None:
            if step.turn.answer is not None:
                answer = str(values.other(step.turn.answer, rng))
                yield play(i, "answer", answer, [f"{ANSWER} {answer}", *actions[i + 1 :]])
            continue
        yield play(i, "dropped", step.call, actions[i + 1 :])
        if step.call.arguments:
            changed = values.change(step.call, rng)
            yield play(i, "changed", changed, [[changed], *actions[i + 1 :]])
    place = rng.randrange(len(steps))
    added = _one_too_many(env, steps[place], values, donors, rng)
    if added is not None:
        yield play(place, "added", added, [[added], *actions[place:]])


@dataclass(frozen=True, slots=True)
class _Step:
    """One assistant turn of a gold program as it was played."""

    turn: UserTurn
    action: Action
    before: Snapshot
    result: ToolResult | None
    """What came of the call; None for an answer."""
    idle: bool
    """True if it left the state as it was."""

    @property
    def call(self) -> ToolCall | None:
        return self.action[0] if isinstance(self.action, list) else None


def _play_gold(env: ToolEnv, task: Task) -> tuple[list[_Step], str]:
    """The steps, and the digest of the state they lead to."""
    env.begin(task)
    turns = list(program(task.turns))
    env.max_turns = max(env.max_turns, len(turns) + 1)  # room for the call too many
    steps = []
    state = digest(env.hashed_state())
    for turn, action in turns:
        before = env.snapshot()
        results = env.step(action)[4]["calls"]
        last, state = state, digest(env.hashed_state())
        steps.append(_Step(turn, action, before, results[0] if results else None, state == last))
    return steps, state


def _harmless(
    env: ToolEnv, task: Task, edit: Edit, what: ToolCall | str, step: _Step, same_state: bool
) -> str | None:
    if isinstance(what, str):
        return env.harmless.get(edit)
    if not same_state:
        keys = (task.kind, what.name, edit)
        return next((env.harmless[key] for key in keys if key in env.harmless), None)
    # Success is decided on what was reached, never on the path.
    if edit == "added" or not step.idle:
        return "another call makes up for it"
    assert step.result is not None
    return "a call that only reads" if step.result.ok else "a call that is refused"


def _one_too_many(
    env: ToolEnv, step: _Step, values: Values, donors: Sequence[ToolCall], rng: random.Random
) -> ToolCall | None:
    """A call that the tools accept at that step and that changes the state; None if none is found.

    Any call of the environment, with names, ids and numbers that this task speaks of.
    """
    env.restore(step.before)
    before = digest(env.hashed_state())
    proposals = _PROPOSALS // 8 if env.waits else _PROPOSALS  # each may cost a session
    for _ in range(proposals if donors else 0):
        donor = rng.choice(donors)
        arguments = {name: values.like(value, rng) for name, value in donor.arguments.items()}
        call = replace(donor, arguments=arguments)
        if call == step.call:
            continue
        env.restore(step.before)
        (result,) = env.step([call])[4]["calls"]
        if result.ok and digest(env.hashed_state()) != before:
            return call
    return None


class Values:
    """The names, ids and numbers that a task speaks of, by what they look like."""

    def __init__(self, task: Task, env: ToolEnv) -> None:
        """Gather those of the initial state and of the gold calls."""
        calls = [dict(call.arguments) for turn in task.turns for call in turn.gold]
        # Sorted: the order of a persistent map depends on the process's hash seed.
        found = sorted(set(_scalars((task.state, calls))), key=lambda v: (str(type(v)), str(v)))
        self._by_shape: dict[str, list[Any]] = {}
        for value in found:
            self._by_shape.setdefault(_shape(value), []).append(value)
        self._properties = {t.name: t.spec.properties for t in env.toolset}

    def of_kind(self, kind: str) -> list[Any]:
        """All values of a JSON type: "string", "integer" or "number"."""
        kinds = {"string": (str,), "integer": (int,), "number": (int, float)}.get(kind, ())
        return [v for values in self._by_shape.values() for v in values if isinstance(v, kinds)]

    def like(self, value: Any, rng: random.Random) -> Any:
        """A value of the task that looks like this one; the value itself if there is none."""
        return rng.choice(self._by_shape.get(_shape(value), [value]))

    def other(self, value: Any, rng: random.Random) -> Any:
        """The same, but never an equal value: made up if the task has none."""
        if isinstance(value, list):
            return value[:-1] or [None]
        if isinstance(value, Mapping):
            key = rng.choice(sorted(value)) if value else "key"
            return {**value, key: self.other(value.get(key), rng)}
        others = [v for v in self._by_shape.get(_shape(value), ()) if v != value]
        if others:
            return rng.choice(others)
        if isinstance(value, bool):
            return not value
        if isinstance(value, int | float):
            return value + 1
        return _misspell(value, rng) if isinstance(value, str) else "other"

    def change(self, call: ToolCall, rng: random.Random) -> ToolCall:
        """The call with one argument changed."""
        name = rng.choice(sorted(call.arguments))
        value = call.arguments[name]
        words = self._properties.get(call.name, {}).get(name, {}).get("enum", ())
        others = [word for word in words if word != value]
        changed = rng.choice(others) if others else self.other(value, rng)
        return replace(call, arguments={**call.arguments, name: changed})


_LONGEST = 100
"""Strings beyond it are texts, not names."""


def _scalars(value: Any) -> Iterator[str | int | float]:
    """The names and numbers in a frozen value, at any depth."""
    if isinstance(value, str | int | float):
        if not isinstance(value, bool) and not (isinstance(value, str) and len(value) > _LONGEST):
            yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _scalars(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for entry in value.items():
            yield from _scalars(entry)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _scalars(item)


def _shape(value: Any) -> str:
    """What a value looks like: "A4821" is A9, "Ada Holm" is Aa Aa, 250 is an int of 3 digits."""
    if isinstance(value, str):
        text = re.sub(r"\d+", "9", value)
        return re.sub(r"[^\W\d_A-Z]+", "a", re.sub(r"[A-Z]+", "A", text))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{len(str(value))} digits"
    return type(value).__name__


def _misspell(text: str, rng: random.Random) -> str:
    """The text with one of its numbers changed; without one of its lines; or cut short."""
    numbers = list(re.finditer(r"\d+", text))
    if numbers:
        number = rng.choice(numbers)
        return f"{text[: number.start()]}{int(number[0]) + 1}{text[number.end() :]}"
    lines = text.split("\n")
    if len(lines) > 1:
        lines.pop(rng.randrange(len(lines)))
        return "\n".join(lines)
    return text[: len(text) // 2] if len(text) > 1 else f"{text}x"
