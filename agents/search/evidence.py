"""Training rollouts that grow into trees: what to train on, and what is known of each step.

Each task is played once or a few times by the student; the rest of its rows goes where an estimator
(`conf/values/`) wants it. All of that is trained on, shared prefixes once. Where the teacher would
do something else than the student, it is tried out how that ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from journeyman.agents.errors import SettingError
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.rollouts.where import Rollouts
from journeyman.agents.search.backup import Advantage, NodeValue, expected_backup
from journeyman.agents.search.estimators import Estimate, StepEstimator, TreeCredit
from journeyman.agents.search.language import LanguageWorld
from journeyman.agents.search.reach import sample_weights
from journeyman.agents.search.searches import Budget, Purse, Request, request_seed, run_searches
from journeyman.agents.search.tree import Action, Kind, NodeKey, Path, Tree
from journeyman.agents.students.player import Player
from journeyman.agents.teachers import Annotations
from journeyman.agents.teachers.scoring import score_episodes
from journeyman.envs import Episode, StopReason


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a tree knows of one step: values of the student that played it."""

    credit: float
    """The estimator's advantage of the step."""
    value: Estimate
    """V of the node it stands in, by expected backup."""
    advantage: Advantage
    """Q - V of the step's action, by expected backup."""
    choices: tuple[tuple[float, float], ...]
    """Frequency and Q of each of the student's own choices in the node."""
    teacher: Estimate | None
    """What following the teacher from here is worth. Where that was not tried, the worst that was
    found of it in this tree: who was wrong once may be so again. None if it was tried nowhere."""
    reach: float = 1.0
    """Weight with which the step counts in the policy gradient of its task (`reach.py`)."""

    @property
    def influence(self) -> float:
        """Standard deviation of Q over the student's own choices: what the choice decides."""
        return math.sqrt(sum(p * (q - self.value.mean) ** 2 for p, q in self.choices))


@dataclass(frozen=True, slots=True)
class TreePlace:
    """Where in a tree an episode is, for whoever wants to show it."""

    tree: Tree
    values: Mapping[NodeKey, NodeValue]
    """Of its nodes, by expected backup."""
    path: Path
    """The episode's; of one that was played on from another, its own part."""


@dataclass(frozen=True, slots=True)
class TreeEpisode:
    """An episode of a tree."""

    episode: Episode
    steps: tuple[Evidence | None, ...]
    """One a step; None where nothing is known (a prefix, or a step after which something broke)."""
    place: TreePlace | None = None
    """Where in its tree it was played; None without a search."""


@dataclass
class Grown:
    """A tree, and what is known of the teacher in its nodes."""

    tree: Tree
    """Holds the trajectories alone to begin with."""
    theirs: dict[NodeKey, Action] = field(default_factory=dict)
    """What it would do."""
    followed: dict[NodeKey, Estimate] = field(default_factory=dict)
    """What that came to when the teacher played on by itself."""
    teacher_steps: int = field(default=0, init=False)
    """Turns that it played on by itself, in no tree."""
    teacher_tokens: int = field(default=0, init=False)
    """Tokens that it wrote, these turns' and those of its proposals."""

    def __post_init__(self) -> None:
        """Note what there is to begin with."""
        self.trajectories = tuple(self.tree.paths)
        self._begun = (self.tree.env_steps, self.tree.tokens)

    @property
    def playable(self) -> bool:
        """True if a trajectory came to its first turn, so that there is a root to play from."""
        return self.tree.nodes[self.tree.root].handle is not None

    @property
    def spent(self) -> Budget:
        """What was spent beyond the trajectories, by the student and by the teacher."""
        steps, tokens = self._begun
        return Budget(
            self.tree.env_steps - steps + self.teacher_steps,
            self.tree.tokens - tokens + self.teacher_tokens,
            len(self.tree.paths) - len(self.trajectories),
        )


@dataclass(frozen=True)
class Spent:
    """What a batch of trees cost."""

    sampled_tokens: int = 0
    """Tokens the student sampled."""
    teacher_tokens: int = 0
    """Tokens the teacher wrote."""
    env_steps: int = 0
    """Turns played in environments, the teacher's too."""
    failures: int = 0
    """Episodes and continuations that broke; those that broke at once are no rows."""


@dataclass(frozen=True)
class Forest:
    """Episodes of trees, and what they cost."""

    rows: list[TreeEpisode]
    spent: Spent = Spent()


@dataclass(frozen=True)
class TreeRollouts:
    """`search=credit`: how many rows a task gets and what they are spent on."""

    values: StepEstimator = field(default_factory=TreeCredit)
    """Says where rows are wanted and what they show of each step."""
    rows: int = 8
    """Rows of a task: its trajectories and what is played on from inside them."""
    trajectories: int = 2
    """Of these, played from the start."""
    tries: int = 1
    """Nodes of a trajectory, at most, where the teacher would do something else and is tried out;
    early turns first."""
    follow: bool = True
    """Try it out with the teacher playing on to the end: distillation moves the student to all of
    the teacher's ways, not to one call. False: with the student playing on after the teacher's
    call; such an episode is one of the task's rows."""
    env_steps: int | None = None
    """Most environment steps of a task beyond its trajectories, the teacher's too. Kept to as far
    as the length of what is played is known beforehand; so are tokens."""
    tokens: int | None = None
    """Most tokens of a task beyond its trajectories, the teacher's too."""
    agreement: float = 0.5
    """A step that the teacher finds at least this probable is what the teacher would do."""

    def __post_init__(self) -> None:
        """Check the counts."""
        if not 1 <= self.trajectories <= self.rows:
            raise SettingError(
                f"trajectories={self.trajectories}: expected 1 to rows={self.rows}; the other rows "
                f"go to continuations"
            )
        if self.tries < 0:
            raise SettingError(f"tries={self.tries}: expected at least 0")
        if not 0 < self.agreement <= 1:
            raise SettingError(f"agreement={self.agreement}: expected above 0 and at most 1")
        self._budget()  # refuses a negative one

    def _budget(self) -> Budget:
        """Of a task, beyond its trajectories."""
        return Budget(self.env_steps, self.tokens, self.rows - self.trajectories)

    def play(
        self,
        player: Player,
        annotations: Annotations,
        master: Player | None,
        tasks: Sequence[TaskRef],
        batch_size: int,
        env_kwargs: dict[str, Any],
        rollouts: Rollouts = rollout,
    ) -> Forest:
        """Play `rows` episodes a task, or fewer where a budget ends.

        Args:
            player: The student.
            annotations: Say where the teacher agrees with it, if there is a teacher.
            master: The teacher as one that plays, and shows what it would do where it does not
                agree; None if it does not play.
            tasks: `rows` in a row of each task, with different seeds (see TRL's RepeatSampler).
            batch_size: Conversations side by side.
            env_kwargs: For the environments.
            rollouts: Where episodes are played.
        """
        grown, spent = self.grow(
            player, annotations, master, tasks, batch_size, env_kwargs, rollouts
        )
        return Forest([row for it in grown for row in self.episodes(it)], spent)

    def grow(
        self,
        player: Player,
        annotations: Annotations,
        master: Player | None,
        tasks: Sequence[TaskRef],
        batch_size: int,
        env_kwargs: dict[str, Any],
        rollouts: Rollouts = rollout,
    ) -> tuple[list[Grown], Spent]:
        """The trees that `play` is made of, and what they cost; arguments are the same."""
        world = LanguageWorld(player, batch_size, env_kwargs, rollouts)
        trees = world.begin(
            [task for i, task in enumerate(tasks) if i % self.rows < self.trajectories]
        )
        seeds = [task.seed for task in tasks[:: self.rows]]
        grown = [Grown(tree) for tree in trees]
        if annotations.taught and master is not None:
            self._ask_teacher(world, annotations, master, grown, seeds)
            self._try(world, grown, seeds)
        searches = []
        for it, seed in zip(grown, seeds, strict=True):
            left = self._budget().less(it.spent)
            if it.playable and left is not None:
                searches.append(self.values.search(it.tree, it.trajectories, left, seed))
        run_searches(world, searches)
        return grown, Spent(
            sampled_tokens=sum(sum(e.mask) for e in world.episodes),
            teacher_tokens=world.teacher_tokens,
            env_steps=sum(it.tree.env_steps + it.teacher_steps for it in grown),
            failures=sum(p.failure is not None for it in grown for p in it.tree.paths),
        )

    def _ask_teacher(
        self,
        world: LanguageWorld,
        annotations: Annotations,
        master: Player,
        grown: Sequence[Grown],
        seeds: Sequence[int],
    ) -> None:
        """What the teacher would do in the nodes of the trajectories, where it is worth a try."""
        disputed: list[tuple[Grown, NodeKey]] = []
        places: list[tuple[NodeKey, Fork]] = []
        scores = iter(score_episodes(annotations, world.episodes))
        for it, seed in zip(grown, seeds, strict=True):
            found: list[NodeKey] = []
            for path in it.tree.paths:
                others = self._compare(it, path, next(scores).log_ratio.tolist())
                found += others[: self.tries]
                if path.complete and not others:
                    # The teacher would have played this very episode.
                    outcome = Estimate(path.returns()[0])
                    it.followed.update((key, outcome) for key in path.keys[:-1])
            new = [key for key in dict.fromkeys(found) if key not in it.theirs]
            # What it plays on by itself is no row.
            budget = (
                replace(self._budget(), continuations=len(new)) if self.follow else self._budget()
            )
            purse = Purse(it.tree, budget, it.spent)
            for i, key in enumerate(key for key in new if purse.take(key)):
                disputed.append((it, key))
                handle: Fork = it.tree.nodes[key].handle
                places.append((key, replace(handle, seed=request_seed(seed, -1 - i))))
        if self.follow:
            for (it, key), episode in zip(disputed, world.follow(master, places), strict=True):
                it.teacher_steps += len(episode.steps) - episode.first_step
                it.teacher_tokens += sum(episode.mask)
                if episode.stop is not StopReason.INFRA_ERROR:
                    it.followed[key] = Estimate(episode.reward)
        else:
            for (it, key), action in zip(disputed, world.propose(master, places), strict=True):
                if action is not None:
                    it.teacher_tokens += len(world.proposed(key, action))
                    it.theirs[key] = action

    def _compare(self, it: Grown, path: Path, log_ratio: Sequence[float]) -> list[NodeKey]:
        """Note where the teacher would do the same; returns the other nodes, in order."""
        others = []
        for key, step in zip(path.keys, path.steps, strict=False):
            episode: Episode = step.payload
            start, end = episode.steps[key.depth].span
            own = sum(episode.logprobs[start:end])
            if own + sum(log_ratio[start:end]) >= math.log(self.agreement):
                it.theirs[key] = step.action
            else:
                others.append(key)
        return others

    def _try(self, world: LanguageWorld, grown: Sequence[Grown], seeds: Sequence[int]) -> None:
        """Play what the teacher would do and the student did not, once each, in one batch."""
        requests: list[Request] = []
        trees: list[Tree] = []
        for it, seed in zip(grown, seeds, strict=True):
            purse = Purse(it.tree, self._budget(), it.spent)
            for key, action in it.theirs.items():
                if action not in it.tree.nodes[key].edges and purse.take(key):
                    handle = it.tree.nodes[key].handle
                    own = request_seed(seed, -1 - len(requests))
                    requests.append(Request(key, handle, action, Kind.TEACHER, own))
                    trees.append(it.tree)
        for tree, request, played in zip(trees, requests, world.expand(requests), strict=True):
            tree.add(request.key, played, request.kind)

    def episodes(self, grown: Grown) -> list[TreeEpisode]:
        """A tree's episodes, in the order they were played, with what is known of their steps."""
        tree = grown.tree
        values, reach = expected_backup(tree), sample_weights(tree)
        teacher = dict(grown.followed)
        if not self.follow:
            for key, action in grown.theirs.items():
                if action in values[key].actions:
                    it = values[key].actions[action]
                    teacher[key] = Estimate(it.q, it.variance)
        worst = min(teacher.values(), key=lambda it: it.mean, default=None)
        rows = []
        valued = self.values.steps(tree, tree.paths, grown.trajectories)
        for path, found in zip(tree.paths, valued, strict=True):
            if path.steps:
                before: list[Evidence | None] = [None] * path.keys[0].depth
                steps = [
                    evidence(
                        values[key],
                        step.action,
                        it.advantage,
                        teacher.get(key, worst),
                        reach.get(key, 0.0),
                    )
                    for key, step, it in zip(path.keys, path.steps, found, strict=False)
                ]
                place = TreePlace(tree, values, path)
                rows.append(TreeEpisode(path.steps[0].payload, (*before, *steps), place))
        return rows


def evidence(
    node: NodeValue, action: Action, credit: float, teacher: Estimate | None, reach: float = 1.0
) -> Evidence | None:
    """What is known of an action in a node; None if that is nothing.

    Args:
        node: Its values.
        action: What the student did there.
        credit: What the estimator says of it.
        teacher: What following the teacher from there is worth.
        reach: Weight of the student's samples there in the policy gradient.
    """
    if node.value is None or action not in node.actions:
        return None
    choices = tuple((it.policy, it.q) for it in node.actions.values() if it.policy)
    value = Estimate(node.value, node.variance)
    return Evidence(credit, value, node.advantage(action), choices, teacher, reach)
