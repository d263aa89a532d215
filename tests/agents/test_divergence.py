from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig

from journeyman.agents.learning.losses import divergence
from journeyman.agents.learning.losses.divergence import Comparison, compare
from journeyman.agents.learning.losses.functions import generalised_jsd
from journeyman.agents.networks.heads import Head, backbone

TOKENS, VOCABULARY = 37, 211
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.6},
    "cap": {"cap": 4.0},
    "bias, scale and cap": {"bias": True, "scale": 1.7, "cap": 5.0},
}


def make_head(width: int, seed: int, bias: bool = False, **kwargs: Any) -> Head:
    noise = torch.Generator().manual_seed(seed)
    projection = nn.Linear(width, VOCABULARY, bias=bias)
    with torch.no_grad():
        for parameter in projection.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=noise))
    return Head(projection, **kwargs)


def states(width: int, seed: int) -> Tensor:
    return torch.randn(TOKENS, width, generator=torch.Generator().manual_seed(seed))


TARGETS = torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(9))
FACTORS = torch.rand(2, TOKENS, generator=torch.Generator().manual_seed(8))


def gradients(found: Comparison, hidden: Tensor, head: Head) -> tuple[Tensor, ...]:
    """Of unequal amounts of each token's divergence and log-probability."""
    assert found.logprobs is not None
    loss = (found.divergence * FACTORS[0]).sum() + (found.logprobs * FACTORS[1]).sum()
    return torch.autograd.grad(loss, (hidden, *head.projection.parameters()))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_dense_and_tiled_are_the_reference(
    beta: float, kind: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, teacher_head = make_head(16, 0, **HEADS[kind]), make_head(24, 1, **HEADS[kind])
    hidden, teacher = states(16, 2).requires_grad_(), states(24, 3)
    arguments = (hidden, head, teacher, teacher_head, beta, temperature, TARGETS)

    logits, teacher_logits = head.logits(hidden), teacher_head.logits(teacher).detach()
    warm = (logits / temperature).log_softmax(-1)
    expected = Comparison(
        generalised_jsd(logits / temperature, teacher_logits / temperature, beta),
        -(warm.exp() * warm).sum(-1).detach(),
        logits.log_softmax(-1)[torch.arange(TOKENS), TARGETS],
    )
    slopes = gradients(expected, hidden, head)
    for limit in (divergence.DENSE_LIMIT, 0):  # dense, tiled
        monkeypatch.setattr(divergence, "DENSE_LIMIT", limit)
        found = compare(*arguments)
        torch.testing.assert_close(found.divergence, expected.divergence, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.entropy, expected.entropy, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-5, rtol=1e-5)
        assert not found.entropy.requires_grad
        for ours, theirs in zip(gradients(found, hidden, head), slopes, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
        assert all(p.grad is None for p in teacher_head.projection.parameters())


def test_large_products_are_tiled_and_float64_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "DENSE_LIMIT", TOKENS * VOCABULARY - 1)
    tiled = []

    def record(*arguments: Any) -> Any:
        tiled.append(arguments)
        return original(*arguments)

    original = divergence._tiled
    monkeypatch.setattr(divergence, "_tiled", record)
    head, teacher_head = make_head(16, 0), make_head(24, 1)
    compare(states(16, 2)[1:], head, states(24, 3)[1:], teacher_head, 1.0)
    assert not tiled
    compare(states(16, 2), head, states(24, 3), teacher_head, 1.0)
    assert len(tiled) == 1
    head.projection.double()
    teacher_head.projection.double()
    found = compare(states(16, 2).double(), head, states(24, 3).double(), teacher_head, 1.0)
    assert len(tiled) == 1
    assert found.divergence.dtype == torch.float64


@pytest.mark.parametrize("mixed", [False, True], ids=["both", "the teacher alone"])
def test_models_in_bfloat16_are_compared_in_float32(mixed: bool) -> None:
    """Of two that nearly agree; on logits in bfloat16 the error is twice the divergence."""
    vocabulary, width = 4096, 64
    noise = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, width, generator=noise).bfloat16().float()
    weight = (0.6 * torch.randn(vocabulary, width, generator=noise)).bfloat16().float()
    other = (weight + 0.01 * torch.randn(weight.shape, generator=noise)).bfloat16().float()

    def found(ours: torch.dtype, theirs: torch.dtype, autocast: bool = False) -> Tensor:
        heads = []
        for values, dtype in ((weight, ours), (other, theirs)):
            projection = nn.Linear(width, vocabulary, bias=False, dtype=dtype)
            with torch.no_grad():
                projection.weight.copy_(values)
            heads.append(Head(projection))
        with torch.autocast("cpu", enabled=autocast), torch.no_grad():
            return compare(hidden.to(ours), heads[0], hidden.to(theirs), heads[1], 1.0).divergence

    exact = found(torch.float64, torch.float64).float()
    ours = torch.float32 if mixed else torch.bfloat16
    for autocast in (False, True):  # as `trainer.args.bf16` has it
        rounded = found(ours, torch.bfloat16, autocast)
        assert rounded.dtype == torch.float32
        assert (rounded - exact).abs().mean() < 0.01 * exact.mean()
        assert (rounded >= 0).all()


def test_log_probabilities_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (divergence.DENSE_LIMIT, 0):
        monkeypatch.setattr(divergence, "DENSE_LIMIT", limit)
        found = compare(states(16, 2), make_head(16, 0), states(24, 3), make_head(24, 1), 0.5)
        assert found.logprobs is None


SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES),
        GraniteConfig(**SIZES, logits_scaling=8.0),
        CohereConfig(**SIZES, logit_scale=0.3),
        Gemma2Config(**SIZES, final_logit_softcapping=0.05),
    ],
    ids=lambda config: config.model_type,
)
def test_a_head_leads_to_the_models_own_logits(config: Any) -> None:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        hidden = backbone(model)(ids).last_hidden_state
        expected = model(ids).logits
        torch.testing.assert_close(Head.of(model).logits(hidden), expected)
        # The settings of these models make a difference that would be seen.
        plain = torch.allclose(model.get_output_embeddings()(hidden), expected)
    assert plain == (config.model_type == "llama")
