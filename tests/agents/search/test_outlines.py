"""What a record keeps of a search: the worth of each turn and the tree in outline."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from journeyman.agents.credit import Trace
from journeyman.agents.credit.trees import Additive
from journeyman.agents.errors import RunFileError
from journeyman.agents.evaluation.records import EPISODES, TRAINING, EpisodeFile, Played
from journeyman.agents.evaluation.scores import (
    MOST_NODES,
    MOST_TEXT,
    Scores,
    StepScores,
    StepWorth,
    TreeNode,
)
from journeyman.agents.evaluation.transcript import as_text
from journeyman.agents.learning.outlines import MOST_TURNS, outline, worth
from journeyman.agents.learning.trainers import distill
from journeyman.agents.learning.trainers.recording import TrainingLog
from journeyman.agents.search import Continuation, Kind, Move, Tree, expected_backup
from journeyman.agents.search.evidence import TreeRollouts, evidence
from journeyman.agents.search.tree import Path as TreePath
from journeyman.envs import Episode, Step, StopReason
from journeyman.tools import CallStatus, ToolCall, ToolResult

from ..test_trainers import babbler, distillation, make_parts


def played(turns: list[str], solved: bool) -> Episode:
    """An episode of these turns; one that begins with "!" is a call that its tool refused."""
    steps = []
    for text in turns:
        refused = ToolCall("pay", {}, CallStatus.TOOL_ERROR, "no funds")
        results = (ToolResult(refused, "no funds"),) if text.startswith("!") else ()
        steps.append(Step((0, 0), text, results))
    return Episode(
        "e/E-v0", "test/0", (), (), (), tuple(steps), StopReason.ANSWERED, float(solved), solved
    )


def grow(
    tree: Tree, start: int, turns: list[str], solved: bool, kind: Kind, before: str
) -> TreePath:
    """Adds an episode's moves from a turn on; a place is named after the turns that led there."""
    episode, moves, at = played(turns, solved), [], before
    for k in range(start, len(turns)):
        last = k + 1 == len(turns)
        at += f"/{turns[k]}"
        moves.append(Move(turns[k], float(solved and last), at, terminal=last, payload=episode))
    key = next(key for key in tree.nodes if key.state == before)
    return tree.add(key, Continuation(tuple(moves)), kind)


@pytest.fixture
def grown() -> tuple[Tree, list[TreePath]]:
    """From the root "s" the student looks or pays; a look, and a turn that it did not choose."""
    tree = Tree("s")
    paths = [
        grow(tree, 0, ["look", "!pay", "done"], False, Kind.SAMPLED, "s"),
        grow(tree, 0, ["look", "send", "done"], True, Kind.SAMPLED, "s"),
        grow(tree, 1, ["look", "send", "done"], True, Kind.SAMPLED, "s/look"),
        grow(tree, 0, ["ask", "done"], False, Kind.TEACHER, "s"),
    ]
    return tree, paths


def test_the_outline_of_a_tree_by_hand(grown: tuple[Tree, list[TreePath]]) -> None:
    tree, paths = grown
    values = expected_backup(tree)
    found = outline(tree, values, paths[0])

    def node(turn: int, value: float, visits: int, success: float, **rest: Any) -> TreeNode:
        return TreeNode(turn, value, -1, visits, success, **rest)

    def without_errors(it: TreeNode) -> TreeNode:
        children = tuple(map(without_errors, it.children))
        value, success = (n and round(n, 3) for n in (it.value, it.success))
        return replace(it, error=-1, value=value, success=success, children=children)

    # V(look) = 2/3: two of the three that the student played on won. Nobody else counts for V.
    end = {"stop": "answered", "text": "done"}
    expected = node(
        0, 0.667, 3, 0.333, own=True,
        children=(
            node(
                1, 0.667, 3, 0.667, text="look", own=True,
                children=(
                    node(
                        2, 0.0, 1, 0.0, text="!pay", calls=("tool_error",), own=True,
                        children=(node(3, 0.0, 1, 0.0, own=True, **end),),
                    ),
                    node(
                        2, 1.0, 2, 1.0, text="send",
                        children=(node(3, 1.0, 2, 1.0, **end),),
                    ),
                ),
            ),
            node(1, 0.0, 1, 0.0, text="ask", by="teacher", children=(node(2, 0.0, 1, 0.0, **end),)),
        ),
    )  # fmt: skip
    assert without_errors(found) == expected
    assert found.error == round(math.sqrt(values[tree.root].variance), 4)
    # A continuation's way has that of the episode it was played on from in it.
    own = outline(tree, values, paths[2])
    assert [it.own for it in own.children] == [True, False]
    assert [it.own for it in own.children[0].children] == [False, True]
    assert TreeNode.from_dict(found.to_dict()) == found


def test_what_a_turn_was_worth_is_the_evidence(grown: tuple[Tree, list[TreePath]]) -> None:
    tree, paths = grown
    values = expected_backup(tree)
    node = values[paths[0].keys[1]]
    known = evidence(node, "!pay", credit=-0.5, teacher=None)
    assert known is not None
    found = worth(known)
    assert (found.before, found.after) == (pytest.approx(2 / 3, abs=1e-4), 0)
    assert found.gain == pytest.approx(-2 / 3, abs=1e-4)
    assert found.error == round(math.sqrt(node.advantage("!pay").variance), 4)
    assert found.samples == round(node.advantage("!pay").samples, 4)
    assert found.credit == -0.5


def test_a_large_tree_is_cut_where_it_is_far_from_its_root() -> None:
    tree = Tree("s")
    for i in range(MOST_NODES):
        grow(tree, 0, [f"a{i}", "x" * 2 * MOST_TEXT, "done"], False, Kind.SAMPLED, "s")
    last = grow(tree, 0, ["z", "y", "done"], True, Kind.SAMPLED, "s")
    found = outline(tree, expected_backup(tree), last)

    def count(it: TreeNode) -> int:
        return 1 + sum(map(count, it.children))

    assert count(found) == MOST_NODES + 3  # all of its own besides
    assert len(found.children) == MOST_NODES
    own = found.children[-1]
    assert (own.text, own.own, own.children[0].children[0].stop) == ("z", True, "answered")
    assert not found.children[0].children

    deep = Tree("s")
    path = grow(deep, 0, ["t" * 2 * MOST_TEXT] * 3 * MOST_TURNS, False, Kind.SAMPLED, "s")
    data = outline(deep, expected_backup(deep), path).to_dict()
    turns = 0
    while "children" in data:
        (data,) = data["children"]
        turns += 1
        assert len(data["text"]) == MOST_TEXT
    assert turns == MOST_TURNS


def record(gains: list[float | None], solved: bool) -> Played:
    steps = [
        StepScores(0.5, 0.25)
        if gain is None
        else StepScores(0.5, 0.25, value=StepWorth(0.5, 0.1, 0.5 + gain, 0.2, 3.5, gain))
        for gain in gains
    ]
    tree = TreeNode(0, 0.5, 0.1, 4, 0.5, own=True)
    episode = played([f"turn {k}" for k in range(len(gains))], solved)
    return Played(
        TRAINING, episode, "k", step=1, scores=Scores(tuple(steps), (), (), (), tree=tree)
    )


@pytest.mark.parametrize(
    ("gains", "solved", "turn"),
    [
        ([0.0, -0.4, -0.1], False, 1),
        ([0.3, -0.1], False, 1),
        ([0.3, -0.4], True, 0),
        ([0.2, 0.2], True, 0),
        ([0.3, 0.0], False, None),
        ([None, None], False, None),
    ],
)
def test_the_deciding_turn(gains: list[float | None], solved: bool, turn: int | None) -> None:
    it = record(gains, solved)
    assert it.scores is not None
    assert it.scores.deciding(solved) == turn
    lines = as_text(it, scores=True).splitlines()
    marked = [k for k, line in enumerate(lines) if line == "(this turn decided)"]
    assert len(marked) == (turn is not None)
    if turn is not None:
        assert lines[marked[0] - 2] == f"[assistant] turn {turn}"
        assert (
            lines[marked[0] - 1] == f"(weight 0.5, advantage 0.25; value 0.50 before, "
            f"{0.5 + (gains[turn] or 0):.2f} after it: {gains[turn]:+.2f} ± 0.20, 3.5 samples)"
        )


def test_worth_and_tree_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = [record([0.1, None, -0.2], False), record([], True)]
    file = EpisodeFile(tmp_path)
    file.append(written)
    assert file.read() == written


@pytest.mark.parametrize(
    ("cut", "put", "told"),
    [
        ('"visits":4', '"visits":"4"', "tree.visits is not what was expected: a whole number"),
        ('"turn":0,', "", "tree.turn is missing"),
        ('"samples":3.5', '"samples":null', r"scores.steps\[0\].value.samples is not"),
    ],
)
def test_a_record_that_was_tampered_with_is_named(
    cut: str, put: str, told: str, tmp_path: Path
) -> None:
    file = EpisodeFile(tmp_path)
    file.append([record([0.1], False)])
    text = (tmp_path / EPISODES).read_text()
    assert cut in text
    (tmp_path / EPISODES).write_text(text.replace(cut, put))
    with pytest.raises(RunFileError, match=f"line 1.*{told}"):
        file.read()


def test_a_run_that_searches_writes_what_its_trees_knew(tmp_path: Path) -> None:
    file = EpisodeFile(tmp_path)
    parts = replace(
        make_parts(babbler(), Additive(Trace())),
        search=TreeRollouts(rows=4, trajectories=1),
        record=TrainingLog(file, 5).record,
    )
    args = distillation(tmp_path / "run", per_device_train_batch_size=8, max_steps=1)
    distill.build(parts, args).train()
    kept = file.read()
    assert len(kept) == 5
    for p in kept:
        it, found = p.episode, p.scores
        assert found is not None and found.tree is not None
        assert [step.value is None for step in found.steps] == [
            k < it.first_step for k in range(len(it.steps))
        ]
        place, texts = found.tree, []
        while place.children:
            (place,) = [child for child in place.children if child.own]
            texts.append(place.text)
        # Equal turns may be written in several ways, and the first of them is told.
        assert len(texts) == len(it.steps)
        assert place.stop == it.stop
        assert ends(found.tree) == 4  # all rows of the task


def ends(it: TreeNode) -> int:
    return it.visits if it.stop is not None else sum(map(ends, it.children))
