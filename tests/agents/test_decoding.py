"""Rows that come and go, and what is not read twice."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, takewhile
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    DogeConfig,
    DogeForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from journeyman.agents.errors import SettingError
from journeyman.agents.students.decoding import Decoder, Part
from journeyman.agents.students.guessing import Guesses, tokens_to_read
from journeyman.agents.students.hf import GUESSED, HFPlayer, alike
from journeyman.agents.students.player import Conversation, Sampling, Turn
from journeyman.agents.students.reuse import PrefixIndex, PrefixStore, shared

from .test_hf import MARKS, NOWHERE, VOCABULARY, Talk, endless, plain, play, tokens
from .tiny import gpt2, llama


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """How many tokens of each row every forward pass reads."""
    passes: list[list[int]] = []
    method = Decoder.read

    def counted(self: Decoder, parts: Sequence[Part]) -> torch.Tensor:
        passes.append([len(row) for part in parts for row in part.tokens])
        return method(self, parts)

    monkeypatch.setattr(Decoder, "read", counted)
    yield passes


def text(rng: random.Random, length: int) -> tuple[int, ...]:
    return tuple(rng.randrange(1, VOCABULARY) for _ in range(length))


def family(rng: random.Random, count: int) -> list[Talk]:
    """Conversations of which many begin alike, some wholly, and some with another's whole."""
    stems = [text(rng, 60), text(rng, 25)]
    rows: list[Talk] = []
    for seed in range(count):
        kind = rng.randrange(4)
        if kind == 0:
            opening = text(rng, rng.randint(1, 90))
        elif kind == 1 and rows:
            opening = rng.choice(rows).opening
        elif kind == 2 and rows:
            opening = rng.choice(rows).opening + text(rng, rng.randint(1, 30))
        else:
            stem = rng.choice(stems)
            opening = stem[: rng.randint(5, len(stem))] + text(rng, rng.randint(1, 9))
        replies = tuple(text(rng, rng.choice((1, 7, 60))) for _ in range(rng.randrange(3)))
        rows.append(Talk(opening, replies, seed))
    return rows


def refilled(player: HFPlayer, rows: list[Talk], rng: random.Random) -> list[list[Turn]]:
    """Turns of rows that begin, are answered and end in any order, five side by side."""
    turns: list[list[Turn]] = [[] for _ in rows]
    stream = player.open([Conversation(r.opening, r.seed, NOWHERE) for r in rows[:5]])
    begun, unanswered = 5, set[int]()
    over = 0
    while over < len(rows):
        for turn in stream.advance():
            turns[turn.row].append(turn)
            unanswered.add(turn.row)
        for row in sorted(unanswered):
            if rng.random() < 0.6 and not stream.idle:
                continue
            unanswered.remove(row)
            if len(turns[row]) <= len(rows[row].replies):
                stream.extend(row, rows[row].replies[len(turns[row]) - 1])
                continue
            stream.finish(row)
            over += 1
            while begun < len(rows) and begun - over < rng.choice((4, 5, 6)):
                assert stream.add(Conversation(rows[begun].opening, begun, NOWHERE)) == begun
                begun += 1
    assert stream.idle
    assert stream.advance() == []
    return turns


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_places_are_refilled(make: Callable[..., PreTrainedModel], temperature: float) -> None:
    """The same turns as of one conversation alone, read anew for every token."""
    player = HFPlayer(make(VOCABULARY, seed=1), MARKS, Sampling(temperature, max_tokens=12))
    rng = random.Random(3)
    rows = family(rng, 12)
    expected = [plain(player, row) for row in rows]
    for _ in range(2):  # the second time nearly everything is known
        played = refilled(player, rows, rng)
        for ours, theirs in zip(played, expected, strict=True):
            assert tokens(ours) == tokens(theirs)
            for one, other in zip(ours, theirs, strict=True):
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_place_that_is_free_is_taken() -> None:
    player = HFPlayer(llama(VOCABULARY, seed=1), MARKS, Sampling(max_tokens=4))
    stream = player.open([Conversation((5, 6, 7), seed, NOWHERE) for seed in range(3)])
    for number in range(3, 9):
        turn, *_ = [turn for _ in range(5) for turn in stream.advance()]
        stream.finish(turn.row)
        assert stream.add(Conversation((5, 6, 7), number, NOWHERE)) == number
    assert stream._cache.places == 3


def test_an_answer_is_read_at_once_beside_rows_that_write(read: list[list[int]]) -> None:
    player = endless(llama(VOCABULARY, seed=1), 6)
    player.dialect, player.speculate = MARKS, 0
    stream = player.open([Conversation((1,), 0, NOWHERE)])
    for _ in range(3):
        stream.advance()
    for seed in range(1, 8):
        stream.add(Conversation((seed + 1,), seed, NOWHERE))
    (first,) = next(turns for _ in range(6) if (turns := stream.advance()))
    del read[:]
    stream.advance()
    assert read == [[1] * 7]
    stream.extend(first.row, (3,) * 50)
    stream.advance()
    stream.advance()
    assert read[1:] == [[1] * 7 + [52], [1] * 8]  # what ended its turn is read with the answer


def test_long_texts_are_read_in_pieces(read: list[list[int]]) -> None:
    model = llama(VOCABULARY, seed=1)
    model.config.max_position_embeddings = 2048
    player = HFPlayer(model, MARKS, Sampling(max_tokens=4))
    rows = [Talk(text(random.Random(1), 1200), (), 0), Talk((3, 4), (), 1)]
    assert [tokens(t) for t in play(player, rows)] == [tokens(plain(player, r)) for r in rows]
    assert [512, 2] in read


# Equal prefixes


def test_equal_prompts_are_read_once(read: list[list[int]]) -> None:
    player = HFPlayer(llama(VOCABULARY, seed=1), MARKS, Sampling(max_tokens=3), speculate=0)
    prompt = text(random.Random(1), 100)
    rows = [Talk(prompt, (), seed) for seed in range(20)]
    play(player, rows)
    assert read[:2] == [[100], [1] * 19]
    assert sum(map(sum, read)) <= 100 + 19 + 20 * 2


def test_a_fork_reads_what_is_new(read: list[list[int]]) -> None:
    """Also in the next batch, and by a player that differs in its dice alone."""
    player = HFPlayer(llama(VOCABULARY, seed=1), MARKS, Sampling(max_tokens=6)).remembering()
    assert player.remembering() is player
    row = Talk(text(random.Random(1), 100), ((3,) * 20, (4,) * 20), 0)
    first, second, _ = play(player, [row])[0]
    played = (*row.opening, *first.tokens, *row.replies[0], *second.tokens)
    for other, new in ((player, 7), (player.at(temperature=0.5), 8)):
        del read[:]
        fork = Talk((*played, new, 8, 9), (), 5)
        assert tokens(play(other, [fork])[0]) == tokens(plain(other, fork))
        assert read[0] == [3]


def test_what_was_played_before_changes_nothing() -> None:
    """To the last bit: a run that was killed between two batches ends as one that was not."""
    player = HFPlayer(llama(VOCABULARY, seed=1), MARKS, Sampling(max_tokens=12))
    first, second = family(random.Random(2), 8), family(random.Random(3), 8)
    expected = play(player, second)
    player.remembering()
    play(player.at(temperature=0.0), first)
    assert player.prefixes is None
    assert play(player, second) == expected
    assert play(player, second) == expected


def another(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {k: v * 1.5 for k, v in model.state_dict().items()}


def stepped(model: PreTrainedModel, **how: bool) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **how)
    ids = torch.tensor([[5, 6, 7]])
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def written(model: PreTrainedModel) -> None:
    model.model.layers[0].mlp.up_proj.weight.data.mul_(-1)


def replaced(model: PreTrainedModel) -> None:
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(-layer.weight.detach())


CHANGES: dict[str, Callable[[PreTrainedModel], object]] = {
    "fused": lambda model: stepped(model, fused=True),
    "foreach": lambda model: stepped(model, foreach=True),
    "loop": lambda model: stepped(model, foreach=False),
    "load_state_dict": lambda model: model.load_state_dict(another(model)),
    "assigned": lambda model: model.load_state_dict(another(model), assign=True),
    "data": written,
    "replaced": replaced,
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_state_outlives_its_weights(change: str) -> None:
    """However they change, the same is played as by somebody who has read nothing."""
    model = llama(VOCABULARY, seed=1)
    player = HFPlayer(model, MARKS, Sampling(max_tokens=12)).remembering()
    rows = family(random.Random(2), 8)
    before = play(player, rows)
    assert player.prefixes
    CHANGES[change](model)
    after = play(player, rows)
    fresh = play(HFPlayer(copy.deepcopy(model), MARKS, player.sampling), rows)
    assert [tokens(t) for t in after] == [tokens(t) for t in fresh]
    assert [tokens(t) for t in after] != [tokens(t) for t in before]
    for ours, theirs in zip(chain(*after), chain(*fresh), strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def test_adapters_that_are_switched_off_are_other_weights() -> None:
    base = llama(VOCABULARY, seed=1)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model: Any = get_peft_model(copy.deepcopy(base), config)
    player = HFPlayer(model, MARKS, Sampling(max_tokens=12)).remembering()
    rows = family(random.Random(2), 8)
    adapted = play(player, rows)
    with model.disable_adapter():
        bare = play(player, rows)
    assert [tokens(t) for t in bare] == [tokens(t) for t in alone(base, rows)]
    assert [tokens(t) for t in play(player, rows)] == [tokens(t) for t in adapted]
    assert [tokens(t) for t in bare] != [tokens(t) for t in adapted]


def alone(model: PreTrainedModel, rows: list[Talk]) -> list[list[Turn]]:
    player = HFPlayer(model, MARKS, Sampling(max_tokens=12))
    return [plain(player, row) for row in rows]


def test_weights_that_change_under_a_batch_spoil_what_it_read(read: list[list[int]]) -> None:
    """Rows that it has go on; nothing of theirs is given to others."""
    model = llama(VOCABULARY, seed=1)
    player = HFPlayer(model, MARKS, Sampling(max_tokens=12)).remembering()
    prompt = text(random.Random(1), 60)
    stream = player.open([Conversation(prompt, 0, NOWHERE)])
    stream.advance()
    model.load_state_dict(another(model))
    added = stream.add(Conversation(prompt, 1, NOWHERE))
    del read[:]
    turns: dict[int, Turn] = {}
    while not stream.idle:
        turns.update((turn.row, turn) for turn in stream.advance())
    assert read[0] == [1, 60]
    expected = plain(player, Talk(prompt, (), 1))
    assert tokens([turns[added]]) == tokens(expected)
    for row in (0, added):
        stream.finish(row)
    assert player.prefixes is not None
    assert not len(player.prefixes)


def test_what_was_not_used_for_longest_is_forgotten() -> None:
    store = PrefixStore(llama(VOCABULARY), limit=3 * 400)
    rows = [tuple(range(100 * i, 100 * i + 20)) for i in range(4)]
    states = [[[torch.full((1, 50, 1), float(i)), torch.zeros(1, 50, 1)]] for i in range(4)]
    for i in range(3):
        store.keep(rows[i], states[i])
    assert store.best((*rows[0], 7)) == (states[0], 20)
    store.keep(rows[3], states[3])
    assert store.size == 3 * 400
    assert store.best(rows[1]) is None
    assert [store.best(rows[i]) for i in (0, 2, 3)] == [(states[i], 20) for i in (0, 2, 3)]
    store.keep((1,) * 20, [[torch.zeros(1, 301, 1)]])  # larger than all there is room for
    assert store.size == 3 * 400
    assert len(store) == 3


def test_the_longest_prefix_is_found() -> None:
    def same(pair: tuple[int, int]) -> bool:
        return pair[0] == pair[1]

    rng = random.Random(6)
    for _ in range(30):
        rows = [row.opening for row in family(rng, 12)]
        index = PrefixIndex[int]()
        for i, row in enumerate(rows):
            index.add(row, i)
        for gone in rng.sample(range(12), 4):
            index.discard(rows[gone], gone)
            rows[gone] = ()
        for row in (*rows, *(it.opening for it in family(rng, 5))):
            counts = [len([*takewhile(same, zip(row, other, strict=False))]) for other in rows]
            assert [shared(row, other) for other in rows] == counts
            found = index.best(row)
            if max(counts) < 16:
                assert found is None
            else:
                assert found is not None
                assert (counts[found[0]], found[1]) == (max(counts), max(counts))


# Guesses


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_guesses_change_nothing_that_is_drawn(
    make: Callable[..., PreTrainedModel], temperature: float, count: int
) -> None:
    """Turns end where they did, by a token, by a limit, at the end of the context.

    The longest row may end at the model's last position: guesses lie beyond it.
    """
    model, sampling = make(VOCABULARY, seed=2), Sampling(temperature, max_tokens=12)
    rng = random.Random(4)
    rows = family(rng, 10)
    full = text(rng, model.config.max_position_embeddings - 12)
    rows.append(Talk(full, (), 10))
    expected = play(HFPlayer(model, MARKS, sampling, speculate=0), rows)
    played = play(HFPlayer(model, MARKS, sampling, speculate=count), rows)
    assert [tokens(turns) for turns in played] == [tokens(turns) for turns in expected]
    for ours, theirs in zip(chain(*played), chain(*expected), strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    assert {turn.truncated for turn in chain(*played)} == {True, False}


def test_what_was_said_before_takes_fewer_passes(read: list[list[int]]) -> None:
    """The first time next to nothing is known, and next to nothing is read ahead."""
    player = endless(llama(VOCABULARY, seed=1), 40)
    player.dialect = MARKS
    talk = Conversation((5, 6, 7), 0, NOWHERE)
    stream = player.open([talk])
    turns = list[Turn]()
    passes, widths = list[int](), list[set[int]]()
    for again in (False, True):
        del read[:]
        while not stream.idle:
            turns += stream.advance()
        passes.append(len(read))
        widths.append({width for passed in read[1:] for width in passed})
        stream.finish(turns[-1].row)
        if not again:
            stream.add(talk)
    assert turns[0].tokens == turns[1].tokens
    assert min(widths[0]) == 1
    assert max(widths[1]) == 1 + GUESSED
    assert passes[0] > 30
    # Pairs of tokens that came twice may mislead.
    assert passes[1] < 0.6 * passes[0]


@pytest.mark.parametrize(("chance", "width"), [(0.0, 1), (1.0, 1 + GUESSED)])
def test_what_is_seldom_right_is_not_read_ahead(
    chance: float, width: int, read: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def after(guesses: Guesses, before: int, last: int, count: int) -> list[tuple[int, float]]:
        return [(last, chance)] * count

    monkeypatch.setattr(Guesses, "after", after)
    stream = endless(llama(VOCABULARY, seed=1), 20).open([Conversation((5, 6, 7), 0, NOWHERE)] * 2)
    while not stream.idle:
        stream.advance()
    assert {it for passed in read[1:] for it in passed} == {width}


def test_guesses_are_what_came_last() -> None:
    guesses = Guesses()
    assert guesses.after(1, 2, 3) == []
    guesses.note([(1, 2, 3), (2, 3, 4)])
    guesses.note([(3, 4, 1), (2, 3, 9)])
    # Of what came once, a half; of what was wrong once, a third of that.
    assert guesses.after(1, 2, 3) == [(3, pytest.approx(1 / 2)), (9, pytest.approx(1 / 6))]
    assert guesses.after(1, 2, 1) == [(3, pytest.approx(1 / 2))]
    assert guesses.after(1, 2, 0) == []
    guesses.note([(1, 2, 3), (1, 2, 3)])
    assert guesses.after(1, 2, 1) == [(3, pytest.approx(3 / 4))]


def test_rows_that_agree_in_one_pass_foretell_nothing_of_the_next() -> None:
    """None of them could have been guessed by what the others wrote at once."""
    guesses = Guesses()
    for token in range(5):
        guesses.note([(1, 2, token)] * 16)
    assert guesses.after(1, 2, 1) == [(4, pytest.approx(1 / (4 * 16 + 2)))]


@pytest.mark.parametrize("cost", [0.5, 3.0, 100.0])
def test_a_pass_reads_ahead_as_far_as_that_pays(cost: float) -> None:
    """Of every number of tokens that which has most of them in its time."""
    rng = random.Random(3)
    for _ in range(200):
        guesses = [
            [(0, chance) for chance in sorted((rng.random() for _ in range(count)), reverse=True)]
            for count in rng.choices(range(6), k=rng.randint(1, 5))
        ]
        rates = [
            sum(1 + sum(chance for _, chance in row[:ahead]) for row in guesses)
            / (len(guesses) * (cost + 1 + ahead))
            for ahead in range(6)
        ]
        assert rates[tokens_to_read(guesses, cost) - 1] == pytest.approx(max(rates))
    assert tokens_to_read([[], []], cost) == 1
    sure = [[(0, 1.0)] * 5]
    assert tokens_to_read(sure, cost) == 6


def test_nothing_is_guessed_where_the_longest_row_turns_all() -> None:
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    far = {"rope_theta": 1e4, "original_max_position_embeddings": 32}
    model = llama(VOCABULARY, rope_parameters=factors | far)
    assert HFPlayer(model, MARKS).speculate == 0
    assert HFPlayer(llama(VOCABULARY), MARKS).speculate == GUESSED


def test_whoever_plays_alike_guesses_alike() -> None:
    player = HFPlayer(llama(VOCABULARY), MARKS, speculate=2)
    assert player.at(temperature=0.0).speculate == player.remembering().speculate == 2
    assert alike(player, llama(VOCABULARY, seed=1)).speculate == 2


@pytest.mark.parametrize("speculate", [-1, 1.0, True])
def test_less_than_no_guesses_are_refused(speculate: Any) -> None:
    with pytest.raises(SettingError, match=f"speculate={speculate}: expected a whole number, 0"):
        HFPlayer(llama(VOCABULARY), MARKS, speculate=speculate)


# Grouped heads


@pytest.mark.parametrize("apart", [False, True])
def test_grouped_heads_read_keys_where_they_lie(
    apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of several lengths, read in chunks and token by token, are as one pass reads each."""
    model = llama(VOCABULARY).double()
    config = model.config
    assert config.num_attention_heads > config.num_key_value_heads
    rng = random.Random(1)
    rows = [text(rng, length) for length in (70, 41, 56)]
    with torch.inference_mode():
        expected = [model(torch.tensor([row])).logits[0] for row in rows]

    seen: list[int] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(key.shape[1])
        return attend(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    decoder = Decoder(model)
    decoder.cache.reserve(len(rows), 80)
    starts = [0, 0, 0]
    for counts in ([30, 30, 30], [7, 3, 12], [1, 1, 1], [32, 7, 13]):
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        texts = [row[a:b] for row, a, b in zip(rows, starts, ends, strict=True)]
        parts = [Part(range(len(rows)), starts, texts, [1] * len(rows))]
        if apart:
            parts = [Part([i], [starts[i]], [texts[i]], [1]) for i in range(len(rows))]
        with torch.inference_mode():
            logits = decoder.read(parts)
        for own, row, end in zip(logits, expected, ends, strict=True):
            # The rotary positions are reckoned in float32.
            torch.testing.assert_close(own, row[end - 1], rtol=1e-6, atol=1e-6)
        starts = ends
    assert set(seen) == {config.num_key_value_heads}
    del seen[:]
    with torch.inference_mode():
        ids = torch.tensor([rows[0], rows[0]])
        model(ids, attention_mask=torch.tensor([[0, *[1] * 69], [1] * 70]))
    assert set(seen) == {config.num_attention_heads}  # all else attends as before


# Several parts in one pass


def parted(rng: random.Random, rows: Sequence[Sequence[int]]) -> Iterator[list[Part]]:
    """Passes in which rows are read in any pieces: some side by side, some by themselves."""
    held = [0] * len(rows)
    while any(count < len(row) for count, row in zip(held, rows, strict=True)):
        parts, open_ = [], [i for i, row in enumerate(rows) if held[i] < len(row)]
        while open_:
            some = [open_.pop(0) for _ in range(min(len(open_), rng.choice((1, 1, 2, 3))))]
            ends = [min(len(rows[i]), held[i] + rng.choice((1, 3, 20))) for i in some]
            texts = [rows[i][held[i] : end] for i, end in zip(some, ends, strict=True)]
            asked = [rng.choice((0, 1, len(it))) for it in texts]
            parts.append(Part(some, [held[i] for i in some], texts, asked))
            for i, end in zip(some, ends, strict=True):
                held[i] = end
        yield parts


def made(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make().eval()


JOINING: dict[str, Callable[[], PreTrainedModel]] = {
    "learned positions": lambda: gpt2(VOCABULARY),
    "grouped heads": lambda: llama(VOCABULARY),
    "a window": lambda: MistralForCausalLM(
        MistralConfig(**NARROW, intermediate_size=32, num_key_value_heads=2, sliding_window=8)
    ),
    "two kinds": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **NARROW,
            intermediate_size=32,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
}


@pytest.mark.parametrize("kind", JOINING)
def test_parts_of_a_pass_are_as_passes_of_their_own(kind: str) -> None:
    model = made(JOINING[kind])
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    rng = random.Random(5)
    rows = [text(rng, length) for length in (70, 1, 41, 56, 30)]
    with torch.inference_mode():
        expected = [model(torch.tensor([row])).logits[0] for row in rows]
        decoder = Decoder(model)
        decoder.cache.reserve(len(rows), 8)
        for parts in parted(rng, rows):
            del passes[:]
            logits = decoder.read(parts)
            assert decoder.joins
            assert len(passes) == 1
            theirs = [
                expected[place][start + column]
                for part in parts
                for row, (place, start) in enumerate(zip(part.places, part.starts, strict=True))
                for column in part.columns(row)
            ]
            assert len(logits) == len(theirs)
            if theirs:
                torch.testing.assert_close(logits, torch.stack(theirs), rtol=1e-3, atol=1e-3)


def test_who_cannot_be_told_of_parts_reads_them_one_after_the_other() -> None:
    """Before it is found out something wrong has been written, and is written over."""
    model = made(PECULIAR["doge"])
    rng = random.Random(6)
    rows = [text(rng, length) for length in (30, 20, 25)]
    joint, apart = Decoder(model), Decoder(model)
    assert joint.joins
    apart.joins = False
    for decoder in (joint, apart):
        decoder.cache.reserve(len(rows), 40)
    with torch.inference_mode():
        for parts in parted(rng, rows):
            torch.testing.assert_close(joint.read(parts), apart.read(parts), rtol=0, atol=0)
    assert not joint.joins


def test_layers_that_attend_by_themselves_read_parts_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As others patch them."""

    def forward(
        layer: Any,
        hidden_states: torch.Tensor,
        position_embeddings: Any,
        attention_mask: torch.Tensor,
        past_key_values: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        shape = (*hidden_states.shape[:-1], -1, layer.head_dim)
        query, key, value = (
            of(hidden_states).view(shape).transpose(1, 2)
            for of in (layer.q_proj, layer.k_proj, layer.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        key, value = past_key_values.update(key, value, layer.layer_idx)
        states = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attention_mask, enable_gqa=True
        )
        return layer.o_proj(states.transpose(1, 2).flatten(2)), None

    model = llama(VOCABULARY)
    rng = random.Random(6)
    rows = [text(rng, length) for length in (30, 20, 25)]
    with torch.inference_mode():
        expected = [model(torch.tensor([row])).logits[0, -1] for row in rows]
        monkeypatch.setattr(LlamaAttention, "forward", forward)
        decoder = Decoder(model)
        assert decoder.joins
        decoder.cache.reserve(len(rows), 40)
        logits = decoder.read([Part([i], [0], [row], [1]) for i, row in enumerate(rows)])
    assert not decoder.joins
    torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("waiting", "runs"), [((1, 3), 3), ((*range(0, 24, 2),), 1)])
def test_rows_are_moved_where_many_lie_between_them(
    waiting: tuple[int, ...], runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    method = Decoder.read

    def counted(self: Decoder, parts: Sequence[Part]) -> torch.Tensor:
        seen.append(len(parts))
        return method(self, parts)

    monkeypatch.setattr(Decoder, "read", counted)
    player = endless(llama(VOCABULARY, seed=1), 12)
    stream = player.open([Conversation((1 + i % 20, 2), i, NOWHERE) for i in range(24)])
    stream.advance()
    for place in waiting:
        stream._live[place].waiting = True
    stream.advance()
    assert seen[-1] == runs


PECULIAR: dict[str, Callable[[], PreTrainedModel]] = {
    # It asks for the name of its attention, and computes another by itself.
    "falcon": lambda: FalconForCausalLM(
        FalconConfig(new_decoder_architecture=True, num_kv_heads=2, **NARROW)
    ),
    # Its masks differ by head.
    "doge": lambda: DogeForCausalLM(
        DogeConfig(num_key_value_heads=2, intermediate_size=32, keep_window_size=512, **NARROW)
    ),
}
NARROW: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("kind", PECULIAR)
def test_peculiar_attention_is_left_alone(kind: str) -> None:
    model = made(PECULIAR[kind])
    player = HFPlayer(model, MARKS, Sampling(max_tokens=12))
    rows = family(random.Random(2), 6)
    played = play(player, rows)
    model.set_attn_implementation("eager")
    expected = [plain(player, row) for row in rows]
    assert [tokens(turns) for turns in played] == [tokens(turns) for turns in expected]
    for ours, theirs in zip(chain(*played), chain(*expected), strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
