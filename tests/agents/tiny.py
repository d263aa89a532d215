"""Models with a few thousand random weights, a tokenizer, and episodes nobody played."""

import functools
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from journeyman.agents.networks.catalogue import resolve
from journeyman.agents.students.dialect import Dialect
from journeyman.envs import Episode, Step, StopReason

BUILTIN = ("journeyman/Bank-v0", "journeyman/Calendar-v0", "journeyman/Orders-v0")


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """The embedded pair's; shared, so do not change it."""
    return AutoTokenizer.from_pretrained(resolve("embedded-student"))


@functools.cache
def chat() -> Dialect:
    return Dialect(tokenizer(), "names")


def gpt2(vocabulary: int, width: int = 32, seed: int = 0, **kwargs: Any) -> PreTrainedModel:
    """Learned positions, and exact in float64: nothing inside is computed in float32."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=512,
        n_embd=width,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
        **kwargs,
    )
    return _seeded(lambda: GPT2LMHeadModel(config), seed)


def llama(vocabulary: int, width: int = 32, seed: int = 0, **kwargs: Any) -> PreTrainedModel:
    """Rotary positions and grouped keys."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
        **kwargs,
    )
    return _seeded(lambda: LlamaForCausalLM(config), seed)


def _seeded(make: Any, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = make()
    return model.eval()


def episode(
    rng: random.Random,
    vocabulary: int = 40,
    turns: int = 3,
    stop: StopReason = StopReason.ANSWERED,
    env_id: str = "acme/Env-v0",
    reward: float = 0.0,
) -> Episode:
    """Random tokens in a random layout; about every third turn was ended by force."""
    prompt = rng.randint(1, 9)
    steps: list[Step] = []
    mask = [False] * prompt
    for turn in range(turns):
        start, size, forced = len(mask), rng.randint(2, 6), rng.random() < 0.35
        mask += [True] * (size - forced) + [False] * forced
        parts = {
            "answer": ((start, start + size - 1),),
            "stop": ((start + size - 1, start + size),),
        }
        steps.append(Step((start, start + size), "", (), parts, forced))
        if turn < turns - 1:
            mask += [False] * rng.randint(1, 5)
    return Episode(
        env_id=env_id,
        task_id=f"train/{rng.randrange(1000)}",
        tokens=tuple(rng.randrange(vocabulary) for _ in mask),
        # Exact in float32, as sampled ones are.
        logprobs=tuple(-rng.randint(64, 800) / 128 if chosen else 0.0 for chosen in mask),
        mask=tuple(mask),
        steps=tuple(steps),
        stop=stop,
        reward=reward,
    )


def row_of(tokens: Sequence[int], mask: Sequence[bool] | None = None) -> Episode:
    """An episode of these tokens; unless said otherwise the student chose all but the first."""
    chosen = tuple(i > 0 for i in range(len(tokens))) if mask is None else tuple(mask)
    zeros = (0.0,) * len(tokens)
    return Episode("acme/Env-v0", "train/0", tuple(tokens), zeros, chosen, (), StopReason.ANSWERED)


@torch.no_grad()
def token_logprobs(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Log-probability of each token [T] of each row, by a plain pass of its own; entry 0 is 0."""
    found = []
    for tokens in rows:
        ids = torch.tensor([tokens], device=model.device)
        full = model(ids).logits[0].float().log_softmax(-1)[:-1]
        chosen = full.gather(1, ids[0, 1:, None])[:, 0]
        found.append(torch.cat([torch.zeros(1), chosen.cpu()]))
    return found


def broken(reset: bool = True) -> Episode:
    """An episode whose environment broke, in `reset` or in its first turn."""
    tokens = () if reset else (3, 1, 4)
    return Episode(
        env_id="acme/Env-v0",
        task_id="train/0",
        tokens=tokens,
        logprobs=(0.0,) * len(tokens),
        mask=(False,) * len(tokens),
        steps=(),
        stop=StopReason.INFRA_ERROR,
        error="ConnectionError: gone",
    )
