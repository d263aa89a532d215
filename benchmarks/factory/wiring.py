"""An initialisation that knows how to copy.

A transformer this small takes hours to discover induction (attend to what followed the last time
the current token occurred), and without induction it cannot copy an account id into a call. So the
circuit is wired in before training, and training is free to change it. All weights are those of a
plain SmolLM3 model: nothing here is needed to run it.

Layer 0 (with RoPE) has two heads that look one and two tokens back and write a projection of what
they see into two reserved parts of the residual stream. Later layers (without RoPE) have a head
that matches the current token with a position's previous token, and one that matches the last two
tokens; each writes half of the matched position's own embedding back, so the tied output layer
predicts its token. Source of the circuit: Olsson et al. 2022, arXiv:2209.11895.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import SmolLM3Config, SmolLM3ForCausalLM

SHARPNESS = 3.0
"""Scale of the match scores' query; and of the look-back heads' peak."""
COPY_GAIN = 2.0
"""How strongly a matched token's embedding is written back."""


def make_model(
    vocab_size: int, pad_id: int, eos_id: int, width: int, layers: int, seed: int
) -> SmolLM3ForCausalLM:
    """A wired model of `layers` layers with heads of 32 dimensions, MLP twice the width."""
    torch.manual_seed(seed)
    config = SmolLM3Config(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=1024,
        no_rope_layers=[1] + [0] * (layers - 1),
        attention_bias=True,
        tie_word_embeddings=True,
        use_sliding_window=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=pad_id,
        bos_token_id=None,
        eos_token_id=eos_id,
        dtype="float32",
    )
    model = SmolLM3ForCausalLM(config)
    with torch.no_grad():
        _wire(model)
    return model


def _wire(model: SmolLM3ForCausalLM) -> None:
    width, head = model.config.hidden_size, 32
    content = width - 2 * head
    one, two = slice(content, content + head), slice(content + head, width)
    embedding = model.model.embed_tokens.weight  # V x D
    embedding.normal_(std=0.5)
    embedding[:, content:] = 0
    look = torch.randn(head, content) / content**0.5  # shared projection of token content
    first, *later = model.model.layers
    _look_back(first.self_attn, 0, 1, look, one, head)
    _look_back(first.self_attn, 1, 2, look, two, head)
    for layer in later:
        basis = torch.linalg.qr(torch.randn(content, content)).Q
        _match(layer.self_attn, 0, look, ((slice(0, head), one),), basis[:head], head)
        half = head // 2
        pairs = ((slice(0, half), one), (slice(half, head), two))
        _match(layer.self_attn, 1, look, pairs, basis[-head:], head)


def _rows(index: int, head: int) -> slice:
    return slice(index * head, (index + 1) * head)


def _look_back(
    attn: Any, index: int, distance: int, look: Tensor, target: slice, head: int
) -> None:
    """Make a head attend `distance` back: constant query and key whose RoPE phases cancel there."""
    rows = _rows(index, head)
    half = head // 2
    angles = distance * 10000.0 ** (-torch.arange(half) / half)
    for projection in (attn.q_proj, attn.k_proj):
        projection.weight[rows] = 0
    # RoPE turns key j by j * angle; a key turned ahead by d * angle meets query i at j = i - d.
    query = torch.cat([torch.ones(half), torch.zeros(half)])
    key = torch.cat([torch.cos(angles), torch.sin(angles)])
    attn.q_proj.bias[rows] = 15 * SHARPNESS * query
    attn.k_proj.bias[rows] = key
    attn.v_proj.weight[rows] = 0
    attn.v_proj.weight[rows, : look.shape[1]] = look
    attn.o_proj.weight[:, rows] = 0
    attn.o_proj.weight[target, rows] = 0.5 * torch.eye(head)


def _match(
    attn: Any,
    index: int,
    look: Tensor,
    pairs: tuple[tuple[slice, slice], ...],
    copy: Tensor,
    head: int,
) -> None:
    """Make a head attend where the reserved parts match, and copy that position's embedding.

    `pairs` holds (dimensions of the head, reserved part of the KEY position); the query side is the
    current token for the first pair and the token before it for the second.
    """
    rows, content = _rows(index, head), look.shape[1]
    for projection in (attn.q_proj, attn.k_proj, attn.v_proj):
        projection.weight[rows] = 0
    start = rows.start
    for order, (dims, part) in enumerate(pairs):
        size = dims.stop - dims.start
        inner = slice(start + dims.start, start + dims.stop)
        if order == 0:
            attn.q_proj.weight[inner, :content] = SHARPNESS * look[:size]
        else:
            attn.q_proj.weight[inner, content : content + size] = SHARPNESS * torch.eye(size)
        attn.k_proj.weight[inner, part.start : part.start + size] = torch.eye(size)
    attn.v_proj.weight[rows, :content] = copy
    attn.o_proj.weight[:, rows] = 0
    attn.o_proj.weight[:content, rows] = 0.5 * COPY_GAIN * copy.T
