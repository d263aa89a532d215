"""What each step was worth: ours, and what the literature makes of the same rollouts.

An estimator says where a budget goes (`search`) and what the tree that comes of it says of every
step of the credited trajectories (`steps`). One estimator is one class here and one file in
`conf/values/`. They work on any tree, of a finite MDP or of a language model. Advantages are in
units of reward, never divided by a standard deviation, so that they can be held against exact ones.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from journeyman.agents.search.backup import NodeValue, expected_backup, shrink
from journeyman.agents.search.searches import Budget, CreditSearch
from journeyman.agents.search.tree import Action, Kind, NodeKey, Path, Tree


class Estimate(NamedTuple):
    """A number and its squared standard error."""

    mean: float
    variance: float = 0.0


@dataclass(frozen=True, slots=True)
class StepValue:
    """What an estimator says of one step."""

    advantage: float
    """0 where nothing is known."""
    q: Estimate | None = None
    """Value of the action, unshrunk; None if the estimator has none."""
    v: Estimate | None = None
    """Value of the state it was chosen in."""


class StepEstimator(Protocol):
    """A way to value steps."""

    def search(
        self, tree: Tree, trajectories: Sequence[Path], budget: Budget, seed: int = 0
    ) -> CreditSearch:
        """How it spends a budget beyond the trajectories, which are in the tree."""

    def steps(
        self, tree: Tree, paths: Sequence[Path], given: Sequence[Path] | None = None
    ) -> list[list[StepValue]]:
        """What the tree says of each step.

        Args:
            tree: Grown by the search.
            paths: Whose steps are asked for; any of the tree's.
            given: The trajectories that the search was begun with; None if they are `paths`.

        Returns:
            One value a step, for each path.
        """


class TreeCredit:
    """Ours: Q - V by expected backup, shrunk by n / (n + kappa), n the effective samples."""

    def __init__(self, kappa: float = 1.0, adaptive: float = 0.5) -> None:
        """`adaptive` is the share of the budget that goes where it helps most."""
        shrink(0.0, 0.0, kappa)  # refuses a negative one
        self.kappa = kappa
        self.adaptive = adaptive

    def search(
        self, tree: Tree, trajectories: Sequence[Path], budget: Budget, seed: int = 0
    ) -> CreditSearch:
        """From each node of the trajectories in turn, and where it helps most."""
        return CreditSearch(tree, trajectories, budget, adaptive=self.adaptive, seed=seed)

    def steps(
        self, tree: Tree, paths: Sequence[Path], given: Sequence[Path] | None = None
    ) -> list[list[StepValue]]:
        """Q - V; 0 where a failure left either without a value."""
        values = expected_backup(tree)

        def value(key: NodeKey, action: Action) -> StepValue:
            node = values[key]
            if node.value is None or action not in node.actions:
                return StepValue(0.0)
            it = node.actions[action]
            return StepValue(
                self._shrunk(tree, node, action),
                Estimate(it.q, it.variance),
                Estimate(node.value, node.variance),
            )

        return [
            [value(key, step.action) for key, step in zip(p.keys, p.steps, strict=False)]
            for p in paths
        ]

    def _shrunk(self, tree: Tree, node: NodeValue, action: Action) -> float:
        return node.advantage(action).shrunk(self.kappa)


class GradientCredit(TreeCredit):
    """Ours for learning: what comes of it as a policy gradient counts, and not each value.

    The budget goes to whole episodes; once the environment has shown dice, and can be forked, the
    share `adaptive` goes from inside them to where the error of the gradient is largest. Values
    are by expected backup. Without dice the effective samples count against the early steps, whose
    values are means over the most episodes and matter most: the advantage is shrunk by the
    action's own samples instead, so that in a tree it is RTMC's.
    """

    def search(
        self, tree: Tree, trajectories: Sequence[Path], budget: Budget, seed: int = 0
    ) -> CreditSearch:
        """Whole episodes, and from inside where that tells more."""
        return CreditSearch(
            tree,
            trajectories,
            budget,
            nodes=[tree.root],
            adaptive=self.adaptive,
            seed=seed,
            aim="gradient",
        )

    def _shrunk(self, tree: Tree, node: NodeValue, action: Action) -> float:
        if tree.dice:
            return super()._shrunk(tree, node, action)
        return shrink(node.advantage(action).mean, node.actions[action].visits, self.kappa)


class _Episodes:
    """Spends its budget on more episodes, from the root."""

    def search(
        self, tree: Tree, trajectories: Sequence[Path], budget: Budget, seed: int = 0
    ) -> CreditSearch:
        """Whole episodes."""
        nodes = [tree.root]
        return CreditSearch(tree, trajectories, budget, nodes=nodes, adaptive=0.0, seed=seed)


class Broadcast(_Episodes):
    """GRPO: each step gets its episode's return less the episodes' mean (arXiv:2402.03300)."""

    def __init__(self, scaled: bool = False) -> None:
        """`scaled` divides by the episodes' standard deviation + 1e-4, as TRL's trainer does."""
        self.scaled = scaled

    def steps(
        self, tree: Tree, paths: Sequence[Path], given: Sequence[Path] | None = None
    ) -> list[list[StepValue]]:
        """The same for all steps of an episode; 0 for one that broke."""
        returns = _Returns(tree, tree.paths)
        scale = returns.deviation + 1e-4 if self.scaled else 1.0
        return [
            [StepValue((p.returns()[0] - returns.root) / scale if p.complete else 0.0)]
            * len(p.steps)
            for p in paths
        ]


class GiGPO(_Episodes):
    """GiGPO: the episode's advantage plus that among equal states (arXiv:2505.10978).

    Both without division by a standard deviation, which the paper calls F_norm = 1.
    """

    def __init__(self, weight: float = 1.0) -> None:
        """`weight` is the paper's omega, of the step's part."""
        self.weight = weight

    def steps(
        self, tree: Tree, paths: Sequence[Path], given: Sequence[Path] | None = None
    ) -> list[list[StepValue]]:
        """Return from here less the mean of those from the same state, and the episode's."""
        returns = _Returns(tree, [p for p in tree.paths if p.keys[0] == tree.root])
        found = []
        for path in paths:
            togo = path.returns() if path.complete else []
            row = [StepValue(0.0)] * (len(path.steps) - len(togo))
            for key, value in zip(path.keys, togo, strict=False):
                v = returns.v(key)
                if v is None:  # the student never came here by itself from the root
                    row.append(StepValue(0.0))
                else:
                    step = self.weight * (value - v.mean)
                    row.append(StepValue(togo[0] - returns.root + step, v=v))
            found.append(row)
        return found


class RTMC(_Episodes):
    """RTMC: mean return of an action in a state less that of the state (arXiv:2604.11037).

    Smoothed towards the state's mean by `prior` pseudo-returns.
    """

    def __init__(self, prior: float = 1.0) -> None:
        """0 leaves the means as they are."""
        self.prior = prior

    def steps(
        self, tree: Tree, paths: Sequence[Path], given: Sequence[Path] | None = None
    ) -> list[list[StepValue]]:
        """Means over the student's episodes."""
        returns = _Returns(tree, [p for p in tree.paths if p.keys[0] == tree.root])

        def value(key: NodeKey, action: Action) -> StepValue:
            q, v = returns.q(key, action), returns.v(key)
            if q is None or v is None:
                return StepValue(0.0)
            count = len(returns.by_action[key, action])
            return StepValue(shrink(q.mean - v.mean, count, self.prior), q, v)

        return [
            [value(key, step.action) for key, step in zip(p.keys, p.steps, strict=False)]
            for p in paths
        ]


class _Nodes:
    """Spends its budget on rollouts from each distinct node of the trajectories in turn."""

    def search(
        self, tree: Tree, trajectories: Sequence[Path], budget: Budget, seed: int = 0
    ) -> CreditSearch:
        """Round and round."""
        return CreditSearch(tree, trajectories, budget, adaptive=0.0, seed=seed)


class VinePPO(_Nodes):
    """VinePPO: r + V(s') - V(s), each V the mean of rollouts from there (arXiv:2410.01679).

    Equal states share their rollouts (deduplicated). V(s') of the outcome that came stands for the
    action's value: where the environment has dice, they stay in the advantage.
    """

    def __init__(self, kappa: float = 0.0, pooled: bool = False) -> None:
        """Prepare.

        Args:
            kappa: Shrinks by n / (n + kappa), with n the fewer of the two states' rollouts.
            pooled: A state's V takes in all that the student played through it: trajectories and
                rollouts that began above.
        """
        shrink(0.0, 0.0, kappa)  # refuses a negative one
        self.kappa = kappa
        self.pooled = pooled

    def steps(
        self, tree: Tree, paths: Sequence[Path], given: Sequence[Path] | None = None
    ) -> list[list[StepValue]]:
        """Differences of V; 0 where a state has no rollouts yet."""
        if self.pooled:
            returns = _Returns(tree, tree.paths)
        else:
            trajectories = set(map(id, paths if given is None else given))
            rollouts = [p for p in tree.paths if id(p) not in trajectories]
            returns = _Returns(tree, rollouts, first_only=True)
        return [
            [
                self._step(tree, returns, here, step.reward, after)
                for here, step, after in zip(p.keys, p.steps, p.keys[1:], strict=False)
            ]
            for p in paths
        ]

    def _step(
        self, tree: Tree, returns: _Returns, here: NodeKey, reward: float, after: NodeKey
    ) -> StepValue:
        v, count = returns.v(here), len(returns.by_node.get(here, ()))
        if tree.nodes[after].terminal:
            then: Estimate | None = Estimate(0.0)
        else:
            then, count = returns.v(after), min(count, len(returns.by_node.get(after, ())))
        if v is None or then is None:
            return StepValue(0.0)
        q = Estimate(reward + then.mean, then.variance)
        return StepValue(shrink(q.mean - v.mean, count, self.kappa), q, v)


class LeafMeans(_Nodes):
    """Tree-GRPO: plain means over the leaves below a node (arXiv:2509.21240).

    Biased: a branch counts by the leaves that the search grew below it, not by how likely the
    student takes it. With `centred=False` the advantage is the value itself (AT2PO's best variant,
    arXiv:2601.04767).
    """

    def __init__(self, centred: bool = True) -> None:
        """`centred` subtracts the mean of the state's leaves."""
        self.centred = centred

    def steps(
        self, tree: Tree, paths: Sequence[Path], given: Sequence[Path] | None = None
    ) -> list[list[StepValue]]:
        """Means of leaves."""
        leaves = _Leaves(tree)
        return [
            [
                self._step(leaves.of_node(key), leaves.of_action(key, step.action))
                for key, step in zip(p.keys, p.steps, strict=False)
            ]
            for p in paths
        ]

    def _step(self, v: Estimate | None, q: Estimate | None) -> StepValue:
        if v is None or q is None:
            return StepValue(0.0)
        return StepValue(q.mean - (v.mean if self.centred else 0.0), q, v)


class Siblings(_Nodes):
    """What is played on from one state is one group: return from there less the group's mean.

    BPO (arXiv:2607.14171) compares the branches of a snapshot like this; written without its paper
    at hand, so a relative of it and not its formula.
    """

    def steps(
        self, tree: Tree, paths: Sequence[Path], given: Sequence[Path] | None = None
    ) -> list[list[StepValue]]:
        """0 for what stands alone, or broke."""
        returns = _Returns(tree, tree.paths)
        found = []
        for path in paths:
            togo = path.returns() if path.complete else []
            row = [StepValue(0.0)] * (len(path.steps) - len(togo))
            for key, value in zip(path.keys, togo, strict=False):
                v = returns.v(key)
                row.append(StepValue(0.0) if v is None else StepValue(value - v.mean, v=v))
            found.append(row)
        return found


class _Returns:
    """Returns of the student's own play, pooled by node and by action."""

    def __init__(self, tree: Tree, paths: Sequence[Path], first_only: bool = False) -> None:
        """Returns of complete `paths`, from all their nodes or their first.

        What was forced, or the teacher's call, says nothing of the node it began in, but all of the
        nodes after it.
        """
        self.by_node: dict[NodeKey, list[float]] = defaultdict(list)
        self.by_action: dict[tuple[NodeKey, Action], list[float]] = defaultdict(list)
        for path in paths:
            if path.complete:
                rows = zip(path.keys, path.steps, path.returns(), strict=False)
                for i, (key, step, value) in enumerate(rows):
                    self.by_action[key, step.action].append(value)
                    if i or path.kind is Kind.SAMPLED:
                        self.by_node[key].append(value)
                    if first_only:
                        break
        whole = [
            p.returns()[0]
            for p in tree.paths
            if p.complete and p.kind is Kind.SAMPLED and p.keys[0] == tree.root
        ]
        self.root = sum(whole) / len(whole) if whole else 0.0
        self._spread = _squares(whole) / len(whole) if whole else 0.0
        self.deviation = math.sqrt(_squares(whole) / (len(whole) - 1)) if len(whole) > 1 else 0.0

    def v(self, key: NodeKey) -> Estimate | None:
        return self._estimate(self.by_node.get(key))

    def q(self, key: NodeKey, action: Action) -> Estimate | None:
        return self._estimate(self.by_action.get((key, action)))

    def _estimate(self, numbers: Sequence[float] | None) -> Estimate | None:
        """Mean; its variance with one pseudo-sample of the episodes' spread, as few say little."""
        if not numbers:
            return None
        n = len(numbers)
        return Estimate(sum(numbers) / n, (_squares(numbers) + self._spread) / n / n)


class _Leaves:
    """Number, sum and sum of squares of the returns below each node, by a pass from the leaves up.

    In a graph a leaf counts once for each way to it.
    """

    def __init__(self, tree: Tree) -> None:
        ends: dict[NodeKey, int] = defaultdict(int)
        for path in tree.paths:
            ends[path.keys[-1]] += path.complete
        self._nodes: dict[NodeKey, tuple[int, float, float]] = {}
        self._actions: dict[tuple[NodeKey, Action], tuple[int, float, float]] = {}
        for level in reversed(tree.levels):
            for node in level:
                for action, edge in node.edges.items():
                    below = [
                        _shift(self._nodes[key], outcome.reward / outcome.visits)
                        for key, outcome in edge.outcomes.items()
                    ]
                    self._actions[node.key, action] = _total(below)
                of_actions = [self._actions[node.key, action] for action in node.edges]
                self._nodes[node.key] = (
                    (ends[node.key], 0.0, 0.0) if node.terminal else _total(of_actions)
                )

    def of_node(self, key: NodeKey) -> Estimate | None:
        return _moments(self._nodes[key])

    def of_action(self, key: NodeKey, action: Action) -> Estimate | None:
        return _moments(self._actions[key, action])


def _shift(leaves: tuple[int, float, float], reward: float) -> tuple[int, float, float]:
    n, total, squares = leaves
    return n, total + n * reward, squares + 2 * reward * total + n * reward * reward


def _total(parts: Sequence[tuple[int, float, float]]) -> tuple[int, float, float]:
    return sum(p[0] for p in parts), sum(p[1] for p in parts), sum(p[2] for p in parts)


def _moments(leaves: tuple[int, float, float]) -> Estimate | None:
    n, total, squares = leaves
    if not n:
        return None
    mean = total / n
    return Estimate(mean, max(0.0, squares / n - mean * mean) / n)


def _squares(numbers: Sequence[float]) -> float:
    mean = sum(numbers) / len(numbers)
    return sum((x - mean) ** 2 for x in numbers)
