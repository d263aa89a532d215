"""Chat completions as a server of them reads and writes them (OpenAI's API reference, "Chat").

A request becomes a `ChatRequest`, or is refused in OpenAI's form of errors. An answer is one object
of JSON, or the same as events of a stream.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from journeyman.agents.errors import AgentError, ConversationError
from journeyman.agents.learning.conversations import read_messages, read_tools
from journeyman.agents.rollouts.dialogues import Utterance
from journeyman.agents.students.wording import UNREADABLE
from journeyman.envs import Message
from journeyman.tools import ToolSpec

Key = tuple[Any, ...]
"""A message as it is compared with what was said before, however it was written down."""

NAMES = ("journeyman-episode", "journeyman-env", "journeyman-task")
"""Headers, or keys of `metadata`: the conversation's name, and what is played in it."""
NEUTRAL: Mapping[str, Any] = {
    "n": 1,
    "response_format": {"type": "text"},
    "tool_choice": "auto",
    "top_logprobs": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "functions": [],
}
"""What a student of ours cannot do otherwise, and must not pass over in silence."""


class ApiError(AgentError):
    """A request that is refused, with what the client reads of it."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        """Of a status, in OpenAI's fields."""
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Label:
    """What a client says that a conversation is, if it says anything."""

    episode: str | None = None
    env_id: str | None = None
    task_id: str | None = None

    @classmethod
    def of(cls, body: Mapping[str, Any], headers: Mapping[str, str]) -> Label:
        """By its headers, its `metadata`, or its `user` ("journeyman-episode: NAME")."""
        metadata, user = body.get("metadata"), body.get("user")
        told = metadata if isinstance(metadata, dict) else {}
        found = {}
        for name in NAMES:
            value = headers.get(name) or told.get(name)
            if not value and isinstance(user, str) and user.startswith(f"{name}:"):
                value = user.partition(":")[2].strip()
            if value is not None and (not isinstance(value, str) or len(value) > 200):
                raise ApiError(400, f"{name}: expected a text of at most 200 characters")
            found[name] = value or None
        env_id, task_id = found[NAMES[1]], found[NAMES[2]]
        if (env_id is None) != (task_id is None):
            raise ApiError(400, f"{NAMES[1]} and {NAMES[2]} belong together: one is missing")
        return cls(found[NAMES[0]], env_id, task_id)


@dataclass(frozen=True)
class ChatRequest:
    """What a client asks for."""

    body: Mapping[str, Any]
    """As it came."""
    messages: tuple[Message | Utterance, ...]
    keys: tuple[Key, ...]
    """One a message."""
    tools: tuple[ToolSpec, ...]
    label: Label
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """What it asks of the dice, by the names of `Sampling`."""

    @classmethod
    def read(cls, raw: bytes, headers: Mapping[str, str]) -> ChatRequest:
        """Read a request.

        Raises:
            ApiError: It is none.
        """
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is no JSON: {error}") from error
        if not isinstance(body, dict):
            raise ApiError(400, "the body is not an object")
        try:
            told = _with_arguments(body.get("messages"))
            messages = read_messages(told)
            tools = read_tools(body.get("tools"))
        except ConversationError as error:
            raise ApiError(400, str(error), param="messages") from error
        if not messages or isinstance(messages[-1], Utterance):
            raise ApiError(
                400, "messages: expected one of user or tool at the end", param="messages"
            )
        keys = tuple(_key(*it) for it in zip(told, messages, strict=True))
        label = Label.of(body, headers)
        return cls(body, messages, keys, tools, label, _sampling(body))

    @property
    def stream(self) -> bool:
        """It wants events."""
        return self.body.get("stream") is True

    def check_neutral(self) -> None:
        """See that it asks for nothing that a student of ours cannot do.

        Raises:
            ApiError: Naming what.
        """
        for name, usual in NEUTRAL.items():
            value = self.body.get(name)
            if value is not None and value != usual:
                raise ApiError(
                    400,
                    f"{name}={json.dumps(value)[:80]}: this student knows no other than "
                    f"{json.dumps(usual)}",
                    param=name,
                    code="unsupported_value",
                )


def _key(raw: Mapping[str, Any], read: Message | Utterance) -> Key:
    if isinstance(read, Message):
        return (read.role, read.content, raw.get("tool_call_id"))
    ids = tuple(call.get("id") for call in raw.get("tool_calls") or ())
    return ("assistant", read.content, tuple(call.canonical() for call in read.calls), ids)


def key_of(message: Mapping[str, Any]) -> Key:
    """An answer of ours, as the client is expected to tell it again."""
    user = {"role": "user", "content": ""}
    (told,) = _with_arguments([message])
    return _key(told, read_messages([user, told])[1])


def _with_arguments(messages: Any) -> Any:
    """Messages in which the arguments of all calls can be read: clients repeat what models write.

    What is no JSON is told as one text, as servers are told of it (`wording.UNREADABLE`).
    """
    if not isinstance(messages, list):
        return messages
    return [_mended(it) if isinstance(it, dict) else it for it in messages]


def _mended(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    mended = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        body = function.get("arguments") if isinstance(function, dict) else None
        if function and isinstance(body, str) and body.strip() and not _is_object(body):
            call = {**call, "function": {**function, "arguments": {UNREADABLE: body}}}
        mended.append(call)
    return {**message, "tool_calls": mended}


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    for name in ("temperature", "top_p"):
        value = body.get(name)
        if value is None:
            continue
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ApiError(400, f"{name}: expected a number", param=name)
        asked[name] = value
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise ApiError(400, f"{name}: expected a whole number, 1 or more", param=name)
        asked.setdefault("max_tokens", value)
    stop = body.get("stop")
    if stop is not None:
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, list) or not all(isinstance(it, str) and it for it in stops):
            raise ApiError(400, "stop: expected a text, or a list of texts", param="stop")
        asked["stops"] = tuple(stops)
    return asked


def events(answer: Mapping[str, Any], usage: bool) -> Iterator[bytes]:
    """An answer as events of a stream, without the last two: the end of the turn, and of all.

    Args:
        answer: The whole answer.
        usage: The client wants a `usage` in each chunk, null until the end.
    """
    choice = answer["choices"][0]
    message = choice["message"]
    base = {key: answer[key] for key in ("id", "created", "model")} | {
        "object": "chat.completion.chunk"
    }
    if usage:
        base["usage"] = None
    for delta in _deltas(message):
        told = {"index": 0, "delta": delta, "finish_reason": None}
        yield event(base | {"choices": [told]})


def _deltas(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    for name in ("reasoning_content", "reasoning", "refusal", "content"):
        if message.get(name):
            yield {name: message[name]}
    for i, call in enumerate(message.get("tool_calls") or ()):
        yield {"tool_calls": [{"index": i, **call}]}


def last_events(answer: Mapping[str, Any], usage: bool) -> Iterator[bytes]:
    """What ends the events of an answer."""
    choice = answer["choices"][0]
    base = {key: answer[key] for key in ("id", "created", "model")} | {
        "object": "chat.completion.chunk"
    }
    told = {"index": 0, "delta": {}, "finish_reason": choice.get("finish_reason")}
    more = {name: choice[name] for name in ("logprobs", "token_ids") if name in choice}
    yield event(base | {"choices": [told | more]} | ({"usage": None} if usage else {}))
    if usage:
        yield event(base | {"choices": [], "usage": answer.get("usage")})
    yield b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    """One event of a stream."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()
