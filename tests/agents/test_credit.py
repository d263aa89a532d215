import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from journeyman.agents.credit import (
    Credit,
    Experience,
    GrowingHorizon,
    Outcome,
    StepDecay,
    Trace,
    Uniform,
)
from journeyman.agents.credit.trees import Additive
from journeyman.agents.errors import SettingError
from journeyman.agents.teachers import Annotations, Detail, Signal, Teacher
from journeyman.envs import Episode, StopReason

from .tiny import broken, episode


@dataclass
class Opinion(Teacher):
    """A teacher that is given its log-probabilities."""

    given: Sequence[Tensor]

    def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
        assert [len(row.tokens) for row in rows] == [len(scores) for scores in self.given]
        return [Signal(scores) for scores in self.given]


def judged(played: Sequence[Episode], *given: Tensor) -> Experience:
    """Episodes and what a teacher says of those with chosen tokens."""
    return Experience(played, annotations=Annotations(Opinion(given)))


def apart(played: Episode, distances: tuple[float, ...]) -> Tensor:
    """Log-probabilities that differ from the student's by so much on each token of a step."""
    scores = torch.tensor(played.logprobs)
    for step, distance in zip(played.steps, distances, strict=True):
        scores[slice(*step.span)] -= distance
    return scores


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
    first, *others = Uniform().assign(Experience(played))
    assert by_step(played[0], first.weights) == [1, 1, 1]
    assert not first.advantages.any()
    for credit, e in zip(others, played[1:], strict=True):
        assert credit.weights.tolist() == credit.advantages.tolist() == [0] * len(e.tokens)


def test_a_constant_advantage_without_a_teacher() -> None:
    played = episode(random.Random(1), turns=3)
    (credit,) = Uniform(weight=0.0, advantage=-1.0).assign(Experience([played]))
    assert not credit.weights.any()
    assert by_step(played, credit.advantages) == [-1, -1, -1]


@pytest.mark.parametrize(
    ("done", "horizon"), [(0, 1), (1, 2), (2, 2), (3, 3), (4, 3), (5, 4), (99, 51)]
)
def test_a_horizon_grows_by_a_turn_every_two_steps(done: int, horizon: int) -> None:
    """k_start + floor(n / eta) at step n, the one after those that are done."""
    played = [episode(random.Random(1), turns=4), broken(), episode(random.Random(2), turns=1)]
    given = Experience(played, step=done)
    long, none, short = GrowingHorizon(start=1, every=2).assign(given)
    assert by_step(played[0], long.weights) == [float(k < horizon) for k in range(4)]
    assert by_step(played[2], short.weights) == [1]
    assert not long.advantages.any() and not none.weights.any()
    assert given.figures == {"horizon": horizon}


@pytest.mark.parametrize("settings", [{"start": 0}, {"every": 0}, {"every": 1.5}, {"start": True}])
def test_a_horizon_refuses(settings: dict[str, int]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(SettingError, match=rf"^{name}={value}: expected a whole number"):
        GrowingHorizon(**settings)


def test_step_decay_weighs_by_distance_from_the_first_step() -> None:
    played = episode(random.Random(1), turns=4)
    given = judged([played], apart(played, (0.3, 0.7, 0.3, 0.0)))
    (credit,) = StepDecay(delta=0.5, epsilon=0.1).assign(given)
    # (d_1 + eps) / (d_k + eps), at most 1 + delta.
    assert by_step(played, credit.weights) == pytest.approx([1.0, 0.5, 1.0, 1.5])
    assert not credit.advantages.any()


@pytest.mark.parametrize("given", [False, True])
def test_step_decay_of_a_fork_begins_with_its_own_steps(given: bool) -> None:
    """Steps of the parent, and a turn the student was given, are masked: they have no distance."""
    played = episode(random.Random(1), turns=4)
    masked = played.steps[0 if not given else 1].span[1]
    mask = tuple(chosen and t >= masked for t, chosen in enumerate(played.mask))
    fork = replace(played, mask=mask, first_step=1)
    known = judged([fork], apart(played, (0.9, 0.4, 0.3, 0.7)))
    (credit,) = StepDecay(delta=0.5, epsilon=0.1).assign(known)
    own = by_step(fork, credit.weights)[2 if given else 1 :]
    assert own == pytest.approx([1.0, 0.5] if given else [1.0, 1.25, 0.625])
    wholly = replace(played, mask=(False,) * len(mask))
    (credit,) = StepDecay().assign(judged([wholly]))
    assert credit.weights.isfinite().all()


def test_step_decay_takes_episodes_without_steps() -> None:
    (credit,) = StepDecay().assign(judged([broken(reset=False)]))
    assert credit.weights.tolist() == [0, 0, 0]


@pytest.mark.parametrize("algorithm", [StepDecay(), Trace()])
def test_what_reads_scores_needs_them(algorithm: Credit) -> None:
    with pytest.raises(ValueError, match="reads teacher scores and was given no teacher"):
        algorithm.assign(Experience([episode(random.Random(1))]))
    with pytest.raises(ValueError, match="reads teacher scores and was given no teacher"):
        untaught = Annotations(None)
        algorithm.assign(Experience([episode(random.Random(1))], annotations=untaught))


def test_who_needs_a_teacher() -> None:
    """What does is refused beside `teacher=none` before anything is played."""
    needy = [
        type(it).__name__ for it in (Uniform(), StepDecay(), Trace(), Outcome()) if it.needs_teacher
    ]
    assert needy == ["StepDecay", "Trace"]
    assert Additive(Trace()).needs_teacher and not Additive(Uniform()).needs_teacher


def traced(played: Episode, ratios: dict[int, float], decay: float = 1.0) -> Tensor:
    """Weights where the teacher finds tokens `ratios` times as likely as the student did."""
    scores = torch.tensor(played.logprobs)
    for place, ratio in ratios.items():
        scores[place] += math.log(ratio)
    (credit,) = Trace(decay).assign(judged([played], scores))
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
    credit = Outcome(scale=2.0, weight=0.25).assign(Experience(played))
    advantages = [by_step(e, c.advantages) for e, c in zip(played, credit, strict=True)]
    assert advantages[:5] == [[1.0, 1.0], [-1.0], [0.0, 0.0, 0.0], [1.0], [-1.0]]
    for e, c in zip(played, credit, strict=True):
        assert by_step(e, c.weights) == [0.25] * len(e.steps)


def test_outcome_of_broken_episodes_alone() -> None:
    credit = Outcome().assign(Experience([broken(), broken(reset=False)]))
    assert [len(c.advantages) for c in credit] == [0, 3]
    assert not any(c.advantages.any() for c in credit)


@pytest.mark.parametrize(
    "algorithm", [Uniform(), GrowingHorizon(), StepDecay(), Trace(), Outcome()]
)
def test_credit_is_as_long_as_its_episode(algorithm: Credit) -> None:
    rng = random.Random(3)
    played = [episode(rng, turns=n) for n in (1, 2, 5)] + [broken()]
    given = judged(played, *(apart(e, (0.5,) * len(e.steps)) for e in played if e.steps))
    for e, c in zip(played, algorithm.assign(given), strict=True):
        assert c.weights.shape == c.advantages.shape == (len(e.tokens),)
