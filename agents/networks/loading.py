"""Weights into this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from journeyman.agents.errors import SettingError
from journeyman.agents.networks.catalogue import resolve

DTYPES = ("float32", "bfloat16", "float16", "float64")


def load_model(
    name: str,
    dtype: str | None = "float32",
    device: str | None = None,
    model_config: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """A causal language model by name (see `journeyman.agents.networks.catalogue`).

    Args:
        name: Of the model.
        dtype: Of its weights; None keeps the type they are saved in.
        device: Such as "cuda:1"; None takes a GPU if there is one.
        model_config: Values of the model's config to be changed, such as `attention_dropout`.

    Raises:
        ModelNotFoundError: No such model here; the message says how to get it.
        SettingError: No such type.
    """
    if dtype is not None and dtype not in DTYPES:
        raise SettingError(f"dtype={dtype}: expected {', '.join(DTYPES)}, or null")
    wanted = "auto" if dtype is None else getattr(torch, dtype)
    changed = dict(model_config or {})
    model: Any = AutoModelForCausalLM.from_pretrained(resolve(name), dtype=wanted, **changed)
    # The processes of a job have a GPU each.
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = device or (own if torch.cuda.is_available() else "cpu")
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded
