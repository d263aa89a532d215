"""Spreads, influences and shares by hand: faults in them leave values right and searches worse."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction as F

import pytest

from journeyman.agents.search import (
    Budget,
    Continuation,
    CreditSearch,
    Kind,
    Move,
    NodeKey,
    Path,
    Request,
    Tree,
    expected_backup,
    run_searches,
)
from journeyman.agents.search.backup import _Average, _mix, _Mixture, _Pool
from journeyman.agents.search.estimators import TreeCredit
from journeyman.agents.search.select import influences
from journeyman.agents.search.tree import Action


def continuation(*steps: tuple[str, float, str]) -> Continuation:
    last = len(steps) - 1
    return Continuation(
        tuple(Move(a, r, s, terminal=i == last) for i, (a, r, s) in enumerate(steps))
    )


S, X, Y, Z = NodeKey(0, "s"), NodeKey(1, "x"), NodeKey(1, "y"), NodeKey(1, "z")


# Spreads


def grown(*plays: tuple[str, str, str, float]) -> Tree:
    """From s by an action to x or y, and by another one to the end, with a reward there."""
    tree = Tree("s")
    for first, middle, then, reward in plays:
        tree.add(S, continuation((first, 0, middle), (then, reward, middle + then)))
    return tree


def test_the_errors_of_actions_are_no_spread_of_choices() -> None:
    """No dice; s takes a to x twice and b to y twice, and V(x) = 1/2, V(y) = 1."""
    tree = grown(("a", "x", "c", 1), ("a", "x", "d", 0), ("b", "y", "c", 1), ("b", "y", "c", 1))
    values = expected_backup(tree)
    guess = F(3, 16) / 3  # variance of the returns 1, 0, 1, 1, over three layers
    common = (guess + F(1, 2)) / (1 + 1 + 1)  # squares of x: 1/2, of y: 0; one more sample each
    of_x, of_y = (F(1, 2) + common) / 2, common / 2
    assert (values[X].spread, values[Y].spread) == pytest.approx((float(of_x), float(of_y)))
    var_x, var_y = of_x / 2, of_y / 2
    assert (values[X].variance, values[Y].variance) == pytest.approx((float(var_x), float(var_y)))
    # Each of four samples is 1/4 from the mean. On average the errors of Q add their variances to
    # the squares, and take away four times that of the mean.
    noise = (var_x + var_y) / 4
    squares = F(4, 16) - 2 * var_x - 2 * var_y + 4 * noise
    spread = (squares + (guess + squares) / (1 + 3)) / 4
    assert (squares, spread) == (F(1, 32), F(7, 512))
    assert values[S].spread == pytest.approx(float(spread))
    assert values[S].variance == pytest.approx(float(noise + spread / 4))
    # Twice the same outcome is no throw of dice, whatever the errors of its value.
    assert [values[S].actions[a].spread for a in "ab"] == [0, 0]
    assert values[S].actions["a"].variance == pytest.approx(float(var_x))
    advantage = values[S].advantage("a")
    assert advantage.variance == pytest.approx(float(spread / 4 + (var_x + var_y) / 4))


def test_the_errors_of_values_are_no_spread_of_dice() -> None:
    """One action, that leads twice to x and once to y; V(x) = 1/2, V(y) = 3."""
    tree = grown(("a", "x", "c", 1), ("a", "x", "d", 0), ("a", "y", "c", 3))
    values = expected_backup(tree)
    guess = F(14, 9) / 3  # variance of the returns 1, 0, 3, over three layers
    common = (guess + F(1, 2)) / (1 + 1)
    var_x, var_y = (F(1, 2) + common) / 2 / 2, common
    assert (values[X].variance, values[Y].variance) == pytest.approx((float(var_x), float(var_y)))
    noise = (4 * var_x + var_y) / 9
    squares = 2 * F(5, 6) ** 2 + F(5, 3) ** 2 - 2 * var_x - var_y + 3 * noise
    # Nothing is guessed of dice beforehand: one pseudo-sample of spread 0.
    spread = (squares + squares / (1 + 2)) / 3
    assert (squares, spread) == (F(2371, 648), F(2371, 1458))
    edge = values[S].actions["a"]
    assert edge.spread == pytest.approx(float(spread))
    assert edge.variance == pytest.approx(float(noise + spread / 3))
    # The only action: all that is uncertain comes from below, and shows no spread of choices.
    assert values[S].spread == pytest.approx(float(guess / (1 + 2) / 3))


def test_no_spread_is_negative() -> None:
    """V(x) = V(y) = 1/2: less than their errors would show."""
    tree = grown(("a", "x", "c", 1), ("a", "x", "d", 0), ("b", "y", "c", 1), ("b", "y", "d", 0))
    root = expected_backup(tree)[S]
    common = (F(1, 4) / 3 + F(1, 2) + F(1, 2)) / (1 + 2)
    below = (F(1, 2) + common) / 2 / 2
    assert root.spread == 0
    assert root.variance == pytest.approx(float(below / 2))
    # The common spread is not negative either: it would hide what one mixture shows.
    pool = _Pool(0.0)
    pool.add(_Mixture(3, squares=-4.0))
    assert pool.spread(_Mixture(2, squares=1.0)) == 0.5
    assert pool.spread(_Mixture(0)) == 0


def test_what_has_no_value_says_nothing_of_spreads() -> None:
    plays = (("a", "x", "c", 1), ("a", "x", "d", 0), ("b", "y", "c", 1), ("b", "y", "c", 1))
    tree = grown(*plays)
    before = expected_backup(tree)
    for action in "tuv":
        tree.add(S, Continuation((Move(action, 0.0, "z"),), failure="broke"), Kind.TEACHER)
    after = expected_backup(tree)
    assert after.pop(Z).value is None
    assert after == before


def test_corrected_squares_are_unbiased() -> None:
    """Over all choices of four fair coins and all signs of two errors, and so of any number n.

    The coins show actions worth 1 and 0, a spread of 1/4; the errors are 1/2 and 1/4.
    """
    found: dict[int, list[float]] = {n: [] for n in (2, 3, 4)}
    for n, row in found.items():
        for heads in itertools.product((0, 1), repeat=n):
            for signs in itertools.product((-1, 1), repeat=2):
                count = sum(heads)
                parts = [
                    (count, _Average(1, 1 + signs[0] / 2, 1 / 4, 0.0)),
                    (n - count, _Average(1, signs[1] / 4, 1 / 16, 0.0)),
                ]
                row.append(_mix(parts).squares)
    for n, row in found.items():
        assert sum(row) / len(row) == pytest.approx((n - 1) / 4)


# Influences

Wanted = Mapping[tuple[NodeKey, Action], float]
Bump = NodeKey | tuple[NodeKey, Action]


def backed_up(tree: Tree, key: NodeKey, action: Action, bump: Bump | None) -> float:
    """A(s, a) by the definitions, with one value on the way raised by 1."""

    def v(key: NodeKey) -> float:
        edges = tree.nodes[key].edges
        count = sum(edge.sampled for edge in edges.values())
        total = sum(edges[a].sampled * q(key, a) for a in edges if edges[a].sampled)
        return (total / count if count else 0.0) + (key == bump)

    def q(key: NodeKey, action: Action) -> float:
        outcomes = tree.nodes[key].edges[action].outcomes
        count = sum(outcome.visits for outcome in outcomes.values())
        total = sum(outcome.visits * v(child) for child, outcome in outcomes.items())
        return total / count + ((key, action) == bump)

    return q(key, action) - v(key)


def squared_derivatives(tree: Tree, wanted: Wanted, bump: Bump) -> float:
    """Values are linear in each other: a difference is the derivative."""
    return sum(
        weight * (backed_up(tree, *aim, bump) - backed_up(tree, *aim, None)) ** 2
        for aim, weight in wanted.items()
    )


@pytest.fixture
def stochastic() -> Tree:
    """Three layers with dice in the first two; forced plays and the teacher's among them."""
    tree = Tree("s")
    for kind, *steps in (
        (Kind.SAMPLED, "a x", "c xc", "e 1"),
        (Kind.SAMPLED, "a x", "c xd", "f 2"),
        (Kind.SAMPLED, "a y", "c yc", "e 3"),
        (Kind.FORCED, "a y", "d yd", "e 4"),
        (Kind.FORCED, "a z", "c zc", "f 5"),
        (Kind.SAMPLED, "b w", "c wc", "e 6"),
        (Kind.TEACHER, "t v", "c vc", "e 7"),
        (Kind.TEACHER, "t u", "d uc", "e 8"),
    ):
        pairs = [step.split() for step in steps]
        tree.add(S, continuation(*((action, 0.0, state) for action, state in pairs)), kind)
    tree.add(X, continuation(("c", 0, "xc"), ("f", 0, "9")))
    tree.add(X, continuation(("d", 0, "xe"), ("e", 0, "10")))
    tree.add(X, continuation(("c", 0, "xc"), ("e", 0, "1")), Kind.FORCED)
    return tree


def test_influences_are_derivatives_where_there_are_dice(stochastic: Tree) -> None:
    wanted: Wanted = {(S, "a"): 3.0, (S, "b"): 1.0, (S, "t"): 0.5, (X, "c"): 2.0, (Y, "d"): 1.0}
    found = influences(stochastic, expected_backup(stochastic), wanted)
    matters = set()
    for key, node in stochastic.nodes.items():
        whole = squared_derivatives(stochastic, wanted, key)
        if node.terminal or not whole:
            continue
        matters.add(key)
        assert found[key].node == pytest.approx(whole)
        expected = {a: squared_derivatives(stochastic, wanted, (key, a)) for a in node.edges}
        assert found[key].actions == pytest.approx(expected)
    assert set(found) == matters
    # One by hand: Q(s, a) owes V(x) two of five visits, and A(s, a) owes Q(s, a) one of four,
    # A(s, b) three of four.
    sway = 3 * (1 / 4) ** 2 + (3 / 4) ** 2 + 0.5 * (3 / 4) ** 2
    assert found[S].actions["a"] == pytest.approx(sway)
    assert found[X].node == pytest.approx(sway * (2 / 5) ** 2 + 2)


def test_two_ways_into_one_node_add_up() -> None:
    """s leads by a and by b to x, and by b to y: squares of the ways are summed."""
    tree = Tree("s")
    for action, state in (("a", "x"), ("b", "x"), ("b", "y"), ("b", "y")):
        tree.add(S, continuation((action, 0, state), ("c", 0, "end")))
    found = influences(tree, expected_backup(tree), {(S, "a"): 2.0})
    square = 2 * (3 / 4) ** 2  # A(s, a) = 3/4 Q(a) - 3/4 Q(b)
    assert found[S].actions == pytest.approx({"a": square, "b": square})
    assert found[X].node == pytest.approx(square + square * (1 / 3) ** 2)
    assert found[Y].node == pytest.approx(square * (2 / 3) ** 2)


def test_an_outcome_after_which_something_broke_has_no_influence() -> None:
    """Q(s, a) is V(x) alone: of the two outcomes of a, nothing is known after y."""
    tree = Tree("s")
    tree.add(S, continuation(("a", 0, "x"), ("c", 1, "end")))
    tree.add(S, Continuation((Move("a", 0.0, "y"),), failure="broken"))
    tree.add(S, continuation(("b", 0, "end")))
    found = influences(tree, expected_backup(tree), {(S, "a"): 1.0})
    assert found[X].node == pytest.approx((1 / 3) ** 2)  # A(s, a) = 1/3 Q(a) - 1/3 Q(b)
    assert Y not in found or found[Y].node == 0


# Shares of the budget

LENGTH = 10


class Lane:
    """Eight steps without a choice, a coin, and a last step: heads is worth 1.

    Whole episodes happen to come out heads, so that no spread is guessed but where the coin falls.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def expand(self, requests: Sequence[Request]) -> list[Continuation]:
        self.requests += requests
        return [self.play(r.key.depth, r.seed % 2) for r in requests]

    def play(self, depth: int, coin: int) -> Continuation:
        on = [("on", 0.0, str(i)) for i in range(depth + 1, LENGTH - 1)]
        heads = coin or not depth
        end = ("heads", 1.0, "won") if heads else ("tails", 0.0, "lost")
        return continuation(*on, end, ("on", 0.0, "end"))


COIN = NodeKey(LENGTH - 2, str(LENGTH - 2))


def lane(adaptive: float, width: int = 8, budget: int = 2000) -> list[int]:
    """Steps of each request: the round's take ten, from the root; errors hurt at the coin, two."""
    world, tree = Lane(), Tree("0")
    tree.add(tree.root, world.play(0, 1))
    credited = [tree.add(COIN, world.play(COIN.depth, coin)) for coin in (0, 1)]
    search = CreditSearch(
        tree, credited, Budget(budget), nodes=[tree.root], adaptive=adaptive, width=width
    )
    run_searches(world, [search])
    assert all(r.key in (tree.root, COIN) for r in world.requests)
    return [LENGTH - r.key.depth for r in world.requests]


@pytest.mark.parametrize("width", [1, 8, 64])
def test_half_of_the_steps_is_not_half_of_the_requests(width: int) -> None:
    """Five requests of two steps each make up for one of ten, in rounds of any width."""
    assert lane(0.5, width, budget=80) == [10, *[2] * 5] * 4


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75])
def test_each_share_is_kept_at_any_time(share: float) -> None:
    """Never ahead by a request's steps, nor behind by more than a round's one brings it.

    Near the end what fits the budget decides.
    """
    total = adaptive = 0
    for steps in lane(share, budget=2000):
        behind = share * total - adaptive
        assert -2 < behind <= share * 10
        assert total > 1980 or steps == (2 if behind > 0 else 10)
        total += steps
        adaptive += steps if steps == 2 else 0
    assert total == 2000


def branching() -> tuple[Tree, list[Path]]:
    """Two trajectories with dice on the way, and nodes of unlike length below the root."""
    tree = Tree("s")
    credited = [
        tree.add(S, continuation(("a", 0, "x"), ("c", 1, "1"))),
        tree.add(S, continuation(("b", 0, "y"), ("c", 0, "yc"), ("d", 0, "yd"), ("e", 0, "2"))),
    ]
    for steps in (
        (("a", 0, "x"), ("d", 0, "3")),
        (("a", 0, "z"), ("c", 4, "4")),
        (("a", 0, "x"), ("d", 0, "3")),
        (("b", 0, "y"), ("c", 0, "yc"), ("d", 0, "yd"), ("e", 0, "2")),
        (("b", 0, "y"), ("d", 0, "yc"), ("e", 0, "yd"), ("c", 3, "5")),
    ):
        tree.add(S, continuation(*steps))
    return tree, credited


def test_the_adaptive_share_goes_where_it_helps_most() -> None:
    """By its rule, for values as they are: w^2 Var / (n + 1) / steps, again and again."""
    tree, credited = branching()
    wanted = Counter((k, s.action) for p in credited for k, s in zip(p.keys, p.steps, strict=False))
    values = expected_backup(tree)
    samples: dict[tuple[NodeKey, Action | None], int] = {}
    errors: dict[tuple[NodeKey, Action | None], float] = {}
    for key, influence in influences(tree, values, wanted).items():
        samples[key, None] = values[key].samples
        errors[key, None] = influence.node * values[key].variance * values[key].samples
        for action, it in values[key].actions.items():
            samples[key, action] = it.visits
            errors[key, action] = influence.actions[action] * it.spread
    left = {S: 20 / 7, X: 1.0, Y: 3.0, NodeKey(2, "yc"): 2.0, NodeKey(3, "yd"): 1.0, Z: 1.0}
    expected = []
    for _ in range(60):
        gains = {
            place: errors[place] / n / (n + 1) / left[place[0]] for place, n in samples.items()
        }
        best = max(gains, key=lambda place: gains[place])
        samples[best] += 1
        expected.append(best)
    assert {(S, None), (S, "a"), (X, None), (NodeKey(3, "yd"), None)} <= set(expected)

    search = CreditSearch(tree, credited, Budget(1000), adaptive=0.99, width=61)
    first, *rest = search.ask()
    assert (first.key, first.action, first.kind) == (S, None, Kind.SAMPLED)
    assert [(r.key, r.action) for r in rest] == expected
    assert all((r.kind is Kind.SAMPLED) == (r.action is None) for r in rest)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_an_estimator_hands_its_share_on(share: float) -> None:
    asked = []
    for search in (
        TreeCredit(adaptive=share).search(*branching(), Budget(200), seed=3),
        CreditSearch(*branching(), Budget(200), adaptive=share, seed=3),
        CreditSearch(*branching(), Budget(200), adaptive=0.8, seed=3),
    ):
        search.width = 40
        asked.append(search.ask())
    assert asked[0] == asked[1] != asked[2]
    if share == 0.5:
        assert TreeCredit().search(*branching(), Budget(200), seed=3).ask() == asked[0][:8]


def test_what_breaks_now_and_then_is_no_broken_world() -> None:
    """Patience is for failures in a row: each second one breaks, and the budget is spent."""

    class Shaky(Lane):
        def play(self, depth: int, coin: int) -> Continuation:
            played = super().play(depth, coin)
            broken = self.requests and coin
            return Continuation(played.steps[:-1], "broke") if broken else played

    world, tree = Shaky(), Tree("0")
    credited = [tree.add(tree.root, world.play(0, 0))]
    search = CreditSearch(tree, credited, Budget(1000), adaptive=0.0, width=1)
    run_searches(world, [search])
    failures = sum(node.failures for node in tree.nodes.values())
    assert failures > 16
    assert search.spent.env_steps is not None
    assert search.spent.env_steps > 980
