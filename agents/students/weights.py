"""What of a trained model travels to where it is played, and how it is written down.

`vllm_engine.py` and `vllm_server.py` ask after each optimiser step. Of a model with an adapter
(LoRA) the adapter alone travels; of any other, all weights.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from journeyman.agents.errors import SettingError, UnsupportedModelError
from journeyman.agents.networks.adapters import BEGUN, begin
from journeyman.agents.networks.catalogue import ADAPTER
from journeyman.agents.networks.loading import load_model

WEIGHTS = "model.safetensors"
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""`vllm.config.lora.MaxLoRARanks`, which light commands do not import."""
_ROOT = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter's weights and what PEFT says of them."""

    config: Any
    """A `peft.LoraConfig`."""
    tensors: Mapping[str, Tensor]
    """By PEFT's own names."""

    @classmethod
    def of(cls, model: nn.Module) -> Adapter | None:
        """What a model's weights are changed by; None if by nothing.

        Args:
            model: Perhaps PEFT's own, or one that PEFT has put layers into.

        Raises:
            UnsupportedModelError: It has several adapters at work, or one of another kind.
        """
        if "peft" not in sys.modules:  # an optional package: without it there are none
            return None
        from peft import LoraConfig, get_peft_model_state_dict
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [it for it in model.modules() if isinstance(it, BaseTunerLayer)]
        if not layers:
            return None
        active = {name for it in layers for name in it.active_adapters}
        if len(active) != 1:
            raise UnsupportedModelError(
                f"vLLM plays one adapter, and the student has {len(active)} at work "
                f"({', '.join(sorted(active)) or 'none'}): leave one, or play with student=hf"
            )
        (name,) = active
        config: Any = model.peft_config[name]  # type: ignore[index]
        if not isinstance(config, LoraConfig) or config.use_dora:
            kind = "DoRA" if isinstance(config, LoraConfig) else config.peft_type.value
            raise UnsupportedModelError(
                f"vLLM plays adapters of LoRA, and the student's is {kind}: train LoRA, or play "
                f"with student=hf"
            )
        found = get_peft_model_state_dict(
            model,
            adapter_name=name,
            save_embedding_layers=False,
        )
        tensors = {f"{_ROOT}{key.removeprefix(_ROOT)}": it for key, it in found.items()}
        return cls(config, tensors)

    @property
    def rank(self) -> int:
        """The highest of its layers'."""
        return int(max(self.config.r, *self.config.rank_pattern.values(), 1))

    def save(self, folder: Path) -> int:
        """Write PEFT's folder; returns the bytes of the weights."""
        self.config.save_pretrained(folder)
        return _save(self.tensors, folder / "adapter_model.safetensors")


def to_train(name: str, lora: Mapping[str, Any] | bool | None) -> PreTrainedModel:
    """What trainers train of a student that is played elsewhere.

    In float32 whatever is played with: in bfloat16 an optimiser's small steps round to nothing.

    Args:
        name: Of the model, or of an adapter, which goes on learning.
        lora: Begins an adapter; see `begin`.

    Raises:
        MissingExtraError: An adapter needs PEFT, and it is not installed.
        SettingError: A field of the adapter is out of its range.
    """
    model = load_model(name, "float32", trainable=True)
    return model if lora is None or lora is False else begin(model, lora)


def save_weights(tensors: Mapping[str, Tensor], folder: Path) -> int:
    """Write all weights of a model into a folder; returns their bytes.

    Args:
        tensors: As `named_parameters` gives them, tied ones once.
        folder: It is there.
    """
    return _save(tensors, folder / WEIGHTS)


def size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes."""
    return sum(it.numel() * it.element_size() for it in tensors.values())


def begun_rank(lora: Mapping[str, Any] | bool | None) -> int | None:
    """The rank of an adapter that is to be begun; None if there is none.

    Raises:
        SettingError: It is no rank.
    """
    if lora is None or lora is False:
        return None
    rank = (BEGUN | dict(lora if isinstance(lora, Mapping) else {}))["r"]
    if type(rank) is not int or rank < 1:
        raise SettingError(f"student.lora.r={rank}: expected a whole number, 1 or more")
    return rank


def lora_rank(rank: int) -> int:
    """The lowest `max_lora_rank` that vLLM has for adapters of a rank; without one, the rank."""
    return min((it for it in _RANKS if it >= rank), default=rank)


def fingerprint(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Tells weights from what an optimiser makes of them: the sum of each tensor's bits.

    Whoever writes into weights need not say so, and some optimisers do it behind autograd's back.
    """
    sums = [
        it.detach().view(_BITS[it.element_size()]).sum(dtype=torch.int64) for it in tensors.values()
    ]
    return tuple(map(int, sums))


def tmpfs() -> str | None:
    """A folder that lies in memory; None where there is none."""
    place = Path("/dev/shm")
    return str(place) if os.access(place, os.W_OK | os.X_OK) else None


def _save(tensors: Mapping[str, Tensor], path: Path) -> int:
    save_file({name: it.detach().cpu().contiguous() for name, it in tensors.items()}, path)
    return size(tensors)


def rank_at(folder: str) -> int | None:
    """The rank of the adapter in a folder; None if there is none."""
    if not (Path(folder) / ADAPTER).is_file():
        return None
    from peft import LoraConfig, PeftConfig

    config = PeftConfig.from_pretrained(folder)
    if not isinstance(config, LoraConfig):
        return None
    return Adapter(config, {}).rank
