"""What the student's own network shows of episodes: states before steps, attention to steps.

Everything is read in the mode the model is in, without gradients, in float32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from journeyman.agents.errors import UnsupportedModelError
from journeyman.agents.networks.batching import right_padded, similar_lengths
from journeyman.agents.networks.heads import backbone
from journeyman.envs import Episode

ROWS = 16
"""Episodes that pass through the model at once."""

Layers = Literal["last", "all"]


@torch.no_grad()
def step_states(model: PreTrainedModel, episodes: Sequence[Episode]) -> list[Tensor]:
    """The last layer's state at the token before each step: all the student knows when it begins.

    Returns:
        [S, H] an episode of S steps.
    """
    width = model.config.get_text_config().hidden_size
    states = [torch.zeros(0, width) for _ in episodes]
    played = [i for i, episode in enumerate(episodes) if episode.steps]
    for group in similar_lengths([len(episodes[i].tokens) for i in played], ROWS):
        rows = [played[place] for place in group]
        ids, mask = right_padded([episodes[i].tokens for i in rows], model.device)
        output = backbone(model)(input_ids=ids, attention_mask=mask, use_cache=False)
        for i, row in zip(rows, output.last_hidden_state, strict=True):
            before = [step.span[0] - 1 for step in episodes[i].steps]
            states[i] = row[before].float().cpu()
    return states


@torch.no_grad()
def step_attention(model: PreTrainedModel, episode: Episode, layers: Layers = "last") -> Tensor:
    """How much the tokens of the last step attend to the tokens of each step.

    Args:
        model: The network that played the episode.
        episode: Of S steps, at least one.
        layers: "last", or "all" for the mean over layers.

    Returns:
        [S]: sums over a step's tokens, means over heads and over the last step's tokens. The prompt
        and tool results have the rest of 1.

    Raises:
        UnsupportedModelError: The model gives no attention weights.
    """
    start, end = episode.steps[-1].span
    ids = torch.tensor([episode.tokens[:end]], device=model.device)
    # Only rows of the last step are wanted: what comes before goes into the cache, so that no layer
    # ever holds the weights of all tokens.
    bare = backbone(model)  # logits are of no use here, and large
    cache = getattr(bare(input_ids=ids[:, :start], use_cache=True), "past_key_values", None)
    attentions: tuple[Tensor | None, ...] | None = None
    if cache is not None:
        with _eager(model):
            output = bare(input_ids=ids[:, start:], past_key_values=cache, output_attentions=True)
        attentions = getattr(output, "attentions", None)
    weights = [layer for layer in attentions or () if layer is not None]
    if not weights:
        raise UnsupportedModelError(
            f"{type(model).__name__} gives no attention weights; choose a student that does, or a "
            f"credit that needs none (credit=outcome, credit=gae)"
        )
    used = weights[-1:] if layers == "last" else weights
    received = torch.stack([layer[0].float().mean((0, 1)) for layer in used]).mean(0).cpu()
    return torch.stack([received[slice(*step.span)].sum() for step in episode.steps])


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Fused attention never forms its weights; the plain one does. Afterwards all is as before."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
