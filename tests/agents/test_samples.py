import random

import pytest
import torch

from journeyman.agents.credit import TokenCredit
from journeyman.agents.learning.samples import to_batch
from journeyman.envs import Episode, Step, StopReason

from .tiny import broken, episode

PAD = 99


def numbered(played: Episode) -> TokenCredit:
    """Weights and advantages that tell which token they belong to."""
    count = torch.arange(len(played.tokens), dtype=torch.float32)
    return TokenCredit(count + 1, -count - 1)


def test_the_layout() -> None:
    first = Episode(
        env_id="acme/Env-v0",
        task_id="train/0",
        tokens=(1, 2, 3, 4, 5, 6, 7),
        logprobs=(0.0, 0.0, -1.0, 0.0, 0.0, -2.0, -3.0),
        mask=(False, False, True, False, False, True, True),
        steps=(Step((2, 4), "", truncated=True), Step((5, 7), "")),
        stop=StopReason.ANSWERED,
    )
    second = Episode(
        env_id="acme/Env-v0",
        task_id="train/1",
        tokens=(8, 9, 10, 11),
        logprobs=(0.0, 0.0, 0.0, -4.0),
        mask=(False, False, False, True),
        steps=(Step((3, 4), ""),),
        stop=StopReason.ANSWERED,
    )
    batch = to_batch([first, second], [numbered(first), numbered(second)], PAD)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "prompt_ids": [[PAD, 1, 2], [8, 9, 10]],
        "prompt_mask": [[0, 1, 1], [1, 1, 1]],
        "completion_ids": [[3, 4, 5, 6, 7], [11, PAD, PAD, PAD, PAD]],
        "completion_mask": [[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]],
        "tool_mask": [[1, 0, 0, 1, 1], [1, 0, 0, 0, 0]],
        "weights": [[3, 4, 5, 6, 7], [4, 0, 0, 0, 0]],
        "advantages": [[-3, -4, -5, -6, -7], [-4, 0, 0, 0, 0]],
        "sampled_logprobs": [[-1, 0, 0, -2, -3], [-4, 0, 0, 0, 0]],
        "turns": [[0, 0, -1, 1, 1], [0, -1, -1, -1, -1]],
        "num_items_in_batch": 4,
    }


@pytest.mark.parametrize("seed", range(10))
def test_every_token_is_in_its_place(seed: int) -> None:
    rng = random.Random(seed)
    played = [episode(rng, turns=rng.randint(1, 4)) for _ in range(rng.randint(1, 5))]
    batch = to_batch(played, [numbered(e) for e in played], PAD)
    tokens = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    real = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1).bool()
    width = batch["prompt_ids"].shape[1]
    for i, e in enumerate(played):
        assert tuple(tokens[i][real[i]].tolist()) == e.tokens
        assert (tokens[i][~real[i]] == PAD).all()
        start = e.steps[0].span[0]
        assert int(batch["prompt_mask"][i].sum()) == start
        chosen = batch["tool_mask"][i].bool()
        expected = [j for j, c in enumerate(e.mask) if c]
        assert (chosen.nonzero()[:, 0] + start).tolist() == expected
        assert batch["weights"][i][chosen].tolist() == [j + 1 for j in expected]
        assert batch["advantages"][i][chosen].tolist() == [-j - 1 for j in expected]
        assert batch["sampled_logprobs"][i][chosen].tolist() == [e.logprobs[j] for j in expected]
        turns = [next(n for n, s in enumerate(e.steps) if j < s.span[1]) for j in expected]
        assert batch["turns"][i][chosen].tolist() == turns
    assert int(batch["num_items_in_batch"]) == sum(sum(e.mask) for e in played)
    assert width == max(e.steps[0].span[0] for e in played)


def test_broken_episodes_are_context_without_loss() -> None:
    played = episode(random.Random(1), stop=StopReason.INFRA_ERROR)
    batch = to_batch([played, broken()], [numbered(played), numbered(broken())], PAD)
    assert int(batch["completion_mask"][0].sum()) == len(played.tokens) - played.steps[0].span[0]
    for name in ("tool_mask", "weights", "advantages", "sampled_logprobs"):
        assert not batch[name].any(), name
    assert (batch["turns"] == -1).all()
    assert int(batch["num_items_in_batch"]) == 0
    assert not batch["prompt_mask"][1].any()


def test_a_batch_without_a_token_has_a_shape() -> None:
    batch = to_batch([broken()], [numbered(broken())], PAD)
    assert batch["prompt_ids"].tolist() == batch["completion_ids"].tolist() == [[PAD]]


@pytest.mark.parametrize("which", ["weights", "advantages"])
def test_credit_of_another_length_is_refused(which: str) -> None:
    played = episode(random.Random(1))
    right, short = torch.zeros(len(played.tokens)), torch.zeros(len(played.tokens) - 1)
    credit = TokenCredit(
        short if which == "weights" else right, short if which == "advantages" else right
    )
    with pytest.raises(ValueError, match=rf"episode of {len(played.tokens)} tokens.*acme/Env-v0"):
        to_batch([played], [credit], PAD)
