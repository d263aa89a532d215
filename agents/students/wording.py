"""A conversation as chat-completions servers speak of it, and back.

Between turns a conversation is text, as every player's: calls stand in it in the form of a dialect.
What a server says in fields of its own is written so that the dialect reads back just that: as many
calls as it made, the unreadable ones too; contents and reasoning that look like calls are none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from journeyman.agents.students.contents import clean
from journeyman.agents.students.dialect import Dialect
from journeyman.envs import AssistantTurn, Message
from journeyman.tools import ToolCall
from journeyman.tools.parsing.scanning import DECODER
from journeyman.tools.parsing.tags import CLOSE, OPEN

Ids = Callable[[Sequence[Message]], Sequence[str]]
"""The ids that a server gave to the calls of a conversation's last turn; none where unknown."""

UNREADABLE = "unreadable"
"""Holds what was written in place of arguments: servers refuse to hear again what is not JSON."""

_THINK, _THOUGHT = "<think>\n", "\n</think>\n\n"
_CALL_MARKS = re.compile(r"<(?=/?tool_call>)")
_MARKS = re.compile(r"<(?=/?(?:tool_call|think)>)")
_WORD = "< "
"""Begins a mark that is none."""
_NAMED = re.compile(r'"name": "([\w-]{1,64})"')
_ILLEGAL = re.compile(r"[^a-zA-Z0-9_-]")


def as_text(message: Mapping[str, Any], cut: bool, dialect: Dialect) -> tuple[str, list[str]]:
    """A server's message as a turn's text, and the ids of its calls.

    Args:
        message: Of role "assistant", as the server gave it.
        cut: It hit its token limit: the last call may have no end, and so may reasoning.
        dialect: Of which the text is; its calls are Hermes'.
    """
    calls = _calls(message)
    said = text_of(message.get("content")) or text_of(message.get("refusal"))
    content = _CALL_MARKS.sub(_WORD, said)
    thought = _MARKS.sub(_WORD, _reasoning(message))
    if thought:
        over = _THOUGHT if content or calls or not cut else ""
        thought = f"{_THINK}{thought}{over}"
    # Marks in it that were never closed would swallow the calls.
    contents = (content, _MARKS.sub(_WORD, said), "") if calls else (content,)
    for content in contents:
        for write in (_written, _quoted):
            written = [write(name, body) for name, body, _ in calls]
            if written and cut and write is _written and not is_json(calls[-1][1]):
                written[-1] = written[-1].removesuffix(f"}}\n{CLOSE}")
            text = thought + "\n".join(part for part in (content, *written) if part)
            if not calls or _agree(dialect.read(text), calls):
                return text, [given for *_, given in calls]
    raise AssertionError(text)  # with quoted bodies alone, each of them is a call


def as_messages(
    messages: Sequence[Message], dialect: Dialect, ids: Ids = lambda said: ()
) -> list[dict[str, Any]]:
    """A conversation as a server is told it.

    Args:
        messages: All that was said; turns of role "assistant" in the words of `dialect`.
        dialect: Reads them.
        ids: Where calls have ids of the server's own, those are kept.
    """
    told: list[dict[str, Any]] = []
    waiting: list[str] = []
    for i, message in enumerate(messages):
        if message.role == "assistant":
            read = dialect.read(message.content)
            # Reasoning that never ended is an attempt too, and no call that a server knows.
            calls = read.calls if read.answer else ()
            known = ids(messages[: i + 1])
            waiting = list(known) if len(known) == len(calls) else _made_ids(i, len(calls))
            told.append(assistant_message(read, calls, waiting))
        elif message.role == "tool" and waiting:
            it = {"role": "tool", "tool_call_id": waiting.pop(0), "content": message.content}
            told.append(it)
        else:
            role = "user" if message.role == "tool" else message.role
            told.append({"role": role, "content": message.content})
    return told


def assistant_message(
    read: AssistantTurn, calls: Sequence[ToolCall], ids: Sequence[str]
) -> dict[str, Any]:
    """A turn as a message of a server's.

    Args:
        read: The turn.
        calls: Those of its calls that stand in fields of their own; all else is its content.
        ids: Of each of them.
    """
    content = read.answer
    for call in reversed(calls):
        if call.span is not None:
            content = content[: call.span[0]] + content[call.span[1] :]
    content = content.strip()
    if not calls:
        return {"role": "assistant", "content": content}
    functions = (_function(call, read.text) for call in calls)
    return {
        "role": "assistant",
        "content": content or None,
        "tool_calls": [
            {"id": given, "type": "function", "function": function}
            for given, function in zip(ids, functions, strict=True)
        ],
    }


def _function(call: ToolCall, text: str) -> dict[str, str]:
    """Name and arguments of a call; servers want both, and JSON, of unreadable ones too."""
    arguments, name = call.arguments, call.name
    if call.error is not None and call.span is not None:
        body = text[slice(*call.span)].removeprefix(OPEN).removesuffix(CLOSE).strip()
        arguments = {UNREADABLE: body}
        named = _NAMED.search(body)
        name = name or (named[1] if named else "")
    name = _ILLEGAL.sub("_", name)[:64] or "unknown"
    return {"name": name, "arguments": json.dumps(dict(arguments), ensure_ascii=False)}


def _made_ids(place: int, count: int) -> list[str]:
    """Nine letters and digits: no server asks for others."""
    return [f"c{place:04d}{k:04d}" for k in range(count)]


def _calls(message: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, arguments as they were written, and id of each call; whatever a field holds."""
    found = message.get("tool_calls")
    listed = found if isinstance(found, list) else []
    calls = []
    for i, it in enumerate(listed):
        call = it if isinstance(it, dict) else {}
        function = call.get("function")
        name, body = _named(function if isinstance(function, dict) else {})
        given = text_of(call.get("id")) or f"c{i:08d}"
        calls.append((name, body, given))
    return calls


def _named(function: Mapping[str, Any]) -> tuple[str, str]:
    name, body = function.get("name"), function.get("arguments")
    if not isinstance(body, str):
        body = "" if body is None else json.dumps(body)
    return clean(name) if isinstance(name, str) else "", clean(body).strip() or "{}"


def _written(name: str, body: str) -> str:
    body = body if is_json(body) else body.replace("<", "\\u003c")  # no marks of ours
    named = f'"name": {json.dumps(name, ensure_ascii=False)}, ' if name else ""
    return f'{OPEN}\n{{{named}"arguments": {body}}}\n{CLOSE}'


def _quoted(name: str, body: str) -> str:
    """The same with unreadable arguments as one text: they could be more than arguments."""
    return _written(name, body if is_json(body) else json.dumps(body).replace("<", "\\u003c"))


def is_json(body: str) -> bool:
    """True if a text is JSON, as tools read it."""
    try:
        DECODER.decode(body)
    except (ValueError, RecursionError):
        return False
    return True


def _agree(read: AssistantTurn, calls: Sequence[tuple[str, str, str]]) -> bool:
    """True if what is read are these calls, outside of reasoning, the unreadable ones as such."""
    return (
        bool(read.answer)
        and len(read.calls) == len(calls)
        and all(
            found.error is not None or (found.name == name and is_json(body))
            for found, (name, body, _) in zip(read.calls, calls, strict=True)
        )
    )


def _reasoning(message: Mapping[str, Any]) -> str:
    """What servers give beside the content, under one name or the other."""
    return text_of(message.get("reasoning_content")) or text_of(message.get("reasoning"))


def text_of(content: Any) -> str:
    """A content, which may be a list of parts."""
    if isinstance(content, str):
        return clean(content)
    if not isinstance(content, list):
        return ""
    parts = (it.get("text") for it in content if isinstance(it, dict))
    return clean("".join(part for part in parts if isinstance(part, str)))
