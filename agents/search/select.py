"""Where to play next. For credit: where errors of V and Q hurt most; for improvement: PUCT, Gumbel.

The improvement rules are pure functions over arrays indexed by candidate and agree with mctx
(DeepMind; tests/agents/search/test_select.py), with values taken as they are, not rescaled:
PUCT as in AlphaZero (Silver et al. 2018), Gumbel top-k with sequential halving, completed Q and the
mixed value as in Danihelka et al. 2022, "Policy improvement by planning with Gumbel".
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from journeyman.agents.search.backup import NodeValue
from journeyman.agents.search.tree import Action, NodeKey, Tree

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

PUCT_INIT = 1.25
PUCT_BASE = 19652.0
VALUE_SCALE = 0.1
MAXVISIT_INIT = 50.0


# Credit


class Influence(NamedTuple):
    """How much the squared errors of all wanted advantages owe to one node."""

    node: float
    """Sum over wanted advantages of (derivative by V of this node)^2."""
    actions: dict[Action, float]
    """The same by Q of each of its actions."""


def influences(
    tree: Tree, values: Mapping[NodeKey, NodeValue], wanted: Mapping[tuple[NodeKey, Action], float]
) -> dict[NodeKey, Influence]:
    """How errors of V and Q spread into the wanted advantages.

    A(s, a) = Q(s, a) - V(s) moves with Q(s, b) by [a = b] - p(b), Q with V of its outcomes by their
    frequencies, V again with Q by p. Squares are summed along the way; that two ways may meet in
    one node is left out, which is exact in trees.

    Args:
        tree: What was played.
        values: Its values, from `expected_backup`.
        wanted: The (node, action) whose advantages are wanted, with weights (say, how often they
            occur in the episodes to be credited).

    Returns:
        One entry a node that matters.
    """
    aims: dict[NodeKey, list[tuple[Action, float]]] = defaultdict(list)
    for (key, action), weight in wanted.items():
        aims[key].append((action, weight))
    above: dict[NodeKey, float] = defaultdict(float)
    found: dict[NodeKey, Influence] = {}
    for level in tree.levels:
        for node in level:
            key = node.key
            if node.terminal or not (aims[key] or above[key]):
                continue
            known = values[key].actions
            own = sum(weight for _, weight in aims[key])
            by_action = {}
            for action, edge in node.edges.items():
                p = known[action].policy if action in known else 0.0
                square = p * p * (above[key] + own)
                for aim, weight in aims[key]:
                    if aim == action:
                        square += weight * ((1 - p) ** 2 - p * p)
                by_action[action] = square
                # As in the backup, an outcome after which something broke counts for nothing.
                visits = {
                    child: outcome.visits
                    for child, outcome in edge.outcomes.items()
                    if values[child].value is not None
                }
                for child, count in visits.items():
                    above[child] += square * (count / sum(visits.values())) ** 2
            found[key] = Influence(above[key] + own, by_action)
    return found


# Improvement


def puct_scores(q: Array, prior: Array, visits: Counts) -> Array:
    """AlphaZero's rule; play the candidate with the highest score.

    Args:
        q: [K] values, 0 where nothing was played yet.
        prior: [K] probabilities.
        visits: [K] times played. The node itself counts as visited once more.
    """
    total = 1 + int(visits.sum())
    exploration = PUCT_INIT + math.log((total + PUCT_BASE + 1) / PUCT_BASE)
    bonus = prior * math.sqrt(total) * exploration / (visits + 1)
    return q + bonus


def mixed_value(value: float, q: Array, prior: Array, visits: Counts) -> float:
    """v_mix: the node's own value estimate mixed with the policy's mean over played candidates."""
    played = visits > 0
    if not played.any():
        return value
    prior = np.maximum(prior, np.finfo(np.float64).tiny)
    mean = (prior[played] * q[played]).sum() / prior[played].sum()
    total = int(visits.sum())
    return float((value + total * mean) / (total + 1))


def completed_q(value: float, q: Array, prior: Array, visits: Counts) -> Array:
    """[K] q where played, `mixed_value` elsewhere."""
    return np.where(visits > 0, q, mixed_value(value, q, prior, visits))


def sigma(completed: Array, visits: Counts) -> Array:
    """[K] completed values on the scale of logits: the more visits, the more they say."""
    return (MAXVISIT_INIT + float(visits.max(initial=0))) * VALUE_SCALE * completed


def improved_policy(logits: Array, completed: Array, visits: Counts) -> Array:
    """[K] softmax(logits + sigma(completed Q)): better than the prior wherever Q is right."""
    return softmax(logits + sigma(completed, visits))


def considered_visits(candidates: int, simulations: int) -> list[int]:
    """Sequential halving as a schedule: simulation i goes to a candidate of that many visits.

    Args:
        candidates: How many to begin with.
        simulations: How many in all.
    """
    if candidates <= 1:
        return list(range(simulations))
    rounds = math.ceil(math.log2(candidates))
    schedule: list[int] = []
    visits = [0] * candidates
    left = candidates
    while len(schedule) < simulations:
        for _ in range(max(1, int(simulations / (rounds * left)))):
            schedule.extend(visits[:left])
            for i in range(left):
                visits[i] += 1
        left = max(2, left // 2)
    return schedule[:simulations]


def halving_scores(
    considered: int, gumbel: Array, logits: Array, scaled: Array, visits: Counts
) -> Array:
    """Scores at the root: only candidates of `considered` visits may be played.

    Args:
        considered: The entry of `considered_visits`; at the end, the highest count.
        gumbel: [K] Gumbel(0) noise: with it, the first top-k is a sample without replacement.
        logits: [K] prior.
        scaled: [K] `sigma` of the completed Q.
        visits: [K] times played.
    """
    scores = gumbel + (logits - logits.max()) + scaled
    return np.where(visits == considered, np.maximum(scores, -1e9), -np.inf)


def softmax(logits: Array) -> Array:
    """[K] probabilities."""
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum(), dtype=np.float64)
