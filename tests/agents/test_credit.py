import math
import random

import pytest
import torch
from torch import Tensor

from journeyman.agents.credit import Credit, Outcome, StepDecay, Trace, Uniform
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


@pytest.mark.parametrize("algorithm", [StepDecay(), Trace()])
def test_what_reads_scores_needs_them(algorithm: Credit) -> None:
    assert algorithm.needs_scores
    with pytest.raises(ValueError, match="was given none"):
        algorithm.assign([episode(random.Random(1))], None)
    with pytest.raises(ValueError, match="zip"):
        algorithm.assign([episode(random.Random(1))], [])


def traced(played: Episode, ratios: dict[int, float], decay: float = 1.0) -> Tensor:
    """Weights where the teacher finds tokens `ratios` times as likely as the student did."""
    log_ratio = torch.zeros(len(played.tokens))
    for place, ratio in ratios.items():
        log_ratio[place] = math.log(ratio)
    steps = (0.0,) * len(played.steps)
    given = EpisodeScores(log_ratio, steps, tuple({} for _ in steps))
    (credit,) = Trace(decay).assign([played], [given])
    assert not credit.advantages.any()
    return credit.weights


def test_trace_weighs_by_how_the_teacher_would_have_come_there() -> None:
    played = episode(random.Random(5), turns=2)
    (start, end), (later, last) = (step.span for step in played.steps)
    assert end - start > 3
    weights = traced(played, {start: 0.5, start + 1: 4.0, start + 2: 0.1})
    # What the teacher likes better than the student makes up for nothing; a new turn starts anew.
    assert weights[start:end].tolist() == pytest.approx([1, 0.5, 0.5] + [0.05] * (end - start - 3))
    assert weights[later:last].tolist() == [1] * (last - later)
    assert not weights[:start].any() and not weights[end:later].any()


def test_trace_decays() -> None:
    played = episode(random.Random(5), turns=1)
    start, end = played.steps[0].span
    weights = traced(played, {}, decay=0.9)
    assert weights[start:end].tolist() == pytest.approx([0.9**i for i in range(end - start)])


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.5])
def test_trace_refuses_other_decays(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"decay={decay}: expected"):
        Trace(decay)


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


@pytest.mark.parametrize("algorithm", [Uniform(), StepDecay(), Trace(), Outcome()])
def test_credit_is_as_long_as_its_episode(algorithm: Credit) -> None:
    rng = random.Random(3)
    played = [episode(rng, turns=n) for n in (1, 2, 5)] + [broken()]
    given = [scores(e, (0.5,) * len(e.steps)) for e in played]
    for e, c in zip(played, algorithm.assign(played, given), strict=True):
        assert c.weights.shape == c.advantages.shape == (len(e.tokens),)
