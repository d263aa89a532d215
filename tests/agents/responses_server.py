"""OpenAI's Responses over the same scripts and faults; all that is said is as `openai` types it."""

import json
from typing import Any

from openai.types.responses import Response
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
from pydantic import TypeAdapter

from .chat_server import ChatHandler, ChatServer, Speaker, words

REQUEST: TypeAdapter[Any] = TypeAdapter(ResponseCreateParamsNonStreaming)
OURS = ("message", "function_call", "reasoning")


class ResponsesHandler(ChatHandler):
    """Answers at another address."""

    path_of_turns = "/v1/responses"


class ResponsesServer(ChatServer):
    """Speaks what a script of chat completions says."""

    def __init__(self, speak: Speaker, port: int = 0) -> None:
        super().__init__(speak, port, ResponsesHandler)
        self.reasons = True

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        read = REQUEST.validate_python(body)
        list(read["input"]), list(read.get("tools", ()))  # it reads them as they are asked for
        with self.lock:
            self.asked.append(body)
            number = len(self.asked)
        message = self.speak({**body, "messages": as_chat(body["input"])})
        return response(body, message, number, self.reasons)


def as_chat(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation as scripts know it: all that the model wrote in a row is one turn."""
    messages: list[dict[str, Any]] = []
    writing = False
    for item in items:
        kind = item.get("type", "message")
        own = kind in OURS and item.get("role", "assistant") == "assistant"
        if own and not writing:
            messages.append({"role": "assistant", "content": "", "tool_calls": []})
        writing = own
        if kind == "function_call":
            messages[-1]["tool_calls"].append(item)
        elif kind == "function_call_output":
            messages.append({"role": "tool", "content": item["output"]})
        elif not own:
            messages.append(item)
    return messages


def response(
    body: dict[str, Any], message: dict[str, Any], number: int, reasons: bool, **more: Any
) -> dict[str, Any]:
    """An answer, checked."""
    output: list[dict[str, Any]] = []
    if reasons:
        considered = {"encrypted_content": f"secret thoughts {number}", "summary": []}
        output.append({"type": "reasoning", "id": f"rs_{number}", **considered})
    if message.get("content"):
        part = {"type": "output_text", "text": message["content"], "annotations": []}
        shape = {"type": "message", "role": "assistant", "status": "completed"}
        output.append({**shape, "id": f"msg_{number}", "content": [part]})
    for i, call in enumerate(message.get("tool_calls") or ()):
        shape = {"type": "function_call", "id": f"fc_{number}_{i}", "status": "completed"}
        output.append({**shape, "call_id": f"{call['id']}_{number}", **call["function"]})
    read, written = words(body["input"]), words(message)
    answer = {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 0,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": body["model"],
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": body.get("tools", []),
        "usage": {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": read // 2, "cache_write_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 1},
            "total_tokens": read + written,
        },
        **more,
    }
    Response.model_validate(json.loads(json.dumps(answer)))
    return answer
