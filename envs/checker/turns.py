"""Turns to play, and what was seen when they were played."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from journeyman.envs.core import ToolEnv
from journeyman.envs.nearmiss import Values
from journeyman.envs.task import Task
from journeyman.tools import ToolCall, ToolSpec, render_hermes

TURNS = 6
"""The most random turns of an episode."""

_ODD: Mapping[str, tuple[Any, ...]] = {
    "string": ("", "?", "é\u2028x" * 40),
    "integer": (0, -1, 10**12),
    "number": (0, -1, 0.5, 1e12),
    "boolean": (True, False),
    "null": (None,),
}
"""What nobody would say on purpose, but a model may; all of it fits the plain types."""


def random_turns(env: ToolEnv, rng: random.Random) -> list[str]:
    """Turns that go right, go wrong in several ways, and now and then end the episode.

    Args:
        env: Has begun an episode.
        rng: Draws the turns.
    """
    gold = env.oracle()
    env.action_space.seed(rng.randrange(2**31))
    probes = Probes(env)
    turns = []
    for i in range(rng.randint(2, TURNS)):
        dice = rng.random()
        if not gold or dice < 0.1:
            turns.append(str(env.action_space.sample()))
        elif dice < 0.4:
            turns.append(render_hermes(gold[i % len(gold)]))
        elif dice < 0.6:
            turns.append(render_hermes(rng.choice(gold)))
        elif dice < 0.7:
            turns.append(render_hermes(_spoil(rng.choice(gold), rng)))
        elif dice < 0.8 and probes.names:
            turns.append(render_hermes(probes.call(rng.choice(probes.names), rng)))
        elif dice < 0.9:
            turns.append(f"{render_hermes(rng.choice(gold))}\n{render_hermes(rng.choice(gold))}")
        else:
            text = render_hermes(rng.choice(gold))
            turns.append(text[: rng.randrange(len("<tool_call>"), len(text))])
    return turns


def _spoil(call: ToolCall, rng: random.Random) -> ToolCall:
    """The call with one argument changed or dropped."""
    if not call.arguments:
        return replace(call, name=call.name + "s")
    name = rng.choice(sorted(call.arguments))
    value = call.arguments[name]
    changed = value + rng.choice((-1, 1)) if isinstance(value, int) else f"{value}0"
    kept = {n: v for n, v in call.arguments.items() if n != name}
    return replace(call, arguments=rng.choice(({**kept, name: changed}, kept)))


class Probes:
    """Calls of any tool, those that no gold program makes too, made up from its schema."""

    def __init__(self, env: ToolEnv, tasks: Sequence[Task] = ()) -> None:
        """Gather what arguments may be.

        Args:
            env: Has begun an episode: its task tells names, ids and numbers.
            tasks: Their gold calls tell what arguments of a name look like.
        """
        self._specs = {spec.name: spec for spec in env.tools}
        self.names = list(self._specs)
        self._values = Values(env.task, env)
        self._gold = [
            call for task in (env.task, *tasks) for turn in task.turns for call in turn.gold
        ]

    def call(self, name: str, rng: random.Random, odd: bool = False) -> ToolCall:
        """A call of the tool whose arguments fit its schema as far as that is simple.

        Args:
            name: Of the tool.
            rng: Draws the arguments.
            odd: Draw what nobody would say on purpose.
        """
        spec = self._specs[name]
        known = [call for call in self._gold if call.name == name]
        if known and not odd:
            call = rng.choice(known)
            arguments = {n: self._values.like(v, rng) for n, v in call.arguments.items()}
            return ToolCall(name, arguments)
        return ToolCall(name, self._arguments(spec, rng, odd))

    def _arguments(self, spec: ToolSpec, rng: random.Random, odd: bool) -> dict[str, Any]:
        required = spec.parameters.get("required", ())
        return {
            name: self._value(name, schema, rng, odd)
            for name, schema in spec.parameters.get("properties", {}).items()
            if name in required or rng.random() < 0.5
        }

    def _value(self, name: str, schema: Any, rng: random.Random, odd: bool) -> Any:
        if not isinstance(schema, Mapping):
            return "x"
        for word in ("enum", "examples"):
            if schema.get(word):
                return rng.choice(list(schema[word]))
        if "const" in schema:
            return schema["const"]
        for word in ("anyOf", "oneOf"):
            if schema.get(word):
                return self._value(name, rng.choice(list(schema[word])), rng, odd)
        kind = schema.get("type", "string")
        kind = rng.choice(kind) if isinstance(kind, list) else kind
        if kind == "array":
            items = schema.get("items", {"type": "string"})
            least = int(schema.get("minItems", 0))
            return [self._value(name, items, rng, odd) for _ in range(least + rng.randrange(2))]
        if kind == "object":
            return {
                inner: self._value(inner, below, rng, odd)
                for inner, below in schema.get("properties", {}).items()
            }
        return self._scalar(name, kind, schema, rng, odd)

    def _scalar(
        self, name: str, kind: str, schema: Mapping[str, Any], rng: random.Random, odd: bool
    ) -> Any:
        if odd:
            options = list(_ODD.get(kind, ("",)))
        else:
            options = [c.arguments[name] for c in self._gold if name in c.arguments]
            options += self._values.of_kind(kind)
            options = [value for value in options if _is(value, kind)]
            options = options or list(_ODD.get(kind, ("",)))
        value = rng.choice(options)
        if kind in ("integer", "number"):
            low, high = schema.get("minimum"), schema.get("maximum")
            value = value if low is None else max(value, low)
            value = value if high is None else min(value, high)
        return value


def _is(value: Any, kind: str) -> bool:
    kinds: dict[str, Any] = {
        "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None),
    }  # fmt: skip
    if isinstance(value, bool):
        return kind == "boolean"
    return kind in kinds and isinstance(value, kinds[kind])


def play(env: ToolEnv, actions: Sequence[Any]) -> list[dict[str, Any]]:
    """Play until the actions or the episode end; what was seen after each turn."""
    trace: list[dict[str, Any]] = []
    for action in actions:
        if env.over:
            break
        observation, reward, terminated, truncated, info = env.step(action)
        trace.append(
            {
                "action": action,
                "observation": observation,
                "reward": reward,
                "ends": (terminated, truncated),
                "info": info,
                "hash": env.state_hash(),
            }
        )
    return trace


def difference(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> str | None:
    """Where two traces of the same actions part; None if they do not."""
    for turn, (one, other) in enumerate(zip(first, second, strict=False)):
        for key, value in one.items():
            if value != other[key] and repr(value) != repr(other[key]):  # NaN is not itself
                return (
                    f"turn {turn} ({str(one['action'])[:200]!r}) gave {key} {str(value)[:300]}, "
                    f"then {str(other[key])[:300]}"
                )
    if len(first) != len(second):
        return f"the episode ends after {len(first)} turns, then after {len(second)}"
    return None


def tour(env: ToolEnv, task: Task, rng: random.Random) -> Iterator[list[ToolCall]]:
    """Gold calls with a call of every other tool among them; the answer is left out.

    Args:
        env: Has begun an episode of the task.
        task: Whose gold calls are made.
        rng: Draws the other calls.
    """
    probes = Probes(env)
    for call in task.turns[0].gold:
        yield [call]
    for name in probes.names[:_MOST_TOOLS]:
        yield [probes.call(name, rng)]
    for call in task.turns[0].gold:
        yield [call]


_MOST_TOOLS = 40
"""Tools that a tour calls; a benchmark may have more than a hundred."""
