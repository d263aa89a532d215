"""Episodes to training rows: padding, masks, weights. What a trainer gets, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from journeyman.agents.credit import TokenCredit
from journeyman.envs import Episode, StopReason


def to_batch(
    episodes: Sequence[Episode], credit: Sequence[TokenCredit], pad_id: int
) -> dict[str, Tensor]:
    """Rows in the layout of `trl.DistillationTrainer`, with step credit beside them.

    Args:
        episodes: B episodes.
        credit: Their weights and advantages.
        pad_id: Fills the padding.

    Returns:
        "prompt_ids", "prompt_mask" [B, P], left-padded: an episode's tokens before its first turn.
        "completion_ids", "completion_mask" [B, C], right-padded: the rest. On [B, C] also
        "tool_mask" (1 on tokens the student chose, the only ones a loss touches), "weights",
        "advantages", "sampled_logprobs" and "turns" (index of the turn, -1 outside). And
        "num_items_in_batch", the count of chosen tokens (0-d).

    Raises:
        ValueError: The credit of an episode is not as long as the episode.
    """
    splits = [_first_turn(e) for e in episodes]
    prompt = max(1, *splits)
    completion = max(1, *(len(e.tokens) - s for e, s in zip(episodes, splits, strict=True)))
    count = len(episodes)
    batch = {
        "prompt_ids": torch.full((count, prompt), pad_id),
        "prompt_mask": torch.zeros(count, prompt, dtype=torch.long),
        "completion_ids": torch.full((count, completion), pad_id),
        "completion_mask": torch.zeros(count, completion, dtype=torch.long),
        "tool_mask": torch.zeros(count, completion, dtype=torch.long),
        "weights": torch.zeros(count, completion),
        "advantages": torch.zeros(count, completion),
        "sampled_logprobs": torch.zeros(count, completion),
        "turns": torch.full((count, completion), -1),
    }
    for i, (episode, share, split) in enumerate(zip(episodes, credit, splits, strict=True)):
        _fill(batch, i, episode, share, split)
    batch["num_items_in_batch"] = batch["tool_mask"].sum()
    return batch


def _first_turn(episode: Episode) -> int:
    return episode.steps[0].span[0] if episode.steps else len(episode.tokens)


def _fill(
    batch: dict[str, Tensor], i: int, episode: Episode, credit: TokenCredit, split: int
) -> None:
    length = len(episode.tokens)
    if credit.weights.shape != (length,) or credit.advantages.shape != (length,):
        raise ValueError(
            f"credit of shapes {tuple(credit.weights.shape)} and {tuple(credit.advantages.shape)} "
            f"for an episode of {length} tokens ({episode.env_id} {episode.task_id})"
        )
    tokens = torch.tensor(episode.tokens, dtype=torch.long)
    prompt = batch["prompt_ids"].shape[1]
    batch["prompt_ids"][i, prompt - split :] = tokens[:split]
    batch["prompt_mask"][i, prompt - split :] = 1
    end = length - split
    batch["completion_ids"][i, :end] = tokens[split:]
    batch["completion_mask"][i, :end] = 1
    if episode.stop is StopReason.INFRA_ERROR:
        return  # nothing to learn from what the student did not cause
    batch["tool_mask"][i, :end] = torch.tensor(episode.mask, dtype=torch.long)[split:]
    batch["weights"][i, :end] = credit.weights[split:]
    batch["advantages"][i, :end] = credit.advantages[split:]
    batch["sampled_logprobs"][i, :end] = torch.tensor(episode.logprobs)[split:]
    for turn, step in enumerate(episode.steps):
        batch["turns"][i, step.span[0] - split : step.span[1] - split] = turn
