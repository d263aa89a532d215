"""The driver: many searches side by side, all of whose requests share each batch.

A search is asked what it wants to have played and told what came of it. A `World` plays: a finite
MDP, or language models in forked environments. Searches know trees; worlds know how to go back to a
node and play on from it. Neither knows the other.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from journeyman.agents.search.backup import NodeValue, expected_backup
from journeyman.agents.search.reach import squared_reach
from journeyman.agents.search.select import (
    Array,
    Counts,
    completed_q,
    considered_visits,
    halving_scores,
    improved_policy,
    influences,
    puct_scores,
    sigma,
    softmax,
)
from journeyman.agents.search.tree import Action, Continuation, Kind, NodeKey, Path, Tree


@dataclass(frozen=True, slots=True)
class Request:
    """From this node, play to the end of the episode."""

    key: NodeKey
    handle: Any
    """The node's handle: how the world goes back there."""
    action: Action | None
    """Play this first; None lets the student choose. Later actions are always the student's."""
    kind: Kind
    seed: int
    """Seeds the student's dice (and the environment's, if it has any) for this request alone."""


class World(Protocol):
    """Plays continuations."""

    def expand(self, requests: Sequence[Request]) -> list[Continuation]:
        """Play each request to the end of its episode, all in one batch.

        Returns:
            One continuation a request, in order. What breaks is said in `Continuation.failure`; an
            exception is the programmer's error.
        """


class Search(Protocol):
    """One search over one tree."""

    def ask(self) -> list[Request]:
        """What to play next; empty when the search is over."""

    def tell(self, request: Request, continuation: Continuation) -> None:
        """What came of it."""


def run_searches(world: World, searches: Sequence[Search]) -> None:
    """Run searches to their ends; in each round all requests go to the world as one batch.

    Raises:
        RuntimeError: The world returned more or fewer continuations than it was asked for.
    """
    while True:
        asked = [(search, request) for search in searches for request in search.ask()]
        if not asked:
            return
        played = world.expand([request for _, request in asked])
        if len(played) != len(asked):
            raise RuntimeError(f"{len(asked)} requests came back as {len(played)} continuations")
        for (search, request), continuation in zip(asked, played, strict=True):
            search.tell(request, continuation)


Rule = Literal["gumbel", "puct"]
"""How an `ImprovementSearch` chooses: Gumbel top-k with sequential halving, or AlphaZero's PUCT."""

Aim = Literal["values", "gradient"]
"""What a `CreditSearch` serves."""

PATIENCE = 16
"""Continuations that break in a row, after which a search gives up."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a search may spend beyond the trajectories it credits; None means no limit."""

    env_steps: int | None = None
    tokens: int | None = None
    continuations: int | None = None

    def __post_init__(self) -> None:
        limits = {name: getattr(self, name) for name in ("env_steps", "tokens", "continuations")}
        for name, limit in limits.items():
            if limit is not None and limit < 0:
                raise ValueError(f"budget {name}={limit}: expected at least 0")
        if all(limit is None for limit in limits.values()):
            names = ", ".join(limits)
            raise ValueError(f"a budget without any limit never ends: set one of {names}")

    def less(self, spent: Budget) -> Budget | None:
        """What is left of it; None if a limit is reached."""
        left = [
            None if limit is None else limit - (used or 0)
            for limit, used in (
                (self.env_steps, spent.env_steps),
                (self.tokens, spent.tokens),
                (self.continuations, spent.continuations),
            )
        ]
        return None if any(it is not None and it <= 0 for it in left) else Budget(*left)


class CreditSearch:
    """Values of the student along given trajectories.

    Half of the steps go round the trajectories' nodes in turn, half to where one more continuation
    is expected to lower the squared error of the wanted advantages most per environment step:
    w^2 Var / (n + 1) / (steps left), with w from `influences`. A request either lets the student
    choose in a node (lowers the error of V) or repeats an action there (lowers the error of Q if
    the environment has dice). Candidates such as the teacher's calls are branched on first.

    A budget of 0 is no error: values come from the trajectories alone then. A student that always
    does the same has advantages of 0. A world in which nothing works any more (`PATIENCE`) ends the
    search; what was learned stays.
    """

    def __init__(
        self,
        tree: Tree,
        trajectories: Sequence[Path],
        budget: Budget,
        candidates: Mapping[NodeKey, Sequence[Action]] | None = None,
        nodes: Sequence[NodeKey] | None = None,
        adaptive: float = 0.5,
        width: int = 8,
        seed: int = 0,
        aim: Aim = "values",
    ) -> None:
        """Prepare a search.

        Args:
            tree: Holds the trajectories; grows.
            trajectories: What is to be credited.
            budget: Spent on top of the trajectories; kept to as far as a continuation's length is
                known beforehand (the mean of those played from the same node).
            candidates: Other actions to know the value of, by node: played once each, first.
            nodes: What the uniform part goes round; None means the trajectories' nodes.
            adaptive: Share of the steps that goes where it helps most, 0 to below 1.
            width: Requests a round. Wider rounds decide on older values.
            seed: Another seed, other dice.
            aim: What the adaptive share serves: the values of the trajectories' steps, each as
                often as it occurs; or the policy gradient, to which a step counts by the square of
                how likely the student comes to take it, whoever played it. For the gradient the
                share is 0 until the tree has shown dice (without them a whole episode tells as much
                of its nodes, and of how likely they are too) and where continuations are replayed.

        Raises:
            ValueError: No trajectories, or a setting out of its range.
        """
        if not trajectories:
            raise ValueError("no trajectories to credit: play some and add them to the tree")
        if width < 1:
            raise ValueError(f"width={width}: expected at least 1")
        if not 0 <= adaptive < 1:
            raise ValueError(f"adaptive={adaptive}: expected a share, 0 to below 1")
        self.tree = tree
        self.budget = budget
        """May be raised between rounds."""
        self._adaptive = adaptive
        self.width = width
        self._seed = seed
        self._requests = 0
        self._broken = 0
        self._start = (tree.env_steps, tree.tokens, len(tree.paths))
        self._aim = aim
        self._wanted: Counter[tuple[NodeKey, Action]] = Counter(
            (key, step.action)
            for path in trajectories
            for key, step in zip(path.keys, path.steps, strict=False)
        )
        self._round = list(dict.fromkeys(nodes or (key for key, _ in self._wanted)))
        self._turn = 0
        self._branches = [
            (key, action) for key, actions in (candidates or {}).items() for action in actions
        ]
        self._wanted.update(set(self._branches))
        self._balance = 0.0  # steps that the adaptive share is behind

    @property
    def spent(self) -> Budget:
        """What was spent so far."""
        steps, tokens, paths = self._start
        tree = self.tree
        return Budget(tree.env_steps - steps, tree.tokens - tokens, len(tree.paths) - paths)

    def values(self) -> dict[NodeKey, NodeValue]:
        """Values as known now."""
        return expected_backup(self.tree)

    def ask(self) -> list[Request]:
        """The next round; empty when nothing fits the budget any more."""
        if self._broken >= PATIENCE:
            return []
        purse = Purse(self.tree, self.budget, self.spent)
        requests: list[Request] = []
        while self._branches and len(requests) < self.width:
            key, action = self._branches[0]
            if not purse.take(key):
                break
            requests.append(self._request(*self._branches.pop(0), Kind.TEACHER))
        probes: _Probes | None = None
        share = self._share
        while len(requests) < self.width:
            chosen: tuple[NodeKey, Action | None] | None = None
            if share and self._balance > 0:
                probes = probes or _Probes(self.tree, self._weights())
                chosen = probes.best(purse)
                if chosen:
                    self._balance -= (1 - share) * self.tree.nodes[chosen[0]].steps_left
            if chosen is None:
                chosen = self._next_in_round(purse)
                if chosen is None:
                    break
                self._balance += share * self.tree.nodes[chosen[0]].steps_left
            key, action = chosen
            requests.append(
                self._request(key, action, Kind.SAMPLED if action is None else Kind.FORCED)
            )
        return requests

    def tell(self, request: Request, continuation: Continuation) -> None:
        """Grow the tree."""
        self._broken = self._broken + 1 if continuation.failure is not None else 0
        self.tree.add(request.key, continuation, request.kind)

    @property
    def _share(self) -> float:
        """Of the steps, that goes where it helps most."""
        forked = self.tree.dice and not self.tree.replays
        return self._adaptive if self._aim == "values" or forked else 0.0

    def _weights(self) -> Mapping[tuple[NodeKey, Action], float]:
        """How much the squared error of each advantage counts."""
        return self._wanted if self._aim == "values" else squared_reach(self.tree)

    def _next_in_round(self, purse: Purse) -> tuple[NodeKey, None] | None:
        for _ in self._round:
            key = self._round[self._turn % len(self._round)]
            self._turn += 1
            if purse.take(key):
                return key, None
        return None

    def _request(self, key: NodeKey, action: Action | None, kind: Kind) -> Request:
        seed = request_seed(self._seed, self._requests)
        self._requests += 1
        return Request(key, self.tree.nodes[key].handle, action, kind, seed)


class Purse:
    """What is left of a budget, while one round is put together.

    A continuation costs what those played from its node took on average.
    """

    def __init__(self, tree: Tree, budget: Budget, spent: Budget) -> None:
        """Open it with `budget` less what was `spent`."""
        self._nodes = tree.nodes
        self._replays = tree.replays
        self._steps = _left(budget.env_steps, spent.env_steps)
        self._tokens = _left(budget.tokens, spent.tokens)
        self._continuations = _left(budget.continuations, spent.continuations)
        self._tokens_a_step = tree.tokens / tree.env_steps if tree.env_steps else 0.0

    def fits(self, key: NodeKey) -> bool:
        """True if a continuation from a node can still be paid."""
        steps = self._price(key)
        fits = steps <= self._steps and steps * self._tokens_a_step <= self._tokens
        return fits and self._continuations >= 1

    def take(self, key: NodeKey) -> bool:
        """Set aside a continuation from a node, if it fits."""
        if not self.fits(key):
            return False
        steps = self._price(key)
        self._steps -= steps
        self._tokens -= steps * self._tokens_a_step
        self._continuations -= 1
        return True

    def _price(self, key: NodeKey) -> float:
        """Environment steps of a continuation from a node, its replay included."""
        return self._nodes[key].steps_left + (key.depth if self._replays else 0)


def _left(limit: int | None, spent: int | None) -> float:
    return math.inf if limit is None else limit - (spent or 0)


class _Probes:
    """Where one more continuation lowers the squared error most, for its steps."""

    def __init__(self, tree: Tree, wanted: Mapping[tuple[NodeKey, Action], float]) -> None:
        values = expected_backup(tree)
        self._heap: list[tuple[float, int, int, float, NodeKey, Action | None]] = []
        for key, influence in influences(tree, values, wanted).items():
            value, steps = values[key], tree.nodes[key].steps_left
            if value.value is not None:
                self._push(value.samples, influence.node * value.variance / steps, key, None)
            for action, it in value.actions.items():
                weight = influence.actions[action]
                self._push(it.visits, weight * it.spread / it.visits / steps, key, action)
        heapq.heapify(self._heap)

    def _push(self, n: int, gain: float, key: NodeKey, action: Action | None) -> None:
        """`gain` is w^2 Var / steps: with n + i samples it is worth a factor n / (n + i)."""
        if gain > 0:
            scale = gain * n
            self._heap.append((-scale / n / (n + 1), len(self._heap), n, scale, key, action))

    def best(self, purse: Purse) -> tuple[NodeKey, Action | None] | None:
        """The best that fits the purse, which is charged; None if nothing brings anything."""
        while self._heap:
            _, order, n, scale, key, action = self._heap[0]
            if purse.take(key):
                again = (-scale / (n + 1) / (n + 2), order, n + 1, scale, key, action)
                heapq.heapreplace(self._heap, again)
                return key, action
            heapq.heappop(self._heap)
        return None


class ImprovementSearch:
    """Which of a node's candidates is best, given a prior (the teacher's or the student's).

    Each simulation plays one candidate and lets the student go on to the end: values are those of
    the current student, so that the improved policy is better than it wherever they are right.

    With one candidate there is nothing to find out: nothing is played and its weight is 1.
    """

    def __init__(
        self,
        tree: Tree,
        key: NodeKey,
        prior: Mapping[Action, float],
        simulations: int,
        rule: Rule = "gumbel",
        top: int = 16,
        value: float | None = None,
        width: int = 8,
        seed: int = 0,
    ) -> None:
        """Prepare a search.

        Args:
            tree: Holds the node; grows.
            key: The node to choose an action in.
            prior: Log-probabilities (any constant may be added) of the candidates.
            simulations: Continuations to play.
            rule: "gumbel": top-k without replacement, then sequential halving; "puct": AlphaZero.
            top: Candidates that Gumbel begins with.
            value: The node's own value estimate; None takes the tree's, or 0 if it has none.
            width: Most requests a round; Gumbel rounds end where counts decide what comes next.
            seed: Another seed, other dice.

        Raises:
            ValueError: No candidates, or a count below 1.
        """
        if not prior:
            raise ValueError(f"no candidates to choose from at {key}")
        for name, count in (("simulations", simulations), ("top", top), ("width", width)):
            if count < 1:
                raise ValueError(f"{name}={count}: expected at least 1")
        if rule not in ("gumbel", "puct"):
            raise ValueError(f"rule={rule!r}: expected 'gumbel' or 'puct'")
        self.tree = tree
        self.key = key
        self.actions = list(prior)
        self._logits = np.array([prior[a] for a in self.actions], dtype=np.float64)
        self._prior = softmax(self._logits)
        self._gumbel = np.random.default_rng(seed).gumbel(size=len(prior))
        self._rule, self._value, self.width, self._seed = rule, value, width, seed
        self._played = np.zeros(len(prior), dtype=np.int64)
        self._simulations = simulations if len(prior) > 1 else 0
        self._schedule = considered_visits(min(top, len(prior)), self._simulations)

    def ask(self) -> list[Request]:
        """The next simulations; empty when all were played."""
        q, valued = self._known()
        requests: list[Request] = []
        done = int(self._played.sum())
        for i in range(done, min(done + self.width, self._simulations)):
            if self._rule == "puct":
                chosen = int(np.argmax(puct_scores(q, self._prior, self._played)))
            else:
                if requests and self._schedule[i] != self._schedule[done]:
                    break  # results decide who goes on
                completed = self._completed(q, valued)
                chosen = self._halving(self._schedule[i], completed, valued)
            self._played[chosen] += 1
            seed = request_seed(self._seed, i)
            handle = self.tree.nodes[self.key].handle
            requests.append(Request(self.key, handle, self.actions[chosen], Kind.FORCED, seed))
        return requests

    def tell(self, request: Request, continuation: Continuation) -> None:
        """Grow the tree."""
        self.tree.add(request.key, continuation, request.kind)

    def policy(self) -> dict[Action, float]:
        """The improved policy: softmax of the prior and the completed values."""
        q, valued = self._known()
        weights = improved_policy(self._logits, self._completed(q, valued), valued)
        return dict(zip(self.actions, weights.tolist(), strict=True))

    def best(self) -> Action:
        """The action to play: the survivor of the halving, or PUCT's most visited."""
        if self._rule == "puct":
            return self.actions[int(np.argmax(self._played))]
        q, valued = self._known()
        completed = self._completed(q, valued)
        return self.actions[self._halving(int(self._played.max()), completed, valued)]

    def _halving(self, considered: int, completed: Array, valued: Counts) -> int:
        scores = halving_scores(
            considered, self._gumbel, self._logits, sigma(completed, valued), self._played
        )
        return int(np.argmax(scores))

    def _known(self) -> tuple[Array, Counts]:
        """Values and visits of the candidates that have a value, 0 elsewhere."""
        known = expected_backup(self.tree)[self.key].actions
        q = np.array([known[a].q if a in known else 0.0 for a in self.actions])
        visits = np.array([known[a].visits if a in known else 0 for a in self.actions])
        return q, visits

    def _completed(self, q: Array, valued: Counts) -> Array:
        value = self._value
        if value is None:
            value = expected_backup(self.tree)[self.key].value or 0.0
        return completed_q(value, q, self._prior, valued)


def request_seed(seed: int, index: int) -> int:
    """A seed of its own for each request of a search.

    Args:
        seed: The search's.
        index: From 0 for what a search requests; below 0 for what is played beside it, such as its
            trajectories.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=7).digest())
