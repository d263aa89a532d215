import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from journeyman.agents.embedded.tokenizer import train_tokenizer
from journeyman.agents.errors import AgentError, VocabularyMismatchError
from journeyman.agents.networks.heads import Head
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


class Fixed:
    """A teacher that says the same of every token; it remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Sequence[int]] = []

    def score(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        self.asked += rows
        return [torch.full((len(row),), -2.5) for row in rows]


def test_the_log_ratio_is_zero_but_on_chosen_tokens() -> None:
    found = attach(EPISODE, torch.full((8,), -2.5))
    assert found.log_ratio.tolist() == [0, 0, -1.5, -0.5, 0, 0, 0.5, 1.5]


def test_steps_and_parts_are_means_over_chosen_tokens() -> None:
    found = attach(EPISODE, torch.full((8,), -2.5))
    assert found.steps == (1.0, 1.0)
    assert found.parts == (
        {"call": 1.0, "stop": 0.0},  # the end was forced: nothing to score
        {"call": 0.0, "answer": 0.5, "stop": 1.5},
    )


@pytest.mark.parametrize("length", [0, 7, 9])
def test_scores_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match=rf"\({length},\).*8 tokens.*acme/Env-v0 train/0"):
        attach(EPISODE, torch.zeros(length))


def test_only_episodes_with_chosen_tokens_are_sent() -> None:
    teacher = Fixed()
    other = replace(EPISODE, tokens=(7, *EPISODE.tokens[1:]))
    scores = score_episodes(teacher, [broken(), EPISODE, broken(reset=False), other])
    assert teacher.asked == [EPISODE.tokens, other.tokens]
    assert [len(s.log_ratio) for s in scores] == [0, 8, 3, 8]
    assert scores[0].steps == scores[2].steps == ()
    assert scores[2].log_ratio.tolist() == [0, 0, 0]
    assert scores[1].steps == (1.0, 1.0)


def test_without_chosen_tokens_nothing_is_sent() -> None:
    teacher = Fixed()
    assert len(score_episodes(teacher, [broken()])) == 1
    assert score_episodes(teacher, []) == []
    assert teacher.asked == []


def test_a_local_teacher_scores_what_it_would_say() -> None:
    model = llama(40)
    rng = random.Random(0)
    played = [episode(rng, 40, turns=n) for n in (1, 3, 2)]
    found = score_episodes(LocalTeacher(model, tokenizer(), batch_size=2), played)
    for scores, e in zip(found, played, strict=True):
        with torch.no_grad():
            full = model(torch.tensor([e.tokens])).logits[0].log_softmax(-1)
        for i, token in enumerate(e.tokens):
            expected = float(full[i - 1, token]) - e.logprobs[i] if e.mask[i] else 0.0
            assert float(scores.log_ratio[i]) == pytest.approx(expected, abs=1e-4)


def test_scores_do_not_depend_on_how_many_logits_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rng = llama(40), random.Random(0)
    rows = [episode(rng, 40, turns=n).tokens for n in (1, 3, 2, 5)] + [(7,)]
    scorer = LocalTeacher(model, tokenizer(), batch_size=4)
    whole = scorer.score(rows)
    held = []

    def measure(self: Head, hidden: Tensor) -> Tensor:
        logits: Tensor = project(self, hidden)
        held.append(logits.numel())
        return logits

    project = Head.logits
    monkeypatch.setattr(Head, "logits", measure)
    monkeypatch.setattr(teacher, "DENSE_LIMIT", 7 * 40 + 1)
    for sliced, expected, row in zip(scorer.score(rows), whole, rows, strict=True):
        assert sliced.shape == (len(row),)
        torch.testing.assert_close(sliced, expected)
    assert max(held) == 7 * 40
    assert sum(held) == sum(len(row) - 1 for row in rows) * 40  # none for padding


def test_a_teacher_with_another_vocabulary_is_refused() -> None:
    check_vocabulary(tokenizer(), tokenizer())
    other: PreTrainedTokenizerFast = train_tokenizer(["other words"], vocab_size=270)
    with pytest.raises(VocabularyMismatchError, match=r"different vocabularies \(\d+ and \d+") as c:
        check_vocabulary(tokenizer(), other)
    assert isinstance(c.value, AgentError)
    assert "\n" not in str(c.value)
