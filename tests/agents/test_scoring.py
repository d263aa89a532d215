import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from journeyman.agents.errors import AgentError, VocabularyMismatchError
from journeyman.agents.networks.heads import Head
from journeyman.agents.teachers import Annotations, Detail, Distribution, Signal, Teacher, TopK
from journeyman.agents.teachers import local as teacher
from journeyman.agents.teachers.local import LocalTeacher, check_vocabulary
from journeyman.agents.teachers.scoring import attach, score_episodes
from journeyman.envs import Episode, Step, StopReason

from .tiny import broken, episode, llama, tokenizer

EPISODE = Episode(
    env_id="acme/Env-v0",
    task_id="train/0",
    tokens=(9, 9, 1, 2, 3, 8, 4, 5),
    logprobs=(0.0, 0.0, -1.0, -2.0, 0.0, 0.0, -3.0, -4.0),
    # The third token of the first turn was a forced end.
    mask=(False, False, True, True, False, False, True, True),
    steps=(
        Step((2, 5), "", (), {"call": ((2, 3), (3, 4)), "stop": ((4, 5),)}, True),
        Step((6, 8), "", (), {"call": (), "answer": ((6, 7),), "stop": ((7, 8),)}),
    ),
    stop=StopReason.ANSWERED,
)


class Fixed(Teacher):
    """A teacher that says the same of every token; it remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Sequence[int]] = []

    def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
        self.asked += [row.tokens for row in rows]
        return [Signal(torch.full((len(row.tokens),), -2.5)) for row in rows]


class Says(Teacher):
    """A teacher that says what it is told to, whatever it is asked."""

    def __init__(self, *signals: Signal) -> None:
        self.signals = list(signals)

    def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
        return self.signals


def test_the_log_ratio_is_zero_but_on_chosen_tokens() -> None:
    found = attach(EPISODE, Signal(torch.full((8,), -2.5)))
    assert found.log_ratio.tolist() == [0, 0, -1.5, -0.5, 0, 0, 0.5, 1.5]


def test_steps_and_parts_are_means_over_chosen_tokens() -> None:
    found = attach(EPISODE, Signal(torch.full((8,), -2.5)))
    assert found.steps == (1.0, 1.0)
    assert found.parts == (
        {"call": 1.0, "stop": 0.0},  # the end was forced: nothing to score
        {"call": 0.0, "answer": 0.5, "stop": 1.5},
    )


@pytest.mark.parametrize("length", [0, 7, 9])
def test_scores_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match=rf"\({length},\).*8 tokens.*acme/Env-v0 train/0"):
        Annotations(Says(Signal(torch.zeros(length)))).of([EPISODE])


@pytest.mark.parametrize("count", [0, 3, 5, 8])
def test_lists_and_states_are_those_of_the_chosen_tokens(count: int) -> None:
    scores, (ids, logprobs) = torch.zeros(8), torch.zeros(2, count, 3)
    top = TopK(ids.long(), logprobs, torch.zeros(count))
    full = Distribution(torch.zeros(count, 6), Head(torch.nn.Linear(6, 9)))
    for signal, name in (
        (Signal(scores, top=top), "top-k lists"),
        (Signal(scores, full=full), "st"),
    ):
        with pytest.raises(ValueError, match=rf"{count} {name}.* 4 chosen tokens of acme/Env-v0"):
            Annotations(Says(signal)).of([EPISODE])


@pytest.mark.parametrize("count", [0, 2])
def test_another_number_of_signals_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"Says\.annotate gave {count} signals for 1 rows"):
        Annotations(Says(*[Signal(torch.zeros(8))] * count)).of([EPISODE])


def test_each_row_is_read_once_whoever_asks() -> None:
    teacher = Fixed()
    annotations = Annotations(teacher)
    alike = replace(EPISODE)  # equal, and another row all the same
    (first,) = annotations.of([EPISODE])
    assert annotations.of([alike, EPISODE, broken(), EPISODE])[1] is first
    score_episodes(annotations, [EPISODE, alike])
    assert teacher.asked == [EPISODE.tokens, alike.tokens]


def test_without_a_teacher_nothing_can_be_asked() -> None:
    annotations = Annotations(None)
    assert not annotations.taught
    assert Annotations(Fixed()).taught
    with pytest.raises(ValueError, match="asked for and there is no teacher"):
        annotations.of([EPISODE])


def test_only_episodes_with_chosen_tokens_are_sent() -> None:
    teacher = Fixed()
    other = replace(EPISODE, tokens=(7, *EPISODE.tokens[1:]))
    scores = score_episodes(Annotations(teacher), [broken(), EPISODE, broken(reset=False), other])
    assert teacher.asked == [EPISODE.tokens, other.tokens]
    assert [len(s.log_ratio) for s in scores] == [0, 8, 3, 8]
    assert scores[0].steps == scores[2].steps == ()
    assert scores[2].log_ratio.tolist() == [0, 0, 0]
    assert scores[1].steps == (1.0, 1.0)


def test_without_chosen_tokens_nothing_is_sent() -> None:
    teacher = Fixed()
    assert len(score_episodes(Annotations(teacher), [broken()])) == 1
    assert score_episodes(Annotations(teacher), []) == []
    assert teacher.asked == []


def test_a_local_teacher_scores_what_it_would_say() -> None:
    model = llama(40)
    rng = random.Random(0)
    played = [episode(rng, 40, turns=n) for n in (1, 3, 2)]
    annotations = Annotations(LocalTeacher(model, tokenizer(), batch_size=2))
    found = score_episodes(annotations, played)
    for scores, e in zip(found, played, strict=True):
        with torch.no_grad():
            full = model(torch.tensor([e.tokens])).logits[0].log_softmax(-1)
        for i, token in enumerate(e.tokens):
            expected = float(full[i - 1, token]) - e.logprobs[i] if e.mask[i] else 0.0
            assert float(scores.log_ratio[i]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("detail", Detail)
def test_scores_do_not_depend_on_how_many_logits_are_held(
    detail: Detail, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rng = llama(40), random.Random(0)
    rows = [episode(rng, 40, turns=n) for n in (1, 3, 2, 5)]
    scorer = LocalTeacher(model, tokenizer(), batch_size=4, top_k=3)
    whole = scorer.annotate(rows, detail)
    held = []

    def measure(self: Head, hidden: Tensor) -> Tensor:
        logits: Tensor = project(self, hidden)
        held.append(logits.numel())
        return logits

    project = Head.logits
    monkeypatch.setattr(Head, "logits", measure)
    monkeypatch.setattr(teacher, "DENSE_LIMIT", 7 * 40 + 1)
    for sliced, expected, row in zip(scorer.annotate(rows, detail), whole, rows, strict=True):
        assert sliced.logprobs.shape == (len(row.tokens),)
        torch.testing.assert_close(sliced.logprobs, expected.logprobs)
        assert (sliced.top is not None) == (detail is Detail.TOP_K)
        assert (sliced.full is not None) == (detail is Detail.FULL)
        if sliced.top is not None:
            assert sliced.top.ids.shape == (sum(row.mask), 3)
            for name in ("ids", "logprobs", "tail"):
                torch.testing.assert_close(getattr(sliced.top, name), getattr(expected.top, name))
    assert max(held) == 7 * 40
    assert sum(held) == sum(sum(row.mask) for row in rows) * 40  # none for padding, nor for context


def test_a_teacher_with_another_vocabulary_is_refused() -> None:
    from .factory import vocabulary

    check_vocabulary(tokenizer(), tokenizer())
    other = vocabulary.train_tokenizer(["other words"], vocab_size=270)
    with pytest.raises(VocabularyMismatchError, match=r"different vocabularies \(\d+ and \d+") as c:
        check_vocabulary(tokenizer(), other)
    assert isinstance(c.value, AgentError)
    assert "\n" not in str(c.value)
