"""Players without a model: the bounds every evaluation prints beside the student."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.player import Conversation, Stream, Turn
from journeyman.agents.students.spoken import plain_dialect
from journeyman.envs import Message, ToolEnv, answer_text
from journeyman.tools import ToolCall

Script = Callable[[ToolEnv], Iterator[ToolCall | str]]
"""Yields one turn after the other: a call, or what is said outside any reasoning; a text with marks
of reasoning in it is a turn as it is written."""


class ScriptedPlayer:
    """Plays a script in every conversation."""

    def __init__(self, dialect: Dialect, script: Script, max_context: int = 1 << 20) -> None:
        """Turns are written in `dialect`, so that their tokens can be counted."""
        self.dialect = dialect
        self.max_context = max_context
        self._script = script

    def open(self, conversations: Sequence[Conversation]) -> Stream:
        """Start a batch of conversations."""
        stream = _ScriptedStream(self.dialect, self._script)
        for it in conversations:
            stream.add(it)
        return stream


class _ScriptedStream:
    def __init__(self, dialect: Dialect, script: Script) -> None:
        self._dialect = dialect
        self._script = script
        self._scripts: list[Iterator[ToolCall | str]] = []
        self._prompts: list[Sequence[int]] = []
        """What each row was told last."""
        self._ready: list[int] = []

    def add(self, conversation: Conversation) -> int:
        row = len(self._scripts)
        self._scripts.append(self._script(conversation.env))
        self._prompts.append(conversation.tokens)
        self._ready.append(row)
        return row

    def advance(self) -> list[Turn]:
        ready, self._ready = self._ready, []
        turns = []
        for row in ready:
            said = next(self._scripts[row], "")
            text = said if isinstance(said, str) else self._dialect.write_call(said)
            tokens = tuple(self._dialect.turn(self._dialect.spoken(text, self._prompts[row])))
            turns.append(Turn(row, tokens, (0.0,) * len(tokens)))
        return turns

    def extend(self, row: int, tokens: Sequence[int], messages: Sequence[Message] = ()) -> None:
        self._prompts[row] = tokens
        self._ready.append(row)

    def finish(self, row: int) -> None:
        self._scripts[row], self._prompts[row] = iter(()), ()

    @property
    def idle(self) -> bool:
        return not self._ready


def oracle(env: ToolEnv) -> Iterator[ToolCall | str]:
    """The gold calls, one a turn, and the answers: the upper bound, and a test of the tasks."""
    for turn in env.task.turns:
        yield from turn.gold
        yield answer_text(turn)


def load_oracle() -> ScriptedPlayer:
    """The oracle as a student that only plays (`student=oracle`)."""
    return ScriptedPlayer(plain_dialect(), oracle)


def no_op(env: ToolEnv) -> Iterator[ToolCall | str]:
    """Answers at once without a call: what success is worth that needs no tool."""
    for _ in env.task.turns:
        yield "Answer: done"
