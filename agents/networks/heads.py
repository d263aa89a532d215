"""From hidden states to logits: a model in two parts, so that logits come in slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

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
        """The head of a model, read from its configuration."""
        config = model.config.get_text_config()
        cap = getattr(config, "final_logit_softcapping", None)
        projection = model.get_output_embeddings()
        for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
            if (scale := getattr(config, name, None)) is not None:
                return cls(projection, float(scale), cap)
        if (divisor := getattr(config, "logits_scaling", None)) is not None:
            scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
            return cls(projection, float(scale), cap)
        return cls(projection, cap=cap)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, H]."""
        logits: Tensor = self.projection(hidden) * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def backbone(model: PreTrainedModel) -> Any:
    """The model without its head, adapters included: it gives `last_hidden_state` [B, T, H]."""
    bare: Any = model.base_model.model if is_peft_model(model) else model
    return bare.base_model
