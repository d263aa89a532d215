import random
import re

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel, SmolLM3ForCausalLM

from journeyman.envs.tasks.entities import Entities
from journeyman.envs.types import SPLITS, Split

from .factory import vocabulary, wiring
from .tiny import chat, tokenizer

BOT, EOT, MARKERS, PAD = vocabulary.BOT, vocabulary.EOT, vocabulary.MARKERS, vocabulary.PAD
make_model = wiring.make_model


def wired(layers: int = 3, seed: int = 0) -> SmolLM3ForCausalLM:
    with torch.random.fork_rng():
        return make_model(len(tokenizer()), 0, 2, width=128, layers=layers, seed=seed).eval()


def sequences(count: int, length: int) -> Tensor:
    """Random tokens, each once, then again in the same order but cut elsewhere: [count, 2 length].

    What followed a token the first time follows it again, at a distance that tells nothing.
    """
    noise = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        once = torch.randperm(len(tokenizer()), generator=noise)[:length]
        cut = int(torch.randint(length // 4, 3 * length // 4, (), generator=noise))
        rows.append(torch.cat([once, once[cut:], once[:cut]]))
    return torch.stack(rows)


@torch.no_grad()
def copied(model: PreTrainedModel, ids: Tensor, skip: int) -> float:
    """Share of repeated tokens that are the model's first choice, where the text tells them."""
    length = ids.shape[1] // 2
    choices = model(ids).logits[:, :-1].argmax(-1)
    right = (choices == ids[:, 1:])[:, length + skip :]
    return float(right.float().mean())


def test_an_untrained_model_copies_what_followed() -> None:
    ids = sequences(16, 60)
    # 1 in a vocabulary of a thousand would be chance.
    assert copied(wired(), ids, skip=2) > 0.5


def test_it_is_the_wiring_that_copies() -> None:
    model = wired()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = SmolLM3ForCausalLM(model.config).eval()
    assert copied(plain, sequences(16, 60), skip=2) < 0.05


def test_two_tokens_back_settle_what_one_leaves_open() -> None:
    """`a x p … b x q … a x` goes on with p, though q followed x later."""
    model, noise = wired(), torch.Generator().manual_seed(1)
    rows, answers, distractors = [], [], []
    for _ in range(64):
        a, b, x, p, q, *rest = torch.randperm(len(tokenizer()), generator=noise)[:29].tolist()
        rows.append([*rest[:8], a, x, p, *rest[8:16], b, x, q, *rest[16:], a, x])
        answers.append(p)
        distractors.append(q)
    with torch.no_grad():
        logits = model(torch.tensor(rows)).logits[:, -1]
    every = torch.arange(64)
    wins = logits[every, answers] > logits[every, distractors]
    assert float(wins.float().mean()) > 0.8


def test_a_model_is_made_by_its_seed() -> None:
    first, second, other = (wired(layers=2, seed=s).state_dict() for s in (5, 5, 6))
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


# Tokenizer


def pieces(text: str, part: str) -> list[str]:
    """The tokens of a part of a text, which they must cover exactly."""
    encoded = tokenizer()(text, return_offsets_mapping=True, add_special_tokens=False)
    start = text.index(part)
    end = start + len(part)
    inside = [
        token
        for token, (first, last) in zip(
            encoded["input_ids"], encoded["offset_mapping"], strict=True
        )
        if first < end and last > start
    ]
    assert chat().decode(inside) == part
    return [chat().decode([token]) for token in inside]


@pytest.mark.parametrize("split", SPLITS)
def test_a_name_is_the_same_in_prose_and_json(split: Split) -> None:
    for seed in range(100):  # anew: an entity is drawn once only
        name = Entities(random.Random(seed), split).person()
        texts = (
            f'What is the balance of "{name}"?',
            f'"{name}" pays.',
            f'{{"name": "find_account", "arguments": {{"owner": "{name}"}}}}',
            f'[{{"owner": "{name}", "balance": 12}}]',
        )
        first, *others = (pieces(text, name) for text in texts)
        assert all(other == first for other in others)
        assert len(first) == len(name.split())  # whole names, one token each


def test_an_identifier_is_the_same_in_results_calls_and_answers() -> None:
    for seed in range(100):
        name = Entities(random.Random(seed), "test").identifier("A")
        digits = re.sub(r"\D", "", name)
        texts = (f'{{"account": "{name}"}}', f'[{{"account": "{name}", "balance": 1}}]')
        first, other = (pieces(text, digits) for text in texts)
        assert first == other
        (answer,) = [pieces(f"Answer: {name}", digits)]
        assert answer == first


@pytest.mark.parametrize(
    ("number", "groups"),
    [("7", ["7"]), ("42", ["42"]), ("123", ["12", "3"]), ("9876", ["98", "76"])],
)
@pytest.mark.parametrize("text", ["Send {} now.", '{{"amount": {}}}', '"A{}"', "Answer: {}"])
def test_digits_come_in_pairs(text: str, number: str, groups: list[str]) -> None:
    assert pieces(text.format(number), number) == groups


def test_every_pair_of_digits_is_one_token() -> None:
    pairs = [f"{n:02d}" for n in range(100)]
    assert len({tuple(tokenizer().encode(p)) for p in pairs}) == 100
    assert all(len(tokenizer().encode(p)) == 1 for p in pairs)


def test_markers_are_single_tokens_and_stay_in_the_text() -> None:
    for marker in (PAD, BOT, EOT, *MARKERS):
        assert len(tokenizer().encode(marker)) == 1
    text = f"{MARKERS[0]}\n{{}}\n{MARKERS[1]}"
    assert chat().decode(tokenizer().encode(text)) == text


@settings(derandomize=True, deadline=None, max_examples=300, database=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("Tschüß, 東京! 🙂‍↔️\t\r\n  x")
@example("a  b 12 345 _x__ 'q' . , ,")
@example(f"{BOT}user\n{EOT}<tool_call></tool_call><tool_call")
@example('\u0300\u200d\ufeff\ufffd\x00\x7f\u0085"\\u0041"')
def test_any_text_comes_back(text: str) -> None:
    assert chat().decode(tokenizer().encode(text, add_special_tokens=False)) == text
