"""An agent program that speaks the OpenAI client's words and knows nothing of Journeyman's proxy.

It plays an environment by function tools of its own: what stands behind them is its business.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn
from openai import BadRequestError, OpenAI

from journeyman.envs import AssistantTurn, Message, ToolEnv, make
from journeyman.envs.serving import Guard
from journeyman.tools import ToolCall


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of an application that answers until the block ends."""
    guarded: Any = Guard(app, "127.0.0.1")
    config = uvicorn.Config(guarded, port=0, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join()


def client(url: str, **settings: Any) -> OpenAI:
    """To be closed by whoever asked for it."""
    return OpenAI(base_url=url, api_key="none", max_retries=0, **settings)


class Agent:
    """One conversation about one task."""

    def __init__(
        self, to: OpenAI, env_id: str, task_id: str, most_turns: int, **asked: Any
    ) -> None:
        self.env: ToolEnv = make(env_id, max_turns=most_turns)
        messages, _ = self.env.reset(options={"task_id": task_id})
        self.history: list[dict[str, Any]] = [dict(m.as_dict()) for m in messages]
        self.tools = [tool.as_function() for tool in self.env.tools]
        self.asked = {"model": "whatever", "temperature": 0, **asked}
        self.to = to
        self.done = self.success = False
        self.reward = 0.0

    def ask(self) -> Any:
        """Its next answer, which is not in the history yet."""
        return self.to.chat.completions.create(
            messages=self.history, tools=self.tools, **self.asked
        ).choices[0]

    def turn(self) -> None:
        try:
            message = self.ask().message
        except BadRequestError as error:
            assert error.code == "context_length_exceeded"
            self.done = True
        else:
            self.hear(message.model_dump(exclude_none=True))

    def hear(self, told: Mapping[str, Any]) -> None:
        """Act upon an answer."""
        self.history.append(dict(told))
        given = told.get("tool_calls") or []
        calls = tuple(
            ToolCall(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in given
        )
        content = told.get("content") or ""
        turn = AssistantTurn(content, calls, content)
        said, self.reward, over, cut, info = self.env.step(turn)
        self.done, self.success = over or cut, info["success"]
        waiting = [call["id"] for call in given]
        for message in said:
            self.history.append(_told(message, waiting))

    def play(self) -> bool:
        while not self.done:
            self.turn()
        self.env.close()
        return self.success


def _told(message: Message, waiting: list[str]) -> dict[str, Any]:
    if message.role != "tool":
        return {"role": message.role, "content": message.content}
    return {"role": "tool", "tool_call_id": waiting.pop(0), "content": message.content}
