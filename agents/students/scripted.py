"""Policies without a model: the bounds every evaluation prints beside the student."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from journeyman.agents.students.dialect import ChatFormat
from journeyman.agents.students.player import Request, Stream, Turn
from journeyman.envs import ToolEnv, answer_text

Script = Callable[[ToolEnv], Iterator[str]]
"""Yields the text of one turn after the other."""


class ScriptedPolicy:
    """Plays a script in every conversation."""

    def __init__(self, format: ChatFormat, script: Script, max_context: int = 1 << 20) -> None:
        """Turns are written in `format`, so that their tokens can be counted."""
        self.format = format
        self.max_context = max_context
        self._script = script

    def open(self, requests: Sequence[Request]) -> Stream:
        """Start a batch of conversations."""
        return _ScriptedStream(self.format, [self._script(r.env) for r in requests])


class _ScriptedStream:
    def __init__(self, format: ChatFormat, scripts: list[Iterator[str]]) -> None:
        self._format = format
        self._scripts = scripts
        self._ready = list(range(len(scripts)))

    def advance(self) -> list[Turn]:
        ready, self._ready = self._ready, []
        turns = []
        for row in ready:
            tokens = tuple(self._format.turn(next(self._scripts[row], "")))
            turns.append(Turn(row, tokens, (0.0,) * len(tokens)))
        return turns

    def extend(self, row: int, tokens: Sequence[int]) -> None:
        self._ready.append(row)

    def finish(self, row: int) -> None:
        self._scripts[row] = iter(())

    @property
    def idle(self) -> bool:
        return not self._ready


def oracle(env: ToolEnv) -> Iterator[str]:
    """The gold calls, one a turn, and the answers: the upper bound, and a test of the tasks."""
    for turn in env.task.turns:
        yield from map(env.write_call, turn.gold)
        yield answer_text(turn)


def no_op(env: ToolEnv) -> Iterator[str]:
    """Answers at once without a call: what success is worth that needs no tool."""
    for _ in env.task.turns:
        yield "Answer: done"
