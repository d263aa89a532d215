"""Credit that reads the student's network, against definitions and values worked out by hand."""

import dataclasses
import io
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from journeyman.agents.credit import GAE, Attention, Credit, Critic, Experience, Outcome, Uniform
from journeyman.agents.credit.learned import gae
from journeyman.agents.credit.trees import Additive
from journeyman.agents.networks.reading import step_attention
from journeyman.envs import Episode, StopReason

from .tiny import broken, episode, llama

VOCABULARY = 40
STUDENT = llama(VOCABULARY)


def by_step(played: Episode, values: Tensor) -> list[float]:
    """The value of each step's first token; all its tokens have it."""
    for step in played.steps:
        assert len(values[slice(*step.span)].unique()) == 1
    return [float(values[step.span[0]]) for step in played.steps]


def batch(seed: int, **changes: Any) -> list[Episode]:
    """Of one to four turns; every other one is a success."""
    rng = random.Random(seed)
    return [
        episode(rng, VOCABULARY, turns=1 + i % 4, reward=float(i % 2), **changes) for i in range(8)
    ]


def experience(played: list[Episode]) -> Experience:
    return Experience(played, student=STUDENT)


def equal(one: Any, other: Any) -> bool:
    """Nested states, tensors bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    return bool(one == other)


# --- generalised advantage estimation -------------------------------------------------------------


def test_gae_by_hand() -> None:
    """Deltas are -0.5 + 0.5 * 0.25, -0.25 + 0.5 * 0.75 and 1 - 0.75; a quarter is handed back."""
    found = gae(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.25, 0.75]), gamma=0.5, lam=0.5)
    assert found.tolist() == [-0.328125, 0.1875, 0.25]


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_gae_is_the_weighted_mean_of_all_n_step_advantages(gamma: float, lam: float) -> None:
    """(1 - lam) sum lam^(n-1) A^(n), the rest of the weight on the longest: the paper's (16)."""
    noise = torch.Generator().manual_seed(0)
    for count in (1, 2, 7):
        rewards, values = torch.rand(2, count, generator=noise, dtype=torch.float64)
        expected = []
        for k in range(count):
            mean = 0.0
            for n in range(1, count - k + 1):
                last = k + n == count
                ahead = sum(gamma**i * float(rewards[k + i]) for i in range(n))
                ahead += 0.0 if last else gamma**n * float(values[k + n])
                weight = lam ** (n - 1) * (1.0 if last else 1 - lam)
                mean += weight * (ahead - float(values[k]))
            expected.append(mean)
        found = gae(rewards, values, gamma, lam)
        assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_without_discount_and_lambda_1_it_is_the_outcome_less_the_value() -> None:
    credit = GAE(Critic(seed=1), lam=1.0, scale=2.0, weight=0.25)
    seen, new = experience(batch(1)), experience(batch(2))
    credit.learn(seen)
    values = [credit._critic.values(states) for states in new.states]
    for e, v, found in zip(new.episodes, values, credit.assign(new), strict=True):
        expected = [2 * (e.reward - float(value)) for value in v]
        assert by_step(e, found.advantages) == pytest.approx(expected, abs=1e-6)
        assert by_step(e, found.weights) == [0.25] * len(e.steps)
        outside = torch.ones(len(e.tokens), dtype=torch.bool)
        for step in e.steps:
            outside[slice(*step.span)] = False
        assert not found.advantages[outside].any()


def test_an_outcome_never_reaches_its_own_baseline() -> None:
    """Turning one outcome changes that episode's advantages by the difference, and nothing else."""
    credit = GAE(Critic(hidden=8), lam=1.0)
    credit.learn(experience(batch(1)))
    played = batch(2)
    turned = [*played[:3], dataclasses.replace(played[3], reward=0.25), *played[4:]]
    before = credit.state_dict()
    found = [c.advantages for c in credit.assign(experience(played))]
    other = [c.advantages for c in credit.assign(experience(turned))]
    assert equal(before, credit.state_dict())
    for i, (one, two) in enumerate(zip(found, other, strict=True)):
        if i == 3:
            difference = by_step(played[3], one - two)
            assert difference == pytest.approx([0.75] * 4, abs=1e-6)
        else:
            assert torch.equal(one, two)


def test_truncated_episodes_count_and_broken_ones_do_not() -> None:
    cut = batch(3, stop=StopReason.MAX_TURNS)
    halves = [episode(random.Random(9), VOCABULARY, reward=1.0, stop=StopReason.INFRA_ERROR)]
    credits = []
    for played in (cut, [*cut, *halves, broken(), broken(reset=False)]):
        credit = GAE(Critic(), lam=1.0)
        given = experience(played)
        assigned = credit.assign(given)
        assert given.figures["critic/loss"] == pytest.approx(12 / 20)  # steps of successes
        credit.learn(experience(played))
        credits.append(credit)
        assert [by_step(e, c.advantages) for e, c in zip(played, assigned, strict=True)][3] != [
            0.0
        ] * 4
        for e, c in zip(played[8:], assigned[8:], strict=True):
            assert len(c.advantages) == len(e.tokens)
            assert not c.advantages.any()
    values = [[credit._critic.values(s) for s in experience(cut).states] for credit in credits]
    for one, other in zip(*values, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_broken_episodes_alone() -> None:
    credit = GAE(Critic())
    given = experience([broken(), broken(reset=False)])
    assert [len(c.advantages) for c in credit.assign(given)] == [0, 3]
    credit.learn(given)
    assert given.figures == credit.state_dict() == {}


def test_a_prefix_is_learned_where_it_was_played() -> None:
    """An episode that was forked off another teaches what its own steps came to."""
    played = episode(random.Random(4), VOCABULARY, turns=4, reward=1.0)
    forked = experience([dataclasses.replace(played, first_step=2)])
    credit, alone = GAE(Critic(), lam=1.0), Critic()
    credit.learn(forked)
    alone.fit(forked.states[0][2:], torch.ones(2))
    assert equal(credit.state_dict(), alone.state_dict())


def test_one_critic_for_several_environments() -> None:
    """It tells them apart by what the student has read."""
    rng = random.Random(5)

    def mixed() -> list[Episode]:
        found = []
        for i in range(16):
            e = episode(rng, VOCABULARY, turns=2, env_id="ab"[i % 2], reward=float(i % 2))
            prompt = e.steps[0].span[0]
            tokens = ((3, 30)[i % 2],) * prompt + e.tokens[prompt:]
            found.append(dataclasses.replace(e, tokens=tokens))
        return found

    credit = GAE(Critic(), lam=1.0)
    for _ in range(8):
        credit.learn(experience(mixed()))
    new = experience(mixed())
    credit.assign(new)
    assert new.figures["critic/explained_variance"] > 0.5
    first = [float(credit._critic.values(states)[0]) for states in new.states]
    assert max(first[::2]) < 0.5 < min(first[1::2])


@pytest.mark.parametrize(
    ("name", "value"), [("gamma", -0.1), ("gamma", 1.1), ("lam", -1), ("lam", float("nan"))]
)
def test_gae_refuses(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value}: expected 0 to 1"):
        GAE(Critic(), **{name: value})


# --- the critic -----------------------------------------------------------------------------------


def explained(critic: Critic, states: Tensor, targets: Tensor) -> float:
    return 1 - float((targets - critic.values(states)).var() / targets.var())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("hidden", [0, 16])
def test_the_critic_learns_what_can_be_separated(hidden: int, seed: int) -> None:
    """Two clouds along a direction it is not told; states are new each time, and of large scale."""
    noise = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(12, generator=noise), dim=0)
    critic = Critic(hidden, seed=seed)

    def draw() -> tuple[Tensor, Tensor]:
        targets = (torch.rand(64, generator=noise) < 0.5).float()
        states = torch.randn(64, 12, generator=noise) + 3 * (2 * targets[:, None] - 1) * direction
        return 100 * states, targets

    course = []
    for _ in range(12):
        states, targets = draw()
        course.append(explained(critic, states, targets))
        critic.fit(states, targets)
    assert course[0] == 0
    assert course[-1] > 0.6
    assert course[-1] > course[1]


def test_a_hidden_layer_learns_what_no_line_separates() -> None:
    """Exclusive or."""
    noise = torch.Generator().manual_seed(0)
    states = torch.randn(256, 4, generator=noise)
    targets = (states[:, 0] * states[:, 1] > 0).float()
    found = []
    for hidden in (0, 32):
        critic = Critic(hidden, learning_rate=2e-2, updates=200)
        critic.fit(states, targets)
        found.append(explained(critic, states, targets))
    assert found[0] < 0.2
    assert found[1] > 0.4


def test_a_critic_knows_nothing_at_first_and_draws_from_its_own_seed() -> None:
    states, targets = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    critics = [Critic(hidden=4, seed=seed) for seed in (1, 1, 2)]
    for critic in critics:
        assert not critic.values(states).any()
        assert critic.state_dict() == {}
        critic.fit(states, targets[:, 0])
    assert torch.equal(torch.get_rng_state(), before)
    one, same, other = (critic.values(states) for critic in critics)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("hidden", [0, 4])
def test_a_critic_goes_on_from_its_state(hidden: int) -> None:
    """Bit for bit, by way of a file; the optimiser's moments are in it."""
    noise = torch.Generator().manual_seed(0)
    batches = [(torch.randn(6, 8, generator=noise), torch.rand(6, generator=noise)) for _ in "abc"]
    unbroken = GAE(Critic(hidden))
    file = io.BytesIO()
    for i, given in enumerate(batches):
        if i == 2:
            torch.save(unbroken.state_dict(), file)
        unbroken._critic.fit(*given)
    resumed = GAE(Critic(hidden, seed=9))
    file.seek(0)
    resumed.load_state_dict(torch.load(file))
    assert not equal(resumed.state_dict(), unbroken.state_dict())
    resumed._critic.fit(*batches[2])
    assert equal(resumed.state_dict(), unbroken.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": -1}, r"hidden=-1: expected a width"),
        ({"learning_rate": 0.0}, r"learning_rate=0.0: expected above 0"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan: expected above 0"),
        ({"updates": 0}, r"updates=0: expected at least 1"),
    ],
)
def test_a_critic_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Critic(**settings)


def test_what_learns_nothing_takes_no_state() -> None:
    Uniform().load_state_dict({})
    with pytest.raises(ValueError, match=r"Uniform learns nothing and was given \['width'\]"):
        Uniform().load_state_dict({"width": 3})


def test_credit_from_trees_learns_by_its_base() -> None:
    unknown = [(None,) * len(e.steps) for e in batch(1)]
    base, credit, again = GAE(Critic()), Additive(GAE(Critic())), Additive(GAE(Critic()))
    figures = []
    for algorithm in (base, credit):
        given = Experience(batch(1), unknown, student=STUDENT)
        algorithm.assign(given)
        algorithm.learn(given)
        figures.append(given.figures)
    again.load_state_dict(credit.state_dict())
    assert figures[0] == figures[1]
    assert "critic/loss" in figures[1]
    assert equal(again.state_dict(), base.state_dict())


# --- attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["last", "all"])
def test_attention_redistributes_the_outcome(layers: Any) -> None:
    played = [*batch(1, env_id="a"), *batch(2, env_id="b"), broken(), broken(reset=False)]
    played.append(episode(random.Random(9), VOCABULARY, stop=StopReason.INFRA_ERROR))
    given = experience(played)
    outcome = Outcome(scale=2.0, weight=0.25).assign(given)
    found = Attention(layers, scale=2.0, weight=0.25).assign(given)
    for e, credit, plain in zip(played, found, outcome, strict=True):
        assert torch.equal(credit.weights, plain.weights)
        shares = by_step(e, credit.advantages)
        if e.stop is StopReason.INFRA_ERROR:
            assert not any(shares)
            continue
        broadcast = by_step(e, plain.advantages)
        assert sum(shares) == pytest.approx(sum(broadcast), abs=1e-5)
        paid = step_attention(STUDENT, e, layers)
        expected = broadcast[0] * len(e.steps) * paid / paid.sum()
        assert shares == pytest.approx(expected.tolist(), abs=1e-5)
        assert len(e.steps) == 1 or len(set(shares)) > 1


def test_attention_refuses() -> None:
    wrong: Any = "first"
    with pytest.raises(ValueError, match="layers='first': expected 'last' or 'all'"):
        Attention(wrong)


@pytest.mark.parametrize("algorithm", [GAE(Critic()), Attention()])
def test_what_reads_the_student_needs_one(algorithm: Credit) -> None:
    with pytest.raises(ValueError, match="reads the student's network and was given no student"):
        algorithm.assign(Experience(batch(1)))
