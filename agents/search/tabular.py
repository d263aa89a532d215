"""The world of finite MDPs: a tabular student whose exact values are known (`envs/exact.py`)."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence

import numpy as np

from journeyman.agents.search.searches import Request, request_seed
from journeyman.agents.search.tree import Continuation, Kind, Move, NodeKey, Path, Tree
from journeyman.envs.exact import MDP


class TabularWorld:
    """Plays requests in one MDP; a node's state is its number within its layer."""

    def __init__(self, mdp: MDP, replay: bool = False) -> None:
        """Play in `mdp`.

        Args:
            mdp: With its student.
            replay: It has no snapshots: to go back to a node costs the steps that lead there.
        """
        self.mdp = mdp
        self._replay = replay
        self._policy: dict[tuple[int, int], list[float]] = {}
        self._outcomes: dict[tuple[int, int, int], tuple[list[float], list[int]]] = {}

    def expand(self, requests: Sequence[Request]) -> list[Continuation]:
        """Play each request to the last layer."""
        return [self._play(r) for r in requests]

    def trajectories(self, tree: Tree, count: int, seed: int = 0) -> list[Path]:
        """Play episodes of the student from the root of a tree and add them to it.

        Their dice are others than those of any request of a search that has the same seed.
        """
        requests = [
            Request(tree.root, None, None, Kind.SAMPLED, request_seed(seed, -1 - i))
            for i in range(count)
        ]
        return [tree.add(tree.root, played) for played in self.expand(requests)]

    def exact_q(self, key: NodeKey, action: int) -> float:
        """Q of the student."""
        return float(self.mdp.q[key.depth][_number(key.state), action])

    def exact_v(self, key: NodeKey) -> float:
        """V of the student."""
        return float(self.mdp.v[key.depth][_number(key.state)])

    def _play(self, request: Request) -> Continuation:
        draw = random.Random(request.seed).random
        depth, state = request.key.depth, _number(request.key.state)
        action, steps, horizon = request.action, [], self.mdp.horizon
        while depth < horizon:
            if action is None:
                action = bisect(self._chances(depth, state), draw())
            gains = self.mdp.gains
            reward = 0.0 if gains is None else float(gains[depth][state, _number(action)])
            bounds, states = self._leads(depth, state, _number(action))
            state = states[bisect(bounds, draw())] if bounds else states[0]
            depth += 1
            end = depth == horizon
            reward += float(self.mdp.wins[state]) if end else 0.0
            steps.append(Move(action, reward, state, terminal=end))
            action = None
        return Continuation(tuple(steps), env_steps=horizon if self._replay else None)

    def _chances(self, depth: int, state: int) -> list[float]:
        """Inner bounds of the student's choice: `bisect` of a draw in [0, 1) is the action."""
        found = self._policy.get((depth, state))
        if found is None:
            found = np.cumsum(self.mdp.policy[depth][state])[:-1].tolist()
            self._policy[depth, state] = found
        return found

    def _leads(self, depth: int, state: int, action: int) -> tuple[list[float], list[int]]:
        found = self._outcomes.get((depth, state, action))
        if found is None:
            bounds = np.cumsum(self.mdp.chances[depth][state, action])[:-1].tolist()
            found = (bounds, self.mdp.successors[depth][state, action].tolist())
            self._outcomes[depth, state, action] = found
        return found


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r}: states and actions of a finite MDP are numbers")
    return value
