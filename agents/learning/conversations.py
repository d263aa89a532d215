"""Conversations on disk, in TRL's conversational form: JSON lines of messages and tools.

    {"messages": [{"role": "user", "content": …}, {"role": "assistant", "tool_calls": […]}, …],
     "tools": [{"type": "function", "function": {…}}]}

`journeyman collect` writes them, `trainer=sft trainer.data=…` reads them, and so does
`trl.SFTTrainer`. Files of others are read as TRL and OpenAI write them: "prompt" and "completion"
for "messages", arguments and tools as JSON in text, contents in parts. What is wrong is named with
its file, line and field, and what was expected there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from journeyman.agents.errors import ConversationError
from journeyman.agents.rollouts.dialogues import Dialogue, Utterance
from journeyman.agents.students.dialect import REASONING_FIELDS
from journeyman.envs import Message
from journeyman.envs.types import Role
from journeyman.tools import ToolCall, ToolSpec

Record = dict[str, Any]
_ROLES = {name: name for name in ("system", "user", "assistant", "tool")} | {"developer": "system"}


def as_record(dialogue: Dialogue, origin: Mapping[str, Any]) -> Record:
    """A line of the file.

    Args:
        dialogue: What was said.
        origin: Where it comes from; readers pass over it.
    """
    messages: list[Record] = []
    asked: list[ToolCall] = []
    count = answered = 0  # calls before the last turn, and results after it
    for it in dialogue.messages:
        if isinstance(it, Utterance):
            count += len(asked)
            asked = list(it.calls)
            answered = 0
            messages.append(_turn_record(it, count))
        else:
            message: Record = dict(it.as_dict())
            if it.role == "tool":
                message["tool_call_id"] = _call_id(count + answered)
                answered += 1
            messages.append(message)
    tools = [tool.as_function() for tool in dialogue.tools]
    return {"messages": messages, "tools": tools, "origin": dict(origin)}


def _turn_record(turn: Utterance, first: int) -> Record:
    record: Record = {"role": "assistant", "content": turn.content}
    if turn.reasoning:
        record["reasoning_content"] = turn.reasoning
    if turn.calls:
        record["tool_calls"] = [
            {
                "type": "function",
                "id": _call_id(number),
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for number, call in enumerate(turn.calls, first)
        ]
    return record


def _call_id(number: int) -> str:
    return f"call{number:05d}"  # templates of Mistral take nine letters and digits, no others


def conversations(path: Path) -> Iterator[tuple[int, Dialogue]]:
    """The conversations of a file with their lines, from 1 on; empty lines are passed over.

    Raises:
        ConversationError: A line is no conversation.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, _dialogue(_json(line, "it"))
            except _Misfit as misfit:
                raise ConversationError(f"{path}, line {number}: {misfit}") from misfit


def read_messages(value: Any) -> tuple[Message | Utterance, ...]:
    """Messages as a request to a server has them.

    Raises:
        ConversationError: They are none; the message says which, and what was expected.
    """
    messages: list[Message | Utterance] = []
    asked: dict[str, str] = {}
    try:
        for i, one in enumerate(_list(value, "messages", "messages")):
            place = f"messages[{i}]"
            messages.append(_message(_object(one, place), place, messages, asked, True))
    except _Misfit as misfit:
        raise ConversationError(str(misfit)) from misfit
    return tuple(messages)


def read_tools(value: Any) -> tuple[ToolSpec, ...]:
    """Tools as a request to a server has them.

    Raises:
        ConversationError: They are none; the message says which, and what was expected.
    """
    try:
        return _tools(value)
    except _Misfit as misfit:
        raise ConversationError(str(misfit)) from misfit


class _Misfit(ValueError):
    """A value that is not what was expected, in words."""


def _unlike(place: str, expected: str, value: Any) -> _Misfit:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return _Misfit(f"{place} is {shown[:60]}{'…' * (len(shown) > 60)}: expected {expected}")


def _json(text: str | bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Misfit(f"{place} is no JSON ({error})") from error


def _object(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        raise _unlike(place, "an object", value)
    return value


def _list(value: Any, place: str, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise _unlike(place, f"a list of {what}", value)
    return value


def _dialogue(value: Any) -> Dialogue:
    record = _object(value, "the line")
    if record.get("chat_template_kwargs"):
        raise _Misfit(
            "chat_template_kwargs are the student's here: leave them out, and set "
            "student.template_kwargs"
        )
    if record.get("messages") is not None:
        parts = {"messages": True}
    elif record.get("prompt") is not None and record.get("completion") is not None:
        parts = {"prompt": False, "completion": True}  # a prompt's turns are no lesson
    else:
        raise _Misfit(
            f"expected messages, or prompt and completion: lists of messages; it has "
            f"{', '.join(record) or 'nothing'}"
        )
    messages: list[Message | Utterance] = []
    asked: dict[str, str] = {}
    for name, learn in parts.items():
        for i, one in enumerate(_list(record[name], name, "messages")):
            place = f"{name}[{i}]"
            it = _message(_object(one, place), place, messages, asked, learn)
            messages.append(it)
    if not any(isinstance(it, Utterance) and it.learn for it in messages):
        last = list(parts)[-1]
        raise _Misfit(f"{last} has no turn to learn: expected a message of the role assistant")
    return Dialogue(tuple(messages), _tools(record.get("tools")))


def _message(
    message: Record,
    place: str,
    before: Sequence[Message | Utterance],
    asked: dict[str, str],
    learn: bool,
) -> Message | Utterance:
    """Read a message.

    Args:
        message: As JSON gave it.
        place: Where it stands.
        before: The messages before it.
        asked: Ids of the calls so far and the tools they call; those of a turn are added.
        learn: A turn of this part of the line is to be learnt.
    """
    role = _ROLES.get(str(message.get("role")))
    if role is None:
        expected = f"one of {', '.join(_ROLES)}"
        raise _unlike(f"{place}.role", expected, message.get("role"))
    if role == "assistant":
        if not before or isinstance(before[-1], Utterance):
            why = "a turn answers a message of another role before it"
            raise _Misfit(f"{place}.role is assistant: {why}")
        return _utterance(message, place, asked, learn)
    content = _text(message.get("content"), f"{place}.content")
    name = message.get("name")
    if name is not None and not isinstance(name, str):
        raise _unlike(f"{place}.name", "text", name)
    if role == "tool":
        called = _tool_named(message, place, before, asked)
        name = name or called
    return Message(cast(Role, role), content, name if role == "tool" else None)


def _tool_named(
    message: Record, place: str, before: Sequence[Message | Utterance], asked: Mapping[str, str]
) -> str | None:
    """The tool that a result comes from: by the id of its call, or else by its place."""
    call_id = message.get("tool_call_id")
    if call_id is not None and asked:
        if call_id not in asked:
            expected = f"the id of a call before it, such as {', '.join(list(asked)[-3:])}"
            raise _unlike(f"{place}.tool_call_id", expected, call_id)
        return asked[call_id]
    turns = [i for i, it in enumerate(before) if isinstance(it, Utterance)]
    if not turns:
        raise _Misfit(f"{place}.role is tool: expected a turn that calls one before it")
    turn = before[turns[-1]]
    number = len(before) - turns[-1] - 1
    calls = turn.calls if isinstance(turn, Utterance) else ()
    return calls[number].name if number < len(calls) else None


def _utterance(message: Record, place: str, asked: dict[str, str], learn: bool) -> Utterance:
    if message.get("function_call") is not None:
        raise _Misfit(f"{place}.function_call is of an older form: expected tool_calls")
    calls = []
    listed = message.get("tool_calls") or []
    for i, one in enumerate(_list(listed, f"{place}.tool_calls", "calls")):
        where = f"{place}.tool_calls[{i}]"
        call = _object(one, where)
        calls.append(_call(call, where))
        if isinstance(call.get("id"), str):
            asked[call["id"]] = calls[-1].name
    told = {name: message[name] for name in REASONING_FIELDS if message.get(name)}
    reasoning = next((_text(it, f"{place}.{name}") for name, it in told.items()), "")
    content = message.get("content")
    if content is None and (calls or reasoning):
        content = ""
    weight = message.get("weight", 1)
    if weight not in (0, 1, None):
        raise _unlike(f"{place}.weight", "0 or 1", weight)
    return Utterance(
        _text(content, f"{place}.content"),
        tuple(calls),
        reasoning.strip("\n"),
        learn and weight != 0,
    )


def _call(call: Record, place: str) -> ToolCall:
    if call.get("function") is not None:
        place = f"{place}.function"
        call = _object(call["function"], place)
    name, arguments = call.get("name"), call.get("arguments")
    if not isinstance(name, str) or not name:
        raise _unlike(f"{place}.name", "the name of a tool", name)
    where = f"{place}.arguments"
    if isinstance(arguments, str):  # as OpenAI has them
        arguments = _json(arguments, where) if arguments.strip() else {}
    return ToolCall(name, {} if arguments is None else _object(arguments, where))


def _text(content: Any, place: str) -> str:
    if isinstance(content, list):
        parts = [_object(part, f"{place}[{i}]") for i, part in enumerate(content)]
        for i, part in enumerate(parts):
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise _unlike(f"{place}[{i}]", 'a part such as {"type": "text", "text": …}', part)
        return "".join(part["text"] for part in parts)
    if not isinstance(content, str):
        raise _unlike(place, "text", content)
    return content


def _tools(value: Any) -> tuple[ToolSpec, ...]:
    if isinstance(value, str):  # so that columns have one type
        value = _json(value, "tools") if value.strip() else None
    if value is None:
        return ()
    return tuple(_tool(one, f"tools[{i}]") for i, one in enumerate(_list(value, "tools", "tools")))


def _tool(value: Any, place: str) -> ToolSpec:
    tool = _object(value, place)
    if tool.get("function") is not None:
        place = f"{place}.function"
        tool = _object(tool["function"], place)
    name, description = tool.get("name"), tool.get("description") or ""
    if not isinstance(name, str) or not name:
        raise _unlike(f"{place}.name", "the name of a tool", name)
    if not isinstance(description, str):
        raise _unlike(f"{place}.description", "text", description)
    parameters = tool.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    return ToolSpec(name, description, _object(parameters, f"{place}.parameters"))
