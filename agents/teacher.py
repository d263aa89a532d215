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

from journeyman.agents.batching import right_padded, similar_lengths
from journeyman.agents.errors import VocabularyMismatchError


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
    """Log-probability of each token of right-padded rows under a model; entry 0 of a row is 0."""
    ids, mask = right_padded(rows, model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    chosen = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    padded = torch.nn.functional.pad(chosen, (1, 0)).cpu()
    return [padded[i, : len(row)] for i, row in enumerate(rows)]


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
