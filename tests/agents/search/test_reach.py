"""The gradient that training sums of a search's rows, against exact policy gradients."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from journeyman.agents.credit import Experience, Uniform
from journeyman.agents.credit.trees import Additive
from journeyman.agents.learning.losses.functions import clipped_policy_gradient
from journeyman.agents.learning.samples import to_batch
from journeyman.agents.search import Budget, Kind, NodeKey, Path, Tree, run_searches
from journeyman.agents.search.estimators import (
    Broadcast,
    GradientCredit,
    Siblings,
    StepValue,
    TreeCredit,
)
from journeyman.agents.search.evidence import Grown, TreeRollouts
from journeyman.agents.search.reach import reaches, sample_weights, squared_reach
from journeyman.agents.search.searches import CreditSearch
from journeyman.agents.search.tabular import TabularWorld
from journeyman.agents.search.tree import Continuation, Move
from journeyman.envs import Episode, Step, StopReason
from journeyman.envs.exact import FAMILIES, MDP, make_mdp


def played(*moves: tuple[str, float, str]) -> Continuation:
    last = len(moves) - 1
    return Continuation(
        tuple(Move(a, r, s, terminal=i == last) for i, (a, r, s) in enumerate(moves))
    )


def test_reach_by_hand() -> None:
    """a twice, b once; from x two more; c leads on by the teacher's word alone.

    s -a-> x -c-> 1   s -a-> x -d-> 0   s -b-> y -c-> 0;  x -c-> 1, x -c-> 1;  s =z=> w -c-> 1
    """
    tree = Tree("s")
    x, y, w = (NodeKey(1, name) for name in "xyw")
    tree.add(tree.root, played(("a", 0, "x"), ("c", 1, "xc")))
    tree.add(tree.root, played(("a", 0, "x"), ("d", 0, "xd")))
    tree.add(tree.root, played(("b", 0, "y"), ("c", 0, "yc")))
    for _ in range(2):
        tree.add(x, played(("c", 1, "xc")))
    tree.add(tree.root, played(("z", 0, "w"), ("c", 1, "wc")), Kind.TEACHER)
    reach = reaches(tree)
    assert [reach[key] for key in (tree.root, x, y)] == pytest.approx([1, 2 / 3, 1 / 3])
    assert reach.get(w, 0) == 0
    assert reach[NodeKey(2, "xc")] == pytest.approx(2 / 3 * 3 / 4)
    weights = sample_weights(tree)
    assert [weights[key] for key in (tree.root, x, y, w)] == pytest.approx([1 / 3, 1 / 6, 1 / 3, 0])
    assert squared_reach(tree)[x, "c"] == pytest.approx((2 / 3 * 3 / 4) ** 2)
    assert (w, "c") not in squared_reach(tree) and (tree.root, "z") not in squared_reach(tree)


def test_outcomes_count_whoever_chose() -> None:
    """Forced twice into y: the dice say 1 in 4 for x; the student chose a all the same."""
    tree = Tree("s")
    tree.add(tree.root, played(("a", 0, "x"), ("c", 1, "end")))
    tree.add(tree.root, played(("a", 0, "y"), ("c", 1, "end")))
    for _ in range(2):
        tree.add(tree.root, played(("a", 0, "y"), ("c", 1, "end")), Kind.FORCED)
    assert reaches(tree)[NodeKey(1, "x")] == pytest.approx(1 / 4)
    assert reaches(tree)[NodeKey(2, "end")] == pytest.approx(1)


def test_what_broke_leaves_its_part_to_the_other_rows() -> None:
    """Of three samples in s, two are trained on: s still counts 1, and x as often as it was met."""
    tree = Tree("s")
    tree.add(tree.root, played(("a", 0, "x"), ("c", 1, "end")))
    tree.add(tree.root, Continuation((Move("a", 0, "x"),), failure="the server is gone"))
    tree.add(tree.root, played(("b", 0, "y"), ("c", 0, "end")))
    weights = sample_weights(tree)
    assert [weights[key] for key in (tree.root, NodeKey(1, "x"), NodeKey(1, "y"))] == pytest.approx(
        [1 / 2, 2 / 3, 1 / 3]
    )
    assert squared_reach(tree)[tree.root, "a"] == pytest.approx((2 / 3) ** 2)


# What training sums

Array = NDArray[np.float64]


def number(value: object) -> int:
    """A state or an action of a finite MDP."""
    assert isinstance(value, int)
    return value


class Exact(TreeCredit):
    """Exact advantages, with the search of another estimator."""

    def __init__(self, world: TabularWorld) -> None:
        super().__init__()
        self._world = world

    def steps(
        self, tree: Tree, paths: Sequence[Path], given: Sequence[Path] | None = None
    ) -> list[list[StepValue]]:
        value = self._world
        return [
            [
                StepValue(value.exact_q(key, number(step.action)) - value.exact_v(key))
                for key, step in zip(p.keys, p.steps, strict=False)
            ]
            for p in paths
        ]


def as_episodes(tree: Tree, mdp: MDP) -> Tree:
    """The same tree with an episode of one token a turn for each path, as a language world's is."""
    copy = Tree(tree.root.state)
    for path in tree.paths:
        first = path.keys[0].depth
        own = path.kind is Kind.SAMPLED
        tokens = (0,) * (1 + first) + tuple(number(step.action) for step in path.steps)
        mask = (False,) * (1 + first) + (own,) + (True,) * (len(path.steps) - 1)
        logprobs = (0.0,) * (1 + first) + tuple(
            float(np.log(mdp.policy[key.depth][number(key.state), number(step.action)]))
            for key, step in zip(path.keys, path.steps, strict=False)
        )
        turns = tuple(Step((1 + k, 2 + k), "") for k in range(first + len(path.steps)))
        episode = Episode("e", "t", tokens, logprobs, mask, turns, StopReason.ANSWERED)
        steps = tuple(replace(step, payload=episode) for step in path.steps)
        copy.add(path.keys[0], Continuation(steps), path.kind)
    return copy


def trained(tree: Tree, mdp: MDP, values: TreeCredit, reach: bool) -> Array:
    """The gradient of the loss over logits of a table, by the code that trains networks."""
    grown = as_episodes(tree, mdp)
    rows = TreeRollouts(values=values).episodes(Grown(grown))
    credit = Additive(Uniform(weight=0.0), reach=reach)
    episodes = [row.episode for row in rows]
    given = credit.assign(Experience(episodes, [row.steps for row in rows]))
    batch = to_batch(episodes, given, pad_id=0)
    sizes = [len(policy) for policy in mdp.policy]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    table = torch.tensor(np.log(np.concatenate(mdp.policy)), requires_grad=True)
    places = torch.zeros_like(batch["completion_ids"])
    for i, path in enumerate(grown.paths):
        for key in path.keys[:-1]:
            places[i, key.depth] = int(starts[key.depth]) + number(key.state)
    chosen = (batch["tool_mask"] * batch["completion_mask"]).bool()
    logprobs = table.log_softmax(-1)[places[chosen], batch["completion_ids"][chosen]]
    known = batch["sampled_logprobs"][chosen], batch["advantages"][chosen], 0.2
    loss = clipped_policy_gradient(logprobs, *known).sum() / batch["num_items_in_batch"]
    (found,) = torch.autograd.grad(-loss * mdp.horizon, table)
    return np.asarray(found.numpy().ravel(), dtype=np.float64)


def exact_gradient(mdp: MDP) -> Array:
    """sum_s rho(s) sum_a p(a) A(s, a) (e_a - p)."""
    layers = zip(mdp.reach, mdp.policy, mdp.q, mdp.v, strict=False)
    return np.concatenate([(r[:, None] * p * (q - v[:, None])).ravel() for r, p, q, v in layers])


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def grow(world: TabularWorld, count: int, seed: int) -> Tree:
    """Trajectories, and twice as much from late states of some of them."""
    tree = Tree(0)
    paths = world.trajectories(tree, count, seed)
    late = [key for path in paths[: count // 3] for key in path.keys[-3:-1]]
    budget = Budget(2 * tree.env_steps)
    search = CreditSearch(tree, paths, budget, nodes=late, adaptive=0.0, width=4000, seed=seed)
    run_searches(world, [search])
    assert len(tree.paths) > 2 * count
    return tree


def summed(tree: Tree, world: TabularWorld, reach: bool) -> Array:
    """What the student's own steps sum to with exact advantages, node by node."""
    mdp, weights = world.mdp, sample_weights(tree)
    found = [np.zeros_like(policy) for policy in mdp.policy]
    for key, node in tree.nodes.items():
        for action, edge in node.edges.items():
            if edge.sampled:
                push = edge.sampled * (world.exact_q(key, number(action)) - world.exact_v(key))
                push *= weights[key] if reach else 1.0
                state = number(key.state)
                found[key.depth][state, number(action)] += push
                found[key.depth][state] -= push * mdp.policy[key.depth][state]
    return np.concatenate([layer.ravel() for layer in found])


def of_the_mean(family: str, reach: bool) -> float:
    """Cosine of the mean over draws to the exact gradient."""
    world = TabularWorld(make_mdp(family, 2))
    total = sum(summed(grow(world, 250, seed), world, reach) for seed in range(5))
    return cosine(np.asarray(total), exact_gradient(world.mdp))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_search_sum_to_the_policy_gradient(family: str) -> None:
    assert of_the_mean(family, reach=True) >= 0.97


def test_without_weights_late_states_count_too_much() -> None:
    assert of_the_mean("tree", reach=False) < 0.95


@pytest.mark.parametrize("reach", [False, True])
@pytest.mark.parametrize("family", ["tree", "graph_6", "dense"])
def test_training_sums_just_that(family: str, reach: bool) -> None:
    """Rows, masks, token weights and loss: forced and shared parts of rows add nothing."""
    world, tree = TabularWorld(make_mdp(family, 2)), Tree(0)
    paths = world.trajectories(tree, 8)
    run_searches(world, [TreeCredit(adaptive=0.9).search(tree, paths, Budget(150))])
    assert any(path.kind is Kind.FORCED for path in tree.paths) == (family == "graph_6")
    found = trained(tree, world.mdp, Exact(world), reach)
    assert cosine(found, summed(tree, world, reach)) == pytest.approx(1, abs=1e-6)


def test_whole_episodes_weigh_alike() -> None:
    """Without rows from inside, the weights change nothing."""
    mdp, tree = make_mdp("tree", 0), Tree(0)
    world = TabularWorld(mdp)
    world.trajectories(tree, 10)
    plain = trained(tree, mdp, Exact(world), reach=False)
    assert trained(tree, mdp, Exact(world), reach=True) == pytest.approx(plain, abs=1e-7)


# The estimators beside


def test_the_gradients_budget_goes_inside_only_where_dice_are_forked() -> None:
    def inside(family: str, replay: bool) -> int:
        world, tree = TabularWorld(make_mdp(family, 1), replay), Tree(0)
        paths = world.trajectories(tree, 8)
        run_searches(world, [GradientCredit().search(tree, paths, Budget(192))])
        assert tree.env_steps <= 48 + 192
        return sum(path.keys[0].depth > 0 for path in tree.paths)

    assert inside("tree", replay=False) == 0
    assert inside("graph_6", replay=False) > 4
    assert inside("graph_6", replay=True) <= 8  # a round, until the first was seen to be replayed


def test_a_replay_is_paid_for() -> None:
    world, tree = TabularWorld(make_mdp("graph_6", 1), replay=True), Tree(0)
    paths = world.trajectories(tree, 8)
    run_searches(world, [TreeCredit().search(tree, paths, Budget(120))])
    assert tree.env_steps == 6 * len(tree.paths) and tree.replays
    assert len(tree.paths) >= 8 + 18


def test_gradient_credit_shrinks_by_the_actions_own_samples_without_dice() -> None:
    tree = Tree("s")
    for action, reward in (("a", 1), ("a", 1), ("b", 0)):
        tree.add(tree.root, played((action, reward, action)))
    (first, _, last) = (row[0] for row in GradientCredit().steps(tree, tree.paths))
    assert first.advantage == pytest.approx((1 - 2 / 3) * 2 / 3)
    assert last.advantage == pytest.approx((0 - 2 / 3) * 1 / 2)


def test_siblings_and_scaled_outcomes_by_hand() -> None:
    """Returns 1, 0, 0 from the root; 1, 1, 0 from x, one of them played from there."""
    tree = Tree("s")
    tree.add(tree.root, played(("a", 0, "x"), ("c", 1, "xc")))
    tree.add(tree.root, played(("a", 0, "x"), ("d", 0, "xd")))
    tree.add(tree.root, played(("b", 0, "y"), ("c", 0, "yc")))
    tree.add(NodeKey(1, "x"), played(("c", 1, "xc")))
    rows = [[it.advantage for it in row] for row in Siblings().steps(tree, tree.paths)]
    assert rows[0] == pytest.approx([2 / 3, 1 / 3]) and rows[1] == pytest.approx([-1 / 3, -2 / 3])
    assert rows[2] == pytest.approx([-1 / 3, 0]) and rows[3] == pytest.approx([1 / 3])
    rewards = torch.tensor([1.0, 0.0, 0.0])
    expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)  # TRL's GRPOTrainer, one group
    scaled = [row[0].advantage for row in Broadcast(scaled=True).steps(tree, tree.paths[:3])]
    assert scaled == pytest.approx(expected.tolist())
