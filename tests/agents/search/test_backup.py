import json
import math
from pathlib import Path

import pytest

from journeyman.agents.search import (
    Continuation,
    Kind,
    Move,
    NodeKey,
    Tree,
    expected_backup,
    shrink,
)

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))


@pytest.mark.parametrize("file", GOLDEN, ids=lambda f: f.stem)
def test_golden_trees(file: Path) -> None:
    """Values that were worked out by hand; "why" in each file says how."""
    data = json.loads(file.read_text())
    values = expected_backup(Tree.from_json(data["tree"]))
    for expected in data["values"]:
        node = values[NodeKey(*expected["node"])]
        assert node.value == (
            None if expected["value"] is None else pytest.approx(expected["value"])
        )
        assert {a: it.q for a, it in node.actions.items()} == pytest.approx(expected["q"])
        assert {a: it.policy for a, it in node.actions.items()} == pytest.approx(expected["policy"])


def test_variances_of_a_bandit() -> None:
    """One node, no dice: Var V = spread / n, and the advantage's error is that of V alone."""
    tree = Tree("s")
    for action, reward in [("a", 1.0)] * 3 + [("b", 0.0)]:
        tree.add(tree.root, Continuation((Move(action, reward, action, terminal=True),)))
    root = expected_backup(tree)[tree.root]
    squares = 3 * 0.25**2 + 0.75**2
    common = (squares + 1 * 0.1875 / 2) / (3 + 1)  # of this depth: one node, one guess
    assert root.spread == pytest.approx((squares + common) / (3 + 1))
    assert root.variance == pytest.approx(root.spread / 4)
    assert root.advantage("a") == pytest.approx((0.25, root.spread / 4, 4))
    assert root.advantage("a").shrunk(1) == pytest.approx(0.25 * 4 / 5)
    with pytest.raises(KeyError, match="no advantage of 'c'"):
        root.advantage("c")


def test_variance_of_an_edge_with_dice() -> None:
    tree = Tree("s")
    for reward, state in [(1.0, "x"), (0.0, "y")] * 8:
        tree.add(tree.root, Continuation((Move("a", reward, state, terminal=True),)))
    root = expected_backup(tree)[tree.root]
    edge = root.actions["a"]
    # 4.0 squares over 15 degrees of freedom, one pseudo-sample of the common spread 4 / 16.
    assert edge.spread == pytest.approx((4 + 0.25) / 16)
    assert edge.variance == pytest.approx(edge.spread / 16)
    # One action only: nothing but the environment's dice is uncertain, and the advantage is not.
    assert root.advantage("a").mean == 0
    assert math.isclose(root.variance, edge.variance + root.spread / 16)


def test_effective_samples() -> None:
    """Two samples of a, one of b; a's node x has three samples, b's node y one."""
    tree = Tree("s")
    for action, state, n in (("a", "x", 2), ("b", "y", 1)):
        for _ in range(n):
            steps = (Move(action, 0.0, state), Move("c", 1.0, "end", terminal=True))
            tree.add(tree.root, Continuation(steps))
    tree.add(NodeKey(1, "x"), Continuation((Move("d", 0.0, "end", terminal=True),)))
    values = expected_backup(tree)
    root = values[tree.root]
    assert values[NodeKey(1, "x")].unit == pytest.approx(1 / 3)
    assert root.unit == pytest.approx(1 / 3 + (2 / 3) ** 2 / 3 + (1 / 3) ** 2)
    # A(a) = 1/3 Q(a) - 1/3 Q(b): the errors of both count by 1/3, and the student's own dice.
    assert 1 / root.advantage("a").samples == pytest.approx(1 / 3 + (1 / 3 + 1) / 9)
    # Once the environment has shown dice, every edge has its own.
    tree.add(tree.root, Continuation((Move("a", 0.0, "end", terminal=True),)), Kind.FORCED)
    root = expected_backup(tree)[tree.root]
    assert tree.dice and root.actions["b"].unit == pytest.approx(1 + 1 + 1)


def test_shrinkage() -> None:
    assert shrink(2.0, 3, 1) == 1.5
    assert shrink(2.0, 0, 0) == 0.0
    with pytest.raises(ValueError, match="kappa=-1"):
        shrink(1.0, 1, -1)


def test_no_values_at_all() -> None:
    tree = Tree("s")
    tree.add(tree.root, Continuation((), failure="broke"))
    root = expected_backup(tree)[tree.root]
    assert root.value is None
    with pytest.raises(KeyError, match="no advantage"):
        root.advantage("a")
    tree.add(tree.root, Continuation((Move("t", 1.0, "x", terminal=True),)), Kind.TEACHER)
    root = expected_backup(tree)[tree.root]
    # The teacher's call has a value, the student still has none.
    assert root.value is None and root.actions["t"].q == 1.0
