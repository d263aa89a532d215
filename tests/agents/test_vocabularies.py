"""Vocabularies that are not quite the same: padding, and tokens that one side alone has."""

import copy
import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from journeyman.agents.errors import VocabularyMismatchError
from journeyman.agents.learning.losses import (
    JSD,
    Loss,
    Predictions,
    SampledReverseKL,
    SpanReverseKL,
    TopKReverseKL,
)
from journeyman.agents.learning.losses.functions import generalised_jsd
from journeyman.agents.learning.trainers import distill
from journeyman.agents.networks.heads import Head
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.hf import HFPlayer
from journeyman.agents.students.player import Sampling
from journeyman.agents.teachers import Detail, Distribution
from journeyman.agents.teachers.local import IMPOSSIBLE_LOGPROB, LocalTeacher, check_vocabulary

from .test_trainers import babbler, changed, distillation, make_parts, weights
from .tiny import episode, gpt2, llama, row_of, tokenizer

SIZE = len(tokenizer())
WIDTHS = pytest.mark.parametrize(("ours", "theirs"), [(8, 0), (0, 8), (8, 3)])


def wider(model: Any, rows: int) -> Any:
    """The same model with rows that no token has."""
    size = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(size + rows, mean_resizing=False)
    return model.eval()


@pytest.mark.parametrize(
    ("loss", "ours", "theirs"),
    [
        (JSD(1.0), 8, 0),
        (JSD(1.0), 0, 8),
        (JSD(0.5), 8, 3),
        (TopKReverseKL(), 8, 0),
        (SampledReverseKL(), 8, 0),
        (SpanReverseKL(), 0, 8),
    ],
)
def test_two_steps_where_only_padding_differs(
    loss: Loss, ours: int, theirs: int, tmp_path: Path
) -> None:
    parts = make_parts(wider(babbler(), ours), loss=loss)
    own = parts.student.dialect.tokenizer
    teacher = LocalTeacher(gpt2(SIZE + theirs, width=48, seed=9), own)
    teacher.check(parts.student)
    before = weights(parts.student.model)
    trainer = distill.build(dataclasses.replace(parts, teacher=teacher), distillation(tmp_path))
    trainer.train()
    assert trainer.state.global_step == 2
    assert changed(parts.student.model, before) == before.keys()
    assert all(p.isfinite().all() for p in parts.student.model.parameters())


@WIDTHS
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("cap", [None, 4.0])
def test_what_is_shared_is_compared(beta: float, ours: int, theirs: int, cap: float | None) -> None:
    """In float64, gradients included: conditioned on the tokens that both have."""
    noise = torch.Generator().manual_seed(5)
    student, teacher = (nn.Linear(6, 11 + more).double() for more in (ours, theirs))
    states, other = (torch.randn(7, 6, generator=noise).double() for _ in range(2))
    states.requires_grad_()
    teacher.requires_grad_(False)
    shared = min(11 + ours, 11 + theirs)

    def logits(layer: nn.Linear, hidden: Tensor) -> Tensor:
        found: Tensor = layer(hidden)
        return (found if cap is None else cap * torch.tanh(found / cap))[:, :shared]

    leaves = (states, *student.parameters())
    expected = generalised_jsd(logits(student, states), logits(teacher, other), beta)
    wanted = torch.autograd.grad(expected.sum(), leaves)
    predictions = Predictions(states, Head(student, cap=cap), torch.arange(7), reinforced=True)
    told = Distribution(other, Head(teacher, cap=cap).cut(shared))
    found = predictions.divergence(told, beta, 1.0)
    torch.testing.assert_close(found, expected)
    for one, two in zip(torch.autograd.grad(found.sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(one, two)
    # What is reinforced is the student's own probability, padding and all.
    whole = Head(student, cap=cap).logits(states).log_softmax(-1)[range(7), range(7)]
    torch.testing.assert_close(predictions.logprobs, whole)


@pytest.mark.parametrize("detail", Detail)
def test_a_student_that_writes_padding_is_told_that_it_is_none(detail: Detail) -> None:
    own = tokenizer()
    student = HFPlayer(llama(SIZE + 8), Dialect(own, "names"), Sampling(max_tokens=6))
    teacher = LocalTeacher(llama(SIZE, seed=5), own)
    teacher.check(student)
    (told,) = teacher.annotate([row_of([5, SIZE + 3, 7])], detail)
    assert told.logprobs[1] == pytest.approx(IMPOSSIBLE_LOGPROB)
    assert math.isfinite(float(told.logprobs[2])) and told.logprobs[2] > -40


def more(*tokens: str) -> PreTrainedTokenizerFast:
    """The tokenizer with some added at its end."""
    found = copy.deepcopy(tokenizer())
    found.add_tokens(list(tokens))
    return found


@pytest.mark.parametrize("detail", [Detail.SAMPLED, Detail.TOP_K, Detail.FULL])
def test_what_only_the_teacher_has_counts_for_nothing(detail: Detail) -> None:
    """Its weights are such that it would write little else."""
    model = wider(llama(SIZE, seed=5), 8)
    with torch.no_grad():
        model.get_output_embeddings().weight[SIZE:] = 9
        model.model.norm.weight.abs_()
    student = HFPlayer(llama(SIZE + 8), Dialect(tokenizer(), "names"), Sampling(max_tokens=6))
    teacher = LocalTeacher(model, more("<think>", "</think>"), top_k=8)
    teacher.check(student)
    plain = LocalTeacher(llama(SIZE, seed=5), tokenizer(), top_k=8)
    with torch.no_grad():
        plain._model.model.norm.weight.abs_()
    rows = [episode(random.Random(1), SIZE)]
    (ours,), (other,) = teacher.annotate(rows, detail), plain.annotate(rows, detail)
    torch.testing.assert_close(ours.logprobs, other.logprobs)
    if ours.top is not None and other.top is not None:
        assert torch.equal(ours.top.ids, other.top.ids)
        assert int(ours.top.ids.max()) < SIZE
    if ours.full is not None:
        assert ours.full.head.width == SIZE


def test_which_tokens_one_side_may_have_alone() -> None:
    assert check_vocabulary(tokenizer(), tokenizer()) is None
    assert check_vocabulary(tokenizer(), more("<think>")) == SIZE
    with pytest.raises(VocabularyMismatchError, match=rf"'<think>' is {SIZE} and None") as caught:
        check_vocabulary(more("<think>"), tokenizer())  # which the student may write
    assert "teacher=cross_tokenizer loss=span" in str(caught.value)
    with pytest.raises(VocabularyMismatchError, match=f"'<a>' is {SIZE} and {SIZE + 1}"):
        check_vocabulary(more("<a>", "<b>"), more("<b>", "<a>"))
