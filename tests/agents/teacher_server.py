"""A completions server as small as can be, with real log-probabilities; and faults on demand.

By itself (`python teacher_server.py PORT`) it serves the embedded teacher, until it is killed.
"""

import functools
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from journeyman.agents.networks.catalogue import resolve
from journeyman.agents.networks.loading import load_model

Fault = Callable[["Handler"], bool]
"""Answers a request otherwise; returns True if it did."""
MODEL = "master"


class Handler(BaseHTTPRequestHandler):
    """Answers as vLLM's server does, in what a teacher reads of it."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        if self.path == "/v1/models" and not self.faulty():
            served = [{"id": name, "max_model_len": 4096} for name in self.server.names]
            self.send(200, {"data": served})

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        self.body: dict[str, Any] = json.loads(self.rfile.read(length))
        if self.path != "/v1/completions":
            self.send(404, {"detail": "Not Found"})
        elif not self.faulty():
            self.send(200, {"choices": [self.server.complete(self.body)]})

    def faulty(self) -> bool:
        return any(fault(self) for fault in self.server.faults)

    def send(self, status: int, answer: Any, **headers: str) -> None:
        kind = "text/html" if isinstance(answer, str) else "application/json"
        content = answer if isinstance(answer, str) else json.dumps(answer)
        self.send_response(status)
        for name, value in {"content-type": kind, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(content.encode())))
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Of one model, under the names it goes by."""

    daemon_threads = True

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, port: int = 0
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.names = [MODEL]
        self.faults: list[Fault] = []
        self.most = 20
        """Tokens that it names at most."""
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", port), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        tokens = body["prompt"]
        with self.lock:
            logits = self.model(torch.tensor([tokens])).logits[0]
        logprobs = logits.float().log_softmax(-1)
        best = int(logprobs[-1].argmax())
        choice: dict[str, Any] = {"text": self.text(best)}
        if body.get("logprobs") is not None:
            name = f"token_id:{best}" if body.get("return_tokens_as_token_ids") else choice["text"]
            told = float(logprobs[-1, best])
            choice["logprobs"] = {"tokens": [name], "token_logprobs": [told]}
        if (k := body.get("prompt_logprobs")) is not None:
            k = min(k, self.most)
            places = [self.place(logprobs[i], tokens[i + 1], k) for i in range(len(tokens) - 1)]
            choice["prompt_logprobs"] = [None, *places]
        return choice

    def place(self, logprobs: torch.Tensor, token: int, k: int) -> dict[str, Any]:
        named = {token, *logprobs.topk(k).indices.tolist()}
        return {
            str(i): {"logprob": max(float(logprobs[i]), -9999.0), "decoded_token": self.text(i)}
            for i in named
        }

    @functools.cache  # noqa: B019 - a server lives as long as its test
    def text(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))


@contextmanager
def serving(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[Server]:
    """A server in this process."""
    with Server(model, tokenizer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    torch.set_num_threads(1)
    TEACHER = "embedded-teacher"
    tokens = AutoTokenizer.from_pretrained(resolve(TEACHER))
    Server(load_model(TEACHER), tokens, int(sys.argv[1])).serve_forever()
