"""Language models in forked environments, as a world that searches can play in.

A node is a place before a step of an episode that was played: the environment's state there and the
tokens the model sees. To go on from it the environment is restored from its snapshot and the tokens
are read again as context (see `Fork`): nothing before the node is sampled or trained twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from journeyman.agents.policy import Policy
from journeyman.agents.policy import Request as Conversation
from journeyman.agents.rollout import Fork, TaskRef, rollout
from journeyman.agents.search.search import Request
from journeyman.agents.search.tree import Action, Continuation, NodeKey, Step, Tree
from journeyman.envs import Episode, StopReason, make_for_run
from journeyman.envs.task import extract_answer, normalise
from journeyman.tools import CallStatus, ToolCall, get_parser

_UNREAD = (CallStatus.INVALID_JSON, CallStatus.UNCLOSED, CallStatus.MISSING_NAME)

END = "end"
"""Context of what ended an episode: nobody reads on there."""


class LanguageWorld:
    """Plays continuations with a student.

    A node's handle is a `Fork` without seed or turn, a step's payload the episode it was played in.
    """

    def __init__(
        self, policy: Policy, batch_size: int = 64, env_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Play with `policy`, `batch_size` conversations side by side."""
        self._policy = policy
        self._batch_size = batch_size
        self._env_kwargs = env_kwargs or {}
        self._parse = get_parser(self._env_kwargs.get("parser", "hermes"))
        self._written: dict[tuple[NodeKey, Action], tuple[int, ...]] = {}
        self.episodes: list[Episode] = []
        """All that was played, in order: each can be trained on, since what it shares with an
        earlier one is masked."""
        self.teacher_tokens = 0
        """Tokens that other policies wrote, by `propose` and `follow`."""

    def begin(self, tasks: Sequence[TaskRef]) -> list[Tree]:
        """Play a trajectory a task; neighbours that are of one task grow from one root.

        Returns:
            One tree a task, in order. Where the environment could not be opened, nothing is known
            of the root.
        """
        trees: list[Tree] = []
        last = ("", "")
        for task, episode in zip(tasks, self._play(tasks), strict=True):
            if (task.env_id, task.task_id) != last:
                handle = Fork(episode, 0, 0) if episode.branch_points else None
                trees.append(Tree(*_keys(episode)[0][1:], handle=handle))
                last = (task.env_id, task.task_id)
            trees[-1].add(trees[-1].root, self._continuation(episode))
        return trees

    def propose(self, policy: Policy, nodes: Sequence[tuple[NodeKey, Fork]]) -> list[Action]:
        """What another policy (the teacher) would do next in each of these nodes.

        Returns:
            One action a node. A request that names it plays the turn as it was written.
        """
        actions: list[Action] = []
        for start in range(0, len(nodes), self._batch_size):
            batch = nodes[start : start + self._batch_size]
            with contextlib.ExitStack() as envs:
                conversations = [self._conversation(place, envs) for _, place in batch]
                turns = _next_turns(policy, conversations)
            for (key, _), turn in zip(batch, turns, strict=True):
                text = self._policy.format.decode(turn[:-1])
                actions.append(canonical_action(text, self._parse(text)))
                self._written.setdefault((key, actions[-1]), turn)
                self.teacher_tokens += len(turn)
        return actions

    def follow(self, policy: Policy, nodes: Sequence[tuple[NodeKey, Fork]]) -> list[Episode]:
        """Episodes that another policy (the teacher) plays on to the end from these nodes.

        They are not the student's, so they are in no tree.
        """
        forks = [place for _, place in nodes]
        played = rollout(policy, forks, self._batch_size, self._env_kwargs)
        self.teacher_tokens += sum(sum(episode.mask) for episode in played)
        return played

    def written(self, key: NodeKey, action: Action) -> tuple[int, ...]:
        """The tokens of an action that was proposed or played in a node."""
        return self._written[key, action]

    def expand(self, requests: Sequence[Request]) -> list[Continuation]:
        """See `World.expand`."""
        forks = []
        for request in requests:
            place: Fork = request.handle
            turn = None if request.action is None else self._written[request.key, request.action]
            forks.append(Fork(place.parent, place.step, request.seed, turn))
        return [self._continuation(episode) for episode in self._play(forks)]

    def _play(self, tasks: Sequence[TaskRef | Fork]) -> list[Episode]:
        played = rollout(self._policy, tasks, self._batch_size, self._env_kwargs, keep=True)
        self.episodes += played
        return played

    def _conversation(self, place: Fork, envs: contextlib.ExitStack) -> Conversation:
        env = envs.enter_context(make_for_run(place.env_id, self._env_kwargs))
        env.restore(place.parent.branch_points[place.step].snapshot)
        return Conversation(place.prefix, place.seed, env)

    def _continuation(self, episode: Episode) -> Continuation:
        """The steps that were played in this episode."""
        broken = episode.stop is StopReason.INFRA_ERROR
        keys, steps = _keys(episode), []
        for k in range(episode.first_step, len(episode.steps)):
            step = episode.steps[k]
            action = canonical_action(step.text, [result.call for result in step.results])
            turn = episode.tokens[step.span[0] : step.span[1]]
            self._written.setdefault((keys[k], action), turn)
            if k + 1 < len(keys):
                place = Fork(episode, k + 1, 0)
                steps.append(Step(action, 0.0, *keys[k + 1][1:], False, place, episode))
            else:
                end = Step(action, episode.reward, episode.state_hash, END, True, payload=episode)
                steps.append(end)
        failure = (episode.error or "broken") if broken else None
        return Continuation(tuple(steps), failure, tokens=sum(episode.mask))


def canonical_action(text: str, calls: Sequence[ToolCall]) -> str:
    """Equal calls are equal actions, however they are written; so are equal answers.

    A call that could not be read stays as it was written.
    """
    if not calls:
        return json.dumps({"answer": normalise(extract_answer(text))}, ensure_ascii=False)
    if not any(call.status in _UNREAD for call in calls):
        return "\n".join(call.canonical() for call in calls)
    return text


def _keys(episode: Episode) -> list[NodeKey]:
    """The node before each step, and the one it stopped in if the environment broke there."""
    if not episode.branch_points:  # it broke before it began
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


def _next_turns(policy: Policy, conversations: Sequence[Conversation]) -> list[tuple[int, ...]]:
    turns: list[tuple[int, ...]] = [()] * len(conversations)
    stream = policy.open(conversations)
    missing = len(conversations)
    while missing:
        for turn in stream.advance():
            turns[turn.row] = turn.tokens
            stream.finish(turn.row)
            missing -= 1
    return turns
