"""What a search found, as a record keeps it: what each turn was worth, and the tree in outline.

All of it was there for the credit; it is put into words for the few episodes that are kept.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from journeyman.agents.evaluation.scores import MOST_NODES, MOST_TEXT, StepWorth, TreeNode
from journeyman.agents.search.backup import NodeValue
from journeyman.agents.search.evidence import Evidence
from journeyman.agents.search.tree import Action, Edge, Move, NodeKey, Path, Tree
from journeyman.envs import Episode

DIGITS = 4
"""Decimals of the figures in records: what is finer is in the numbers of every token."""
MOST_TURNS = 100
"""Turns down to which a tree is kept: it is nested, and readers of JSON go only so deep."""


def worth(known: Evidence) -> StepWorth:
    """What a tree knows of a step, in numbers for people."""
    value, advantage = known.value, known.advantage
    numbers = (
        value.mean,
        math.sqrt(value.variance),
        value.mean + advantage.mean,
        math.sqrt(advantage.variance),
        advantage.samples,
        known.credit,
    )
    return StepWorth(*(round(it, DIGITS) for it in numbers))


def outline(tree: Tree, values: Mapping[NodeKey, NodeValue], own: Path) -> TreeNode:
    """A tree whose moves have episodes as payloads, as nested nodes.

    A place that is reached in two ways is told of twice. Of more than `MOST_NODES` places those
    that are nearest to the root are kept, with all on the way of `own`.

    Args:
        tree: What was played.
        values: Its values, by expected backup.
        own: The path of the episode that the outline is kept with.
    """
    hops = _hops(tree)
    way = _way(own, hops)
    root = _Place(tree.root, 0)
    count, waiting = 1, deque([root])
    while waiting:
        place = waiting.popleft()
        if place.depth == MOST_TURNS:
            continue
        for hop in hops.get(place.key, {}):
            here = place.own and hop in way
            if count < MOST_NODES or here:
                below = _Place(hop.end, place.depth + 1, hop, here)
                place.below.append(below)
                waiting.append(below)
                count += 1
    return _node(root, tree, values, hops)


class _Hop(NamedTuple):
    """One action, and one of the places that it led to."""

    start: NodeKey
    action: Action
    end: NodeKey


@dataclass
class _Seen:
    """What came along a hop."""

    first: Move
    step: int
    """Index of the move in its episode."""
    ends: int = 0
    solved: int = 0


@dataclass
class _Place:
    """A node of the outline while it is put together."""

    key: NodeKey
    depth: int
    hop: _Hop | None = None
    """What led here; None at the root."""
    own: bool = True
    below: list[_Place] = field(default_factory=list)


_Hops = dict[NodeKey, dict[_Hop, _Seen]]


def _hops(tree: Tree) -> _Hops:
    """What came along each hop, by where it starts, in the order it was first played."""
    found: dict[NodeKey, dict[_Hop, _Seen]] = defaultdict(dict)
    for path in tree.paths:
        solved = path.complete and path.steps[-1].payload.success
        for start, move, end in zip(path.keys, path.steps, path.keys[1:], strict=False):
            hop = _Hop(start, move.action, end)
            seen = found[start].setdefault(hop, _Seen(move, start.depth))
            seen.ends += path.complete
            seen.solved += solved
    return found


def _way(own: Path, hops: _Hops) -> set[_Hop]:
    """The hops of a path, and of what it was played on from."""
    before = {hop.end: hop for row in reversed(list(hops.values())) for hop in reversed(list(row))}
    key, way = own.keys[0], set[_Hop]()
    while key.depth and key in before:
        way.add(before[key])
        key = before[key].start
    moves = zip(own.keys, own.steps, own.keys[1:], strict=False)
    return way | {_Hop(start, move.action, end) for start, move, end in moves}


def _node(place: _Place, tree: Tree, values: Mapping[NodeKey, NodeValue], hops: _Hops) -> TreeNode:
    known, node = values[place.key], tree.nodes[place.key]
    children = tuple(_node(it, tree, values, hops) for it in place.below)
    onward = list(hops.get(place.key, {}).values())
    visits = sum(edge.visits for edge in node.edges.values())
    error = round(math.sqrt(known.variance), DIGITS)
    if place.hop is None:
        value, share = _rounded(known.value), _share(onward)
        return TreeNode(0, value, error, visits, share, own=True, children=children)
    edge = tree.nodes[place.hop.start].edges[place.hop.action]
    arrival, seen = edge.outcomes[place.key], hops[place.hop.start][place.hop]
    earned = arrival.reward / arrival.visits
    episode: Episode = seen.first.payload
    step = episode.steps[seen.step]
    return TreeNode(
        place.depth,
        None if known.value is None else _rounded(earned + known.value),
        error,
        visits or arrival.visits,
        _share(onward or [seen]),
        step.text[:MOST_TEXT],
        tuple(result.call.status.value for result in step.results),
        episode.stop.value if node.terminal else None,
        _writer(edge),
        place.own,
        children,
    )


def _writer(edge: Edge) -> str:
    """Who wrote an action: the student's own word counts before that of who repeated it."""
    if edge.sampled:
        return "student"
    return "teacher" if edge.teacher else "search"


def _share(rows: Sequence[_Seen]) -> float | None:
    ends = sum(seen.ends for seen in rows)
    return round(sum(seen.solved for seen in rows) / ends, DIGITS) if ends else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
