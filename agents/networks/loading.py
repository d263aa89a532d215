"""Weights into this process: whole models, adapters on their bases, quantised ones; tokenizers."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils.peft_utils import find_adapter_config_file

from journeyman.agents.errors import SettingError
from journeyman.agents.networks.adapters import attach
from journeyman.agents.networks.catalogue import base_of, resolve

DTYPES = ("float32", "bfloat16", "float16", "float64")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
"""Of these a folder with a tokenizer has one at least."""


def load_model(
    name: str,
    dtype: str | None = "float32",
    device: str | None = None,
    model_config: Mapping[str, Any] | None = None,
    quantization: Mapping[str, Any] | None = None,
    trainable: bool = False,
) -> PreTrainedModel:
    """A causal language model by name (see `journeyman.agents.networks.catalogue`).

    Of an adapter's name it is a `peft.PeftModel`, which answers as the base does with the adapter.

    Args:
        name: Of the model.
        dtype: Of its weights; None keeps the type they are saved in.
        device: Such as "cuda:1"; None takes a GPU if there is one.
        model_config: Values of the model's config to be changed, such as `attention_dropout`.
        quantization: Fields of one of transformers' quantisation configs, by which the weights are
            quantised as they are loaded: `load_in_4bit` or `load_in_8bit` for bitsandbytes, else
            with `quant_method`.
        trainable: The weights of an adapter are to be trained; those below it never are.

    Raises:
        ModelNotFoundError: No such model here; the message says how to get it.
        SettingError: No such type; or the quantisation is unknown, or cannot be had here.
        MissingExtraError: It is an adapter, and PEFT is not installed.
    """
    if dtype is not None and dtype not in DTYPES:
        raise SettingError(f"dtype={dtype}: expected {', '.join(DTYPES)}, or null")
    if not Path(resolve(name)).is_dir():
        find_adapter_config_file(name)  # of a hub's model: into the cache, if it is an adapter
    if (base := base_of(name)) is not None:
        below = load_model(base, dtype, device, model_config, quantization)
        return attach(below, name, trainable)
    wanted = "auto" if dtype is None else getattr(torch, dtype)
    changed = dict(model_config or {})
    # The processes of a job have a GPU each.
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = device or (own if torch.cuda.is_available() else "cpu")
    place = resolve(name)
    if Path(place).is_dir():
        place = os.path.abspath(place)  # an adapter that is saved names it as its base
    if quantization:
        return _quantised(place, dict(quantization), device, dtype=wanted, **changed)
    model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=wanted, **changed)
    if getattr(model, "is_quantized", False):
        loaded: PreTrainedModel = model.eval()  # saved so: transformers has chosen its device
    else:
        loaded = model.to(device).eval()
    return loaded


def _quantised(place: str, given: dict[str, Any], device: str, **kwargs: Any) -> PreTrainedModel:
    """A model whose weights are quantised as they are loaded."""
    told = f"student.quantization={{{', '.join(f'{n}: {v}' for n, v in given.items())}}}"
    method = given.pop("quant_method", None)
    if given.get("load_in_4bit") or given.get("load_in_8bit"):
        method = "bitsandbytes_4bit" if given.get("load_in_4bit") else "bitsandbytes_8bit"
    kind: Any = AUTO_QUANTIZATION_CONFIG_MAPPING.get(str(method))
    if kind is None:
        raise SettingError(
            f"{told}: expected load_in_4bit: true, load_in_8bit: true, or quant_method: one of "
            f"{', '.join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))}"
        )
    known = inspect.signature(kind).parameters
    if strange := [it for it in given if it not in known]:
        raise SettingError(
            f"{told}: {kind.__name__} has no {', '.join(strange)}; it takes "
            f"{', '.join(it for it in known if it != 'kwargs')}"
        )
    try:
        config = kind(**given)
        model: Any = AutoModelForCausalLM.from_pretrained(
            place, quantization_config=config, device_map={"": device}, **kwargs
        )
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]
        raise SettingError(f"{told}: it cannot be had here: {why}") from error
    loaded: PreTrainedModel = model.eval()
    return loaded


def load_tokenizer(name: str) -> Any:
    """A model's tokenizer; of an adapter that was saved without one, its base's.

    Raises:
        ModelNotFoundError: No such model here.
    """
    place = resolve(name)
    base = base_of(name)
    own = any((Path(place) / file).is_file() for file in TOKENIZER)
    return AutoTokenizer.from_pretrained(place if own or base is None else resolve(base))
