"""Selection rules against mctx's answers (golden/mctx/cases.json, written by oracle.py)."""

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from journeyman.agents.search import (
    Continuation,
    ImprovementSearch,
    Kind,
    Move,
    NodeKey,
    Request,
    Tree,
    expected_backup,
)
from journeyman.agents.search.select import (
    completed_q,
    considered_visits,
    halving_scores,
    improved_policy,
    influences,
    mixed_value,
    puct_scores,
    sigma,
    softmax,
)

from . import oracle

GOLDEN = json.loads(oracle.FILE.read_text())


@pytest.fixture(params=GOLDEN["nodes"], ids=range(len(GOLDEN["nodes"])))
def node(request: pytest.FixtureRequest) -> dict[str, Any]:
    case = dict(request.param)
    return {
        k: np.array(v) if isinstance(v, list) and k != "halving" else v for k, v in case.items()
    }


def completed(node: dict[str, Any]) -> Any:
    return completed_q(node["value"], node["q"], softmax(node["logits"]), node["visits"])


def test_completed_values(node: dict[str, Any]) -> None:
    assert sigma(completed(node), node["visits"]) == pytest.approx(node["sigma"], rel=1e-4)


def test_puct(node: dict[str, Any]) -> None:
    scores = puct_scores(node["q"], softmax(node["logits"]), node["visits"])
    assert int(np.argmax(scores)) == node["puct"]


def test_halving_scores(node: dict[str, Any]) -> None:
    scores = halving_scores(1, node["gumbel"], node["logits"], node["sigma"], node["visits"])
    expected = [-math.inf if x is None else x for x in node["halving"]]
    assert scores.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("case", GOLDEN["schedules"], ids=lambda c: str(tuple(c.values())[:2]))
def test_halving_schedule(case: dict[str, Any]) -> None:
    assert considered_visits(case["candidates"], case["simulations"]) == case["visits"]


class Bandit:
    """One choice, then the end: rewards are known, so that only the rules differ."""

    def __init__(self, rewards: Sequence[float]) -> None:
        self.rewards = rewards

    def expand(self, requests: Sequence[Request]) -> list[Continuation]:
        return [self.play(r.action) for r in requests]

    def play(self, action: Any) -> Continuation:
        return Continuation((Move(action, self.rewards[action], action, terminal=True),))


@pytest.mark.parametrize(
    "case", GOLDEN["searches"], ids=lambda c: f"{c['rule']} {c['simulations']}"
)
def test_whole_searches(case: dict[str, Any]) -> None:
    for i, rewards in enumerate(case["rewards"]):
        tree = Tree(0)
        prior = dict(enumerate(case["logits"][i]))
        search = ImprovementSearch(
            tree, tree.root, prior, case["simulations"], case["rule"],
            top=case["top"], value=case["values"][i], width=1,
        )  # fmt: skip
        search._gumbel = np.array(case["gumbel"][i])  # mctx's dice
        while asked := search.ask():
            search.tell(asked[0], Bandit(rewards).expand(asked)[0])
        edges = tree.nodes[tree.root].edges
        assert [edges[a].visits if a in edges else 0 for a in prior] == case["visits"][i]
        if case["rule"] == "gumbel":
            assert search.best() == case["actions"][i]
            policy = [search.policy()[a] for a in prior]
            assert policy == pytest.approx(case["weights"][i], abs=1e-4)


@pytest.mark.slow
def test_the_golden_file_is_what_mctx_says() -> None:
    if importlib.util.find_spec("mctx") is None:
        pytest.skip("mctx is not installed: no oracle to compare with")
    asked = [sys.executable, oracle.__file__, "-"]
    found = json.loads(subprocess.run(asked, check=True, stdout=subprocess.PIPE).stdout)
    assert flat(found) == pytest.approx(flat(GOLDEN), rel=1e-4, abs=1e-6)


def flat(data: Any) -> list[float]:
    """All numbers in order; a text or a null counts as its length."""
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        return [x for item in data for x in flat(item)]
    return [float(data)] if isinstance(data, (int, float)) else [float(len(str(data)))]


def test_nothing_played_leaves_the_nodes_own_value() -> None:
    nothing = np.zeros(3, dtype=np.int64)
    assert mixed_value(0.7, np.zeros(3), np.full(3, 1 / 3), nothing) == 0.7


def test_improved_policy() -> None:
    policy = improved_policy(np.zeros(2), np.array([1.0, 0.0]), np.array([1, 1]))
    assert policy.sum() == pytest.approx(1.0)
    assert policy[0] / policy[1] == pytest.approx(math.exp(0.1 * 51))


def test_influences_are_squared_derivatives() -> None:
    """A tree of two layers: s takes a (twice) to x and b (once) to y; x takes c or d."""
    tree = Tree("s")
    for first, state, then in (("a", "x", "c"), ("a", "x", "d"), ("b", "y", "c")):
        steps = (Move(first, 0.0, state), Move(then, 1.0, state + then, terminal=True))
        tree.add(tree.root, Continuation(steps))
    tree.add(tree.root, Continuation((Move("t", 0.0, "z", terminal=True),)), Kind.TEACHER)
    x = NodeKey(1, "x")
    wanted = {(tree.root, "a"): 2.0, (tree.root, "t"): 1.0, (x, "c"): 1.0}
    found = influences(tree, expected_backup(tree), wanted)
    # A(s, a) = Q(a) - 2/3 Q(a) - 1/3 Q(b), twice; A(s, t) = Q(t) - V(s), once.
    assert found[tree.root].node == pytest.approx(3.0)
    assert found[tree.root].actions == pytest.approx(
        {"a": 2 * (1 / 3) ** 2 + (2 / 3) ** 2, "b": 3 * (1 / 3) ** 2, "t": 1.0}
    )
    # V(x) moves what Q(s, a) moves, and A(x, c) itself.
    above = found[tree.root].actions["a"]
    assert found[x].node == pytest.approx(above + 1)
    assert found[x].actions == pytest.approx({"c": above / 4 + 0.25, "d": above / 4 + 0.25})
