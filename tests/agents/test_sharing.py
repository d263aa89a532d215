"""Rows that are laid out as a trie have the states and gradients of rows read one by one."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from journeyman.agents.networks import sharing
from journeyman.agents.networks.ancestry import Ancestry, AncestryMask
from journeyman.agents.networks.heads import backbone
from journeyman.agents.networks.sharing import plan, states_at
from journeyman.agents.networks.tries import Distinct, Layout, shared_lengths
from journeyman.agents.teachers import Detail
from journeyman.agents.teachers.local import LocalTeacher

from .tiny import gpt2, llama, row_of, token_logprobs, tokenizer

VOCABULARY = 40
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
Rows = list[tuple[int, ...]]


def make(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return exact(AutoModelForCausalLM.from_config(config, **options).eval())


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """In float64, with norms that compute in it: transformers' own round to float32 inside."""
    for module in list(model.modules()):
        for name, norm in module.named_children():
            if type(norm).__name__.endswith("RMSNorm"):
                setattr(module, name, torch.nn.RMSNorm(norm.weight.shape, eps=1e-6))
    return model.double()


def tree(seed: int, count: int = 9) -> tuple[Rows, list[list[int]]]:
    """Rows that go on from inside one another, and places of each; some have none."""
    rng = random.Random(seed)
    rows: Rows = [tuple(rng.randrange(2, VOCABULARY) for _ in range(12))]
    for _ in range(count - 1):
        before = rng.choice(rows)
        kept = before[: rng.randint(0, len(before))]
        rows.append(kept + tuple(rng.randrange(2, VOCABULARY) for _ in range(rng.randint(1, 9))))
    rows += [rows[0], rows[1][:4]]  # one twice, and the beginning of one
    rng.shuffle(rows)
    places = [sorted(rng.sample(range(len(row)), rng.randint(0, len(row)))) for row in rows]
    return rows, places


def one_by_one(model: PreTrainedModel, rows: Rows, places: Sequence[Sequence[int]]) -> Tensor:
    bare = backbone(model)
    found = [
        bare(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0, list(own)]
        for row, own in zip(rows, places, strict=True)
        if own
    ]
    return torch.cat(found)


def gradients(model: PreTrainedModel, states: Tensor) -> dict[str, Tensor]:
    """Of a function in which each state has a part of its own."""
    weights = torch.randn(
        states.shape, dtype=states.dtype, generator=torch.Generator().manual_seed(0)
    )
    model.zero_grad()
    (states * weights).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are laid out whatever it costs, if it can be done."""
    monkeypatch.setattr(sharing, "_cost", lambda _model, _rows, groups: groups[0][1] is None)


def assert_same(model: PreTrainedModel, rows: Rows, places: list[list[int]]) -> None:
    read = [row[: own[-1] + 1] for row, own in zip(rows, places, strict=True) if own]
    assert any(layout for _, layout in plan(model, read))
    expected = one_by_one(model, rows, places)
    wanted = gradients(model, expected)
    found = states_at(model, rows, places)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    ours = gradients(model, found)
    assert ours.keys() == wanted.keys() and any(it.abs().max() > 0.1 for it in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-8, rtol=0, msg=name)


WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
SHARED: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: exact(gpt2(VOCABULARY, width=16)),
    "llama": lambda: exact(llama(VOCABULARY, width=16)),
    "qwen2, windows": lambda: make(Qwen2Config(**SMALL, **WINDOWS, use_sliding_window=True)),
    "gemma3, windows": lambda: make(Gemma3TextConfig(**SMALL, **WINDOWS)),
    "mistral": lambda: make(MistralConfig(**SMALL, sliding_window=64)),
}
APART: dict[str, Callable[[], PreTrainedModel]] = {
    "mistral, a window of all layers": lambda: make(MistralConfig(**SMALL, sliding_window=5)),
    "eager": lambda: make(LlamaConfig(**SMALL), attn_implementation="eager"),
    "convolutions": lambda: make(Lfm2Config(**SMALL, layer_types=["conv", "full_attention"])),
    "positions that are counted": lambda: make(
        BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=4)
    ),
    "no attention": lambda: make(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4)
    ),
}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("seed", range(3))
def test_states_and_gradients_are_those_of_rows_alone(always: None, name: str, seed: int) -> None:
    assert_same(SHARED[name](), *tree(seed))


@pytest.mark.parametrize("name", APART)
def test_what_cannot_be_laid_out_is_read_side_by_side(always: None, name: str) -> None:
    model = APART[name]()
    rows, places = tree(0)
    read = [row[: own[-1] + 1] for row, own in zip(rows, places, strict=True) if own]
    assert all(layout is None for _, layout in plan(model, read))
    expected = one_by_one(model, rows, places)
    # Some of these compute in float32 inside.
    torch.testing.assert_close(states_at(model, rows, places), expected, atol=1e-5, rtol=1e-5)


def test_adapters_and_checkpointing(always: None) -> None:
    """Adapters alone have gradients, and layers are passed through again for them."""
    adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model: Any = get_peft_model(exact(llama(VOCABULARY, width=16)), adapters)
    model = model.double()
    rows, places = tree(1)
    wanted = gradients(model, one_by_one(model, rows, places))
    assert wanted and all("lora" in name for name in wanted)
    model.train()
    states_at(model, rows, places)  # the model is tried, in evaluation
    assert all(it.training for it in model.modules())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    passes: list[int] = []
    first = backbone(model).layers[0].self_attn
    with first.register_forward_pre_hook(lambda *_: passes.append(1)):
        ours = gradients(model, states_at(model, rows, places))
    assert len(passes) == 2
    for name, gradient in wanted.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-8, rtol=0, msg=name)


def test_a_model_is_tried_in_its_own_type(always: None) -> None:
    """And not in that of the passes around, whose rounding is larger than what is told apart."""
    model = llama(VOCABULARY, width=16)
    rows, places = tree(1)
    types: list[torch.dtype] = []
    mlp = backbone(model).layers[0].mlp
    with (
        mlp.register_forward_hook(lambda *passed: types.append(passed[-1].dtype)),
        torch.autocast("cpu", torch.bfloat16),
    ):
        states_at(model, rows, places)
    assert types == [torch.float32, torch.float32, torch.bfloat16]


def test_each_token_is_read_once(always: None) -> None:
    model = exact(gpt2(VOCABULARY, width=16))
    rows, places = tree(2, count=20)
    read = [row[: own[-1] + 1] for row, own in zip(rows, places, strict=True) if own]
    prefixes = {row[: end + 1] for row in read for end in range(len(row))}
    states_at(model, rows, places)  # the model is tried
    passed: list[int] = []

    def count(module: Any, given: Any, named: dict[str, Any]) -> None:
        passed.append(named["input_ids"].numel())

    with backbone(model).register_forward_pre_hook(count, with_kwargs=True):
        states_at(model, rows, places)
        assert passed == [len(prefixes)]
        assert len(prefixes) < sum(map(len, read)) / 1.3
        passed.clear()
        states_at(model, rows, places, most=4)
    assert len(passed) == -(-len(read) // 4)


def test_places_of_no_row(always: None) -> None:
    """Nothing is asked for: no states, that still hang on the weights."""
    model = exact(gpt2(VOCABULARY, width=16))
    for rows in ([(3, 4)], [()], [(), (5,)]):
        states = states_at(model, rows, [()] * len(rows))
        assert states.shape == (0, 16)
        model.zero_grad()
        states.sum().backward()
        assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_what_is_less_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """By count: what rows share weighs more than the start of a branch, and padding too."""
    model = llama(VOCABULARY, width=16)
    common = tuple(range(2, 32)) * 4
    alike = [(*common, i, i) for i in range(6)]
    (group, layout), *rest = plan(model, alike)
    assert layout is not None and not rest and len(layout.tokens) == len(common) + 12
    assert sorted(group) == list(range(6))
    others = [(i, 3, i) for i in range(6)]  # of one length, with nothing in common
    assert all(layout is None for _, layout in plan(model, others))
    # Elsewhere a branch waits for kernels to begin, while little is read in parallel anyway.
    monkeypatch.setattr(sharing, "_can_share", lambda *_: True)
    elsewhere: Any = model.to("meta")
    assert all(layout is None for _, layout in plan(elsewhere, alike))


def test_a_layout_by_hand() -> None:
    rows = [(5, 6), (5, 6, 7, 8), (5, 6, 7, 9), (5, 9), (7,), (7,)]
    layout = Layout.of(rows)
    assert shared_lengths(rows) == [2, 3, 1, 0, 1]
    assert layout.tokens == (5, 6, 7, 8, 9, 9, 7)
    assert layout.depths.tolist() == [0, 1, 2, 3, 3, 1, 0]
    expected = [[0, 1], [0, 1, 2, 3], [0, 1, 2, 4], [0, 5], [6], [6]]
    assert [path.tolist() for path in layout.paths] == expected
    mask = AncestryMask.of(Ancestry(layout, torch.device("cpu")))
    assert mask.shape == (1, 1, 7, 7) and mask.ndim == 4 and mask.dtype == torch.bool
    assert (mask[0, 0] + 0).tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]
    near = AncestryMask.of(Ancestry(layout, torch.device("cpu"), lambda own, past: past >= own - 1))
    assert (near[0, 0].nonzero()[:, 1]).tolist() == [0, 0, 1, 1, 2, 2, 3, 2, 4, 0, 5, 6]


@pytest.mark.parametrize("seed", range(3))
def test_attention_is_that_of_the_table(seed: int) -> None:
    """Torch's own, with the mask written out."""
    rows, _ = tree(seed)
    layout = Layout.of(sorted(rows))
    size = len(layout.tokens)
    noise = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 1, 2, size, 4, generator=noise).double()
    mask = AncestryMask.of(Ancestry(layout, torch.device("cpu")))
    table = mask.ancestry.dense()
    given = [it.clone().requires_grad_() for it in (query, key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(*given, attn_mask=table)
    wanted = torch.autograd.grad((expected * query).sum(), given)
    found = torch.nn.functional.scaled_dot_product_attention(*given, attn_mask=mask)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    for ours, theirs in zip(torch.autograd.grad((found * query).sum(), given), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_a_teacher_says_the_same_of_rows_that_it_reads_as_one(
    always: None, batch_size: int
) -> None:
    model = llama(tokenizer().vocab_size)
    rows, _ = tree(5)
    episodes = [row_of(row, [i > 2 for i in range(len(row))]) for row in rows]
    signals = LocalTeacher(model, tokenizer(), batch_size).annotate(episodes, Detail.TOP_K)
    for episode, signal, expected in zip(
        episodes, signals, token_logprobs(model, rows), strict=True
    ):
        chosen = torch.tensor(episode.mask)
        torch.testing.assert_close(signal.logprobs, expected * chosen, atol=2e-5, rtol=0)
        assert signal.top is not None and len(signal.top.ids) == chosen.sum()


@pytest.mark.parametrize("seed", range(20))
def test_beginnings_that_are_equal_are_known_by_one_of_them(seed: int) -> None:
    rows, ends = tree(seed)
    beginnings = [row[:end] for row, own in zip(rows, ends, strict=True) for end in own]
    found = Distinct.of(rows, ends)
    named = [beginnings[i] for i in found.kept]
    assert len(set(named)) == len(named) < len(beginnings)
    assert [named[i] for i in found.back] == beginnings


def test_what_differs_beside_equal_beginnings_stands_apart() -> None:
    found = Distinct.of([(1, 2, 3), (1, 2, 4), (1, 2, 5)], [[1, 2], [2, 3], [2]])
    assert found.kept.tolist() == [0, 1, 3] and found.back.tolist() == [0, 1, 1, 2, 1]
    beside = torch.tensor([[0.0, 0.0], [0.0, 5.0], [0.0, 6.0], [7.0, 7.0], [0.0, 5.0]])
    some = found.where(torch.arange(5) // 2, beside)
    assert torch.equal(some.each(some.once(beside)), beside)
    assert sorted(some.kept.tolist()) == [0, 1, 2, 3, 4]  # by the first, the last is another
    assert len(found.where(beside).kept) == 4
    assert found.where(torch.tensor([3, 1, 1, 2, 1])) is found


def test_nothing_is_cut_into_nothing() -> None:
    found = Distinct.of([(1, 2)], [[]])
    assert len(found.kept) == len(found.back) == 0
    assert len(Distinct.of([], []).kept) == 0
