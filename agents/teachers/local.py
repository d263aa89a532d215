"""A teacher in this process: a frozen transformers model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from journeyman.agents.errors import SettingError, VocabularyMismatchError
from journeyman.agents.networks.heads import DENSE_LIMIT, Head
from journeyman.agents.networks.loading import load_model, load_tokenizer
from journeyman.agents.networks.sharing import states_at
from journeyman.agents.networks.tries import Distinct
from journeyman.agents.students.hf import HFPlayer, alike
from journeyman.agents.students.player import Trainable
from journeyman.agents.teachers.signal import Detail, Distribution, Signal, Teacher, TopK
from journeyman.envs import Episode

IMPOSSIBLE_LOGPROB = math.log(torch.finfo(torch.float32).tiny)
"""Of what the teacher has no token for: as good as -inf, and a number."""


class LocalTeacher(Teacher):
    """Reads rows with a model of its own; each row passes through it once."""

    gives = Detail.FULL

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 16,
        top_k: int = 64,
    ) -> None:
        """Freeze a model.

        Args:
            model: A causal language model.
            tokenizer: Its tokenizer.
            batch_size: Rows that pass through it at once.
            top_k: Tokens that it names where its most probable ones are asked for.

        Raises:
            SettingError: A count below one.
        """
        for name, count in (("batch_size", batch_size), ("top_k", top_k)):
            if type(count) is not int or count < 1:
                raise SettingError(f"{name}={count}: expected a whole number, 1 or more")
        self._model = model.eval().requires_grad_(False)
        self._head = Head.of(model)
        """Over the student's tokens, once it is known: the rest is padding."""
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._top_k = top_k

    def check(self, student: Trainable) -> None:
        """See `Teacher.check`: a token id must mean the same to both."""
        shared = check_vocabulary(student.dialect.tokenizer, self._tokenizer)
        ours = Head.of(student.model).width
        needed = 1 + max(student.dialect.tokenizer.get_vocab().values())
        if self._head.width < needed:
            raise VocabularyMismatchError(
                f"the teacher's matrices have {self._head.width} rows and its tokenizer has "
                f"{needed} tokens: they do not belong together"
            )
        self._head = self._head.cut(ours if shared is None else min(ours, shared))

    def player(self, student: Trainable) -> HFPlayer:
        """See `Teacher.player`."""
        return alike(student, self._model)

    # Not in inference mode: a loss keeps the states for its own backward pass.
    @torch.no_grad()
    def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
        """See `Teacher.annotate`; states stay on the model's device."""
        # Nothing precedes a first token; and the student may have written padding of its matrix.
        chosen = [[i for i, own in enumerate(row.mask) if own and i] for row in rows]
        last = self._head.width - 1
        states = states_at(
            self._model,
            [[min(token, last) for token in row.tokens] for row in rows],
            [[i - 1 for i in places] for places in chosen],
            self._batch_size,
        )
        targets = torch.tensor(
            [row.tokens[i] for row, places in zip(rows, chosen, strict=True) for i in places],
            device=states.device,
        )
        ends = [[i + 1 for i in places] for places in chosen]
        distinct = Distinct.of([row.tokens for row in rows], ends).to(states.device)
        head = self._head
        size = max(1, DENSE_LIMIT // head.width)
        pieces = (distinct.once(it).split(size) for it in (states, targets))
        read = [
            _of_slice(head.logits(some), tokens, detail, self._top_k)
            for some, tokens in zip(*pieces, strict=True)
        ]
        counts = [len(places) for places in chosen]
        logprobs = distinct.each(torch.cat([it[0] for it in read])).cpu().split(counts)
        top = [
            distinct.each(torch.cat(parts)).split(counts)
            for parts in zip(*(it[1] for it in read), strict=True)
        ]
        signals = []
        for i, (row, own) in enumerate(zip(rows, states.split(counts), strict=True)):
            told = torch.zeros(len(row.tokens), dtype=logprobs[i].dtype)
            told[chosen[i]] = logprobs[i]
            signals.append(
                Signal(
                    told,
                    TopK(top[0][i], top[1][i], top[2][i]) if top else None,
                    Distribution(own, head) if detail is Detail.FULL else None,
                )
            )
        return signals


def _of_slice(
    logits: Tensor, tokens: Tensor, detail: Detail, k: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Log-probabilities of tokens [N], and if asked for the top k with their tail, in float32."""
    # Models in float64 stay so: they are references.
    logprobs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
    width = logprobs.shape[1]
    own = logprobs.gather(1, tokens.clamp(max=width - 1)[:, None])[:, 0]
    own = own.masked_fill(tokens >= width, IMPOSSIBLE_LOGPROB)
    if detail is not Detail.TOP_K:
        return own, ()
    best = logprobs.topk(min(k, width))
    rest = logprobs.scatter(1, best.indices, -torch.inf).logsumexp(-1)
    return own, (best.indices, best.values, rest)


def check_vocabulary(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> int | None:
    """Check that a token id means the same to both, wherever it can stand in a row.

    A token that only the teacher has stands in no row: the student cannot write it, and its
    tokenizer makes none of a prompt. Where all such tokens come after the student's own, both are
    compared over the ids before them. One that only the student has may be written at any time.

    Returns:
        The ids from 0 on that are compared; None if the vocabularies are equal, and all are.

    Raises:
        VocabularyMismatchError: Naming the first difference.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return None
    size = 1 + max(ours.values())
    differing = {t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t)}
    if all(t not in ours and theirs[t] >= size for t in differing):
        return size
    token = min(differing)
    raise VocabularyMismatchError(
        f"student and teacher have different vocabularies ({len(ours)} and {len(theirs)} tokens; "
        f"{token!r} is {ours.get(token)} and {theirs.get(token)}): distillation compares them "
        f"token by token, so choose a teacher of the student's family, or compare them span by "
        f"span: teacher=cross_tokenizer loss=span"
    )


def load_teacher(
    model: str,
    batch_size: int = 16,
    dtype: str | None = "float32",
    device: str | None = None,
    top_k: int = 64,
) -> LocalTeacher:
    """A teacher by model name.

    Raises:
        ModelNotFoundError: No such model here.
        SettingError: A value is out of its range.
    """
    if type(batch_size) is not int or batch_size < 1:  # before the model is loaded
        raise SettingError(f"batch_size={batch_size}: expected a whole number, 1 or more")
    loaded = load_model(model, dtype, device)
    tokenizer = load_tokenizer(model)
    return LocalTeacher(loaded, tokenizer, batch_size, top_k)
