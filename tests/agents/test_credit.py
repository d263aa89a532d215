import random

import pytest
import torch
from torch import Tensor

from journeyman.agents.credit import Credit, Outcome, StepDecay, Uniform
from journeyman.agents.scoring import EpisodeScores
from journeyman.envs import Episode, StopReason

from .tiny import broken, episode


def scores(played: Episode, steps: tuple[float, ...]) -> EpisodeScores:
    return EpisodeScores(torch.zeros(len(played.tokens)), steps, tuple({} for _ in steps))


def by_step(played: Episode, values: Tensor) -> list[float]:
    """The value of each step, which all its tokens share and no other token has."""
    rest = values.clone()
    found = []
    for step in played.steps:
        here = values[slice(*step.span)]
        assert (here == here[0]).all()
        rest[slice(*step.span)] = 0
        found.append(float(here[0]))
    assert not rest.any()
    return found


def test_uniform() -> None:
    played = [episode(random.Random(1), turns=3), broken(), broken(reset=False)]
    first, *others = Uniform().assign(played, None)
    assert by_step(played[0], first.weights) == [1, 1, 1]
    assert not first.advantages.any()
    for credit, e in zip(others, played[1:], strict=True):
        assert credit.weights.tolist() == credit.advantages.tolist() == [0] * len(e.tokens)


def test_step_decay_weighs_by_distance_from_the_first_step() -> None:
    played = episode(random.Random(1), turns=4)
    (credit,) = StepDecay(delta=0.5, epsilon=0.1).assign(
        [played], [scores(played, (0.3, 0.7, 0.3, 0.0))]
    )
    # (d_1 + eps) / (d_k + eps), at most 1 + delta.
    assert by_step(played, credit.weights) == pytest.approx([1.0, 0.5, 1.0, 1.5])
    assert not credit.advantages.any()


def test_step_decay_takes_episodes_without_steps() -> None:
    (credit,) = StepDecay().assign([broken(reset=False)], [scores(broken(reset=False), ())])
    assert credit.weights.tolist() == [0, 0, 0]


def test_step_decay_needs_scores() -> None:
    assert StepDecay.needs_scores
    with pytest.raises(ValueError, match="was given none"):
        StepDecay().assign([episode(random.Random(1))], None)
    with pytest.raises(ValueError, match="zip"):
        StepDecay().assign([episode(random.Random(1))], [])


def test_outcome_compares_with_the_environments_mean() -> None:
    rng = random.Random(2)
    played = [
        episode(rng, turns=2, env_id="a", reward=1.0),
        episode(rng, turns=1, env_id="a", reward=0.0),
        episode(rng, turns=3, env_id="b", reward=0.5),
        episode(rng, turns=1, env_id="a", reward=1.0),
        episode(rng, turns=1, env_id="a", reward=0.0),
        # A failure of the infrastructure is no reward of zero.
        episode(rng, turns=1, env_id="a", reward=0.0, stop=StopReason.INFRA_ERROR),
    ]
    credit = Outcome(scale=2.0, weight=0.25).assign(played, None)
    advantages = [by_step(e, c.advantages) for e, c in zip(played, credit, strict=True)]
    assert advantages[:5] == [[1.0, 1.0], [-1.0], [0.0, 0.0, 0.0], [1.0], [-1.0]]
    for e, c in zip(played, credit, strict=True):
        assert by_step(e, c.weights) == [0.25] * len(e.steps)


def test_outcome_of_broken_episodes_alone() -> None:
    credit = Outcome().assign([broken(), broken(reset=False)], None)
    assert [len(c.advantages) for c in credit] == [0, 3]
    assert not any(c.advantages.any() for c in credit)


@pytest.mark.parametrize("algorithm", [Uniform(), StepDecay(), Outcome()])
def test_credit_is_as_long_as_its_episode(algorithm: Credit) -> None:
    rng = random.Random(3)
    played = [episode(rng, turns=n) for n in (1, 2, 5)] + [broken()]
    given = [scores(e, (0.5,) * len(e.steps)) for e in played]
    for e, c in zip(played, algorithm.assign(played, given), strict=True):
        assert c.weights.shape == c.advantages.shape == (len(e.tokens),)
