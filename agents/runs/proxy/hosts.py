"""Who writes the turns behind the proxy: a student of ours, or another server (`upstream.py`).

Both give a `Written`: what the client reads, and the tokens of it. Turns are written in threads of
`pool`. A student has one: it writes one turn at a time, with the cache of each conversation kept
between its turns, so that what it says depends on nobody else's conversation.
"""

from __future__ import annotations

import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jinja2 import TemplateError

from journeyman.agents.errors import (
    DialectError,
    SettingError,
    UnsupportedModelError,
)
from journeyman.agents.rollouts.dialogues import Dialogue, Utterance, retell
from journeyman.agents.rollouts.underway import as_step
from journeyman.agents.rollouts.visits import Visit, pending
from journeyman.agents.runs.proxy.wire import ApiError, ChatRequest
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.player import (
    Conversation,
    Player,
    Sampling,
    Stream,
    Trainable,
    Turn,
)
from journeyman.agents.students.wording import assistant_message
from journeyman.envs import Message, Step, ToolEnv

KEPT_STREAMS = 32
"""Conversations whose caches are kept; others are read again when they go on."""


class GoneError(Exception):
    """Nobody waits for the turn any more."""


@dataclass(frozen=True)
class Written:
    """A turn."""

    answer: dict[str, Any]
    """What the client reads."""
    prompt: tuple[int, ...]
    """All tokens before it."""
    turn: Turn
    step: Step
    ids: tuple[str, ...]
    """Of the calls in it, as the client knows them."""


class Host(ABC):
    """Writes turns."""

    name: str
    """Of the model, as clients are told it."""
    player: Player
    """Whose weights and dice tell these episodes from others."""
    pool: ThreadPoolExecutor

    @abstractmethod
    def opening(self, request: ChatRequest) -> tuple[Message, ...]:
        """A conversation that is new here, as text.

        Raises:
            ApiError: It cannot be told.
        """

    @abstractmethod
    def write(
        self, visit: Visit, request: ChatRequest, new: Sequence[Message], gone: threading.Event
    ) -> Written:
        """The next turn of a conversation; the visit is not changed.

        Args:
            visit: The conversation so far.
            request: All of it, as the client tells it.
            new: What is new in it; of a visit without turns, nothing.
            gone: Set when nobody waits for the turn any more.

        Raises:
            ApiError: There is none.
            GoneError: It was given up.
        """


class StudentHost(Host):
    """A model in this process."""

    def __init__(self, player: Trainable, name: str, temperature: float | None) -> None:
        """Serve a student.

        Args:
            player: The student.
            name: Of its model.
            temperature: Whatever clients ask for; None does as they ask.
        """
        self.player = self._student = player
        self.name = name
        self.pool = ThreadPoolExecutor(1, "journeyman-student")
        self._temperature = temperature
        self._streams: OrderedDict[Visit, tuple[Stream, Sampling, int]] = OrderedDict()

    def opening(self, request: ChatRequest) -> tuple[Message, ...]:
        """See `Host.opening`."""
        say = self.player.dialect.say
        try:
            return tuple(
                Message("assistant", say(it.content, it.calls, it.reasoning))
                if isinstance(it, Utterance)
                else it
                for it in request.messages
            )
        except DialectError as error:
            raise ApiError(400, str(error), param="messages") from error

    def write(
        self, visit: Visit, request: ChatRequest, new: Sequence[Message], gone: threading.Event
    ) -> Written:
        """See `Host.write`."""
        request.check_neutral()
        student, dialect = self._sampled(request), self.player.dialect
        prompt = self._prompt(visit, request, new)
        if student.max_context - len(prompt) <= 1:
            visit.full = (
                f"this student's context is {student.max_context} tokens, and the conversation has "
                f"{len(prompt)}: no turn has room"
            )
            raise ApiError(400, visit.full, param="messages", code="context_length_exceeded")
        turn = self._turn(student, visit, prompt, gone)
        text = dialect.decode(turn.tokens[:-1])
        read = dialect.read(text, visit.tools, prompt)
        step = as_step(dialect, len(prompt), turn, read, pending(read.calls))
        # Unreadable ones too, as `wording` tells them: the program can say what is wrong with them.
        ids = tuple(f"call_{uuid.uuid4().hex[:24]}" for _ in read.calls)
        message = assistant_message(read, read.calls, ids)
        spans = dialect.reasoning_in(text, prompt)
        if thought := "\n".join(dialect.unmarked(text[slice(*span)]) for span in spans).strip():
            message["reasoning_content"] = thought
        finish = "tool_calls" if read.calls else "stop"
        if turn.truncated:
            finish = _cut(message, student.sampling.stops, text)
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish}
        choice["logprobs"] = _logprobs(turn, dialect) if request.body.get("logprobs") else None
        answer: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": [choice],
            "usage": _usage(len(prompt), len(turn.tokens)),
        }
        if request.body.get("return_token_ids"):  # vLLM's names
            answer["prompt_token_ids"], choice["token_ids"] = prompt, list(turn.tokens)
        return Written(answer, tuple(prompt), turn, step, ids)

    def _sampled(self, request: ChatRequest) -> Trainable:
        asked = dict(request.sampling)
        if self._temperature is not None:
            asked["temperature"] = self._temperature
        own = self._student.sampling
        asked["max_tokens"] = min(own.max_tokens, asked.get("max_tokens", own.max_tokens))
        if all(getattr(own, name) == value for name, value in asked.items()):
            return self._student
        try:
            return self._student.at(**asked)
        except (SettingError, UnsupportedModelError) as error:
            raise ApiError(400, str(error)) from error

    def _prompt(self, visit: Visit, request: ChatRequest, new: Sequence[Message]) -> list[int]:
        dialect = self.player.dialect
        try:
            if visit.steps:
                return [*visit.tokens, *dialect.reply(new)]
            return _opening_tokens(request, dialect)
        except (DialectError, TemplateError) as error:
            raise ApiError(400, f"{self.name}: {error}", param="messages") from error

    def _turn(
        self, student: Trainable, visit: Visit, prompt: Sequence[int], gone: threading.Event
    ) -> Turn:
        known = self._streams.pop(visit, None)
        stream = None
        if known is not None and known[1:] == (student.sampling, len(visit.tokens)):
            stream = known[0]
            stream.extend(0, prompt[len(visit.tokens) :])
        if stream is None:
            seed = visit.seed
            if visit.steps:  # the first dice are thrown
                key = (visit.seed, len(prompt))
                seed = int(np.random.SeedSequence(key).generate_state(1)[0])
            nowhere = cast(ToolEnv, None)  # for scripts, and none plays here
            stream = student.open([Conversation(tuple(prompt), seed, nowhere)])
        while not gone.is_set():
            for turn in stream.advance():
                length = len(prompt) + len(turn.tokens)
                self._streams[visit] = stream, student.sampling, length
                while len(self._streams) > KEPT_STREAMS:
                    self._streams.popitem(last=False)[1][0].finish(0)
                return turn
        stream.finish(0)
        raise GoneError


def _opening_tokens(request: ChatRequest, dialect: Dialect) -> list[int]:
    """A conversation that is new here, turns that others have told in it too."""
    turns = [i for i, it in enumerate(request.messages) if isinstance(it, Utterance)]
    last = turns[-1] + 1 if turns else 0
    after = [it for it in request.messages[last:] if isinstance(it, Message)]
    if not turns:
        return dialect.opening(after, request.tools or None)
    before = retell(Dialogue(request.messages[:last], request.tools), dialect)
    return [*before.tokens, *dialect.reply(after)]


def _cut(message: dict[str, Any], stops: Sequence[str], text: str) -> str:
    """Why a turn was ended by force; a text that stops it is not shown."""
    places = [text.find(stop) for stop in stops if stop in text]
    if not places:
        return "length"
    content = message.get("content")
    if isinstance(content, str):
        shown = [content.find(stop) for stop in stops if stop in content]
        message["content"] = content[: min(shown)] if shown else content
    return "stop"


def _logprobs(turn: Turn, dialect: Dialect) -> dict[str, Any]:
    pairs = zip(turn.tokens, turn.logprobs, strict=True)
    told = [(dialect.decode([token]), logprob) for token, logprob in pairs]
    content = [
        {"token": it, "logprob": logprob, "bytes": list(it.encode()), "top_logprobs": []}
        for it, logprob in told
    ]
    return {"content": content, "refusal": None}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
