import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from journeyman.agents.errors import AgentError, UnsupportedModelError
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.hf import HFPlayer, load_student, load_teacher, sample
from journeyman.agents.students.player import Request, Turn
from journeyman.agents.teachers.local import token_logprobs
from journeyman.envs import make

from .tiny import chat, gpt2, llama, tokenizer

VOCABULARY = 23
EOS = 0
MARKS = cast(Dialect, SimpleNamespace(eos_id=EOS))  # all that a stream reads of a format
NOWHERE = make("journeyman/Bank-v0")


@dataclass(frozen=True)
class Conversation:
    """What one row is told, and the ticks its environment takes to answer."""

    opening: tuple[int, ...]
    replies: tuple[tuple[int, ...], ...]
    seed: int


def conversations() -> list[Conversation]:
    """Prompts of 1 to 300 tokens (more than the cache reserves at first), 1 to 4 turns."""
    rng = random.Random(5)

    def text(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, VOCABULARY) for _ in range(length))

    return [
        Conversation(text(size), tuple(text(rng.randint(1, 12)) for _ in range(turns)), seed)
        for seed, (size, turns) in enumerate(
            [(1, 3), (300, 2), (7, 0), (40, 3), (7, 1), (41, 0), (120, 2), (3, 0)]
        )
    ]


def play(
    policy: HFPlayer,
    rows: Sequence[Conversation],
    delay: Callable[[int], int] = lambda row: 0,
) -> list[list[Turn]]:
    """Turns of each row; the answer to a row's turn comes after `delay(row)` ticks."""
    stream = policy.open([Request(r.opening, r.seed, NOWHERE) for r in rows])
    turns: list[list[Turn]] = [[] for _ in rows]
    answers: dict[int, int] = {}
    tick = 0
    while not stream.idle or answers:
        for turn in stream.advance():
            turns[turn.row].append(turn)
            if len(turns[turn.row]) > len(rows[turn.row].replies):
                stream.finish(turn.row)
            else:
                answers[turn.row] = tick + delay(turn.row)
        for row in [r for r, due in answers.items() if due <= tick or stream.idle]:
            del answers[row]
            stream.extend(row, rows[row].replies[len(turns[row]) - 1])
        tick += 1
    assert stream.advance() == []
    return turns


@torch.no_grad()
def plain(policy: HFPlayer, row: Conversation) -> list[Turn]:
    """The same without cache and batch: every token from a forward pass over all before it."""
    dice = np.random.Generator(np.random.Philox(row.seed))
    tokens, turns = list(row.opening), []
    for reply in (*row.replies, ()):
        written: list[int] = []
        logprobs: list[float] = []
        while EOS not in written and len(written) < policy.max_turn_tokens:
            logits = policy.model(torch.tensor([[*tokens, *written]])).logits[:, -1]
            token, logprob = sample(logits, policy.temperature, torch.tensor([dice.random()]))
            written.append(int(token))
            logprobs.append(float(logprob))
        forced = EOS not in written
        written += [EOS] * forced
        logprobs += [0.0] * forced
        turns.append(Turn(0, tuple(written), tuple(logprobs), forced))
        tokens += [*written, *reply]
    return turns


def tokens(turns: Sequence[Turn]) -> list[tuple[tuple[int, ...], bool]]:
    return [(t.tokens, t.truncated) for t in turns]


MODELS = {"gpt2": gpt2, "llama": llama}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param](VOCABULARY, seed=1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_lockstep_equals_one_row_at_a_time(model: PreTrainedModel, temperature: float) -> None:
    policy = HFPlayer(model, MARKS, temperature, max_turn_tokens=12)
    rows = conversations()
    expected = [plain(policy, row) for row in rows]
    played = play(policy, rows)
    assert [tokens(t) for t in played] == [tokens(t) for t in expected]
    for ours, theirs in zip(chain(*played), chain(*expected), strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    if temperature:  # or else the comparison would say little
        assert {t.truncated for t in chain(*played)} == {True, False}


def test_a_row_that_waits_neither_changes_nor_is_changed(model: PreTrainedModel) -> None:
    policy = HFPlayer(model, MARKS, 1.0, max_turn_tokens=12)
    rows = conversations()
    together = play(policy, rows)
    waiting = play(policy, rows, delay=lambda row: 0 if row == 3 else 5 * row + 1)
    assert [tokens(t) for t in waiting] == [tokens(t) for t in together]


def test_a_row_does_not_depend_on_its_batch(model: PreTrainedModel) -> None:
    policy = HFPlayer(model, MARKS, 1.0, max_turn_tokens=12)
    rows = conversations()
    together = play(policy, rows)
    alone = [play(policy, [row])[0] for row in rows]
    backwards = play(policy, rows[::-1])[::-1]
    assert [tokens(t) for t in alone] == [tokens(t) for t in together]
    assert [tokens(t) for t in backwards] == [tokens(t) for t in together]


def test_the_seed_decides(model: PreTrainedModel) -> None:
    policy = HFPlayer(model, MARKS, 1.0, max_turn_tokens=12)
    rows = [Conversation((5, 6, 7), (), seed) for seed in (1, 2, 1)]
    first, second, third = play(policy, rows)
    assert tokens(first) == tokens(third) != tokens(second)


def test_logprobs_are_those_of_a_full_forward(model: PreTrainedModel) -> None:
    policy = HFPlayer(model, MARKS, 1.3, max_turn_tokens=12)  # logprobs are at temperature 1
    rows = conversations()
    streams: list[list[int]] = []
    ours: list[list[float]] = []
    for row, turns in zip(rows, play(policy, rows, delay=lambda row: row), strict=True):
        ids, logprobs = list(row.opening), [0.0] * len(row.opening)
        for turn, reply in zip(turns, (*row.replies, ()), strict=True):
            ids += [*turn.tokens, *reply]
            logprobs += [*turn.logprobs, *([0.0] * len(reply))]
        streams.append(ids)
        ours.append(logprobs)
    for theirs, mine in zip(token_logprobs(model, streams), ours, strict=True):
        expected = torch.tensor(mine)
        chosen = expected != 0
        assert chosen.any()
        torch.testing.assert_close(theirs[chosen], expected[chosen], atol=1e-4, rtol=0)


def test_a_turn_that_is_too_long_is_ended() -> None:
    model = llama(VOCABULARY)
    endless = cast(Dialect, SimpleNamespace(eos_id=VOCABULARY))  # a token it cannot sample
    policy = HFPlayer(model, endless, 1.0, max_turn_tokens=4)
    (turn,) = play(policy, [Conversation((1, 2), (), 0)])[0]
    assert turn.truncated
    assert len(turn.tokens) == len(turn.logprobs) == 5
    assert turn.tokens[-1] == VOCABULARY
    assert turn.logprobs[-1] == 0
    assert VOCABULARY not in turn.tokens[:-1]


def test_zero_temperature_ignores_the_seed() -> None:
    policy = HFPlayer(llama(VOCABULARY), MARKS, max_turn_tokens=12).at(0.0)
    rows = [Conversation((5, 6, 7), (), seed) for seed in (1, 2)]
    first, second = play(policy, rows)
    assert tokens(first) == tokens(second)


def test_at_changes_the_temperature_only() -> None:
    policy = HFPlayer(llama(VOCABULARY), MARKS, 1.0, max_turn_tokens=7, max_context=100)
    cold = policy.at(0.0)
    assert (cold.model, cold.format) == (policy.model, policy.format)
    assert (cold.temperature, cold.max_turn_tokens, cold.max_context) == (0.0, 7, 100)


def test_the_context_leaves_room_for_a_whole_turn() -> None:
    model = llama(VOCABULARY)
    limit = model.config.max_position_embeddings
    assert HFPlayer(model, MARKS, max_turn_tokens=50).max_context == limit - 50
    assert HFPlayer(model, MARKS, max_turn_tokens=50, max_context=limit).max_context == limit - 50


SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 0,
}


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8)), "mistral"),
        (
            Gemma3ForCausalLM(
                Gemma3TextConfig(**SMALL, layer_types=["sliding_attention", "full_attention"])
            ),
            "gemma3",
        ),
    ],
    ids=["one window", "by layer"],
)
def test_sliding_windows_are_refused(model: PreTrainedModel, kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"{kind}.*sliding_attention.*vLLM") as caught:
        HFPlayer(model, MARKS)
    assert isinstance(caught.value, AgentError)


def test_models_without_windows_are_taken() -> None:
    for model in (
        MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)),
        GemmaForCausalLM(GemmaConfig(**SMALL)),
    ):
        policy = HFPlayer(model, MARKS)
        longest = policy.max_context + policy.max_turn_tokens  # nothing shortens what it sees
        assert longest == model.config.max_position_embeddings


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax(temperature: float) -> None:
    draws, kinds = 20_000, 10
    logits = torch.linspace(-2, 1, kinds).flip(0).roll(3)
    uniforms = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    chosen, logprobs = sample(logits.expand(draws, kinds), temperature, uniforms)
    expected = (logits / temperature).softmax(0) * draws
    observed = torch.bincount(chosen, minlength=kinds)
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    assert chi_square < 33.7  # 9 degrees of freedom: 1 in 10,000
    torch.testing.assert_close(logprobs, logits.log_softmax(0)[chosen])


def test_an_impossible_token_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]]).expand(3, 5)
    # Dice in [0, 1) may be rounded to 1.
    tokens, logprobs = sample(logits, 1.0, torch.tensor([0.0, 0.5, 1.0]))
    assert tokens.tolist() == [1, 3, 3]
    assert logprobs.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_diverged_weights_are_named(temperature: float, value: float) -> None:
    model = llama(VOCABULARY)
    with torch.no_grad():
        model.lm_head.weight[3] = value
    with pytest.raises(AgentError, match=r"not finite.*lower trainer\.args\.learning_rate"):
        play(HFPlayer(model, MARKS, temperature), [Conversation((5, 6, 7), (), 0)])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_turn_tokens": 512}, "max_turn_tokens=512: .*max_position_embeddings=512"),
        ({"max_turn_tokens": 0}, "max_turn_tokens=0: expected at least 1"),
        ({"max_turn_tokens": 8, "max_context": 0}, "max_context=0: expected at least 1"),
    ],
)
def test_limits_without_room_for_a_turn(limits: dict[str, int], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        HFPlayer(llama(VOCABULARY), MARKS, **limits)


def test_models_are_loaded_by_path(tmp_path: Path) -> None:
    model = llama(len(tokenizer()))
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    policy = load_student(str(tmp_path), "names", max_turn_tokens=9, device="cpu")
    assert policy.format.opening([], []) == chat().opening([], [])
    assert (policy.temperature, policy.max_turn_tokens) == (1.0, 9)
    teacher = load_teacher(str(tmp_path), batch_size=2, device="cpu")
    assert not any(p.requires_grad for p in teacher.model.parameters())
    rows = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    for scores, row in zip(teacher.score(rows), rows, strict=True):
        full = model(torch.tensor([row])).logits[0].detach().log_softmax(-1)
        expected = [0.0, *(float(full[i, t]) for i, t in enumerate(row[1:]))]
        assert scores.tolist() == pytest.approx(expected, abs=1e-5)
