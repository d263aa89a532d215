"""A server of chat completions with tools, as small as can be: it speaks a script; and faults.

By itself (`python -m tests.agents.chat_server PORT`) it speaks the gold turns, until it is killed.
"""

import functools
import json
import re
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

from journeyman.envs import answer_text, env_class
from journeyman.tools import ToolCall

from .teacher_server import Handler

MODEL = "apprentice-1"
ENV = "journeyman/Bank-v0"
Speaker = Callable[[dict[str, Any]], dict[str, Any]]
"""The message that answers a request's body."""
Fault = Callable[["ChatHandler"], bool]
"""Answers a request otherwise; returns True if it did."""


class ChatHandler(Handler):
    """Answers as OpenAI's server does."""

    disable_nagle_algorithm = True
    server: "ChatServer"  # type: ignore[assignment]
    path_of_turns = "/v1/chat/completions"

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        self.body = json.loads(self.rfile.read(length))
        if self.path != self.path_of_turns:
            self.send(404, {"detail": "Not Found"})
        elif self.faulty():
            pass
        elif self.body.get("model") not in self.server.names:
            message = f"The model {self.body.get('model')!r} does not exist"
            self.send(404, {"error": {"message": message, "code": "model_not_found"}})
        else:
            self.send(200, self.server.answer(self.body))


class ChatServer(ThreadingHTTPServer):
    """Of one model; it remembers what it was asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, speak: Speaker, port: int = 0, handler: type[ChatHandler] = ChatHandler
    ) -> None:
        self.speak = speak
        self.names = [MODEL]
        self.faults: list[Fault] = []
        self.asked: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.now = self.most = 0
        super().__init__(("127.0.0.1", port), handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever was answered has gone: that is what some tests are about."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """A whole answer; tokens are counted as words."""
        with self.lock:
            self.asked.append(body)
        message = self.speak(body)
        return {
            "choices": [{"index": 0, "message": message, "finish_reason": finish(message)}],
            "usage": {
                "prompt_tokens": words(body["messages"]),
                "completion_tokens": words(message),
            },
        }


def finish(message: dict[str, Any]) -> str:
    return "tool_calls" if message.get("tool_calls") else "stop"


def words(it: Any) -> int:
    return len(json.dumps(it).split())


def called(*calls: tuple[str, str], content: str | None = None, **more: Any) -> dict[str, Any]:
    """A message that makes calls: name and arguments of each, as they are written."""
    made = [
        {
            "id": f"call_{name}_{i}",
            "type": "function",
            "function": {"name": name, "arguments": told},
        }
        for i, (name, told) in enumerate(calls)
    ]
    return {"role": "assistant", "content": content, "tool_calls": made, **more}


def said(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


@functools.cache
def scripts() -> dict[str, tuple[ToolCall | str, ...]]:
    """The gold turns of the first test tasks, by the prompts that they begin with."""
    tasks = [env_class(ENV).load_task(f"test/{i}") for i in range(100)]
    return {
        task.prompt: tuple(it for turn in task.turns for it in (*turn.gold, answer_text(turn)))
        for task in reversed(tasks)
    }


def gold(body: dict[str, Any]) -> dict[str, Any]:
    """Speaks the next gold turn."""
    prompt = next(m["content"] for m in body["messages"] if m["role"] == "user")
    turn = scripts()[prompt][sum(m["role"] == "assistant" for m in body["messages"])]
    if isinstance(turn, str):
        return said(turn)
    return called((turn.name, json.dumps(dict(turn.arguments))))


def silent(body: dict[str, Any]) -> dict[str, Any]:
    return said(None)


def graded(body: dict[str, Any]) -> dict[str, Any]:
    """Speaks as a judge: each step has a grade of its own, by what there is to read."""
    prompt = body["messages"][-1]["content"]
    (count,) = re.findall(r"^Grade each of its (\d+) steps", prompt, re.MULTILINE)
    return grades(*(zlib.crc32(f"{k}{prompt}".encode()) % 11 for k in range(int(count))))


def grades(*given: Any) -> dict[str, Any]:
    entries = [{"step": k, "reason": "so", "grade": it} for k, it in enumerate(given, 1)]
    return said(json.dumps({"steps": entries}))


@contextmanager
def chatting(speak: Speaker, kind: type[ChatServer] = ChatServer) -> Iterator[ChatServer]:
    """A server in this process."""
    with kind(speak) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    ChatServer(gold, int(sys.argv[1])).serve_forever()
