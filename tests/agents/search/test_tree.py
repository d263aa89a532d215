import json

import pytest

from journeyman.agents.search import Continuation, Kind, Move, NodeKey, Tree


def played(*steps: tuple[str, float, str], failure: str | None = None) -> Continuation:
    """(action, reward, state) each; the last step ends the episode unless something broke."""
    last = len(steps) - 1
    return Continuation(
        tuple(
            Move(action, reward, state, terminal=failure is None and i == last)
            for i, (action, reward, state) in enumerate(steps)
        ),
        failure,
    )


def test_equal_nodes_are_merged_and_only_samples_count_as_policy() -> None:
    tree = Tree("s")
    tree.add(tree.root, played(("a", 0.5, "x"), ("c", 1.0, "end")))
    tree.add(tree.root, played(("b", 0.0, "x"), ("c", 0.0, "end2")), Kind.FORCED)
    tree.add(NodeKey(1, "x"), played(("d", 2.0, "end")), Kind.TEACHER)
    root, x = tree.nodes[tree.root], tree.nodes[NodeKey(1, "x")]
    assert len(tree.nodes) == 4
    assert (root.samples, root.edges["a"].sampled, root.edges["b"].forced) == (1, 1, 1)
    # After a forced action the student goes on by itself.
    assert (x.samples, x.edges["c"].visits, x.edges["d"].teacher) == (2, 2, 1)
    assert {k.state for k in x.edges["c"].outcomes} == {"end", "end2"}
    assert root.steps_left == 2 and x.steps_left == 1
    assert (tree.env_steps, [len(level) for level in tree.levels]) == (5, [1, 1, 2])
    assert [path.returns() for path in tree.paths] == [[1.5, 1.0], [0.0, 0.0], [2.0]]


def test_context_and_depth_keep_nodes_apart() -> None:
    tree = Tree("s", "seen")
    step = Move("a", 0.0, "s", "seen")
    tree.add(tree.root, Continuation((step, step, Move("a", 0.0, "s", "more", True))))
    assert len(tree.nodes) == 4


def test_a_failure_is_counted_and_ends_nothing() -> None:
    tree = Tree("s")
    path = tree.add(tree.root, played(("a", 1.0, "x"), failure="sandbox died"))
    assert not path.complete
    x = tree.nodes[NodeKey(1, "x")]
    assert (x.failures, x.ends, x.terminal) == (1, 0, False)
    tree.add(tree.root, Continuation((), failure="no restore", env_steps=3, tokens=7))
    assert (tree.nodes[tree.root].failures, tree.env_steps, tree.tokens) == (1, 4, 7)


def test_json_round_trip() -> None:
    tree = Tree("s", "seen")
    tree.add(tree.root, played(("a", 0.5, "x"), ("b", 1.0, "end")), Kind.TEACHER)
    tree.add(NodeKey(1, "x"), played(("c", 0.0, "y"), failure="broke"))
    data = json.loads(json.dumps(tree.to_json()))
    again = Tree.from_json(data)
    assert again.to_json() == data
    assert again.nodes == tree.nodes and again.paths == tree.paths


def test_what_cannot_be_added() -> None:
    tree = Tree("s")
    with pytest.raises(KeyError, match="not a node of this tree"):
        tree.add(NodeKey(3, "x"), played(("a", 0.0, "end")))
    with pytest.raises(ValueError, match="neither ended the episode nor names a failure"):
        tree.add(tree.root, Continuation((Move("a", 0.0, "x"),)))
    tree.add(tree.root, played(("a", 0.0, "end")))
    with pytest.raises(ValueError, match="ended the episode: nothing can be played after it"):
        tree.add(NodeKey(1, "end"), played(("a", 0.0, "end")))
    with pytest.raises(ValueError, match="terminal once and not another time"):
        tree.add(tree.root, played(("a", 0.0, "end"), ("b", 0.0, "end")))
