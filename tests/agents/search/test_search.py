import random
from collections.abc import Mapping, Sequence

import pytest

from journeyman.agents.search import (
    Budget,
    Continuation,
    CreditSearch,
    ImprovementSearch,
    Kind,
    Move,
    NodeKey,
    Request,
    Tree,
    expected_backup,
    run_searches,
)

LENGTH = 3


class Corridor:
    """Three choices of a or b; reward at the end is the number of a. The student flips coins."""

    def __init__(self, chance: float = 0.5, tokens: int = 0, broken: str = "") -> None:
        self.chance = chance
        self.tokens = tokens
        self.broken = broken
        self.batches: list[int] = []
        self.requests: list[Request] = []

    def expand(self, requests: Sequence[Request]) -> list[Continuation]:
        self.batches.append(len(requests))
        self.requests += requests
        return [self.play(r) for r in requests]

    def play(self, request: Request) -> Continuation:
        rng = random.Random(request.seed)
        state, action, steps = str(request.handle), request.action, []
        while len(state) < LENGTH:
            action = action or ("a" if rng.random() < self.chance else "b")
            state += str(action)
            if state == self.broken:
                return Continuation(tuple(steps), "broke", tokens=self.tokens * len(steps))
            end = len(state) == LENGTH
            reward = float(state.count("a")) if end else 0.0
            steps.append(Move(action, reward, state, terminal=end, handle=state))
            action = None
        return Continuation(tuple(steps), tokens=self.tokens * len(steps))


def credited(world: Corridor, budget: Budget, seed: int = 0, **more: object) -> CreditSearch:
    tree = Tree("", handle="")
    paths = [
        tree.add(tree.root, world.play(Request(tree.root, "", None, Kind.SAMPLED, 1000 * seed + i)))
        for i in range(4)
    ]
    return CreditSearch(tree, paths, budget, seed=seed, **more)  # type: ignore[arg-type]


def test_many_searches_share_each_batch() -> None:
    world = Corridor()
    searches = [credited(world, Budget(24), seed, width=4) for seed in range(64)]
    run_searches(world, searches)
    assert world.batches[0] == 64 * 4
    for search in searches:
        assert 21 < search.spent.env_steps <= 24


def test_a_search_is_the_same_alone_and_in_company() -> None:
    world = Corridor()
    company = [credited(world, Budget(40), seed) for seed in range(64)]
    run_searches(world, company)
    for seed, search in enumerate(company):
        alone = credited(world, Budget(40), seed)
        run_searches(world, [alone])
        assert search.tree.to_json() == alone.tree.to_json()
    assert company[0].tree.to_json() != company[1].tree.to_json()


def test_credit_finds_the_advantage_of_each_step() -> None:
    world = Corridor()
    search = credited(world, Budget(1500), width=64)
    run_searches(world, [search])
    values = search.values()
    for key in [NodeKey(0, ""), *(k for p in search.tree.paths[:4] for k in p.keys[:-1])]:
        for action, exact in (("a", 0.5), ("b", -0.5)):
            if action in values[key].actions:
                found = values[key].advantage(action)
                assert abs(found.mean - exact) < 4 * found.variance**0.5 + 1e-9


def test_half_of_the_steps_goes_round() -> None:
    world = Corridor()
    run_searches(world, [credited(world, Budget(200))])
    uniform = credited(world, Budget(0))._round
    assert set(uniform) <= {r.key for r in world.requests}


def test_candidates_are_branched_on_first() -> None:
    world = Corridor(chance=0.0)
    key = NodeKey(1, "b")
    search = credited(world, Budget(12), candidates={key: ["a"]})
    run_searches(world, [search])
    first = world.requests[0]
    assert (first.key, first.action, first.kind) == (key, "a", Kind.TEACHER)
    values = search.values()
    assert values[key].actions["a"].q == 1.0 and values[key].actions["a"].policy == 0.0
    assert values[key].advantage("a")[:2] == (1.0, 0.0)


def test_a_deterministic_student_has_no_advantages() -> None:
    world = Corridor(chance=1.0)
    search = credited(world, Budget(30))
    run_searches(world, [search])
    for node in search.values().values():
        for action in node.actions:
            assert node.advantage(action)[:2] == (0.0, 0.0)


def test_no_budget_leaves_the_trajectories() -> None:
    world = Corridor()
    search = credited(world, Budget(0))
    run_searches(world, [search])
    assert world.batches == [] and search.spent == Budget(0, 0, 0)
    returns = [path.returns()[0] for path in search.tree.paths]
    assert search.values()[search.tree.root].value == sum(returns) / len(returns)


def test_tokens_are_a_budget_too() -> None:
    world = Corridor(tokens=10)
    search = credited(world, Budget(None, tokens=300))
    run_searches(world, [search])
    assert search.spent.tokens is not None and 270 < search.spent.tokens <= 300


def test_a_broken_world_costs_its_own_branch_only() -> None:
    world = Corridor(broken="ba")
    search = credited(world, Budget(300))
    run_searches(world, [search])
    root = search.values()[search.tree.root]
    assert root.value is not None and set(root.actions) == {"a", "b"}
    assert search.tree.nodes[NodeKey(1, "b")].failures > 0
    # bb is all that is left below b: no zero is mixed in.
    assert root.actions["b"].q == pytest.approx(0.5, abs=0.3)


def test_a_world_in_which_nothing_works_is_left_alone() -> None:
    class Dead(Corridor):
        def play(self, request: Request) -> Continuation:
            return Continuation((), "no restore")

    world = Dead()
    run_searches(world, [credited(Corridor(), Budget(100, tokens=100))])
    assert sum(world.batches) == 16


def test_bad_settings() -> None:
    world = Corridor()
    with pytest.raises(ValueError, match="env_steps=-1"):
        Budget(-1)
    with pytest.raises(ValueError, match="never ends"):
        Budget(None)
    with pytest.raises(ValueError, match="no trajectories"):
        CreditSearch(Tree(""), [], Budget(5))
    with pytest.raises(ValueError, match="width=0"):
        credited(world, Budget(5), width=0)


def test_a_world_that_loses_requests_is_told() -> None:
    class Lossy(Corridor):
        def expand(self, requests: Sequence[Request]) -> list[Continuation]:
            return super().expand(requests)[1:]

    with pytest.raises(RuntimeError, match="8 requests came back as 7"):
        run_searches(Lossy(), [credited(Lossy(), Budget(60))])


def improvement(prior: Mapping[str, float], **more: object) -> ImprovementSearch:
    tree = Tree("", handle="")
    return ImprovementSearch(tree, tree.root, prior, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_improvement_finds_the_better_action(rule: str) -> None:
    for seed in range(3):
        search = improvement({"a": -2.0, "b": 0.0}, simulations=40, rule=rule, seed=seed)
        run_searches(Corridor(), [search])
        assert search.best() == "a"
        assert search.policy()["a"] > 0.9
        assert len(search.tree.paths) == 40
        assert expected_backup(search.tree)[search.tree.root].value is None  # all was forced


def test_one_candidate_needs_no_search() -> None:
    world = Corridor()
    search = improvement({"a": -1.0}, simulations=10)
    run_searches(world, [search])
    assert world.batches == [] and search.best() == "a" and search.policy() == {"a": 1.0}


def test_bad_improvements() -> None:
    for name in ("simulations", "top", "width"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            improvement({"a": 0.0}, **{"simulations": 4, name: 0})
    with pytest.raises(ValueError, match="no candidates"):
        improvement({}, simulations=4)
    with pytest.raises(ValueError, match="rule='ucb'"):
        improvement({"a": 0.0}, simulations=4, rule="ucb")
