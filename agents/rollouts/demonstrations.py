"""Gold episodes as token rows, for supervised training.

A demonstration may contain wrong calls with what the environment says to them. No loss falls on the
wrong call, only on what follows: so a model learns to carry on from a mistake, and a teacher learns
to judge a student in the states that mistakes lead to.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from journeyman.agents.students.contents import with_hint
from journeyman.agents.students.dialect import Dialect
from journeyman.envs import Task, ToolEnv, answer_text
from journeyman.tools import ToolCall


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One token row."""

    tokens: tuple[int, ...]
    mask: tuple[bool, ...]
    """True on the tokens to learn: student turns that are right."""


def demonstrate(
    env: ToolEnv,
    task_id: str,
    dialect: Dialect,
    error_rate: float = 0.0,
    hint: Callable[[Task], str | None] | None = None,
) -> Demonstration:
    """Play the gold calls of a task.

    Args:
        env: Any environment of the class; it is reset.
        task_id: The task.
        dialect: How the student reads and writes.
        error_rate: Chance of a wrong call before each right turn. Only calls that leave the state
            as it was are used: after those the gold calls are still right.
        hint: What the prompt tells of a task beside it, as a privileged teacher's does; None, or
            None of a task, tells nothing.
    """
    rng = random.Random(f"demonstration/{task_id}")
    messages, _ = env.reset(options={"task_id": task_id})
    told = hint(env.task) if hint is not None else None
    tokens = dialect.opening(messages if told is None else with_hint(messages, told), env.tools)
    mask = [False] * len(tokens)

    def write(text: str, learn: bool) -> None:
        text = dialect.spoken(text, tokens)
        read = dialect.read(text, env.tools, tokens)
        turn = dialect.turn(text)
        tokens.extend(turn)
        mask.extend([learn] * len(turn))
        replies, *_ = env.step(read)
        if replies:
            reply = dialect.reply(replies)
            tokens.extend(reply)
            mask.extend([False] * len(reply))

    def slip(call: ToolCall) -> None:
        while rng.random() < error_rate and (wrong := _harmless_mistake(env, dialect, call, rng)):
            write(wrong, learn=False)

    for turn in env.task.turns:
        for call in turn.gold:
            slip(call)
            write(dialect.write_call(call), learn=True)
        last = turn.gold[-1] if turn.gold else ToolCall(rng.choice(env.tools).name, {})
        slip(last)
        write(answer_text(turn), learn=True)
    return Demonstration(tuple(tokens), tuple(mask))


def _harmless_mistake(
    env: ToolEnv, dialect: Dialect, call: ToolCall, rng: random.Random
) -> str | None:
    """The text of a wrong turn that changes nothing, or None if five tries found none."""
    before = env.snapshot()
    for _ in range(5):
        text = _mistake(env, dialect, call, rng)
        _, _, terminated, truncated, _ = env.step(dialect.read(text, env.tools, ()))
        after = env.snapshot()
        # A spoilt call may read as an answer, which counts as one.
        unchanged = (after.state, after.answers) == (before.state, before.answers)
        env.restore(before)
        if unchanged and not (terminated or truncated):
            return text
    return None


def _mistake(env: ToolEnv, dialect: Dialect, call: ToolCall, rng: random.Random) -> str:
    """A wrong turn of the kinds that small models make."""
    kind = rng.choice(("tool", "argument", "digits", "garble", "repeat"))
    if kind == "tool":
        call = replace(call, name=rng.choice(env.tools).name)
    elif kind == "repeat":
        call = rng.choice(env.oracle() or [call])
    elif kind in ("argument", "digits") and call.arguments:
        name = rng.choice(sorted(call.arguments))
        others = [v for c in env.oracle() for v in c.arguments.values()]
        value = rng.choice(others) if kind == "argument" else _slip(call.arguments[name], rng)
        call = replace(call, arguments={**call.arguments, name: value})
    text = dialect.write_call(call)
    if kind == "garble":
        half = len(text) // 2
        cut = rng.randrange(half, max(half + 1, len(text) - 12))  # calls of some forms are short
        text = text[:cut] + text[cut + rng.randint(1, 3) :]
    return text


def _slip(value: object, rng: random.Random) -> object:
    """The value with two digits replaced, or with its last word exchanged for nothing."""
    text = str(value)
    digits = [i for i, c in enumerate(text) if c.isdigit()]
    if len(digits) >= 2:
        at = rng.choice(digits[:-1])
        text = text[:at] + f"{rng.randint(10, 99)}" + text[at + 2 :]
    else:
        text = text.rpartition(" ")[0] or text
    return int(text) if isinstance(value, int) and text.isdecimal() else text
