"""`journeyman/ExactMDP-v0`: small finite MDPs whose Q and V are known exactly.

Twelve families of layered MDPs, each with a tabular student whose values are the truth that credit
estimators are measured against (`benchmarks/credit.py`). An episode is a fixed number of choices;
reward is 0 or 1 and comes at the end, but for `dense`, where every choice may earn some. The first
six families (`PLAYED`) are a registered environment too, with one tool, `choose`, which anything
that can call a tool can play.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from journeyman.envs.core import ToolEnv
from journeyman.envs.task import Task
from journeyman.envs.types import SPLITS, Level, Split
from journeyman.tools import ToolCall, ToolError, tool

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class MDP:
    """A layered MDP and a student; H layers of N_t states, K actions, at most M outcomes each."""

    successors: tuple[Counts, ...]
    """H arrays [N_t, K, M]: states of the next layer."""
    chances: tuple[Array, ...]
    """H arrays [N_t, K, M]: probability of each outcome."""
    wins: Array
    """[N_H] reward of each final state, 0 or 1."""
    policy: tuple[Array, ...]
    """H arrays [N_t, K]: the student's probabilities."""
    gains: tuple[Array, ...] | None = None
    """H arrays [N_t, K]: reward of each action; None if none earns any before the end."""

    @property
    def horizon(self) -> int:
        """Choices an episode."""
        return len(self.policy)

    @property
    def actions(self) -> int:
        """Actions in each state."""
        return int(self.policy[0].shape[1])

    @functools.cached_property
    def q(self) -> tuple[Array, ...]:
        """H arrays [N_t, K]: exact values of the student's policy, by backward induction."""
        value, found = self.wins, []
        for t in reversed(range(self.horizon)):
            policy = self.policy[t]
            q = (self.chances[t] * value[self.successors[t]]).sum(axis=2)
            if self.gains is not None:
                q = q + self.gains[t]
            found.append(q)
            value = (policy * q).sum(axis=1)
        return tuple(found[::-1])

    @functools.cached_property
    def v(self) -> tuple[Array, ...]:
        """H + 1 arrays [N_t]: exact state values."""
        inner = ((p * q).sum(axis=1) for p, q in zip(self.policy, self.q, strict=True))
        return (*inner, self.wins)

    @functools.cached_property
    def reach(self) -> tuple[Array, ...]:
        """H arrays [N_t]: the student's probability to come to each state."""
        found: list[Array] = [np.ones(1)]
        for t in range(self.horizon - 1):
            flow = found[t][:, None, None] * self.policy[t][:, :, None] * self.chances[t]
            size = len(self.policy[t + 1])
            sums = np.bincount(self.successors[t].ravel(), flow.ravel(), minlength=size)
            found.append(np.asarray(sums, dtype=np.float64))
        return tuple(found)


def _softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _tree(
    rng: np.random.Generator, actions: int, horizon: int, sharpness: float, critical: bool = False
) -> MDP:
    """A deterministic tree.

    Every edge is good or bad by a normal draw, and a leaf wins if its path was good enough; or one
    layer decides all, by one right action in each of its states. The student's logits are normal,
    `sharpness` their standard deviation.
    """
    sizes = [actions**t for t in range(horizon)]
    decisive = int(rng.integers(1, horizon - 1))
    score = np.zeros(1)
    for t, size in enumerate(sizes):
        edges = rng.normal(size=(size, actions))
        if critical:
            edges = (edges == edges.max(axis=1, keepdims=True)) * float(t == decisive)
        score = (score[:, None] + edges).ravel()
    return MDP(
        successors=tuple(np.arange(n * actions).reshape(n, actions, 1) for n in sizes),
        chances=tuple(np.ones((n, actions, 1)) for n in sizes),
        wins=(score > (0.5 if critical else 0.5 * horizon**0.5)).astype(np.float64),
        policy=tuple(_softmax(sharpness * rng.normal(size=(n, actions))) for n in sizes),
    )


def _graph(
    rng: np.random.Generator, width: int, actions: int = 4, horizon: int = 6, outcomes: int = 3
) -> MDP:
    """Layers of `width` states; an action mostly leads to one of them and now and then slips."""
    sizes = [1] + [width] * (horizon - 1)
    shapes = [(n, actions, outcomes) for n in sizes]
    return MDP(
        successors=tuple(rng.integers(width, size=shape) for shape in shapes),
        chances=tuple(rng.dirichlet(np.full(outcomes, 0.3), size=shape[:2]) for shape in shapes),
        wins=rng.permutation(np.arange(width) % 2).astype(np.float64),
        policy=tuple(_softmax(rng.normal(size=(n, actions))) for n in sizes),
    )


def _won_by(rng: np.random.Generator, rate: float) -> MDP:
    """The deterministic tree; the best leaves win, as many as the student comes to at that rate."""
    mdp = _tree(rng, actions=4, horizon=6, sharpness=1.0)
    score = rng.normal(size=len(mdp.wins))
    for t in range(mdp.horizon):  # leaves that lie near each other are about as good
        near = rng.normal(size=mdp.actions ** (t + 1))
        score += np.repeat(near, len(score) // len(near))
    chance = np.ones(1)
    for policy in mdp.policy:
        chance = (chance[:, None] * policy).ravel()
    best = np.argsort(-score)
    count = max(1, int(np.searchsorted(chance[best].cumsum(), rate)))
    return replace(mdp, wins=np.isin(np.arange(len(score)), best[:count]).astype(np.float64))


def _skilled(rng: np.random.Generator) -> MDP:
    """The deterministic tree with a student that has learned: what wins is e^4 times as likely."""
    mdp = _tree(rng, actions=4, horizon=6, sharpness=1.0)
    return replace(
        mdp,
        policy=tuple(_softmax(np.log(p) + 4 * q) for p, q in zip(mdp.policy, mdp.q, strict=True)),
    )


def _dense(rng: np.random.Generator) -> MDP:
    """The deterministic tree with one good edge in four, each worth its share of 1; no end wins."""
    mdp = _tree(rng, actions=4, horizon=6, sharpness=1.0)
    gains = tuple((rng.random(p.shape) < 0.25) / mdp.horizon for p in mdp.policy)
    return replace(mdp, wins=np.zeros(len(mdp.wins)), gains=gains)


FAMILIES: dict[str, Callable[[np.random.Generator], MDP]] = {
    "tree": lambda rng: _tree(rng, actions=4, horizon=6, sharpness=1.0),
    "critical": lambda rng: _tree(rng, actions=4, horizon=6, sharpness=1.0, critical=True),
    "wide_peaked": lambda rng: _tree(rng, actions=12, horizon=4, sharpness=3.0),
    "wide_flat": lambda rng: _tree(rng, actions=12, horizon=4, sharpness=0.3),
    "graph_6": lambda rng: _graph(rng, width=6),
    "graph_40": lambda rng: _graph(rng, width=40),
    "deep": lambda rng: _tree(rng, actions=2, horizon=12, sharpness=1.0),
    "wide": lambda rng: _tree(rng, actions=24, horizon=3, sharpness=1.0),
    "rare": lambda rng: _won_by(rng, 0.05),
    "common": lambda rng: _won_by(rng, 0.9),
    "skilled": _skilled,
    "dense": _dense,
}
"""The families by name, each drawing an MDP. Its place here is part of the seed: add at the end."""
PLAYED = tuple(FAMILIES)[:6]
"""Families that the environment draws tasks of."""


@functools.lru_cache(maxsize=64)
def make_mdp(family: str, seed: int) -> MDP:
    """The MDP of that family and seed.

    Raises:
        KeyError: No such family.
    """
    if family not in FAMILIES:
        raise KeyError(f"no family {family!r}; there are: {', '.join(FAMILIES)}")
    return FAMILIES[family](np.random.default_rng([seed, list(FAMILIES).index(family)]))


@dataclass(frozen=True, slots=True)
class Position:
    """Where an episode stands."""

    family: str
    seed: int
    depth: int
    node: int
    dice: int
    """Seeds the environment's dice from here on."""

    @property
    def won(self) -> bool:
        """True at the end of an episode that earned its reward."""
        mdp = make_mdp(self.family, self.seed)
        return self.depth == mdp.horizon and bool(mdp.wins[self.node])

    def after(self, action: int) -> Position:
        """Where an action leads."""
        mdp = make_mdp(self.family, self.seed)
        chances = mdp.chances[self.depth][self.node, action]
        dice = random.Random(f"{self.dice}/{self.depth}/{self.node}/{action}")
        draw = dice.random() * chances.sum()
        outcome = min(int(np.searchsorted(chances.cumsum(), draw)), len(chances) - 1)
        node = int(mdp.successors[self.depth][self.node, action, outcome])
        return replace(self, depth=self.depth + 1, node=node)


@tool
def choose(state: Position, action: int) -> tuple[Position, dict[str, int | str]]:
    """Take one of the numbered actions.

    Args:
        action: Its number, from 0.
    """
    mdp = make_mdp(state.family, state.seed)
    if state.depth == mdp.horizon:
        raise ToolError("nothing is left to choose: answer done")
    if not 0 <= action < mdp.actions:
        raise ToolError(f"no action {action}: choose 0 to {mdp.actions - 1}")
    state = state.after(action)
    return state, {
        "state": f"{state.depth}.{state.node}",
        "choices_left": mdp.horizon - state.depth,
    }


class ExactMDPEnv(ToolEnv):
    """A fixed number of choices, then "Answer: done"; success if the final state wins.

    Dice are part of the branch point, so that an episode replays; they are not part of
    `state_hash`, since nobody can see them. `reroll` after `restore` shows other outcomes.
    """

    toolset = (choose,)
    harmless = MappingProxyType({"changed": "several ways may win", "added": "several may win"})

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw a family and an MDP of it."""
        family = rng.choice(PLAYED)
        gold: tuple[int, ...] | None = None
        while gold is None:
            seed = len(SPLITS) * rng.randrange(2**28) + SPLITS.index(split)  # splits share none
            start = Position(family, seed, depth=0, node=0, dice=rng.randrange(2**31))
            gold = _winning(start)
        mdp = make_mdp(family, seed)
        prompt = (
            f"Game {family} {seed}. Choose {mdp.horizon} times, each time one of the actions "
            f"0 to {mdp.actions - 1}; then answer done."
        )
        calls = tuple(ToolCall("choose", {"action": a}) for a in gold)
        return Task("", family, prompt, start, calls, "done")

    @classmethod
    def outcome(cls, state: Position) -> bool:
        """Won or not; which way does not matter."""
        return state.won

    def hashed_state(self) -> Position:
        """The place without the dice."""
        place: Position = self._state
        return replace(place, dice=0)

    def reroll(self, seed: int) -> None:
        """Throw other dice from here on."""
        self._state = replace(self._state, dice=seed)


def _winning(start: Position) -> tuple[int, ...] | None:
    """Actions that win under the dice of `start`, or None."""
    mdp = make_mdp(start.family, start.seed)
    stack: list[tuple[Position, tuple[int, ...]]] = [(start, ())]
    seen = set()
    while stack:
        place, way = stack.pop()
        if place.won:
            return way
        if place.depth < mdp.horizon and place not in seen:
            seen.add(place)
            stack += [(place.after(a), (*way, a)) for a in reversed(range(mdp.actions))]
    return None
