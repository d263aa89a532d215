"""What is read of the student's network, against plain forward passes of one episode."""

import copy
import random
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from journeyman.agents.errors import UnsupportedModelError
from journeyman.agents.networks.reading import Layers, step_attention, step_states
from journeyman.agents.teachers import Detail
from journeyman.agents.teachers.local import LocalTeacher
from journeyman.envs import Episode

from .tiny import broken, episode, gpt2, llama, tokenizer

VOCABULARY = 40
MODELS = pytest.mark.parametrize("make", [gpt2, llama])


def ragged() -> list[Episode]:
    """More than go through a model at once, some without steps."""
    rng = random.Random(7)
    return [
        *(episode(rng, VOCABULARY, turns=1 + i % 5) for i in range(20)),
        broken(),
        broken(False),
    ]


@MODELS
def test_states_are_those_of_the_past_alone(make: Callable[[int], PreTrainedModel]) -> None:
    model, played = make(VOCABULARY), ragged()
    found = step_states(model, played)
    assert len(found) == len(played)
    for states, e in zip(found, played, strict=True):
        assert states.shape == (len(e.steps), 32)
        assert states.dtype == torch.float32
        assert not states.requires_grad
        for state, step in zip(states, e.steps, strict=True):
            past = torch.tensor([e.tokens[: step.span[0]]])
            alone = model(past, output_hidden_states=True).hidden_states[-1][0, -1]
            torch.testing.assert_close(state, alone.detach(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def by_hand(model: PreTrainedModel, played: Episode, layers: Layers) -> list[float]:
    """Of one pass with all weights of all layers, added up token by token."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    attentions = plain(torch.tensor([played.tokens]), output_attentions=True).attentions
    used = attentions if layers == "all" else attentions[-1:]
    asking = range(*played.steps[-1].span)
    heads = range(used[0].shape[1])
    shares = []
    for step in played.steps:
        paid = [
            float(weights[0, head, token, other])
            for weights in used
            for head in heads
            for token in asking
            for other in range(*step.span)
        ]
        shares.append(sum(paid) / (len(used) * len(heads) * len(asking)))
    return shares


@MODELS
@pytest.mark.parametrize("layers", ["last", "all"])
def test_attention_to_steps(make: Callable[[int], PreTrainedModel], layers: Layers) -> None:
    model = make(VOCABULARY)
    rng = random.Random(3)
    for turns in (1, 2, 4):
        played = episode(rng, VOCABULARY, turns=turns)
        found = step_attention(model, played, layers)
        assert found.tolist() == pytest.approx(by_hand(model, played, layers), rel=1e-4)
        assert not found.requires_grad


def test_a_model_that_attends_to_all_alike() -> None:
    """Without queries, token t gives 1 / (t + 1) to each token up to itself."""
    model = llama(VOCABULARY)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.q_proj.weight)
    played = episode(random.Random(5), VOCABULARY, turns=3)
    asking = range(*played.steps[-1].span)
    expected = [
        sum(max(0, min(end, t + 1) - start) / (t + 1) for t in asking) / len(asking)
        for start, end in (step.span for step in played.steps)
    ]
    assert step_attention(model, played).tolist() == pytest.approx(expected)


@MODELS
def test_reading_leaves_the_model_as_it_was(make: Callable[[int], PreTrainedModel]) -> None:
    model, played = make(VOCABULARY), episode(random.Random(1), VOCABULARY)
    ids = torch.tensor([played.tokens])
    assert model.config._attn_implementation == "sdpa"

    def logits() -> Tensor:
        found: Tensor = model(ids).logits
        return found

    before = logits()
    step_attention(model, played)
    step_states(model, [played])
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(logits(), before)


@MODELS
def test_reading_forms_no_logits(
    make: Callable[[int], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, played = make(VOCABULARY), episode(random.Random(1), VOCABULARY)

    def fail(hidden: Tensor) -> Tensor:
        raise AssertionError("they can be gigabytes")

    monkeypatch.setattr(model.get_output_embeddings(), "forward", fail)
    step_attention(model, played)
    step_states(model, [played])


def judged(model: PreTrainedModel, played: Episode) -> Tensor:
    """What it says as a teacher."""
    (signal,) = LocalTeacher(model, tokenizer()).annotate([played], Detail.SAMPLED)
    return signal.logprobs


def test_a_model_with_adapters_is_read_too() -> None:
    model, played = llama(VOCABULARY), episode(random.Random(1), VOCABULARY)
    expected = (*step_states(model, [played]), step_attention(model, played))
    expected += (judged(model, played),)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))  # at first they add 0
    found = (*step_states(adapted, [played]), step_attention(adapted, played))
    found += (judged(adapted, played),)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_model_without_attention_says_so() -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(UnsupportedModelError, match="MambaForCausalLM gives no attention weights"):
        step_attention(MambaForCausalLM(config).eval(), episode(random.Random(1), VOCABULARY))
