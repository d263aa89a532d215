"""From hidden states to logits: a model in two parts, so that logits come in slices."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from journeyman.agents.errors import UnsupportedModelError

DENSE_LIMIT = 1 << 24
"""Most logits (tokens times vocabulary) computed at once."""


@dataclass(frozen=True)
class Head:
    """A model's way from hidden states to logits."""

    projection: nn.Linear
    """Linear, without or with bias."""
    scale: float = 1.0
    """Factor of the logits (Cohere, Granite, Falcon-H1)."""
    cap: float | None = None
    """Soft cap: cap * tanh(logits / cap) (Gemma)."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """The head of a model, read from its configuration.

        Raises:
            UnsupportedModelError: It has an adapter, which its weight alone does not hold.
        """
        config = model.config.get_text_config()
        cap = getattr(config, "final_logit_softcapping", None)
        projection: Any = model.get_output_embeddings()
        if hasattr(projection, "base_layer"):  # PEFT's
            raise UnsupportedModelError(
                f"{type(model).__name__} has an adapter on its output layer, and logits are formed "
                f"of that layer's weight: take it out of target_modules (or train it whole: "
                f"modules_to_save), or merge the adapter (journeyman models merge DIR OUT)"
            )
        if is_sharded(projection):  # called, it would be gathered and spread anew for each slice
            projection.unshard()
            projection = _bare(projection, projection.out_features)
        for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
            if (scale := getattr(config, name, None)) is not None:
                return cls(projection, float(scale), cap)
        if (divisor := getattr(config, "logits_scaling", None)) is not None:
            scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
            return cls(projection, float(scale), cap)
        return cls(projection, cap=cap)

    @property
    def width(self) -> int:
        """Tokens that it tells apart, padding of the matrix included."""
        return int(self.projection.weight.shape[0])

    def cut(self, width: int) -> Head:
        """The head of the first `width` tokens: others are padding of the matrix.

        Memory is shared, and gradients reach the rows that are kept.
        """
        if width >= self.width:
            return self
        return replace(self, projection=_bare(self.projection, width))

    def on(self, device: torch.device) -> Head:
        """The same head where `device` is; a copy is made once."""
        return self if self.projection.weight.device == device else _moved(self, device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, H]."""
        logits: Tensor = self.projection(hidden) * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def is_sharded(module: nn.Module) -> bool:
    """True of a module whose weights lie in parts over the processes of a job (FSDP2)."""
    return isinstance(module, FSDPModule)


def _bare(whole: nn.Linear, width: int) -> nn.Linear:
    """The first rows of a layer, without the hooks that it has; memory is shared."""
    part = nn.Linear(whole.in_features, width, whole.bias is not None, device="meta")
    part._parameters.clear()
    # Plain tensors: a parameter would be a leaf, and no gradient would reach the whole.
    kept = {"weight": whole.weight[:width], "bias": None}
    if whole.bias is not None:
        kept["bias"] = whole.bias[:width]
    vars(part).update(kept)
    return part


@functools.lru_cache(4)
def _moved(head: Head, device: torch.device) -> Head:
    weight, bias = head.projection.weight.detach(), head.projection.bias
    copy = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    copy.weight = nn.Parameter(weight.to(device), requires_grad=False)
    if bias is not None:
        copy.bias = nn.Parameter(bias.detach().to(device), requires_grad=False)
    return replace(head, projection=copy)


def backbone(model: PreTrainedModel) -> Any:
    """The model without its head, adapters included: it gives `last_hidden_state` [B, T, H]."""
    bare: Any = model.base_model.model if is_peft_model(model) else model
    return bare.base_model
