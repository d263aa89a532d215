"""Which turn lost an episode: the last from before which somebody who plays on still wins.

A win from before turn k shows that every place before it can be won from, by the turns of the
episode and then that win. So the places that can be won from are the first so many, and the turn at
their end lost the episode. A win is proof; that none was found among n tries is not: a chance of up
to 1 - 0.05^(1/n) would have hidden with 95% confidence.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from journeyman.agents.rollouts.replay import as_read
from journeyman.agents.rollouts.tasks import Fork
from journeyman.agents.rollouts.underway import close_env
from journeyman.agents.search.searches import PATIENCE, Request, request_seed
from journeyman.agents.search.tree import Continuation, Kind, NodeKey, Path, Tree
from journeyman.envs import Episode, ToolEnv, answer_text, make_for_run
from journeyman.envs.core import Action
from journeyman.envs.task import UserTurn
from journeyman.tools import CallStatus, ToolCall

logger = logging.getLogger(__name__)

Counts = dict[int, tuple[int, int]]
"""Wins and tries by turn: of what was played on from before it."""


class DecidingSearch:
    """Plays on from before each turn of an episode that failed; see `Search`.

    By bisection only as many places are tried as lead to the one where winning ends, about the
    logarithm of all. It takes a place from which no try wins for one that nothing after it wins
    from either, which is true of chances and may not be of so many tries: a rare win at a later
    place, that trying every place might have found, is missed.
    """

    def __init__(self, tree: Tree, path: Path, tries: int, bisect: bool, seed: int) -> None:
        """Prepare a search.

        Args:
            tree: Holds the episode; grows.
            path: The episode's; its places have handles.
            tries: Continuations of a place that come to their end.
            bisect: Try places by bisection, or else all of them.
            seed: Another seed, other dice. The dice of a place hang on nothing else.
        """
        self.tree = tree
        self._keys: Sequence[NodeKey] = path.keys[:-1]
        self._tries, self._seed = tries, seed
        self._asked, self._broken = Counter[int](), Counter[int]()
        self._counts: Counts = {}
        self._low, self._high = -1, len(self._keys)  # won from; not won from
        self._bisect = bisect

    @property
    def counts(self) -> Counts:
        """What was found so far, by turn."""
        return dict(sorted(self._counts.items()))

    def ask(self) -> list[Request]:
        """What is missing of the places that are to be tried; empty when all is known."""
        if not self._bisect:
            return [it for turn in range(len(self._keys)) for it in self._missing(turn)]
        while self._high - self._low > 1:
            turn = (self._low + self._high) // 2
            if requests := self._missing(turn):
                return requests
            if self._counts[turn][0]:
                self._low = turn
            else:
                self._high = turn
        return []

    def tell(self, request: Request, continuation: Continuation) -> None:
        """Grow the tree and count; what broke is tried again, `PATIENCE` times in all."""
        turn = request.key.depth
        path = self.tree.add(request.key, continuation, request.kind)
        if path.complete:
            wins, tries = self._counts[turn]
            self._counts[turn] = wins + bool(path.steps[-1].payload.success), tries + 1
        else:
            self._broken[turn] += 1

    def _missing(self, turn: int) -> list[Request]:
        _, tries = self._counts.setdefault(turn, (0, 0))
        if self._broken[turn] >= PATIENCE:
            return []
        return [self._request(turn) for _ in range(self._tries - tries)]

    def _request(self, turn: int) -> Request:
        key = self._keys[turn]
        seed = request_seed(request_seed(self._seed, turn), self._asked[turn])
        self._asked[turn] += 1
        return Request(key, self.tree.nodes[key].handle, None, Kind.SAMPLED, seed)


def gold_counts(episode: Episode, env_kwargs: dict[str, Any]) -> Counts:
    """From before which turns the gold calls still win.

    From each place it is tried to go on with the gold calls that were not made yet, with all of
    them, and with all but the first one, two, …; then with those of the user's further turns. One
    win will do. Where none wins, another way may still: nothing is proved by these.

    Args:
        episode: With branch points.
        env_kwargs: For the environments.

    Returns:
        1 or 0 wins, and how many ways were tried, by turn.
    """
    env = make_for_run(episode.env_id, env_kwargs)
    try:
        return {turn: _gold_from(env, episode, turn) for turn in range(len(episode.steps))}
    finally:
        close_env(env, Fork(episode, 0, 0))


def _gold_from(env: ToolEnv, episode: Episode, turn: int) -> tuple[int, int]:
    tried = 0
    env.restore(episode.branch_points[turn].snapshot)
    said = sum(not step.results for step in episode.steps[:turn])  # answers to the user so far
    user, *then = env.task.turns[said:]
    for calls in _ways(user, episode, turn):
        try:
            won = _wins(env, episode, turn, calls, [user, *then])
        except Exception as error:  # as in `rollout`: the infrastructure broke, for this way only
            logger.warning("%s %s: %r", episode.env_id, episode.task_id, error)
            continue
        tried += 1
        if won:
            return 1, tried
    return 0, tried


def _ways(user: UserTurn, episode: Episode, turn: int) -> Iterator[Sequence[ToolCall]]:
    """Ways to go on with the gold calls of a user's turn, each once."""
    made = Counter(
        result.call.canonical()
        for step in episode.steps[:turn]
        for result in step.results
        if result.call.status in (CallStatus.OK, CallStatus.TOOL_ERROR)
    )
    missing = []
    for call in user.gold:
        if made[call.canonical()]:
            made[call.canonical()] -= 1
        else:
            missing.append(call)
    ways = [tuple(missing), *(user.gold[first:] for first in range(len(user.gold) + 1))]
    seen = []
    for way in ways:
        if way not in seen:
            seen.append(way)
            yield way


def _wins(
    env: ToolEnv, episode: Episode, turn: int, calls: Sequence[ToolCall], turns: Sequence[UserTurn]
) -> bool:
    env.restore(episode.branch_points[turn].snapshot)
    success = False
    for user in turns:
        own = calls if user is turns[0] else user.gold
        actions: list[Action] = [[as_read(call)] for call in own]
        for action in (*actions, answer_text(user)):
            if env.over:
                return success
            *_, info = env.step(action)
            success = info["success"]
    return success
