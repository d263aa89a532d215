"""Language models in forked environments, as a world that searches can play in.

A node is a place before a step of an episode that was played: the environment's state there and the
tokens the model sees. To go on from it the environment is restored from its snapshot and the tokens
are read again as context (see `Fork`): nothing before the node is sampled or trained twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.rollouts.underway import close_env
from journeyman.agents.rollouts.where import Rollouts
from journeyman.agents.search.searches import Request
from journeyman.agents.search.tree import Action, Continuation, Move, NodeKey, Tree
from journeyman.agents.students.player import Conversation, Player, remembering
from journeyman.envs import Episode, StopReason, make_for_run
from journeyman.envs.task import extract_answer, normalise
from journeyman.envs.types import said
from journeyman.tools import UNREAD, ToolCall

logger = logging.getLogger(__name__)

END = "end"
"""Context of what ended an episode: nobody reads on there."""


class LanguageWorld:
    """Plays continuations with a student.

    A node's handle is a `Fork` without seed or turn, a step's payload the episode it was played in.
    """

    def __init__(
        self,
        player: Player,
        batch_size: int = 64,
        env_kwargs: dict[str, Any] | None = None,
        rollouts: Rollouts = rollout,
    ) -> None:
        """Play with `player`, `batch_size` conversations side by side, where `rollouts` does."""
        self._player = remembering(player)
        self._batch_size = batch_size
        self._env_kwargs = env_kwargs or {}
        self._rollouts = rollouts
        self._sampled: dict[tuple[NodeKey, Action], Counter[tuple[int, ...]]] = defaultdict(Counter)
        self._repeated: dict[tuple[NodeKey, Action], Counter[tuple[int, ...]]] = defaultdict(
            Counter
        )
        self._proposed: dict[tuple[NodeKey, Action], tuple[int, ...]] = {}
        self.episodes: list[Episode] = []
        """All that was played, in order: each can be trained on, since what it shares with an
        earlier one is masked."""
        self.teacher_tokens = 0
        """Tokens that other players wrote, by `propose` and `follow`."""

    def begin(self, tasks: Sequence[TaskRef]) -> list[Tree]:
        """Play a trajectory a task; neighbours that are of one task grow from one root.

        Returns:
            One tree a task, in order. Where no trajectory came to its first turn, the root has no
            handle and no value: nothing can be played from there.
        """
        played = itertools.groupby(self._play(tasks), lambda e: (e.env_id, e.task_id))
        return [self.plant(list(episodes)) for _, episodes in played]

    def plant(self, episodes: Sequence[Episode]) -> Tree:
        """The tree of one task's episodes, played from its start and with their branch points.

        Those that broke at once say nothing of its root.
        """
        first = next((e for e in episodes if e.branch_points), episodes[0])
        handle = Fork(first, 0, 0) if first.branch_points else None
        tree = Tree(*_keys(first)[0][1:], handle=handle)
        for episode in episodes:
            tree.add(tree.root, self._continuation(episode))
        return tree

    def propose(self, player: Player, nodes: Sequence[tuple[NodeKey, Fork]]) -> list[Action | None]:
        """What another player (the teacher) would do next in each of these nodes.

        Returns:
            One action a node; None where the environment could not be brought there. A request that
            names an action plays the turn as it was written.
        """
        actions: list[Action | None] = []
        for start in range(0, len(nodes), self._batch_size):
            batch = nodes[start : start + self._batch_size]
            with contextlib.ExitStack() as envs:
                conversations = [self._conversation(place, envs) for _, place in batch]
                turns = iter(next_turns(player, [it for it in conversations if it is not None]))
                for (key, _), it in zip(batch, conversations, strict=True):
                    noted = it and self._note(key, next(turns), it)
                    actions.append(noted)
        return actions

    def _note(self, key: NodeKey, turn: tuple[int, ...], place: Conversation) -> Action:
        """Keep a proposed turn as it was written; returns its action."""
        dialect = self._player.dialect
        read = dialect.read(dialect.decode(turn[:-1]), place.env.tools, place.tokens)
        action = canonical_action(read.text if read.calls else read.answer, read.calls)
        self._proposed.setdefault((key, action), turn)
        self.teacher_tokens += len(turn)
        return action

    def follow(self, player: Player, nodes: Sequence[tuple[NodeKey, Fork]]) -> list[Episode]:
        """Episodes that another player (the teacher) plays on to the end from these nodes.

        They are not the student's, so they are in no tree.
        """
        forks = [place for _, place in nodes]
        played = self._rollouts(player, forks, self._batch_size, self._env_kwargs)
        self.teacher_tokens += sum(sum(episode.mask) for episode in played)
        return played

    def proposed(self, key: NodeKey, action: Action) -> tuple[int, ...]:
        """The tokens of an action that was proposed in a node."""
        return self._proposed[key, action]

    def expand(self, requests: Sequence[Request]) -> list[Continuation]:
        """See `World.expand`."""
        forks = []
        for request in requests:
            place: Fork = request.handle
            forks.append(Fork(place.parent, place.step, request.seed, self._turn(request)))
        return [
            self._continuation(episode, given=fork.turn is not None)
            for fork, episode in zip(forks, self._play(forks), strict=True)
        ]

    def _turn(self, request: Request) -> tuple[int, ...] | None:
        """How the request's action is written: as the student itself did, by its own frequencies.

        What follows may hang on the wording, which the student sees: to repeat one of several would
        measure the value of another policy. Each request takes the wording that is most behind
        (Sainte-Lague's method), so that what is repeated keeps to what was sampled.
        """
        if request.action is None:
            return None
        place = (request.key, request.action)
        sampled, repeated = self._sampled.get(place), self._repeated[place]
        if sampled is None:
            return self._proposed[place]
        turn = max(sampled, key=lambda it: sampled[it] / (2 * repeated[it] + 1))
        repeated[turn] += 1
        return turn

    def _play(self, tasks: Sequence[TaskRef | Fork]) -> list[Episode]:
        played = self._rollouts(self._player, tasks, self._batch_size, self._env_kwargs, keep=True)
        self.episodes += played
        return played

    def _conversation(self, place: Fork, envs: contextlib.ExitStack) -> Conversation | None:
        env = make_for_run(place.env_id, self._env_kwargs)
        envs.callback(close_env, env, place)
        try:
            env.restore(place.parent.branch_points[place.step].snapshot)
        except Exception as error:  # as in `rollout`: the infrastructure broke, for this node only
            logger.warning("%s %s: %r", place.env_id, place.task_id, error)
            return None
        before = place.parent.steps[: place.step]
        return Conversation(place.prefix, place.seed, env, said(place.parent.opening, before))

    def _continuation(self, episode: Episode, given: bool = False) -> Continuation:
        """The steps that were played in this episode; `given`: the student was given the first."""
        broken = episode.stop is StopReason.INFRA_ERROR
        keys, steps = _keys(episode), list[Move]()
        for k in range(episode.first_step, len(episode.steps)):
            step = episode.steps[k]
            calls = [result.call for result in step.results]
            action = canonical_action(step.text if calls else step.said, calls)
            turn = episode.tokens[step.span[0] : step.span[1]]
            if k > episode.first_step or not given:
                self._sampled[keys[k], action][turn] += 1
            if k + 1 < len(keys):
                place = Fork(episode, k + 1, 0)
                steps.append(Move(action, 0.0, *keys[k + 1][1:], False, place, episode))
            elif broken:  # before anybody looked where the step had led: no end, and no value
                steps.append(Move(action, 0.0, f"broken/{k}", END, payload=episode))
            else:
                end = Move(action, episode.reward, episode.state_hash, END, True, payload=episode)
                steps.append(end)
        failure = None
        if broken:
            failure = episode.error or "broken"
        elif not steps:
            failure = "the prompt does not fit max_context"
        return Continuation(tuple(steps), failure, tokens=sum(episode.mask))


def canonical_action(text: str, calls: Sequence[ToolCall]) -> str:
    """Equal calls are equal actions, however they are written; so are equal answers.

    A call that could not be read stays as it was written.

    Args:
        text: The turn; of one without calls, what it says outside its reasoning.
        calls: What was read in it.
    """
    if not calls:
        return json.dumps({"answer": normalise(extract_answer(text))}, ensure_ascii=False)
    if not any(call.status in UNREAD for call in calls):
        return "\n".join(call.canonical() for call in calls)
    return text


def _keys(episode: Episode) -> list[NodeKey]:
    """The node before each step, and the one it stopped in if the environment broke there."""
    if not episode.branch_points:  # it broke before it began, or its prompt does not fit
        return [NodeKey(0, episode.task_id, END)]
    tokens, seen, start = (
        np.array(episode.tokens, dtype=np.int64),
        hashlib.blake2b(digest_size=16),
        0,
    )
    keys = []
    for step, point in enumerate(episode.branch_points):
        end = len(Fork(episode, step, 0).prefix)
        seen.update(tokens[start:end].tobytes())
        keys.append(NodeKey(step, point.state_hash, seen.hexdigest()))
        start = end
    return keys


def next_turns(player: Player, conversations: Sequence[Conversation]) -> list[tuple[int, ...]]:
    """The tokens of the one turn that a player writes next in each conversation."""
    turns: list[tuple[int, ...]] = [()] * len(conversations)
    if not conversations:
        return turns
    stream = player.open(conversations)
    missing = len(conversations)
    while missing:
        for turn in stream.advance():
            if turn.failure is not None:
                raise turn.failure
            turns[turn.row] = turn.tokens
            stream.finish(turn.row)
            missing -= 1
    return turns
