"""What travels of a trained model: an adapter alone, or all weights."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from journeyman.agents.errors import SettingError, UnsupportedModelError
from journeyman.agents.students.weights import (
    WEIGHTS,
    Adapter,
    begun_rank,
    fingerprint,
    lora_rank,
    rank_at,
    save_weights,
    to_train,
)

from .tiny import llama

peft = pytest.importorskip("peft")

TARGETS = ["q_proj", "v_proj"]


def lora(model: Any, **fields: Any) -> Any:
    """A model with an adapter that adds something."""
    config = peft.LoraConfig(**{"r": 4, "target_modules": TARGETS, **fields})
    found = peft.get_peft_model(model, config)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for name, weight in found.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.1)
    return found


def test_an_adapter_is_found_from_outside_and_from_inside() -> None:
    """PEFT's wrapper, and the model that it has put layers into; their names are the same."""
    inside = llama(64)
    outside = lora(inside)
    ours, theirs = Adapter.of(outside), Adapter.of(inside)
    assert ours is not None and theirs is not None
    assert ours.tensors.keys() == theirs.tensors.keys()
    layers = inside.config.num_hidden_layers
    assert len(ours.tensors) == layers * len(TARGETS) * 2  # A and B of each
    assert all(name.startswith("base_model.model.model.layers.") for name in ours.tensors)
    assert Adapter.of(llama(64)) is None


def test_what_is_written_is_what_peft_reads(tmp_path: Path) -> None:
    base = llama(64)
    model = lora(copy.deepcopy(base), lora_alpha=3)
    adapter = Adapter.of(model)
    assert adapter is not None and adapter.rank == 4
    written = adapter.save(tmp_path)
    assert written == sum(it.numel() * 4 for n, it in model.named_parameters() if "lora_" in n)
    again = peft.PeftModel.from_pretrained(base, str(tmp_path))
    ids = torch.arange(12)[None]
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    assert rank_at(str(tmp_path)) == 4


def test_a_rank_may_differ_by_layer() -> None:
    adapter = Adapter.of(lora(llama(64), rank_pattern={"v_proj": 9}))
    assert adapter is not None and adapter.rank == 9


def test_ranks_of_vllm() -> None:
    assert [lora_rank(it) for it in (1, 2, 8, 9, 33, 512, 600)] == [1, 8, 8, 16, 64, 512, 600]


def test_what_vllm_does_not_play_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"the student's is DoRA: train LoRA"):
        Adapter.of(lora(llama(64), use_dora=True))
    other = peft.get_peft_model(
        llama(64), peft.IA3Config(target_modules=TARGETS, feedforward_modules=[])
    )
    with pytest.raises(UnsupportedModelError, match=r"the student's is IA3"):
        Adapter.of(other)
    several = lora(llama(64))
    several.add_adapter("second", peft.LoraConfig(r=2, target_modules=TARGETS))
    several.base_model.set_adapter(["default", "second"])
    with pytest.raises(UnsupportedModelError, match=r"has 2 at work \(default, second\)"):
        Adapter.of(several)


def test_a_folder_tells_its_adapters_rank(tmp_path: Path) -> None:
    assert rank_at(str(tmp_path)) is None and rank_at("org/name") is None
    config = {"peft_type": "LORA", "base_model_name_or_path": "embedded-student", "r": 3}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert rank_at(str(tmp_path)) == 3


def test_an_adapter_is_begun_or_goes_on(tmp_path: Path) -> None:
    base, place = tmp_path / "base", tmp_path / "adapter"
    llama(64).save_pretrained(base)
    begun = to_train(str(base), {"r": 3, "target_modules": TARGETS})
    trained = [name for name, it in begun.named_parameters() if it.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    begun.save_pretrained(place)
    assert rank_at(str(place)) == 3
    again = to_train(str(place), None)
    assert [name for name, it in again.named_parameters() if it.requires_grad] == trained
    whole = to_train(str(base), None)
    assert all(it.requires_grad for it in whole.parameters())
    with pytest.raises(SettingError, match=r"leave student\.lora out"):
        to_train(str(place), {"r": 3})


def test_ranks_of_adapters_that_are_begun() -> None:
    assert [begun_rank(it) for it in (None, False, True, {}, {"r": 5})] == [None, None, 16, 16, 5]
    for wrong in ("4", 0, True, 2.0):
        with pytest.raises(SettingError, match=rf"student\.lora\.r={wrong}: expected a whole"):
            begun_rank({"r": wrong})


def test_all_weights_are_written_once(tmp_path: Path) -> None:
    model = llama(64)
    model.lm_head.weight = model.model.embed_tokens.weight  # tied
    named = dict(model.named_parameters())
    assert save_weights(named, tmp_path) == sum(it.numel() * 4 for it in named.values())
    found = load_file(tmp_path / WEIGHTS)
    assert found.keys() == named.keys() and "lm_head.weight" not in found
    assert all(torch.equal(found[name], named[name]) for name in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_fingerprint_tells_the_least_change(dtype: torch.dtype) -> None:
    weights = {"a": torch.ones(3, 4, dtype=dtype), "b": torch.zeros(5, dtype=dtype)}
    before = fingerprint(weights)
    assert fingerprint({name: it.clone() for name, it in weights.items()}) == before
    one = weights["a"]
    one.data[1, 2] = torch.nextafter(one[1, 2], one[1, 2] + 1)  # as some optimisers write
    changed = fingerprint(weights)
    assert changed != before and changed[1] == before[1]
