"""The teacher: scores every token the student chose.

A `LocalTeacher` lives in this process. The distillation trainer compares full distributions through
`LocalTeacher.model`; `score` gives the log-probability of the sampled tokens alone, which is what
step scores need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from journeyman.agents.errors import VocabularyMismatchError
from journeyman.agents.networks.batching import right_padded, similar_lengths
from journeyman.agents.networks.heads import DENSE_LIMIT, Head, backbone


class Teacher(Protocol):
    """Scores token rows."""

    def score(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Log-probability of each token given those before it.

        Returns:
            One tensor [T] a row, aligned with its tokens; entry 0 is 0, since nothing precedes it.
        """


class LocalTeacher:
    """A teacher in this process."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16
    ) -> None:
        """Freeze a model; `batch_size` rows are scored at once."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    def score(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """See `Teacher.score`."""
        scores: dict[int, Tensor] = {}
        for group in similar_lengths([len(row) for row in rows], self.batch_size):
            found = token_logprobs(self.model, [rows[i] for i in group])
            scores.update(zip(group, found, strict=True))
        return [scores[i] for i in range(len(rows))]


@torch.inference_mode()
def token_logprobs(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Log-probability of each token under a model: [T] a row, on the CPU; entry 0 is 0.

    Never more than `DENSE_LIMIT` logits are held: those of all rows at once could be gigabytes.
    """
    ids, mask = right_padded(rows, model.device)
    hidden = backbone(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    follows = mask[:, 1:].bool()
    states, targets = hidden[:, :-1][follows], ids[:, 1:][follows]
    head = Head.of(model)
    size = max(1, DENSE_LIMIT // head.projection.weight.shape[0])
    slices = zip(states.split(size), targets.split(size), strict=True)
    chosen = torch.cat([_logprobs(head.logits(some), tokens) for some, tokens in slices]).cpu()
    found = chosen.split(follows.sum(1).tolist())
    return [
        torch.nn.functional.pad(scores, (1, 0))[: len(row)]
        for scores, row in zip(found, rows, strict=True)
    ]


def _logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of one token [N] each, given logits [N, V], in float32."""
    return logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]


def check_vocabulary(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Check that a token id means the same to both.

    Raises:
        VocabularyMismatchError: Naming the first difference.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    differing = {t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t)}
    token = min(differing)
    raise VocabularyMismatchError(
        f"student and teacher have different vocabularies ({len(ours)} and {len(theirs)} tokens; "
        f"{token!r} is {ours.get(token)} and {theirs.get(token)}): distillation compares them "
        f"token by token, so choose a teacher of the student's family."
    )
