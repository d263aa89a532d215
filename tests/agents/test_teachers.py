"""What a teacher in this process tells, against plain passes; what is kept of it."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from journeyman.agents.errors import SettingError
from journeyman.agents.students.hf import HFPlayer
from journeyman.agents.students.player import Sampling
from journeyman.agents.teachers import Annotations, Detail, Signal, Teacher
from journeyman.agents.teachers.local import LocalTeacher, load_teacher
from journeyman.envs import Episode

from .tiny import broken, chat, episode, gpt2, llama, row_of, token_logprobs, tokenizer

VOCABULARY = 40
MODELS = pytest.mark.parametrize("make", [gpt2, llama])


def played(count: int = 9) -> list[Episode]:
    rng = random.Random(2)
    return [episode(rng, VOCABULARY, turns=1 + i % 4) for i in range(count)]


@torch.no_grad()
def distributions(model: PreTrainedModel, of: Episode) -> Tensor:
    """[N, V] log-probabilities where the student chose, from one plain pass."""
    full = model(torch.tensor([of.tokens])).logits[0].double().log_softmax(-1)
    return full[[i - 1 for i, chosen in enumerate(of.mask) if chosen]]


@MODELS
def test_the_most_probable_tokens_and_the_rest(make: Any) -> None:
    model, rows, k = make(VOCABULARY), played(), 5
    signals = LocalTeacher(model, tokenizer(), batch_size=4, top_k=k).annotate(rows, Detail.TOP_K)
    for signal, of in zip(signals, rows, strict=True):
        assert signal.top is not None and signal.full is None
        expected = distributions(model, of)
        best = expected.topk(k)
        assert torch.equal(signal.top.ids, best.indices)
        torch.testing.assert_close(signal.top.logprobs.double(), best.values, atol=1e-4, rtol=0)
        rest = (1 - best.values.exp().sum(-1)).log()
        torch.testing.assert_close(signal.top.tail.double(), rest, atol=1e-4, rtol=0)
        whole = signal.top.logprobs.exp().sum(-1) + signal.top.tail.exp()
        torch.testing.assert_close(whole, torch.ones(sum(of.mask)))


@pytest.mark.parametrize("k", [VOCABULARY, 64])
def test_where_all_tokens_are_told_nothing_is_left(k: int) -> None:
    model, rows = llama(VOCABULARY), played(3)
    signals = LocalTeacher(model, tokenizer(), top_k=k).annotate(rows, Detail.TOP_K)
    for signal, of in zip(signals, rows, strict=True):
        assert signal.top is not None
        assert signal.top.ids.shape == (sum(of.mask), VOCABULARY)
        assert signal.top.tail.tolist() == [-math.inf] * sum(of.mask)


def test_what_is_left_is_told_where_it_is_next_to_nothing() -> None:
    """One token has almost all: its rest, taken as 1 - p, would be 0 in float32."""
    model = llama(VOCABULARY)
    with torch.no_grad():
        model.lm_head.weight *= 40
    *_, of = played(4)
    (signal,) = LocalTeacher(model, tokenizer(), top_k=1).annotate([of], Detail.TOP_K)
    assert signal.top is not None
    expected = distributions(model, of)
    rest = expected.scatter(1, signal.top.ids, -torch.inf).logsumexp(-1)
    assert rest.min() < math.log(1e-7)
    torch.testing.assert_close(signal.top.tail.double(), rest, atol=1e-2, rtol=1e-3)


@MODELS
def test_whole_distributions(make: Any) -> None:
    model, rows = make(VOCABULARY), played()
    signals = LocalTeacher(model, tokenizer(), batch_size=4).annotate(rows, Detail.FULL)
    for signal, of in zip(signals, rows, strict=True):
        assert signal.full is not None and signal.top is None
        found = signal.full.head.logits(signal.full.states).double().log_softmax(-1)
        torch.testing.assert_close(found, distributions(model, of), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("detail", Detail)
def test_each_detail_has_the_chosen_tokens(detail: Detail) -> None:
    model, rows = llama(VOCABULARY), played()
    signals = LocalTeacher(model, tokenizer()).annotate(rows, detail)
    plain = token_logprobs(model, [of.tokens for of in rows])
    for signal, of, expected in zip(signals, rows, plain, strict=True):
        told = torch.where(torch.tensor(of.mask), expected, 0.0)
        torch.testing.assert_close(signal.logprobs, told, atol=1e-4, rtol=1e-4)
        assert not signal.logprobs.requires_grad


def test_float64_stays_so() -> None:
    model, rows = gpt2(VOCABULARY).double(), played(2)
    for signal, of in zip(
        LocalTeacher(model, tokenizer(), top_k=3).annotate(rows, Detail.TOP_K), rows, strict=True
    ):
        assert signal.top is not None
        best = distributions(model, of).topk(3).values
        torch.testing.assert_close(signal.top.logprobs, best, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("batch_size", True), ("top_k", 0), ("top_k", 2.5)]
)
def test_counts_out_of_their_range(name: str, value: Any) -> None:
    message = rf"^{name}={value}: expected a whole number, 1 or more$"
    with pytest.raises(SettingError, match=message):
        LocalTeacher(llama(VOCABULARY), tokenizer(), **{name: value})
    with pytest.raises(SettingError, match=message):
        load_teacher("embedded-teacher", device="cpu", **{name: value})


def test_it_plays_as_the_student_does() -> None:
    sampling = Sampling(0.5, top_k=3, max_tokens=9, seed=4)
    student = HFPlayer(llama(len(tokenizer())), chat(), sampling, max_context=99)
    model = llama(len(tokenizer()), seed=5)
    master = LocalTeacher(model, tokenizer()).player(student)
    assert (master.model, master.dialect) == (model, student.dialect)
    assert (master.sampling, master.max_context) == (sampling, 99)


# Annotations


class Counting(Teacher):
    """Gives each row its number, and remembers the rows."""

    gives = Detail.FULL

    def __init__(self) -> None:
        self.rows: list[Episode] = []
        self.details: list[Detail] = []

    def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
        first = len(self.rows)
        self.rows += rows
        self.details.append(detail)
        return [Signal(torch.full((len(r.tokens),), first + i)) for i, r in enumerate(rows)]


def numbers(signals: Sequence[Signal]) -> list[float]:
    return [float(it.logprobs[0]) for it in signals]


def test_each_row_is_read_once_however_often_it_is_asked_for() -> None:
    teacher = Counting()
    annotations = Annotations(teacher, Detail.TOP_K)
    first, second, third = (row_of([1, 2, 3]) for _ in range(3))
    assert numbers(annotations.of([first, second, first])) == [0, 1, 0]
    assert numbers(annotations.of([third, first])) == [2, 0]
    assert annotations.of([second, third]) == annotations.of([second, third])
    assert [id(r) for r in teacher.rows] == [id(r) for r in (first, second, third)]
    assert teacher.details == [Detail.TOP_K, Detail.TOP_K]


def test_equal_rows_are_rows_of_their_own() -> None:
    """Nor does one that is gone leave its place to another."""
    teacher = Counting()
    annotations = Annotations(teacher)
    one = row_of([1, 2, 3])
    other = replace(one)
    assert one == other
    assert numbers(annotations.of([one, other])) == [0, 1]
    for number in range(2, 50):
        assert numbers(annotations.of([row_of([1, 2, 3])])) == [number]


def test_rows_without_chosen_tokens_are_not_sent() -> None:
    teacher = Counting()
    masked = row_of([1, 2, 3], [False] * 3)
    lengths = [len(it.logprobs) for it in Annotations(teacher).of([broken(), masked])]
    assert (lengths, teacher.rows) == ([0, 3], [])
