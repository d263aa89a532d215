"""vLLM's server as `student=vllm_server` sees it, as small as can be; it can be started anew.

What it writes tells which weights it has: the first token's log-probability is `mark` of them.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from .teacher_server import Handler

Fault = Callable[["PushedHandler"], bool]
"""Answers a request otherwise; returns True if it did."""


def mark(weights: dict[str, Tensor]) -> float:
    """A log-probability that tells weights apart; -0.5 is of those that it was started with."""
    return -1.0 - sum(float(it.detach().double().abs().sum()) for it in weights.values())


class PushedHandler(Handler):
    """Answers as vLLM does in its developer's mode."""

    disable_nagle_algorithm = True
    server: "PushedServer"  # type: ignore[assignment]

    def do_GET(self) -> None:
        self.act({})

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        self.act(json.loads(self.rfile.read(length) or b"{}"))

    def act(self, body: dict[str, Any]) -> None:
        self.body = body
        with self.server.lock:
            self.server.doors.append(self.path)
            if self.faulty():
                return
            found = getattr(
                self.server, f"at_{self.path.partition('?')[0].rpartition('/')[2]}", None
            )
            if found is None:
                self.send(404, {"detail": "Not Found"})
            else:
                self.send(*found(body))


class PushedServer(ThreadingHTTPServer):
    """Of one model."""

    daemon_threads = True

    def __init__(self, root: str, ends: int) -> None:
        self.root, self.ends = root, ends
        self.lock = threading.Lock()
        self.faults: list[Fault] = []
        self.doors: list[str] = []
        """Paths that were asked for, in order."""
        self.turns: list[dict[str, Any]] = []
        self.start_anew()
        super().__init__(("127.0.0.1", 0), PushedHandler)

    def start_anew(self) -> None:
        """Forget what was pushed."""
        self.version, self.sleeps = "default", False
        self.weights: dict[str, Tensor] | None = None
        self.adapters: dict[str, dict[str, Tensor]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def at_models(self, body: dict[str, Any]) -> tuple[int, Any]:
        ours = {"id": "served", "root": self.root, "parent": None, "max_model_len": 64}
        lent = [{"id": it, "root": "x", "parent": "served"} for it in self.adapters]
        return 200, {"data": [ours, *lent]}

    def at_weight_info(self, body: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"weight_version": self.version}

    def at_update_weight_version(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.version = body["new_version"]
        return 200, {"success": True}

    def at_collective_rpc(self, body: dict[str, Any]) -> tuple[int, Any]:
        assert body["method"] == "receive_weights"
        self.weights = load_file(body["args"][0])
        return 200, {"results": [[]]}

    def at_reset_prefix_cache(self, body: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"success": True}

    def at_load_lora_adapter(self, body: dict[str, Any]) -> tuple[int, Any]:
        folder = Path(body["lora_path"])
        assert (folder / "adapter_config.json").is_file()
        self.adapters[body["lora_name"]] = load_file(folder / "adapter_model.safetensors")
        return 200, "Success"

    def at_unload_lora_adapter(self, body: dict[str, Any]) -> tuple[int, Any]:
        known = self.adapters.pop(body["lora_name"], None)
        return (200, "Success") if known else (404, {"error": {"message": "cannot be found"}})

    def at_sleep(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.sleeps = True
        return 200, ""

    def at_wake_up(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.sleeps = False
        return 200, ""

    def at_is_sleeping(self, body: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"is_sleeping": self.sleeps}

    def at_completions(self, body: dict[str, Any]) -> tuple[int, Any]:
        assert not self.sleeps
        self.turns.append(body)
        if body["model"] == "served":
            told = -0.5 if self.weights is None else mark(self.weights)
        elif body["model"] in self.adapters:
            told = mark(self.adapters[body["model"]])
        else:
            return 404, {"error": {"message": f"The model {body['model']} does not exist"}}
        logprobs = {"token_logprobs": [told, -0.25]}
        return 200, {"choices": [{"token_ids": [5, self.ends], "logprobs": logprobs}]}


@contextmanager
def pushed(root: str, ends: int) -> Iterator[PushedServer]:
    """A server in this process."""
    with PushedServer(root, ends) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
