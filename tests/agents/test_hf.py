import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, product
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
    GenerationConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from journeyman.agents.errors import AgentError, SettingError, UnsupportedModelError
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.hf import HFPlayer, _truncated, load_student, sample
from journeyman.agents.students.player import Conversation, Sampling, Turn, end_ids
from journeyman.agents.teachers import Detail
from journeyman.agents.teachers.local import load_teacher
from journeyman.envs import make

from .tiny import chat, gpt2, llama, row_of, token_logprobs, tokenizer

VOCABULARY = 23
EOS = 0
# All that a stream reads of a dialect.
MARKS = cast(Dialect, SimpleNamespace(eos_id=EOS, end_ids=(EOS,)))
NOWHERE = make("journeyman/Bank-v0")


@dataclass(frozen=True)
class Talk:
    """What one row is told, and the ticks its environment takes to answer."""

    opening: tuple[int, ...]
    replies: tuple[tuple[int, ...], ...]
    seed: int


def conversations() -> list[Talk]:
    """Prompts of 1 to 300 tokens (more than the cache reserves at first), 1 to 4 turns."""
    rng = random.Random(5)

    def text(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, VOCABULARY) for _ in range(length))

    return [
        Talk(text(size), tuple(text(rng.randint(1, 12)) for _ in range(turns)), seed)
        for seed, (size, turns) in enumerate(
            [(1, 3), (300, 2), (7, 0), (40, 3), (7, 1), (41, 0), (120, 2), (3, 0)]
        )
    ]


def play(
    player: HFPlayer,
    rows: Sequence[Talk],
    delay: Callable[[int], int] = lambda row: 0,
) -> list[list[Turn]]:
    """Turns of each row; the answer to a row's turn comes after `delay(row)` ticks."""
    stream = player.open([Conversation(r.opening, r.seed, NOWHERE) for r in rows])
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
def plain(player: HFPlayer, row: Talk) -> list[Turn]:
    """The same without cache and batch: every token from a forward pass over all before it."""
    dice = np.random.Generator(np.random.Philox(row.seed))
    tokens, turns = list(row.opening), []
    for reply in (*row.replies, ()):
        written: list[int] = []
        logprobs: list[float] = []
        while EOS not in written and len(written) < player.sampling.max_tokens:
            logits = player.model(torch.tensor([[*tokens, *written]])).logits[:, -1]
            token, logprob = sample(logits, player.sampling, torch.tensor([dice.random()]))
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
def test_a_batch_equals_one_row_at_a_time(model: PreTrainedModel, temperature: float) -> None:
    player = HFPlayer(model, MARKS, Sampling(temperature, max_tokens=12))
    rows = conversations()
    expected = [plain(player, row) for row in rows]
    played = play(player, rows)
    assert [tokens(t) for t in played] == [tokens(t) for t in expected]
    for ours, theirs in zip(chain(*played), chain(*expected), strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    if temperature:  # or else the comparison would say little
        assert {t.truncated for t in chain(*played)} == {True, False}


def test_a_row_that_waits_neither_changes_nor_is_changed(model: PreTrainedModel) -> None:
    player = HFPlayer(model, MARKS, Sampling(1.0, max_tokens=12))
    rows = conversations()
    together = play(player, rows)
    waiting = play(player, rows, delay=lambda row: 0 if row == 3 else 5 * row + 1)
    assert [tokens(t) for t in waiting] == [tokens(t) for t in together]


def test_a_row_does_not_depend_on_its_batch(model: PreTrainedModel) -> None:
    player = HFPlayer(model, MARKS, Sampling(1.0, max_tokens=12))
    rows = conversations()
    together = play(player, rows)
    alone = [play(player, [row])[0] for row in rows]
    backwards = play(player, rows[::-1])[::-1]
    assert [tokens(t) for t in alone] == [tokens(t) for t in together]
    assert [tokens(t) for t in backwards] == [tokens(t) for t in together]


def test_the_seed_decides(model: PreTrainedModel) -> None:
    player = HFPlayer(model, MARKS, Sampling(1.0, max_tokens=12))
    rows = [Talk((5, 6, 7), (), seed) for seed in (1, 2, 1)]
    first, second, third = play(player, rows)
    assert tokens(first) == tokens(third) != tokens(second)


def test_logprobs_are_those_of_a_full_forward(model: PreTrainedModel) -> None:
    player = HFPlayer(model, MARKS, Sampling(1.3, max_tokens=12))  # logprobs are at temperature 1
    rows = conversations()
    streams: list[list[int]] = []
    ours: list[list[float]] = []
    for row, turns in zip(rows, play(player, rows, delay=lambda row: row), strict=True):
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


def endless(model: PreTrainedModel, max_tokens: int) -> HFPlayer:
    """A player that cannot sample what ends its turns."""
    never = cast(Dialect, SimpleNamespace(eos_id=VOCABULARY, end_ids=(VOCABULARY,)))
    model = copy.deepcopy(model)
    model.generation_config = GenerationConfig()
    return HFPlayer(model, never, Sampling(max_tokens=max_tokens))


def test_a_turn_that_is_too_long_is_ended() -> None:
    player = endless(llama(VOCABULARY), 4)
    (turn,) = play(player, [Talk((1, 2), (), 0)])[0]
    assert turn.truncated
    assert len(turn.tokens) == len(turn.logprobs) == 5
    assert turn.tokens[-1] == VOCABULARY
    assert turn.logprobs[-1] == 0
    assert VOCABULARY not in turn.tokens[:-1]


def test_zero_temperature_ignores_the_seed() -> None:
    player = HFPlayer(llama(VOCABULARY), MARKS, Sampling(max_tokens=12)).at(temperature=0.0)
    rows = [Talk((5, 6, 7), (), seed) for seed in (1, 2)]
    first, second = play(player, rows)
    assert tokens(first) == tokens(second)


def test_at_changes_the_sampling_only() -> None:
    sampling = Sampling(max_tokens=7, top_k=3, stops=("x",), seed=5)
    player = HFPlayer(llama(VOCABULARY), MARKS, sampling, max_context=100)
    cold = player.at(temperature=0.0)
    assert (cold.model, cold.dialect) == (player.model, player.dialect)
    assert cold.sampling == replace(sampling, temperature=0.0)
    assert (cold.sampling.max_tokens, cold.max_context) == (7, 100)
    assert player.sampling == sampling


def test_the_context_leaves_room_for_a_whole_turn() -> None:
    model = llama(VOCABULARY)
    limit, fifty = model.config.max_position_embeddings, Sampling(max_tokens=50)
    assert HFPlayer(model, MARKS, fifty).max_context == limit - 50
    assert HFPlayer(model, MARKS, fifty, max_context=limit).max_context == limit - 50


SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 0,
}


WINDOWED = {
    "one window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8)),
    "by layer": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SMALL, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        )
    ),
}


@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_window_slides_over_each_row(kind: str, attention: str) -> None:
    """Whatever lies between the rows of a batch, each sees what it would alone."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = WINDOWED[kind]().eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(8)  # so that what is seen tells
    model.set_attn_implementation(attention)
    player = HFPlayer(model, MARKS, Sampling(max_tokens=12))
    rows = conversations()
    expected = [plain(player, row) for row in rows]
    played = play(player, rows, delay=lambda row: row)
    assert [tokens(t) for t in played] == [tokens(t) for t in expected]
    for ours, theirs in zip(chain(*played), chain(*expected), strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def test_recurrent_layers_are_refused() -> None:
    model = Lfm2ForCausalLM(
        Lfm2Config(**SMALL, block_ff_dim=16, layer_types=["conv", "full_attention"])
    )
    with pytest.raises(UnsupportedModelError, match=r"lfm2.*conv.*vLLM") as caught:
        HFPlayer(model, MARKS)
    assert isinstance(caught.value, AgentError)


def test_attention_without_masks_is_refused() -> None:
    model = llama(VOCABULARY)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match=r"'flash_attention_2'.*sdpa or eager"):
        HFPlayer(model, MARKS)


def test_models_without_windows_are_taken() -> None:
    for model in (
        MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)),
        GemmaForCausalLM(GemmaConfig(**SMALL)),
    ):
        player = HFPlayer(model, MARKS)
        longest = player.max_context + player.sampling.max_tokens  # nothing shortens what it sees
        assert longest == model.config.max_position_embeddings


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax(temperature: float) -> None:
    draws, kinds = 20_000, 10
    logits = torch.linspace(-2, 1, kinds).flip(0).roll(3)
    uniforms = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    chosen, logprobs = sample(logits.expand(draws, kinds), Sampling(temperature), uniforms)
    expected = (logits / temperature).softmax(0) * draws
    observed = torch.bincount(chosen, minlength=kinds)
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    assert chi_square < 33.7  # 9 degrees of freedom: 1 in 10,000
    torch.testing.assert_close(logprobs, logits.log_softmax(0)[chosen])


def test_an_impossible_token_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]]).expand(3, 5)
    # Dice in [0, 1) may be rounded to 1.
    tokens, logprobs = sample(logits, Sampling(), torch.tensor([0.0, 0.5, 1.0]))
    assert tokens.tolist() == [1, 3, 3]
    assert logprobs.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_diverged_weights_are_named(temperature: float, value: float) -> None:
    model = llama(VOCABULARY)
    with torch.no_grad():
        model.lm_head.weight[3] = value
    with pytest.raises(AgentError, match=r"not finite.*lower trainer\.args\.learning_rate"):
        play(HFPlayer(model, MARKS, Sampling(temperature)), [Talk((5, 6, 7), (), 0)])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"sampling": Sampling(max_tokens=512)}, "max_turn_tokens=512: .*_embeddings=512"),
        (
            {"sampling": Sampling(max_tokens=8), "max_context": 0},
            "max_context=0: expected at least 1",
        ),
    ],
)
def test_limits_without_room_for_a_turn(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        HFPlayer(llama(VOCABULARY), MARKS, **limits)


def test_a_turn_without_a_token_is_refused() -> None:
    message = "max_turn_tokens=0: expected a whole number, 1 or more"
    with pytest.raises(SettingError, match=message):
        load_student("embedded-student", render="names", max_turn_tokens=0, device="cpu")


def test_models_are_loaded_by_path(tmp_path: Path) -> None:
    model = llama(len(tokenizer()))
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    player = load_student(str(tmp_path), render="names", max_turn_tokens=9, device="cpu")
    assert player.dialect.opening([], []) == chat().opening([], [])
    assert (player.sampling.temperature, player.sampling.max_tokens) == (1.0, 9)
    teacher = load_teacher(str(tmp_path), batch_size=2, device="cpu")
    assert not any(p.requires_grad for p in teacher._model.parameters())
    rows = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    signals = teacher.annotate([row_of(tokens) for tokens in rows], Detail.SAMPLED)
    for signal, tokens in zip(signals, rows, strict=True):
        full = model(torch.tensor([tokens])).logits[0].detach().log_softmax(-1)
        expected = [0.0, *(float(full[i, t]) for i, t in enumerate(tokens[1:]))]
        assert signal.logprobs.tolist() == pytest.approx(expected, abs=1e-5)


# What a student is loaded with


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose turns end by two tokens."""
    folder = tmp_path_factory.mktemp("models") / "two"
    model = llama(len(tokenizer()))
    model.generation_config.eos_token_id = [chat().eos_id, 7]
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_a_student_is_loaded_with_its_sampling(folder: Path) -> None:
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1}
    player = load_student(str(folder), max_turn_tokens=9, stops=["x"], device="cpu", **given)
    assert player.sampling == Sampling(**given, max_tokens=9, stops=("x",))
    for name, value in (("top_p", 0.0), ("stops", [""]), ("stops", "x"), ("stops", None)):
        with pytest.raises(SettingError, match=rf"^{name}="):
            load_student(str(folder), device="cpu", **{name: value})


def test_nobody_need_say_how_long_a_turn_is(folder: Path) -> None:
    """A quarter of the model's context, which leaves three for what is read."""
    player = load_student(str(folder), device="cpu")
    assert (player.sampling.max_tokens, player.max_context) == (128, 384)


def test_tools_are_shown_in_full_where_the_template_does(folder: Path) -> None:
    assert load_student(str(folder), device="cpu").dialect.render == "full"


def test_the_generation_config_says_what_ends_a_turn_too(folder: Path) -> None:
    assert load_student(str(folder), device="cpu").dialect.end_ids == (chat().eos_id, 7)


@pytest.mark.parametrize(
    ("config", "ends"),
    [
        (None, ()),
        (GenerationConfig(), ()),
        (GenerationConfig(eos_token_id=3), (3,)),
        (GenerationConfig(eos_token_id=[3, 5]), (3, 5)),
    ],
)
def test_end_tokens_of_a_generation_config(
    config: GenerationConfig | None, ends: tuple[int, ...]
) -> None:
    assert end_ids(config) == ends


# What ends a turn


def test_any_end_token_ends_a_turn(model: PreTrainedModel) -> None:
    """By the student's choice: it is counted and trained, and no other end is put behind it."""
    several = cast(Dialect, SimpleNamespace(eos_id=EOS, end_ids=(EOS, 5, 9)))
    turns = [*chain(*play(HFPlayer(model, several, Sampling(max_tokens=40)), conversations()))]
    assert {t.tokens[-1] for t in turns if not t.truncated} == {EOS, 5, 9}
    for turn in turns:
        assert not {EOS, 5, 9}.intersection(turn.tokens[:-1])
        assert (turn.logprobs[-1] == 0) == turn.truncated
        assert turn.tokens[-1] == EOS or not turn.truncated


def spelt(*pieces: str) -> Dialect:
    """Of a model whose tokens are these texts; the first ends turns."""

    def decode(ids: Sequence[int]) -> str:
        return "".join(pieces[i] for i in ids)

    return cast(Dialect, SimpleNamespace(eos_id=EOS, end_ids=(EOS,), decode=decode))


LETTERS = spelt("", *"abcdefghijklmnopqrstuv")


PAIRS = tuple(map("".join, product("abcdef", "ghijkl")))


@pytest.mark.parametrize("stops", [("e",), ("q", "e"), PAIRS, ("never there",)])
def test_stops_end_a_turn_and_stay_in_it(model: PreTrainedModel, stops: tuple[str, ...]) -> None:
    """The same tokens as without them, up to the first text; its end is forced, so not trained."""
    player = HFPlayer(model, LETTERS, Sampling(max_tokens=60))
    rows = [Talk((5, 6, 7), (), seed) for seed in range(40)]
    stopped = 0
    for (free,), (turn,) in zip(
        play(player, rows), play(player.at(stops=stops), rows), strict=True
    ):
        text = LETTERS.decode(free.tokens)
        places = [text.index(stop) + len(stop) for stop in stops if stop in text]
        if not places:
            assert tokens([turn]) == tokens([free])
            continue
        stopped += 1
        kept = min(places)  # a token a letter
        assert turn.tokens == (*free.tokens[:kept], EOS)
        assert turn.logprobs[:-1] == pytest.approx(free.logprobs[:kept], abs=1e-4)
        assert (turn.truncated, turn.logprobs[-1]) == (True, 0.0)
    assert (stopped > 0) == (stops != ("never there",))


def test_a_stop_may_lie_across_tokens() -> None:
    """Also where the last of its tokens says more than it."""
    pieces = spelt("", *["xy"] * (VOCABULARY - 1))
    (turn,) = play(
        HFPlayer(llama(VOCABULARY), pieces, Sampling(stops=("yxyx",))), [Talk((5, 6), (), 0)]
    )[0]
    assert (len(turn.tokens), turn.truncated) == (4, True)


# Dice


def test_the_seed_of_the_sampling_gives_other_dice(model: PreTrainedModel) -> None:
    rows = [Talk((5, 6, 7), (), seed) for seed in range(6)]
    player = endless(model, 12)

    def played(seed: int) -> list[list[tuple[tuple[int, ...], bool]]]:
        return [tokens(turns) for turns in play(player.at(seed=seed), rows)]

    assert played(0) == [tokens(turns) for turns in play(player, rows)]
    assert played(1) == played(1)
    every = [str(row) for seed in range(4) for row in played(seed)]
    assert len(set(every)) == len(every)  # nor is one row's dice another's


def reference(logits: list[float], sampling: Sampling) -> list[Fraction]:
    """The distribution, in exact arithmetic on the softmax that torch finds."""
    chances = torch.tensor(logits).div(sampling.temperature).softmax(0).tolist()
    exact = [Fraction(p) for p in chances]
    order = sorted(range(len(exact)), key=lambda i: -exact[i])  # stable: ties keep their order
    if sampling.top_k:
        order = order[: sampling.top_k]
    mass, before, nucleus = sum(exact[i] for i in order), Fraction(0), []
    for i in order:
        if nucleus and before >= Fraction(sampling.top_p) * mass:
            break
        nucleus.append(i)
        before += exact[i]
    least = Fraction(sampling.min_p) * exact[nucleus[0]]
    kept = {i for i in nucleus if exact[i] >= least}
    total = sum(exact[i] for i in kept)
    return [exact[i] / total if i in kept else Fraction(0) for i in range(len(exact))]


def drawn(logits: list[float], sampling: Sampling, draws: int) -> list[float]:
    """Shares of draws by evenly spaced dice, the last of them at the very end."""
    uniforms = torch.linspace(0, 1 - 2**-24, draws)
    chosen, logprobs = sample(torch.tensor(logits).expand(draws, -1), sampling, uniforms)
    full = torch.tensor(logits).log_softmax(0)  # whatever is cut off
    torch.testing.assert_close(logprobs, full[chosen])
    return (torch.bincount(chosen, minlength=len(logits)) / draws).tolist()


CUTS = [
    Sampling(top_k=1),
    Sampling(top_k=3),
    Sampling(top_k=99),
    Sampling(top_p=0.5),
    Sampling(top_p=0.9),
    Sampling(top_p=1e-6),
    Sampling(min_p=0.2),
    Sampling(min_p=1.0),
    Sampling(0.5, top_p=0.8),
    Sampling(2.0, top_p=0.8, top_k=5),
    Sampling(1.5, top_k=6, top_p=0.7, min_p=0.3),
]


@pytest.mark.parametrize("sampling", CUTS, ids=str)
def test_cut_off_samples_are_those_of_the_reference(sampling: Sampling) -> None:
    rng, draws = random.Random(4), 4096
    for _ in range(20):
        logits = [rng.gauss(0, 2) for _ in range(12)]
        expected = reference(logits, sampling)
        shares = drawn(logits, sampling, draws)
        assert shares == pytest.approx([float(p) for p in expected], abs=2 / draws)
        assert all(share == 0 for share, p in zip(shares, expected, strict=True) if not p)


# Halves, quarters and eighths are exact in the logarithm's softmax as well.
EXACT = [math.log(p) for p in (0.125, 0.5, 0.25, 0.125)]


@pytest.mark.parametrize(
    ("logits", "sampling", "kept"),
    [
        (EXACT, Sampling(top_p=0.5), {1}),  # the share is reached, not passed
        (EXACT, Sampling(top_p=0.500001), {1, 2}),
        (EXACT, Sampling(top_p=0.75), {1, 2}),
        (EXACT, Sampling(top_p=0.876), {0, 1, 2, 3}),
        (EXACT, Sampling(top_k=3), {0, 1, 2}),  # of equals, the first
        (EXACT, Sampling(min_p=0.5), {1, 2}),
        (EXACT, Sampling(min_p=0.25), {0, 1, 2, 3}),
        (EXACT, Sampling(top_k=2, top_p=0.7), {1, 2}),  # 2/3 of what is left
        (EXACT, Sampling(top_k=2, top_p=0.6), {1}),
        ([0.0] * 4, Sampling(top_p=0.3), {0, 1}),
        ([0.0] * 4, Sampling(min_p=1.0), {0, 1, 2, 3}),
        # Some share is so small that a float32 has none: the first token stays.
        (EXACT, Sampling(top_p=1e-50), {1}),
        (EXACT, Sampling(top_p=1 - 1e-12), {0, 1, 2, 3}),
        # Next to one token the others are nothing, but they are possible.
        ([0.0, 90.0, -200.0], Sampling(top_k=2), {1}),
        ([0.0, 90.0, -200.0], Sampling(top_p=0.99), {1}),
        ([-math.inf, 0.0, -math.inf, 0.0], Sampling(top_k=3), {1, 3}),
        ([-math.inf, 0.0, -math.inf, 0.0], Sampling(top_p=0.99, min_p=0.0), {1, 3}),
    ],
)
def test_edges_of_what_is_cut_off(logits: list[float], sampling: Sampling, kept: set[int]) -> None:
    shares = drawn(logits, sampling, 1024)
    assert {i for i, share in enumerate(shares) if share} == kept


@pytest.mark.parametrize("sampling", [Sampling(), *CUTS], ids=str)
def test_dice_at_their_ends_draw_what_is_kept(sampling: Sampling) -> None:
    """In a vocabulary whose probabilities do not add up to 1 in float32."""
    logits = torch.randn(1, 50_000, generator=torch.Generator().manual_seed(1)) * 3
    kept = _truncated((logits / sampling.temperature).softmax(-1), sampling)[0] > 0
    uniforms = torch.tensor([0.0, 1e-30, 1 - 2**-24, 1.0])
    chosen, logprobs = sample(logits.expand(4, -1), sampling, uniforms)
    assert kept[chosen].all()
    assert logprobs.isfinite().all()


@pytest.mark.parametrize("temperature", [1e-4, 1e-7, 1e-30, 1e-40, 1e-320])
def test_almost_no_temperature_is_none(temperature: float) -> None:
    """Dividing by it may be beyond a float32."""
    logits = torch.tensor([[3.0, -40.0, 25.0, 24.0, 1.0]]).expand(3, 5)
    uniforms = torch.tensor([0.0, 0.5, 1 - 2**-24])
    for sampling in (Sampling(temperature), Sampling(temperature, top_p=0.9)):
        assert sample(logits, sampling, uniforms)[0].tolist() == [2, 2, 2]


def test_a_cold_student_takes_the_first_token_whatever_is_cut_off(model: PreTrainedModel) -> None:
    rows = conversations()
    cold = HFPlayer(model, MARKS, Sampling(0.0, max_tokens=12))
    other = cold.at(top_k=5, top_p=0.3, min_p=0.1, seed=9)
    assert [tokens(t) for t in play(other, rows)] == [tokens(t) for t in play(cold, rows)]


# Ranges


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", -0.1, "a number, 0 or more"),
        ("temperature", math.inf, "a number, 0 or more"),
        ("temperature", math.nan, "a number"),
        ("temperature", "1", "a number"),
        ("temperature", True, "a number"),
        ("temperature", None, "a number"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.01, "above 0 and at most 1"),
        ("top_p", math.nan, "a number"),
        ("min_p", -0.01, "0 to 1"),
        ("min_p", 1.5, "0 to 1"),
        ("top_k", -1, "a whole number, 0 or more"),
        ("top_k", 2.0, "a whole number, 0 or more"),
        ("max_tokens", 0, "a whole number, 1 or more"),
        ("max_tokens", None, "a whole number, 1 or more"),
        ("max_tokens", True, "a whole number, 1 or more"),
        ("seed", -1, "a whole number, 0 or more"),
        ("stops", ["a", ""], "a list of texts, none empty"),
        ("stops", [1], "a list of texts, none empty"),
        ("stops", "END", "a list of texts, none empty"),  # else each letter would end a turn
        ("stops", None, "a list of texts, none empty"),
    ],
)
def test_sampling_out_of_its_range(name: str, value: Any, expected: str) -> None:
    shown = repr(value) if name == "stops" else value
    with pytest.raises(SettingError) as caught:
        Sampling(**{name: value})
    assert str(caught.value) == f"{name}={shown}: expected {expected}"
    assert isinstance(caught.value, AgentError)
    assert isinstance(caught.value, ValueError)


def test_sampling_at_the_ends_of_its_ranges() -> None:
    assert not Sampling(0, top_p=1, top_k=0, min_p=0, max_tokens=1).truncated
    assert all(it.truncated for it in CUTS)
    assert Sampling(stops=["a"]) == Sampling(stops=("a",))  # as YAML gives them
    assert hash(Sampling(stops=["a"])) == hash(Sampling(stops=("a",)))
