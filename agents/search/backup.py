"""Values of the current student from a tree: expected backup by its own sample frequencies.

    Q(s, a) = mean over outcomes of r + V(s')        V(s) = sum_a p(a) Q(s, a) / sum_a p(a)

with p(a) the frequency of `a` among the student's own samples in `s`. Forced and teacher's actions
have p = 0: they get a Q and leave V alone. (A plain mean over the leaves below a node would count
every branch the search chose to play, and estimate the value of another policy.) Dynamics do not
care who chose the action, so outcomes count whoever did.

A node without any valued sample has no value: `NodeValue.value` is None, never zero, and means
leave it out.

Variances. The error of V has two sources, the student's dice in `s` and the errors of each Q:
Var V = spread / n + sum_a p(a)^2 Var Q(s, a); likewise Var Q, over the environment's dice. A spread
is what samples show beyond the errors they have anyway. Few samples show next to nothing, so each
spread is shrunk towards the one that comparable nodes have in common (`PRIOR` pseudo-samples).

Effective samples. The same recursion with every spread set to 1 (0 for the environment's dice while
it has shown none) says how many independent samples a value is worth, whatever was drawn: its
inverse. Shrinkage goes by this number, since a variance estimated from the very samples that made
an advantage large is not independent of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from journeyman.agents.search.tree import Action, Edge, Node, NodeKey, Tree

PRIOR = 1.0
"""Pseudo-samples that a common spread counts for."""


@dataclass(frozen=True, slots=True)
class ActionValue:
    """What is known of one action in one node."""

    q: float
    variance: float
    """Squared standard error of `q`."""
    visits: int
    """Times it was played, however it came about, and led to a node with a value."""
    policy: float
    """Its frequency among the student's own samples that have a value; 0 if never sampled."""
    spread: float
    """Variance of r + V(s') over the environment's dice: more visits average it out."""
    unit: float
    """`variance` if each spread were 1: one over the effective samples."""


@dataclass(frozen=True, slots=True)
class NodeValue:
    """What is known of one node."""

    value: float | None
    """V, or None if nothing the student did here has a value."""
    variance: float = 0.0
    """Squared standard error of `value`."""
    samples: int = 0
    """The student's own samples here that have a value."""
    spread: float = 0.0
    """Variance of Q over the student's dice: more samples average it out."""
    unit: float = 0.0
    """`variance` if each spread were 1: one over the effective samples."""
    actions: dict[Action, ActionValue] = field(default_factory=dict)
    """Actions that have a value."""

    def advantage(self, action: Action) -> Advantage:
        """Q - V of an action.

        V holds p(a) Q(s, a) itself, so the error of Q(s, a) counts by 1 - p(a) only.

        Raises:
            KeyError: The action, or the node itself, has no value.
        """
        if self.value is None or action not in self.actions:
            raise KeyError(f"no advantage of {action!r}: values are known of {list(self.actions)}")
        variance, unit = self.spread / self.samples, 1 / self.samples
        for other, it in self.actions.items():
            square = ((other == action) - it.policy) ** 2
            variance += square * it.variance
            unit += square * it.unit
        return Advantage(self.actions[action].q - self.value, variance, 1 / unit)


class Advantage(NamedTuple):
    """Q - V of an action."""

    mean: float
    variance: float
    """Squared standard error."""
    samples: float
    """Effective samples behind it."""

    def shrunk(self, kappa: float) -> float:
        """The mean, shrunk towards 0 by n / (n + kappa) with n the effective samples."""
        return shrink(self.mean, self.samples, kappa)


def expected_backup(tree: Tree) -> dict[NodeKey, NodeValue]:
    """Values of all nodes of a tree; terminal nodes are worth 0.

    Rewards are taken to be a function of state, action and next state: those of one outcome are
    averaged, and their own variance is not reckoned.
    """
    values: dict[NodeKey, NodeValue] = {}
    guess = _guess(tree)
    die = 1.0 if tree.dice else 0.0
    dynamics = _Pool(0.0)  # of all depths, since few edges are played twice; first guess: no dice
    for level in reversed(tree.levels):
        values.update((node.key, NodeValue(0.0)) for node in level if node.terminal)
        live = [node for node in level if not node.terminal]
        edges = [{a: _outcomes(e, values) for a, e in node.edges.items()} for node in live]
        for mixtures in edges:
            for mixture in mixtures.values():
                dynamics.add(mixture)
        choices = _Pool(guess)  # of one depth: nodes of one depth are alike
        drafts = []
        for node, mixtures in zip(live, edges, strict=True):
            known = {a: m.average(dynamics.spread(m), die) for a, m in mixtures.items() if m.n}
            own = _mix([(node.edges[a].sampled, v) for a, v in known.items()])
            choices.add(own)
            drafts.append((node, mixtures, known, own))
        for node, mixtures, known, own in drafts:
            spreads = {a: dynamics.spread(mixtures[a]) for a in known}
            values[node.key] = _node_value(node, known, spreads, own, choices.spread(own))
    return values


class _Average(NamedTuple):
    """A number and its errors."""

    n: int
    value: float
    variance: float
    unit: float


class _Mixture(NamedTuple):
    """A weighted mean of numbers that have errors of their own."""

    n: int
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations, less what the numbers' own errors add to it on average."""
    noise: float = 0.0
    """Variance of the mean that the numbers' own errors cause."""
    unit: float = 0.0
    """The same if each spread were 1."""

    def average(self, spread: float, die: float) -> _Average:
        """With the error that the weights' own dice add, of variance `spread` (or 1 or 0)."""
        return _Average(self.n, self.mean, self.noise + spread / self.n, self.unit + die / self.n)


def _mix(parts: Sequence[tuple[int, _Average]]) -> _Mixture:
    """Mix numbers by counts."""
    total = sum(n for n, _ in parts)
    if not total:
        return _Mixture(0)
    mean = sum(n * it.value for n, it in parts) / total
    noise = sum(n * n * it.variance for n, it in parts) / total**2
    unit = sum(n * n * it.unit for n, it in parts) / total**2
    squares = sum(n * ((it.value - mean) ** 2 - it.variance) for n, it in parts) + total * noise
    return _Mixture(total, mean, squares, noise, unit)


class _Pool:
    """The spread that comparable mixtures have in common."""

    def __init__(self, guess: float) -> None:
        self._squares, self._freedom = PRIOR * guess, PRIOR

    def add(self, mixture: _Mixture) -> None:
        if mixture.n > 1:
            self._squares += mixture.squares
            self._freedom += mixture.n - 1

    def spread(self, mixture: _Mixture) -> float:
        """The spread of one mixture, shrunk towards the common one; 0 of nothing."""
        if not mixture.n:
            return 0.0
        common = max(0.0, self._squares / self._freedom)
        return max(0.0, mixture.squares + PRIOR * common) / (mixture.n - 1 + PRIOR)


def _outcomes(edge: Edge, values: dict[NodeKey, NodeValue]) -> _Mixture:
    parts = []
    for key, outcome in edge.outcomes.items():
        child = values[key]
        if child.value is not None:
            value = outcome.reward / outcome.visits + child.value
            parts.append(
                (outcome.visits, _Average(child.samples, value, child.variance, child.unit))
            )
    return _mix(parts)


def _node_value(
    node: Node,
    known: dict[Action, _Average],
    spreads: dict[Action, float],
    own: _Mixture,
    spread: float,
) -> NodeValue:
    actions = {
        action: ActionValue(
            q=it.value,
            variance=it.variance,
            visits=it.n,
            policy=node.edges[action].sampled / own.n if own.n else 0.0,
            spread=spreads[action],
            unit=it.unit,
        )
        for action, it in known.items()
    }
    if not own.n:
        return NodeValue(None, actions=actions)
    v = own.average(spread, 1.0)
    return NodeValue(v.value, v.variance, v.n, spread, v.unit, actions)


def _guess(tree: Tree) -> float:
    """Spread of the student's choices at one depth, before anything was sampled twice there."""
    returns = [
        path.returns()[0] for path in tree.paths if path.complete and path.keys[0] == tree.root
    ]
    return statistics.pvariance(returns) / len(tree.levels) if len(returns) > 1 else 0.0


def shrink(advantage: float, n: float, kappa: float) -> float:
    """An advantage estimated from n samples, shrunk towards 0 by n / (n + kappa).

    Raises:
        ValueError: Negative counts.
    """
    if n < 0 or kappa < 0:
        raise ValueError(f"n={n}, kappa={kappa}: expected counts of at least 0")
    return advantage * n / (n + kappa) if n else 0.0
