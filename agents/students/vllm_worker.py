"""What a vLLM server is given to replace its weights by (`--worker-extension-cls`).

It is imported in the server's worker, before a model is loaded; `vllm_server.py` calls it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from vllm import _custom_ops

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# On a CPU vLLM would pack weights away, where none can be replaced.
_custom_ops._supports_onednn = False


class WeightReceiver:
    """Methods that vLLM's worker gets beside its own."""

    model_runner: Any

    def receive_weights(self, path: str) -> list[str]:
        """Replace all weights by those of a safetensors file.

        Returns:
            Names of weights that were not replaced: none, if the file is of the same model.
        """
        model = self.model_runner.get_model()
        loaded = model.load_weights(_read(path))
        return sorted({name for name, _ in model.named_parameters()} - set(loaded))


def _read(path: str) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            yield name, file.get_tensor(name)
