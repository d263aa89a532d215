"""The one tree structure: every continuation that was played from some node of one task.

A node is an environment state together with what the model sees there; equal nodes are merged, so
the tree is a graph, and `depth` in the key keeps it without cycles. An edge is a distinct canonical
action; it counts visits by how the action came about, since only the student's own samples say
anything about its policy. A stochastic environment gives an edge several outcomes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

Action = Hashable
"""A canonical action: equal calls are equal actions. Text (`ToolCall.canonical()`) or a number."""


class Kind(StrEnum):
    """How the first action of a continuation came about; later actions are always sampled."""

    SAMPLED = "sampled"
    """The student's own sample: the only kind that counts for its policy."""
    FORCED = "forced"
    """Chosen by the search."""
    TEACHER = "teacher"
    """The teacher's call, as an extra candidate."""


class NodeKey(NamedTuple):
    """What makes two nodes one."""

    depth: int
    """Steps from the root."""
    state: Hashable
    """The environment's state, e.g. `ToolEnv.state_hash()`."""
    context: Hashable = ""
    """Digest of what the model sees; constant where the policy sees the state alone."""


@dataclass(frozen=True, slots=True)
class Move:
    """One action and where it led."""

    action: Action
    reward: float
    state: Hashable
    """State after it."""
    context: Hashable = ""
    """What the model sees after it."""
    terminal: bool = False
    """True if the episode ended here, by itself or at a limit: nothing more to earn."""
    handle: Any = None
    """Whatever lets the world go back to the state after it (a snapshot, a prefix)."""
    payload: Any = None
    """Whatever the owner wants to find again, e.g. the tokens of the turn."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What came of playing on from a node, to the end of the episode unless something broke."""

    steps: tuple[Move, ...]
    """Steps played; the first holds the forced action, if one was forced."""
    failure: str | None = None
    """What broke in the infrastructure after the last step; its end has no value then."""
    env_steps: int | None = None
    """Environment steps spent, replays included; None means `len(steps)`."""
    tokens: int = 0
    """Tokens generated."""

    @property
    def cost(self) -> int:
        """Environment steps spent."""
        return len(self.steps) if self.env_steps is None else self.env_steps


@dataclass(frozen=True, slots=True)
class Path:
    """A continuation as it stands in the tree."""

    keys: tuple[NodeKey, ...]
    """[L + 1] nodes, from where it began to where it ended."""
    steps: tuple[Move, ...]
    """[L] steps between them."""
    kind: Kind
    """How its first action came about."""
    failure: str | None = None

    @property
    def complete(self) -> bool:
        """True if it ended the episode, so that its return is known."""
        return self.failure is None and bool(self.steps) and self.steps[-1].terminal

    def returns(self) -> list[float]:
        """[L] undiscounted reward from each step to the end of a complete path."""
        sums, total = [], 0.0
        for step in reversed(self.steps):
            total += step.reward
            sums.append(total)
        return sums[::-1]


@dataclass(slots=True)
class Arrival:
    """One of the nodes an edge led to."""

    visits: int = 0
    reward: float = 0.0
    """Sum of the rewards earned on the way there."""


@dataclass(slots=True)
class Edge:
    """One distinct action of a node."""

    sampled: int = 0
    """Times the student itself sampled it here."""
    forced: int = 0
    teacher: int = 0
    outcomes: dict[NodeKey, Arrival] = field(default_factory=dict)

    @property
    def visits(self) -> int:
        """Times it was played, however it came about."""
        return self.sampled + self.forced + self.teacher


@dataclass(slots=True)
class Node:
    """A state with what the model sees there."""

    key: NodeKey
    terminal: bool = False
    handle: Any = None
    edges: dict[Action, Edge] = field(default_factory=dict)
    failures: int = 0
    """Continuations that broke here. They are counted and give no value, least of all zero."""
    ends: int = 0
    """Complete continuations that came through here."""
    distance: int = 0
    """Sum of the steps they had left."""

    @property
    def samples(self) -> int:
        """Actions the student itself sampled here."""
        return sum(edge.sampled for edge in self.edges.values())

    @property
    def steps_left(self) -> float:
        """Mean steps from here to the end of the episode; 1 if no continuation got there."""
        return self.distance / self.ends if self.ends else 1.0


class Tree:
    """All that was played on one task. It only grows: `add` is the one way in."""

    def __init__(self, state: Hashable, context: Hashable = "", handle: Any = None) -> None:
        """Begin with a root.

        Args:
            state: The environment's state there.
            context: What the model sees there.
            handle: Lets the world go back there.
        """
        self.root = NodeKey(0, state, context)
        self.nodes: dict[NodeKey, Node] = {self.root: Node(self.root, handle=handle)}
        self.levels: list[list[Node]] = [[self.nodes[self.root]]]
        """Nodes by depth."""
        self.paths: list[Path] = []
        """All that was added, in order."""
        self.dice = False
        """True once an action was seen to lead to two nodes: the environment has dice."""
        self.replays = False
        """True once a continuation cost more steps than it played: there are no snapshots."""
        self.env_steps = 0
        self.tokens = 0

    def add(self, start: NodeKey, continuation: Continuation, kind: Kind = Kind.SAMPLED) -> Path:
        """Record a continuation.

        Args:
            start: The node it began at.
            continuation: What was played. Its first action counts as `kind`, all later ones as
                sampled by the student.
            kind: How its first action came about.

        Returns:
            The nodes and steps it runs along.

        Raises:
            KeyError: The tree has no such node.
            ValueError: It begins at or runs through a terminal node, or ends nowhere: neither
                terminal nor broken.
        """
        if start not in self.nodes:
            raise KeyError(f"{start} is not a node of this tree: begin at a node it has")
        steps = continuation.steps
        if continuation.failure is None and not (steps and steps[-1].terminal):
            raise ValueError(
                f"a continuation of {len(steps)} steps from {start} neither ended the episode nor "
                "names a failure: play to the end, or set `failure`"
            )
        self.replays = self.replays or continuation.cost > len(steps)
        self.env_steps += continuation.cost
        self.tokens += continuation.tokens
        node, keys, how = self.nodes[start], [start], kind
        for step in steps:
            node = self._advance(node, step, how)
            keys.append(node.key)
            how = Kind.SAMPLED
        node.failures += continuation.failure is not None
        path = Path(tuple(keys), steps, kind, continuation.failure)
        self.paths.append(path)
        if path.complete:
            for left, key in enumerate(reversed(keys)):
                self.nodes[key].ends += 1
                self.nodes[key].distance += left
        return path

    def _advance(self, node: Node, step: Move, kind: Kind) -> Node:
        if node.terminal:
            raise ValueError(f"{node.key} ended the episode: nothing can be played after it")
        edge = node.edges.setdefault(step.action, Edge())
        if kind is Kind.SAMPLED:
            edge.sampled += 1
        elif kind is Kind.FORCED:
            edge.forced += 1
        else:
            edge.teacher += 1
        key = NodeKey(node.key.depth + 1, step.state, step.context)
        outcome = edge.outcomes.setdefault(key, Arrival())
        outcome.visits += 1
        outcome.reward += step.reward
        self.dice = self.dice or len(edge.outcomes) > 1
        child = self.nodes.get(key)
        if child is None:
            child = self.nodes[key] = Node(key, step.terminal, step.handle)
            if len(self.levels) <= key.depth:
                self.levels.append([])
            self.levels[key.depth].append(child)
        elif child.terminal != step.terminal:
            raise ValueError(
                f"{key} is terminal once and not another time: the state or the context leaves out "
                "what decides it"
            )
        return child

    def to_json(self) -> dict[str, Any]:
        """The tree as plain data: its paths, without handles and payloads."""
        return {
            "root": list(self.root[1:]),
            "paths": [
                {
                    "start": list(path.keys[0]),
                    "kind": str(path.kind),
                    "failure": path.failure,
                    "steps": [
                        [s.action, s.reward, s.state, s.context, s.terminal] for s in path.steps
                    ],
                }
                for path in self.paths
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tree:
        """The tree that `to_json` wrote."""
        tree = cls(*data["root"])
        for path in data["paths"]:
            steps: Sequence[Sequence[Any]] = path["steps"]
            played = Continuation(
                tuple(Move(a, r, s, c, end) for a, r, s, c, end in steps), path.get("failure")
            )
            tree.add(NodeKey(*path["start"]), played, Kind(path["kind"]))
        return tree
