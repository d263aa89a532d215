"""Who writes the turns behind the proxy: a student of ours, or a server of somebody else's.

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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jinja2 import TemplateError

from journeyman.agents.errors import (
    BudgetSpentError,
    DialectError,
    SettingError,
    StudentServerError,
    UnsupportedModelError,
)
from journeyman.agents.rollouts.dialogues import Dialogue, Utterance, retell
from journeyman.agents.rollouts.rollout import as_step
from journeyman.agents.rollouts.visits import Visit, pending
from journeyman.agents.runs.proxy.wire import NAMES, ApiError, ChatRequest
from journeyman.agents.students.answers import Answer
from journeyman.agents.students.chat_api import USAGE, counts_in
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.openai import OpenAIPlayer
from journeyman.agents.students.player import (
    Conversation,
    Player,
    Sampling,
    Stream,
    Trainable,
    Turn,
)
from journeyman.agents.students.wording import as_text, assistant_message
from journeyman.envs import Message, Step, ToolEnv
from journeyman.tools import ToolCall

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


class UpstreamHost(Host):
    """A server of chat completions; requests and answers go through as they are."""

    def __init__(self, player: OpenAIPlayer, temperature: float | None) -> None:
        """Serve what a server serves.

        Args:
            player: Knows it, its key, its prices and the budget.
            temperature: Whatever clients ask for; None does as they ask.

        Raises:
            SettingError: It is asked in another form than clients ask here.
            StudentServerError: It is not there.
        """
        if player.api != "chat":
            raise SettingError(f"student.api={player.api}: expected chat, which clients speak here")
        player.check()
        self.player = self._server = player
        self.name = str(player.model_name)
        self.pool = ThreadPoolExecutor(player.side_by_side, "journeyman-upstream")
        self._temperature = temperature
        self._tells_tokens = player.is_vllm()

    def opening(self, request: ChatRequest) -> tuple[Message, ...]:
        """See `Host.opening`."""
        dialect = self.player.dialect
        return tuple(
            Message("assistant", as_text(raw, False, dialect)[0])
            if isinstance(it, Utterance)
            else it
            for raw, it in zip(request.body["messages"], request.messages, strict=True)
        )

    def write(
        self, visit: Visit, request: ChatRequest, new: Sequence[Message], gone: threading.Event
    ) -> Written:
        """See `Host.write`."""
        server = self._server
        try:
            reply = server.post(self._body(request))
        except BudgetSpentError as error:
            raise ApiError(402, str(error), "insufficient_quota", code="budget_spent") from error
        except StudentServerError as error:
            raise ApiError(502, str(error), "upstream_error") from error
        if reply.status >= 400:
            if server.is_too_long(reply):
                visit.full = reply.said
            refusal = ApiError(reply.status, reply.said)
            if isinstance(reply.data, dict) and isinstance(reply.data.get("error"), dict):
                refusal.body = reply.data
            raise refusal
        answer = reply.data
        choices = answer.get("choices") if isinstance(answer, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise ApiError(502, f"no message in what the upstream answers: {reply.said}")
        return self._written(visit, request, new, answer, choice, message)

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        body = {k: v for k, v in request.body.items() if k not in ("stream", "stream_options")}
        body["model"] = self.name
        told = body.get("metadata")
        if isinstance(told, dict):  # what is ours is no business of theirs
            body["metadata"] = {k: v for k, v in told.items() if k not in NAMES}
            if not body["metadata"]:
                del body["metadata"]
        if isinstance(body.get("user"), str) and body["user"].startswith(NAMES):
            del body["user"]
        if self._temperature is not None:
            body["temperature"] = self._temperature
        if self._tells_tokens:
            body |= {"return_token_ids": True, "logprobs": True}
        body |= self._server.extra_body
        return {name: value for name, value in body.items() if value is not None}

    def _written(
        self,
        visit: Visit,
        request: ChatRequest,
        new: Sequence[Message],
        answer: dict[str, Any],
        choice: dict[str, Any],
        message: dict[str, Any],
    ) -> Written:
        dialect = self.player.dialect
        cut = choice.get("finish_reason") == "length"
        text, ids = as_text(message, cut, dialect)
        read = dialect.read(text)
        counts = counts_in(answer.get("usage"), USAGE)
        cost = Answer(text, cut, tuple(ids), *counts)
        self._server.answers.add("", cost)
        usage = self._server.answers.usage(cost)
        found = _tokens(answer, choice)
        if found is None:
            tokens = tuple(dialect.turn(text))
            turn = Turn(0, tokens, (0.0,) * len(tokens), cut, usage)
            if visit.steps:
                prompt = [*visit.tokens, *dialect.reply(new)]
            else:
                opening = self.opening(request)
                prompt = dialect.opening(opening, request.tools or None)
            step = as_step(dialect, len(prompt), turn, read, pending(read.calls))
        else:
            prompt, written, logprobs = found
            turn = Turn(0, tuple(written), tuple(logprobs), cut, usage)
            step = _step_of_ids(len(prompt), turn, text, read.calls, read.answer)
        shown = _without_tokens(answer, request.body)
        return Written(shown, tuple(prompt), turn, step, tuple(ids))


def _tokens(
    answer: Mapping[str, Any], choice: Mapping[str, Any]
) -> tuple[list[int], list[int], list[float]] | None:
    """Prompt, turn and its log-probabilities, where a server tells all three as vLLM does."""
    prompt, tokens = _ids(answer.get("prompt_token_ids")), _ids(choice.get("token_ids"))
    told = choice.get("logprobs")
    entries = told.get("content") if isinstance(told, dict) else None
    if not prompt or not tokens or not isinstance(entries, list):
        return None
    values = [it.get("logprob") if isinstance(it, dict) else None for it in entries]
    logprobs = [float(it) for it in values if isinstance(it, int | float)]
    return (prompt, tokens, logprobs) if len(logprobs) == len(values) == len(tokens) else None


def _ids(value: Any) -> list[int]:
    """Token ids; none of what is no list of them."""
    found = value if isinstance(value, list) else []
    return found if all(type(it) is int and 0 <= it < 1 << 32 for it in found) else []


def _step_of_ids(
    start: int, turn: Turn, text: str, calls: tuple[ToolCall, ...], answer: str
) -> Step:
    """A turn whose tokens are those of a tokenizer that is not here: its parts cannot be told."""
    end = start + len(turn.tokens)
    ended = end if turn.truncated else end - 1
    parts: dict[str, tuple[tuple[int, int], ...]] = {
        "call" if calls else "answer": ((start, ended),)
    }
    if ended < end:
        parts["stop"] = ((ended, end),)
    said = None if calls or answer == text else answer.strip()
    return Step((start, end), text, pending(calls), parts, turn.truncated, (), said, turn.usage)


def _without_tokens(answer: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """An answer without what only we asked for."""
    shown = dict(answer)
    if not asked.get("return_token_ids"):
        shown.pop("prompt_token_ids", None)
        shown.pop("prompt_logprobs", None)
    choice = dict(answer["choices"][0])
    if not asked.get("return_token_ids"):
        choice.pop("token_ids", None)
    if not asked.get("logprobs"):
        choice["logprobs"] = None
    shown["choices"] = [choice]
    return shown
