"""Supervised rows through a model: what they share once, and logits where there is loss alone.

TRL's trainer asks its model for log-probabilities of labels and not for logits
(`fused_lm_head=True`), by a forward of its own. That reads rows padded and one by one, and where
there is no Triton it forms logits of every position, prompts included. A CPU waits longer for the
vocabulary of those than for all layers of a small model.
"""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers import PreTrainedModel
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer.utils import FusedCausalLMOutput

from journeyman.agents.learning.losses.divergence import VOCABULARY_TILE
from journeyman.agents.networks.heads import Head
from journeyman.agents.networks.sharing import states_at

IGNORED = -100
"""Label of tokens without loss, by transformers' convention."""
_OUTPUTS = ("log_probs", "entropy", "is_top1")
"""Those that TRL's supervised trainer reads."""
_PLAIN = {"input_ids", "attention_mask", "labels", "use_cache", "fused_lm_head"}
"""What it says of rows that are padded and no more."""


def read_once(model: Any) -> None:
    """Answer a supervised trainer's question from rows that are read once.

    Whatever else the model is asked, its forward answers as it did.

    Args:
        model: A `PreTrainedModel` that TRL's trainer has made ready; an adapter may be in it.
    """
    bare = model.get_base_model() if is_peft_model(model) else model
    theirs = bare.forward.__func__

    @functools.wraps(type(bare).forward)  # `generate` looks at what a model can be asked
    def forward(self: PreTrainedModel, *args: Any, **given: Any) -> Any:
        # Packed rows bring positions, routers are asked for logits: neither is read here.
        if not args and given.keys() == _PLAIN and given["fused_lm_head"]:
            there = given["attention_mask"].bool()
            return scored(self, given["input_ids"], there, given["labels"])
        return theirs(self, *args, **given)

    bare.forward = MethodType(forward, bare)


def scored(
    model: PreTrainedModel, ids: Tensor, there: Tensor, labels: Tensor
) -> FusedCausalLMOutput:
    """What TRL's forward tells of each label, formed by the same kernel.

    Args:
        model: Without the wrappers of adapters.
        ids: [B, T] rows, padded.
        there: [B, T], false on padding.
        labels: [B, T], the tokens themselves or `IGNORED`.

    Returns:
        [B, T - 1] each, of labels from the second on: their log-probability in nats, with gradient;
        the entropy there, in nats; whether they are the likeliest; and which there are. The first
        three are 0 where there is none.

    Raises:
        UnsupportedModelError: The output layer has an adapter.
    """
    mask = (labels[:, 1:] != IGNORED) & there[:, 1:] & there[:, :-1]
    read = [own[real].tolist() for own, real in zip(ids, there, strict=True)]
    before = torch.nn.functional.pad(mask, (0, 1))
    places = [own[real].nonzero()[:, 0].tolist() for own, real in zip(before, there, strict=True)]
    states = states_at(model, read, places)
    head = Head.of(model)
    found = ChunkedLogProbFunction.apply(
        states,
        head.projection.weight,
        head.projection.bias,
        labels[:, 1:][mask],
        1.0,
        VOCABULARY_TILE,
        head.cap,
        head.scale,
        _OUTPUTS,
    )
    logprobs, entropy, _, _, is_top1 = (
        None if it is None else it.new_zeros(mask.shape).masked_scatter(mask, it) for it in found
    )
    return FusedCausalLMOutput(
        log_probs=logprobs, entropy=entropy, is_top1=is_top1, label_mask=mask
    )
