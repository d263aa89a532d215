"""The doors that vLLM's server has for trainers: weights in, and which it has; sleep.

`vllm_server.py` goes through them between turns. They are there if the server was started by
`journeyman student serve`: vLLM opens them in its developer's mode alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from journeyman.agents.errors import StudentServerError, UnsupportedModelError
from journeyman.agents.networks.endpoints import Endpoint
from journeyman.agents.networks.replies import Reply

UNTOUCHED = "default"
"""What vLLM calls the weights that it was started with."""
WORKER = "journeyman.agents.students.vllm_worker.WeightReceiver"
"""What takes all weights there (`--worker-extension-cls`)."""
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
"""What opens the doors."""


class TrainersDoors:
    """Of one server."""

    def __init__(self, endpoint: Endpoint, model: str) -> None:
        """Remember where they are.

        Args:
            endpoint: The server, without /v1.
            model: What it is to be started with, for errors.
        """
        self.endpoint = endpoint
        self._how = f"start it by: journeyman student serve {model}"

    def version(self) -> str:
        """What it calls the weights that it has; see `call`.

        Raises:
            StudentServerError: It is gone, or has no such door.
        """
        return str(self._content(self._send("GET", "weight_info")).get("weight_version"))

    def call(self, version: str) -> None:
        """Name the weights that it has, until it is started anew or given others.

        Raises:
            StudentServerError: See `version`.
        """
        self._content(self._send("POST", "update_weight_version", {"new_version": version}))

    def give(self, file: Path) -> None:
        """Have it play with all weights of a safetensors file.

        Raises:
            StudentServerError: See `version`; or it has others than those.
        """
        body = {"method": "receive_weights", "args": [str(file)]}
        found = self._content(self._send("POST", "collective_rpc", body)).get("results")
        if not isinstance(found, list) or not all(isinstance(it, list) for it in found):
            raise self.endpoint.strange("no word on the weights that it was given", found)
        if stale := sorted({str(name) for names in found for name in names}):
            raise StudentServerError(
                f"{self.endpoint.url} has weights that the transformers model has not, and would "
                f"play with old ones: {', '.join(stale)}; train this model with student=hf"
            )
        self._content(self._send("POST", "reset_prefix_cache?reset_running_requests=true"))

    def lend(self, adapter: str, folder: Path) -> None:
        """Have it know an adapter by a name, for turns that are asked for by it.

        Raises:
            StudentServerError: It is gone.
            UnsupportedModelError: It cannot play the adapter.
        """
        told = {"lora_name": adapter, "lora_path": str(folder)}
        reply = self._send("POST", "v1/load_lora_adapter", told)
        if reply.status >= 400:
            raise UnsupportedModelError(
                f"{self.endpoint.url} does not take the student's adapter ({reply.status}: "
                f"{reply.said}); {self._how} --lora-rank N, of N not below the adapter's rank, and "
                f"where it can read {folder.parent}"
            )

    def take_back(self, adapter: str) -> None:
        """Forget an adapter; one that it does not know is forgotten already."""
        self._send("POST", "v1/unload_lora_adapter", {"lora_name": adapter})

    def sleep(self, level: int) -> None:
        """See `vllm_engine.Engine`.

        Raises:
            StudentServerError: See `version`.
        """
        self._content(self._send("POST", f"sleep?level={level}"))

    @property
    def asleep(self) -> bool:
        """Whether it sleeps: whoever had it sleep may have been killed before waking it.

        Raises:
            StudentServerError: See `version`.
        """
        return self._content(self._send("GET", "is_sleeping")).get("is_sleeping") is True

    def wake(self) -> None:
        """Undo `sleep`.

        Raises:
            StudentServerError: See `version`.
        """
        self._content(self._send("POST", "wake_up"))

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        return self.endpoint.send(self.endpoint.client, method, path, body, tries=1)

    def _content(self, reply: Reply) -> dict[str, Any]:
        """What is answered; most doors say nothing."""
        if reply.status >= 400:
            raise StudentServerError(
                f"{self.endpoint.url} takes no weights ({reply.status}: {reply.said}); {self._how}"
            )
        return reply.data if isinstance(reply.data, dict) else {}
