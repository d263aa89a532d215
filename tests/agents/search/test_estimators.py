"""Every estimator against values worked out by hand, and against exact values of finite MDPs."""

import functools
from collections.abc import Iterator

import pytest

from journeyman.agents.search import (
    Budget,
    Continuation,
    CreditSearch,
    Kind,
    Move,
    NodeKey,
    Path,
    Tree,
    expected_backup,
    run_searches,
)
from journeyman.agents.search.estimators import (
    RTMC,
    Broadcast,
    Estimate,
    GiGPO,
    LeafMeans,
    StepEstimator,
    TreeCredit,
    VinePPO,
)
from journeyman.agents.search.searches import request_seed
from journeyman.agents.search.tabular import TabularWorld
from journeyman.envs.exact import PLAYED, make_mdp


def continuation(*steps: tuple[str, float, str]) -> Continuation:
    last = len(steps) - 1
    return Continuation(
        tuple(Move(a, r, s, terminal=i == last) for i, (a, r, s) in enumerate(steps))
    )


X, Y = NodeKey(1, "x"), NodeKey(1, "y")


@pytest.fixture
def example() -> tuple[Tree, list[Path]]:
    """Two trajectories and four rollouts, one of them whole.

    s -a-> x -c-> end 1       s -b-> y -c-> end 0
    rollouts: s -a-> x -d-> 0;  x -c-> 1;  x -d-> 0;  y -d-> 1
    """
    tree = Tree("s")
    credited = [
        tree.add(tree.root, continuation(("a", 0, "x"), ("c", 1, "xc"))),
        tree.add(tree.root, continuation(("b", 0, "y"), ("c", 0, "yc"))),
    ]
    tree.add(tree.root, continuation(("a", 0, "x"), ("d", 0, "xd")))
    tree.add(X, continuation(("c", 1, "xc")))
    tree.add(X, continuation(("d", 0, "xd")))
    tree.add(Y, continuation(("d", 1, "yd")))
    return tree, credited


def advantages(estimator: StepEstimator, example: tuple[Tree, list[Path]]) -> list[float]:
    return [value.advantage for row in estimator.steps(*example) for value in row]


def test_by_hand(example: tuple[Tree, list[Path]]) -> None:
    """In the order (s, a), (x, c), (s, b), (y, c)."""
    # V(x) = V(y) = 1/2, so V(s) = 1/2.
    assert advantages(TreeCredit(kappa=0), example) == pytest.approx([0, 0.5, 0, -0.5])
    # Whole episodes returned 1, 0, 0.
    third = 1 / 3
    assert advantages(Broadcast(), example) == pytest.approx([2 * third] * 2 + [-third] * 2)
    # Of those, x saw 1 and 0, y saw 0.
    assert advantages(GiGPO(), example) == pytest.approx(
        [4 * third, 2 * third + 0.5, -2 * third, -third]
    )
    assert advantages(RTMC(prior=0), example) == pytest.approx([0.5 - third, 0.5, -third, 0])
    assert advantages(RTMC(prior=1), example) == pytest.approx(
        [(0.5 - third) * 2 / 3, 0.5 / 2, -third / 2, 0]
    )
    # Rollouts alone: V(s) = 0 of one, V(x) = 1/2 of two, V(y) = 1 of one.
    assert advantages(VinePPO(), example) == pytest.approx([0.5, 0.5, 1, -1])
    assert advantages(VinePPO(kappa=1), example) == pytest.approx(
        [0.5 / 2, 0.5 * 2 / 3, 1 / 2, -1 / 2]
    )
    # All that came through: V(s) = 1/3, V(x) = 2/4, V(y) = 1/2.
    assert advantages(VinePPO(pooled=True), example) == pytest.approx(
        [0.5 - third, 0.5, 0.5 - third, -0.5]
    )
    # Leaves: 4 below x with sum 2, 2 below y with sum 1.
    assert advantages(LeafMeans(), example) == pytest.approx([0, 0.5, 0, -0.5])
    assert advantages(LeafMeans(centred=False), example) == pytest.approx([0.5, 1, 0.5, 0])


def test_tree_credit_shrinks_by_effective_samples(example: tuple[Tree, list[Path]]) -> None:
    tree, _ = example
    found = expected_backup(tree)[X].advantage("c")
    assert found.samples == pytest.approx(4)  # four samples in x, and no dice but the student's
    assert advantages(TreeCredit(kappa=1), example)[1] == pytest.approx(0.5 * 4 / 5)
    with pytest.raises(ValueError, match="kappa=-1"):
        TreeCredit(kappa=-1)


def test_rewards_on_the_way_count() -> None:
    tree = Tree("s")
    credited = [tree.add(tree.root, continuation(("a", 2, "x"), ("c", 1, "xc")))]
    tree.add(X, continuation(("d", 0, "xd")))
    for estimator in (LeafMeans(), VinePPO(pooled=True), TreeCredit(0)):
        (first, second), *_ = estimator.steps(tree, credited)
        assert first.q is not None and second.v is not None
        assert (first.q.mean, second.v.mean) == (2.5, 0.5)


ALL = (TreeCredit(), Broadcast(), GiGPO(), RTMC(), VinePPO(), VinePPO(pooled=True), LeafMeans())


@pytest.mark.parametrize("estimator", ALL, ids=lambda e: type(e).__name__)
def test_what_broke_gets_no_credit(estimator: StepEstimator) -> None:
    tree = Tree("s")
    broken = tree.add(tree.root, Continuation((Move("a", 0.0, "x"),), failure="broke"))
    fine = tree.add(tree.root, continuation(("b", 1, "end")))
    (lost,), (kept,) = estimator.steps(tree, [broken, fine])
    assert lost.advantage == 0
    assert kept.advantage >= 0


# Exact values

CASES = [(family, seed) for seed in range(4) for family in PLAYED][:20]
SURE = 4.5
"""Standard errors that chance alone hardly ever exceeds."""


@functools.cache
def grown(
    family: str, seed: int, way: type[StepEstimator]
) -> tuple[TabularWorld, Tree, list[Path]]:
    """A tree on which estimators of one way of spending have spent a large budget."""
    world, tree = TabularWorld(make_mdp(family, seed)), Tree(0)
    paths = world.trajectories(tree, 8, seed)
    search = way().search(tree, paths, Budget(6000), seed)
    search.width = 500
    run_searches(world, [search])
    return world, tree, paths


def test_a_search_throws_other_dice_than_its_trajectories() -> None:
    """Whole episodes from the same seed: had they the same dice, each would come twice."""
    world, tree = TabularWorld(make_mdp("tree", 0)), Tree(0)
    paths = world.trajectories(tree, 8, seed=0)
    run_searches(world, [Broadcast().search(tree, paths, Budget(continuations=8), seed=0)])
    ways = [[(step.action, step.state) for step in path.steps] for path in tree.paths]
    assert len(ways) == 16
    assert all(extra not in ways[:8] for extra in ways[8:])
    seeds = [request_seed(seed, index) for seed in range(-2, 3) for index in range(-20, 20)]
    assert len(set(seeds)) == len(seeds)


def distance(found: Estimate, exact: float) -> float:
    """From the exact value, in the estimator's own standard errors."""
    gap = abs(found.mean - exact)
    return 0.0 if gap < 1e-9 else gap / max(found.variance**0.5, 1e-9)


def distances(estimator: StepEstimator, way: type[StepEstimator]) -> Iterator[float]:
    """Distances of the Q and V of all distinct steps of 20 MDPs."""
    for family, seed in CASES:
        world, tree, paths = grown(family, seed, way)
        # VinePPO's Q is that of the outcome that came: the action's own without dice only.
        whole = not (isinstance(estimator, VinePPO) and family.startswith("graph"))
        seen = set()
        for path, row in zip(paths, estimator.steps(tree, paths), strict=True):
            for key, step, value in zip(path.keys, path.steps, row, strict=False):
                action = step.action
                assert isinstance(action, int) and value.v is not None and value.q is not None
                if (key, action) not in seen:
                    seen.add((key, action))
                    yield distance(value.v, world.exact_v(key))
                    if whole:
                        yield distance(value.q, world.exact_q(key, action))


def share(gaps: list[float], beyond: float) -> float:
    return sum(gap > beyond for gap in gaps) / len(gaps)


UNBIASED = [
    (TreeCredit(), TreeCredit),
    (RTMC(), RTMC),
    (VinePPO(), VinePPO),
    (VinePPO(pooled=True), VinePPO),
]


@pytest.mark.parametrize(("estimator", "way"), UNBIASED, ids=["tree", "rtmc", "vineppo", "pooled"])
def test_unbiased_estimators_converge_within_their_own_interval(
    estimator: StepEstimator, way: type[StepEstimator]
) -> None:
    gaps = list(distances(estimator, way))
    assert len(gaps) > 500
    # Normal intervals are too short where all of a few rare samples were equal: hence not none.
    assert share(gaps, 2) < 0.1
    assert share(gaps, SURE) < 0.01


def test_a_leaf_mean_is_caught() -> None:
    """What the search grew below a branch decides its weight: intervals do not hold the truth."""
    gaps = list(distances(LeafMeans(), VinePPO))
    assert share(gaps, 2) > 0.2
    assert share(gaps, SURE) > 0.05


def test_forced_branches_and_candidates_have_unbiased_values() -> None:
    """Every action of every node on the way as a candidate: each Q is right, and so is each V."""
    gaps, forced = [], 0
    for family, seed in CASES:
        world, tree = TabularWorld(make_mdp(family, seed)), Tree(0)
        paths = world.trajectories(tree, 2, seed)
        nodes = dict.fromkeys(key for p in paths for key in p.keys[:-1])
        candidates = {key: range(world.mdp.actions) for key in nodes}
        run_searches(world, [CreditSearch(tree, paths, Budget(3000), candidates, width=500)])
        values = expected_backup(tree)
        for key in nodes:
            node = values[key]
            assert set(node.actions) == set(range(world.mdp.actions)) and node.value is not None
            gaps.append(distance(Estimate(node.value, node.variance), world.exact_v(key)))
            for action, it in node.actions.items():
                assert isinstance(action, int)
                gaps.append(distance(Estimate(it.q, it.variance), world.exact_q(key, action)))
        forced += sum(path.kind is Kind.FORCED for path in tree.paths)
    assert len(gaps) > 500 and forced > 500
    assert share(gaps, 2) < 0.1
    assert share(gaps, SURE) < 0.01


def test_the_tabular_world_takes_numbers_only() -> None:
    with pytest.raises(TypeError, match="'x': states and actions"):
        TabularWorld(make_mdp("tree", 0)).exact_v(NodeKey(0, "x"))
