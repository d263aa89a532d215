"""Search at test time: each turn is chosen among several by playing each to the end.

It asks forks of the environment how an episode ends, the verdict included. So its figures are not
those of a student that has one attempt: they say what the student could reach, and make episodes to
learn from.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from journeyman.agents.rollouts.tasks import Fork
from journeyman.agents.search.language import LanguageWorld, next_turns
from journeyman.agents.search.searches import ImprovementSearch, Rule, request_seed, run_searches
from journeyman.agents.search.tree import Tree
from journeyman.agents.students.player import Conversation, Player, Stream, Turn, remembering
from journeyman.envs import BranchPoint, Episode, Message, StopReason

logger = logging.getLogger(__name__)


class SearchPlayer:
    """Plays what an `ImprovementSearch` finds best among the turns a player proposes."""

    def __init__(
        self,
        player: Player,
        rule: Rule = "gumbel",
        candidates: int = 8,
        simulations: int = 16,
        env_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Search with a player.

        Args:
            player: Proposes turns and plays the simulations to their ends; it must have dice, or
                all proposals are one.
            rule: See `ImprovementSearch`.
            candidates: Turns sampled at each choice; their frequencies are the prior.
            simulations: Continuations played at each choice, unless all candidates are one.
            env_kwargs: For the forked environments; None takes those of the environment played.

        Raises:
            ValueError: A count below 1, or another rule.
        """
        for name, count in (("candidates", candidates), ("simulations", simulations)):
            if count < 1:
                raise ValueError(f"{name}={count}: expected at least 1")
        if rule not in ("gumbel", "puct"):
            raise ValueError(f"rule={rule!r}: expected 'gumbel' or 'puct'")
        self.player = player
        self.dialect = player.dialect
        self.max_context = player.max_context
        self.rule = rule
        self.candidates = candidates
        self.simulations = simulations
        self.env_kwargs = env_kwargs

    def open(self, conversations: Sequence[Conversation]) -> Stream:
        """Start a batch of conversations, whose choices are searched side by side."""
        return _SearchStream(self, conversations)


class _SearchStream:
    def __init__(self, owner: SearchPlayer, conversations: Sequence[Conversation]) -> None:
        self._owner = owner
        self._player = remembering(owner.player)
        self._conversations: dict[int, Conversation] = {}
        """Of the rows whose episode is not over."""
        self._env_kwargs = owner.env_kwargs
        if self._env_kwargs is None and conversations and conversations[0].env.spec is not None:
            self._env_kwargs = dict(conversations[0].env.spec.kwargs)
        self._tokens: list[list[int]] = []
        self._messages: list[tuple[Message, ...]] = []
        self._choices: list[int] = []
        self._ready: list[int] = []
        for it in conversations:
            self.add(it)

    def add(self, conversation: Conversation) -> int:
        row = len(self._tokens)
        self._conversations[row] = conversation
        self._tokens.append(list(conversation.tokens))
        self._messages.append(conversation.messages)
        self._choices.append(0)
        self._ready.append(row)
        return row

    @property
    def idle(self) -> bool:
        return not self._ready

    def extend(self, row: int, tokens: Sequence[int], messages: Sequence[Message] = ()) -> None:
        self._tokens[row] += tokens
        self._messages[row] += tuple(messages)
        self._ready.append(row)

    def finish(self, row: int) -> None:
        self._ready = [r for r in self._ready if r != row]
        self._conversations.pop(row, None)
        self._tokens[row], self._messages[row] = [], ()

    def advance(self) -> list[Turn]:
        ready, self._ready = self._ready, []
        if not ready:
            return []
        owner = self._owner
        world = LanguageWorld(self._player, env_kwargs=self._env_kwargs)
        trees = {row: tree for row in ready if (tree := self._tree(row)) is not None}
        proposed = world.propose(
            self._player,
            [
                (tree.root, Fork(tree.nodes[tree.root].handle.parent, 0, self._seed(row, i)))
                for row, tree in trees.items()
                for i in range(owner.candidates)
            ],
        )
        searches: dict[int, ImprovementSearch] = {}
        for i, (row, tree) in enumerate(trees.items()):
            candidates = proposed[i * owner.candidates : (i + 1) * owner.candidates]
            counts = Counter(action for action in candidates if action is not None)
            if not counts:
                continue
            prior = {action: math.log(n) for action, n in counts.items()}
            seed = self._seed(row, owner.candidates)
            searches[row] = ImprovementSearch(
                tree, tree.root, prior, owner.simulations, owner.rule, seed=seed
            )
        run_searches(world, list(searches.values()))
        chosen = {row: world.proposed(it.key, it.best()) for row, it in searches.items()}
        # Where no fork could be made there is nothing to choose among.
        chosen |= self._plainly([row for row in ready if row not in searches])
        turns = []
        for row in ready:
            self._tokens[row] += chosen[row]
            text = owner.dialect.decode(chosen[row][:-1])
            self._messages[row] += (Message("assistant", text),)
            self._choices[row] += 1
            turns.append(Turn(row, chosen[row], (0.0,) * len(chosen[row])))
        return turns

    def _plainly(self, rows: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """The player's own next turn in each of these rows, without a search."""
        conversations = [
            Conversation(
                tuple(self._tokens[row]),
                self._seed(row, 0),
                self._conversations[row].env,
                self._messages[row],
            )
            for row in rows
        ]
        return dict(zip(rows, next_turns(self._player, conversations), strict=True))

    def _tree(self, row: int) -> Tree | None:
        """A tree whose root is where the row stands; None where the environment cannot tell."""
        try:
            return self._root(row)
        except NotImplementedError:
            raise
        except Exception as error:  # as in `rollout`: the row goes on without a search
            logger.warning("row %d: no branch point: %r", row, error)
            return None

    def _root(self, row: int) -> Tree:
        env, tokens = self._conversations[row].env, tuple(self._tokens[row])
        here = Episode(
            env.spec.id if env.spec is not None else "",
            env.task.id,
            tokens,
            (0.0,) * len(tokens),
            (False,) * len(tokens),
            (),
            StopReason.MAX_TURNS,
            opening=self._messages[row],
            branch_points=(BranchPoint(env.snapshot(), env.state_hash()),),
        )
        return Tree(env.state_hash(), f"{row}/{self._choices[row]}", Fork(here, 0, 0))

    def _seed(self, row: int, index: int) -> int:
        return request_seed(self._conversations[row].seed, (self._choices[row] << 16) + index)
