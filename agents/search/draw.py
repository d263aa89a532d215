"""A tree for people: as text, and as an SVG picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from journeyman.agents.search.backup import NodeValue, expected_backup
from journeyman.agents.search.tree import Action, Edge, Node, NodeKey, Tree

LABEL = 46
"""Characters of an action that are shown."""


class _Branch(NamedTuple):
    """An edge with what is known of it."""

    depth: int
    action: Action
    edge: Edge
    q: float | None
    advantage: float | None
    child: Node
    decided: bool


def deciding_step(tree: Tree) -> tuple[NodeKey, Action] | None:
    """Where the student's own choice moved its value most; None if it moved nowhere."""
    best: tuple[float, NodeKey, Action] | None = None
    for key, value in expected_backup(tree).items():
        for action, edge in tree.nodes[key].edges.items():
            if edge.sampled and action in value.actions:
                size = abs(value.advantage(action)[0])
                if size > 1e-9 and (best is None or size > best[0]):
                    best = (size, key, action)
    return best and best[1:]


def as_text(tree: Tree) -> str:
    """One line an action: visits (student, forced, teacher), Q, V after it, and what decided."""
    values = expected_backup(tree)
    root = values[tree.root]
    lines = [f"V {_number(root.value)}  ({root.samples} samples, {tree.env_steps} steps)"]
    for branch in _branches(tree, values):
        edge = branch.edge
        visits = f"{edge.sampled}s" + (f" {edge.forced}f" if edge.forced else "")
        visits += f" {edge.teacher}t" if edge.teacher else ""
        mark = "  <== decided" if branch.decided else ""
        lines.append(
            f"{'  ' * branch.depth}{_label(branch.action)}  [{visits}]  Q {_number(branch.q)}  "
            f"A {_number(branch.advantage, sign=True)}{mark}"
        )
    lines.append("visits: s sampled by the student, f forced by the search, t the teacher's call")
    return "\n".join(lines)


def as_svg(tree: Tree) -> str:
    """The same as a picture: one row an action, links to the left, bars for Q, decided in red."""
    values = expected_backup(tree)
    branches = list(_branches(tree, values))
    row, indent, width = 22, 26, 900
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
        f'height="{(len(branches) + 2) * row}" font-family="monospace" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="{row - 6}">V {_number(values[tree.root].value)}</text>',
    ]
    last_at: dict[int, float] = {-1: row - 10}
    for i, branch in enumerate(branches):
        x, y = 8 + (branch.depth + 1) * indent, (i + 1.5) * row
        above = last_at[branch.depth - 1]
        elbow = f"M{x - indent + 6},{above + 6} V{y} H{x - 4}"
        q = branch.q if branch.q is not None else 0.0
        colour = "#c0392b" if branch.decided else "#2c3e50"
        edge = branch.edge
        note = f"{edge.sampled}s {edge.forced}f {edge.teacher}t"
        parts += [
            f'<path d="{elbow}" fill="none" stroke="#bbb"/>',
            f'<text x="{x}" y="{y + 4}" fill="{colour}">{escape(_label(branch.action))}</text>',
            f'<rect x="640" y="{y - 6}" width="{max(0.0, min(1.0, q)) * 80:.1f}" height="10" '
            f'fill="#7fb3d5"/>',
            f'<text x="540" y="{y + 4}">{note}</text>',
            f'<text x="726" y="{y + 4}">Q {_number(branch.q)}  '
            f"A {_number(branch.advantage, sign=True)}</text>",
        ]
        last_at[branch.depth] = y
    return "\n".join((*parts, "</svg>\n"))


def _branches(tree: Tree, values: dict[NodeKey, NodeValue]) -> Iterator[_Branch]:
    """All edges, depth first; a node that is reached twice is drawn once."""
    decided = deciding_step(tree)
    drawn: set[NodeKey] = set()

    def below(key: NodeKey, depth: int) -> Iterator[_Branch]:
        if key in drawn:
            return
        drawn.add(key)
        known = values[key]
        for action, edge in tree.nodes[key].edges.items():
            here = action in known.actions
            q = known.actions[action].q if here else None
            advantage = known.advantage(action)[0] if here and known.value is not None else None
            for child in edge.outcomes:
                yield _Branch(
                    depth, action, edge, q, advantage, tree.nodes[child], decided == (key, action)
                )
                yield from below(child, depth + 1)

    return below(tree.root, 0)


def _label(action: Action) -> str:
    """The first call with its arguments, or the answer, in one short line."""
    text = str(action)
    try:
        data = json.loads(text.split("\n")[0])
        if "answer" in data:
            text = f"Answer: {data['answer']}"
        else:
            inner = ", ".join(f"{k}={v}" for k, v in data["arguments"].items())
            text = f"{data['name']}({inner})" + (" …" if "\n" in text else "")
    except (ValueError, KeyError, TypeError, AttributeError):
        text = " ".join(text.split())
    return text if len(text) <= LABEL else f"{text[: LABEL - 1]}…"


def _number(value: float | None, sign: bool = False) -> str:
    return "?" if value is None else f"{value:{'+' if sign else ''}.2f}"
