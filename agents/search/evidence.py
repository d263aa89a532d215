"""Training rollouts that grow into trees: what to train on, and what is known of each step.

Each task is played once or a few times by the student; where the teacher would do something else
its call is tried, and the rest of the task's rows goes to continuations of the student from where
they tell most (`CreditSearch`). All of it is trained on, shared prefixes once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from journeyman.agents.hf import HFPolicy
from journeyman.agents.rollout import Fork, TaskRef
from journeyman.agents.scoring import score_episodes
from journeyman.agents.search.backup import NodeValue, expected_backup
from journeyman.agents.search.language import LanguageWorld
from journeyman.agents.search.search import Budget, CreditSearch, run_searches
from journeyman.agents.search.tree import Action, NodeKey, Tree
from journeyman.agents.teacher import LocalTeacher
from journeyman.envs import Episode

Advantage = tuple[float, float]
"""Q - V and its squared standard error."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a tree knows of one step: values of the student that played it."""

    value: float
    """V of the node it stands in."""
    advantage: Advantage
    """Of the step's own action."""
    samples: int
    """The student's own samples in the node."""
    influence: float
    """Standard deviation of Q over the student's own choices: what the choice decides."""
    teacher: Advantage | None
    """Of what the teacher would do here. Where that was not tried, the worst that was found of it
    in this tree: who was wrong once may be so again. None if it was tried nowhere."""


@dataclass(frozen=True, slots=True)
class TreeEpisode:
    """An episode of a tree."""

    episode: Episode
    steps: tuple[Evidence | None, ...]
    """One a step; None where nothing is known (a prefix, or a step after which something broke)."""


@dataclass
class Spent:
    """What a batch of trees cost."""

    sampled_tokens: int = 0
    """Tokens the student sampled."""
    proposed_tokens: int = 0
    """Tokens the teacher wrote, to be tried."""
    env_steps: int = 0


@dataclass
class TreeRollouts:
    """`search=credit`: how many rows a task gets and what they are spent on."""

    rows: int = 8
    """Rows of a task: its trajectories and what is played on from inside them."""
    trajectories: int = 2
    """Of these, played from the start."""
    env_steps: int | None = None
    """Most environment steps of a task beyond its trajectories."""
    tokens: int | None = None
    """Most tokens generated for a task beyond its trajectories."""
    width: int = 2
    """Continuations a round: fewer decide on fresher values, more fill the batch better."""
    agreement: float = 0.5
    """A step that the teacher finds at least this probable is what the teacher would do."""
    spent: Spent = field(default_factory=Spent)

    def __post_init__(self) -> None:
        """Check the counts."""
        if not 1 <= self.trajectories <= self.rows:
            raise ValueError(
                f"trajectories={self.trajectories}: expected 1 to rows={self.rows}; the other rows "
                f"go to continuations"
            )
        if not 0 < self.agreement <= 1:
            raise ValueError(f"agreement={self.agreement}: expected above 0 and at most 1")

    def play(
        self,
        policy: HFPolicy,
        teacher: LocalTeacher,
        tasks: Sequence[TaskRef],
        batch_size: int,
        env_kwargs: dict[str, Any],
    ) -> list[TreeEpisode]:
        """Play `rows` episodes a task, or fewer where a budget ends.

        Args:
            policy: The student.
            teacher: Says where it agrees, and makes a proposal where it does not.
            tasks: `rows` in a row of each task, with different seeds (see TRL's RepeatSampler).
            batch_size: Conversations side by side.
            env_kwargs: For the environments.
        """
        trees = self.grow(policy, teacher, tasks, batch_size, env_kwargs)
        return [row for tree, theirs in trees for row in _rows(tree, theirs)]

    def grow(
        self,
        policy: HFPolicy,
        teacher: LocalTeacher,
        tasks: Sequence[TaskRef],
        batch_size: int,
        env_kwargs: dict[str, Any],
    ) -> list[tuple[Tree, dict[NodeKey, Action]]]:
        """The trees that `play` is made of, each with what the teacher would do in its nodes."""
        world = LanguageWorld(policy, batch_size, env_kwargs)
        trees = world.begin(
            [task for i, task in enumerate(tasks) if i % self.rows < self.trajectories]
        )
        theirs = self._ask_teacher(world, policy, teacher, trees)
        budget = Budget(self.env_steps, self.tokens, self.rows - self.trajectories)
        searches = [
            CreditSearch(
                tree, list(tree.paths), budget, _untried(tree, actions), self.width, task.seed
            )
            for tree, actions, task in zip(trees, theirs, tasks[:: self.rows], strict=True)
        ]
        run_searches(world, searches)
        self.spent = Spent(
            sampled_tokens=sum(sum(e.mask) for e in world.episodes),
            proposed_tokens=world.proposed_tokens,
            env_steps=sum(tree.env_steps for tree in trees),
        )
        return list(zip(trees, theirs, strict=True))

    def _ask_teacher(
        self, world: LanguageWorld, policy: HFPolicy, teacher: LocalTeacher, trees: Sequence[Tree]
    ) -> list[dict[NodeKey, Action]]:
        """What the teacher would do in the nodes of the trajectories, by tree."""
        theirs: list[dict[NodeKey, Action]] = [{} for _ in trees]
        open_nodes: dict[NodeKey, tuple[int, Fork]] = {}
        scores = iter(score_episodes(teacher, world.episodes))
        for i, tree in enumerate(trees):
            for path in tree.paths:
                log_ratio = next(scores).log_ratio
                for key, step in zip(path.keys, path.steps, strict=False):
                    episode: Episode = step.payload
                    start, end = episode.steps[key.depth].span
                    own = sum(episode.logprobs[start:end])
                    if own + float(log_ratio[start:end].sum()) >= math.log(self.agreement):
                        theirs[i][key] = step.action
                    else:
                        open_nodes[key] = (i, tree.nodes[key].handle)
        nodes = [(key, place) for key, (i, place) in open_nodes.items() if key not in theirs[i]]
        master = HFPolicy(
            teacher.model, policy.format, 0.0, policy.max_turn_tokens, policy.max_context
        )
        for (key, _), action in zip(nodes, world.propose(master, nodes), strict=True):
            theirs[open_nodes[key][0]][key] = action
        return theirs


def _untried(tree: Tree, actions: dict[NodeKey, Action]) -> dict[NodeKey, list[Action]]:
    return {k: [a] for k, a in actions.items() if a not in tree.nodes[k].edges}


def _rows(tree: Tree, theirs: dict[NodeKey, Action]) -> list[TreeEpisode]:
    values = expected_backup(tree)
    tried = [values[k].advantage(a) for k, a in theirs.items() if a in values[k].actions]
    worst = min(tried, key=lambda it: it[0], default=None)
    rows = []
    for path in tree.paths:
        if path.steps:
            found = [
                _evidence(values[key], step.action, theirs.get(key), worst)
                for key, step in zip(path.keys, path.steps, strict=False)
            ]
            before: list[Evidence | None] = [None] * path.keys[0].depth
            rows.append(TreeEpisode(path.steps[0].payload, (*before, *found)))
    return rows


def _evidence(
    node: NodeValue, action: Action, theirs: Action | None, worst: Advantage | None
) -> Evidence | None:
    if node.value is None or action not in node.actions:
        return None
    own = node.actions.values()
    square = sum(it.policy * (it.q - node.value) ** 2 for it in own)
    return Evidence(
        node.value,
        node.advantage(action),
        node.samples,
        math.sqrt(square),
        node.advantage(theirs) if theirs in node.actions else worst,
    )
