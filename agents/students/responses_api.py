"""A turn asked for by OpenAI's Responses: `POST /v1/responses`.

The conversation goes there whole each time (`store: false`): nothing is left at the server. What it
wrote is sent back as it came, reasoning items with their encrypted content too, since a model that
does not hear what it considered considers it anew. Field names are those of OpenAI's reference, as
the package `openai` has them (`openai.types.responses`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from journeyman.agents.students.answers import Answer
from journeyman.agents.students.chat_api import Recall, StrangeAnswerError, counts_in
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.wording import as_messages, as_text, is_json, text_of
from journeyman.envs import Message
from journeyman.tools import ToolSpec

_USAGE = ("input_tokens", "input_tokens_details", "output_tokens")
_NAMES = {"max_tokens": "max_output_tokens", "temperature": "temperature"}
"""Of what is asked; seeds are not known there."""


class ResponsesForm:
    """Responses with function tools."""

    path = "responses"

    def fields(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """See `WireForm.fields`."""
        told = {_NAMES[name]: value for name, value in asked.items() if name in _NAMES}
        return {"store": False, **told}

    def body(
        self, said: Sequence[Message], tools: Sequence[ToolSpec], dialect: Dialect, recall: Recall
    ) -> dict[str, Any]:
        """See `WireForm.body`."""
        messages = as_messages(said, dialect, lambda turns: recall(turns).ids)
        told: list[Mapping[str, Any]] = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                told += _turn(message, recall(said[: i + 1]).items)
            elif message["role"] == "tool":
                told.append(
                    {
                        "type": "function_call_output",
                        "call_id": message["tool_call_id"],
                        "output": message["content"],
                    }
                )
            else:
                told.append({"role": message["role"], "content": message["content"]})
        functions = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": dict(tool.parameters),
                "strict": False,  # schemas are as they are; strict ones may leave little out
            }
            for tool in tools
        ]
        return {"input": told, **({"tools": functions} if tools else {})}

    def read(self, answered: Mapping[str, Any], dialect: Dialect) -> tuple[Answer, str]:
        """See `WireForm.read`."""
        output = answered.get("output")
        if answered.get("status") in ("failed", "cancelled"):
            raise StrangeAnswerError("a turn that broke")
        if not isinstance(output, list):
            raise StrangeAnswerError("no output")
        items = [it for it in output if isinstance(it, dict)]
        content = "".join(_said(it) for it in items if it.get("type") == "message")
        message = {
            "content": content,
            "tool_calls": [_as_call(it) for it in items if it.get("type") == "function_call"],
            "reasoning": "\n".join(filter(None, map(_considered, items))),
        }
        details = answered.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        cut = answered.get("status") == "incomplete" and reason == "max_output_tokens"
        text, ids = as_text(message, cut, dialect)
        kept = tuple(it for it in items if _is_sent_back(it))
        counts = counts_in(answered.get("usage"), _USAGE)
        return Answer(text, cut, tuple(ids), *counts, items=kept), content


def _turn(
    message: Mapping[str, Any], items: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """A turn as the server gave it, if that is known; else as chat completions have it."""
    calls = [_call_item(it) for it in message.get("tool_calls", ())]
    if sum(it["type"] == "function_call" for it in items) == len(calls) and items:
        waiting = iter(calls)
        return [_own(it, next(waiting)) if it["type"] == "function_call" else it for it in items]
    content = message["content"]
    said = [{"role": "assistant", "content": content}] if content or not calls else []
    return [*said, *calls]


def _call_item(call: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call["id"], **call["function"]}


def _own(item: Mapping[str, Any], call: Mapping[str, Any]) -> Mapping[str, Any]:
    """The server's own item of a call; with arguments that it hears again."""
    arguments = item.get("arguments")
    if isinstance(arguments, str) and is_json(arguments) and item.get("call_id"):
        return item
    return call


def _as_call(item: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    return {"id": item.get("call_id"), "function": function}


def _said(item: Mapping[str, Any]) -> str:
    """What a message says; a refusal is said too."""
    content = item.get("content")
    parts = [it for it in content if isinstance(it, dict)] if isinstance(content, list) else []
    return "".join(text_of(it.get("text")) or text_of(it.get("refusal")) for it in parts)


def _considered(item: Mapping[str, Any]) -> str:
    """What a reasoning item tells of itself: all, a summary, or nothing."""
    if item.get("type") != "reasoning":
        return ""
    return text_of(item.get("content")) or text_of(item.get("summary"))


def _is_sent_back(item: Mapping[str, Any]) -> bool:
    """True of what the server can read again; of reasoning it keeps nothing to know it by."""
    if item.get("type") == "reasoning":
        return bool(item.get("encrypted_content") or item.get("content"))
    return item.get("type") in ("message", "function_call")
