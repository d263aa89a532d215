"""A model of another size that computes the same: speed can be compared where tokens are equal.

The small model's weights stand in a corner of the large one's; what is around them is multiplied
all the same, and comes to nothing in the residual stream.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel


@torch.no_grad()
def widened(
    small: PreTrainedModel, width: int = 512, intermediate: int = 1536, layers: int = 8
) -> PreTrainedModel:
    """A model with the logits of a SmolLM3, and the cost of its own size.

    Args:
        small: As many key-value heads as heads, weights of embedding and head tied.
        width: Of the residual stream; a multiple of the small one's head dimension.
        intermediate: Of the feed-forward layers.
        layers: As many as the small one's, or more; the added ones write nothing.

    Returns:
        A model with random weights wherever they do not change what comes out.
    """
    config = copy.deepcopy(small.config)
    narrow, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    added = layers - config.num_hidden_layers
    config.update(
        {
            "hidden_size": width,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": width // head,
            "num_key_value_heads": width // head,
            "no_rope_layers": [*config.no_rope_layers, *[0] * added],
            "layer_types": [*config.layer_types, *["full_attention"] * added],
            # The mean of squares is taken over more places, of which only the old ones hold any.
            "rms_norm_eps": config.rms_norm_eps * narrow / width,
        }
    )
    torch.manual_seed(0)
    large: Any = AutoModelForCausalLM.from_config(config, dtype=small.dtype).eval()
    old: Any = small.model
    new: Any = large.model
    scale = math.sqrt(narrow / width)  # the root of what the comment above says
    _into(new.embed_tokens, old.embed_tokens)
    _norm(new.norm, old.norm, scale)
    for i, layer in enumerate(new.layers):
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            for parameter in last.parameters():
                parameter.zero_()
        if i >= small.config.num_hidden_layers:
            continue
        origin = old.layers[i]
        for name in ("input_layernorm", "post_attention_layernorm"):
            _norm(getattr(layer, name), getattr(origin, name), scale)
        for part, names in {
            "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
            "mlp": ("gate_proj", "up_proj", "down_proj"),
        }.items():
            for name in names:
                _into(getattr(getattr(layer, part), name), getattr(getattr(origin, part), name))
    large.tie_weights()
    return large  # type: ignore[no-any-return]


def _into(large: nn.Module, small: nn.Module) -> None:
    """Put a layer's weights in the corner of another's, whose other inputs those rows ignore."""
    rows, columns = small.weight.shape  # type: ignore[misc,operator]
    if isinstance(large, nn.Embedding):
        large.weight.zero_()
    large.weight[:rows] = 0  # type: ignore[index,operator]
    large.weight[:rows, :columns] = small.weight  # type: ignore[index,operator]
    if getattr(small, "bias", None) is not None:
        large.bias[:rows] = small.bias  # type: ignore[index,operator]


def _norm(large: nn.Module, small: nn.Module, scale: float) -> None:
    large.weight.zero_()  # type: ignore[operator]
    places = small.weight.shape[0]  # type: ignore[index,union-attr]
    large.weight[:places] = small.weight * scale  # type: ignore[index,operator]
