"""Trees of language-model episodes: nodes restore, equal turns merge, nothing is made twice."""

import importlib.resources
import itertools
import random
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from journeyman import conf
from journeyman.agents.errors import NoSnapshotError
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.search import Budget, CreditSearch, Kind, Request, expected_backup
from journeyman.agents.search.estimators import RTMC, GiGPO, StepEstimator, TreeCredit
from journeyman.agents.search.evidence import (
    Forest,
    Grown,
    Spent,
    TreeRollouts,
)
from journeyman.agents.search.language import LanguageWorld, canonical_action
from journeyman.agents.search.searches import PATIENCE, run_searches
from journeyman.agents.students import hf
from journeyman.agents.students.hf import HFPlayer, load_student
from journeyman.agents.students.player import Conversation, Sampling, Turn
from journeyman.agents.students.scripted import ScriptedPlayer, no_op, oracle
from journeyman.agents.teachers import Annotations
from journeyman.agents.teachers.local import LocalTeacher, load_teacher
from journeyman.envs import Episode, Message, ToolEnv, env_class, make
from journeyman.tools import ToolCall, get_parser, render_hermes
from journeyman.tools.python import ReplayError

from ..tiny import BUILTIN, chat

KWARGS = {"max_turns": 6}
parse = get_parser("hermes")


@pytest.fixture(scope="module")
def student() -> HFPlayer:
    return load_student("embedded-student", render="names", max_turn_tokens=48, device="cpu")


@pytest.fixture(scope="module")
def teacher() -> LocalTeacher:
    return load_teacher("embedded-teacher", device="cpu")


def tasks(count: int, rows: int = 1) -> list[TaskRef]:
    return [
        TaskRef(BUILTIN[i % 3], f"test/{i}", seed=1000 * i + row)
        for i in range(count)
        for row in range(rows)
    ]


def test_restore_and_continue_equals_continuing(student: HFPlayer) -> None:
    """From every node, the recorded action and a greedy student lead through the same states."""
    world = LanguageWorld(student.at(temperature=0.0), 64, KWARGS)
    trees = world.begin(tasks(6))
    requests, expected = [], []
    for tree in trees:
        (path,) = tree.paths
        for k, key in enumerate(path.keys[:-1]):
            requests.append(
                Request(key, tree.nodes[key].handle, path.steps[k].action, Kind.FORCED, seed=7)
            )
            expected.append([(s.action, s.reward, s.state, s.context) for s in path.steps[k:]])
    played = world.expand(requests)
    assert [
        [(s.action, s.reward, s.state, s.context) for s in it.steps] for it in played
    ] == expected
    assert len(requests) > 12


def test_equal_episodes_are_one_path(student: HFPlayer) -> None:
    world = LanguageWorld(student.at(temperature=0.0), 64, KWARGS)
    one, other = world.begin(tasks(2, rows=3))
    for tree in (one, other):
        assert len(tree.paths) == 3
        assert all(len(level) == 1 for level in tree.levels)
        assert all(node.samples in (0, 3) for node in tree.nodes.values())
    assert one.root != other.root


def test_equal_calls_are_equal_actions() -> None:
    one = '<tool_call>\n{"name": "f", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    other = '<tool_call>{"arguments": {"b": 2, "a": 1}, "name": "f"}</tool_call>'
    broken = '<tool_call>{"arguments": {"b": 2, "a": 1}, "name": "f"'
    actions = [canonical_action(t, parse(t)) for t in (one, other, broken)]
    assert actions[0] == actions[1] != actions[2]
    assert canonical_action("Answer: Yes.", []) == canonical_action("So.\nAnswer: yes", [])
    assert canonical_action("Answer: yes", []) != canonical_action("Answer: no", [])


def test_the_teachers_call_is_played_as_written(student: HFPlayer) -> None:
    """With the oracle as teacher: it proposes the gold call, and trying it counts as its own."""
    world = LanguageWorld(student.at(temperature=0.0), 64, KWARGS)
    trees = world.begin(tasks(3))
    nodes = [(tree.root, tree.nodes[tree.root].handle) for tree in trees]
    actions = world.propose(ScriptedPlayer(chat(), oracle), nodes)
    for tree, action, task in zip(trees, actions, tasks(3), strict=True):
        gold = make(task.env_id).load_task(task.task_id).gold[0]
        assert action == gold.canonical()
        request = Request(tree.root, tree.nodes[tree.root].handle, action, Kind.TEACHER, seed=3)
        (continuation,) = world.expand([request])
        tree.add(tree.root, continuation, Kind.TEACHER)
        edge = tree.nodes[tree.root].edges[action]
        assert edge.teacher == 1
        assert expected_backup(tree)[tree.root].actions[action].visits >= 1
    assert world.teacher_tokens > 0


def test_environments_of_proposals_are_closed(
    student: HFPlayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = LanguageWorld(student.at(temperature=0.0), 64, KWARGS)
    (tree,) = world.begin(tasks(1))
    closed: list[Any] = []
    monkeypatch.setattr(env_class(BUILTIN[0]), "close", lambda self: closed.append(self))
    nodes = [(tree.root, tree.nodes[tree.root].handle)] * 2
    world.propose(ScriptedPlayer(chat(), oracle), nodes)
    assert len(closed) == 2
    opened = ScriptedPlayer(chat(), oracle)

    def failing(*args: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(opened, "open", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        world.propose(opened, nodes)
    assert len(closed) == 4


def test_a_node_that_cannot_be_restored_gets_no_proposal(
    student: HFPlayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others do, and every environment is closed."""
    world = LanguageWorld(student.at(temperature=0.0), 64, KWARGS)
    trees = world.begin(tasks(2))
    bank, closed = env_class(BUILTIN[0]), list[Any]()
    monkeypatch.setattr(bank, "restore", _lost)
    monkeypatch.setattr(bank, "close", lambda self: closed.append(self))
    nodes = [(tree.root, tree.nodes[tree.root].handle) for tree in trees]
    lost, found = world.propose(ScriptedPlayer(chat(), oracle), nodes)
    assert lost is None
    assert found == make(BUILTIN[1]).load_task("test/1").gold[0].canonical()
    assert len(closed) == 1


def test_a_teacher_that_cannot_propose_is_not_tried(
    student: HFPlayer, teacher: LocalTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    for env_id in BUILTIN[:2]:
        monkeypatch.setattr(env_class(env_id), "restore", _lost)
    forest = grow(student, teacher, follow=False)
    known = [e for row in forest.rows for e in row.steps if e is not None]
    assert known and forest.spent.failures > 0
    assert forest.spent.teacher_tokens == 0


def test_an_environment_that_breaks_has_no_value(
    student: HFPlayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = env_class(BUILTIN[0])
    monkeypatch.setattr(bank, "_execute", _broken)
    world = LanguageWorld(student.at(temperature=0.0), 64, KWARGS)
    trees = world.begin([TaskRef(BUILTIN[0], "test/1", 0), TaskRef(BUILTIN[1], "test/1", 0)])
    broken, whole = (expected_backup(tree)[tree.root] for tree in trees)
    assert broken.value is None
    assert whole.value is not None
    search = CreditSearch(trees[0], list(trees[0].paths), Budget(continuations=40))
    run_searches(world, [search])
    assert len(trees[0].paths) < 40  # it gave up


@pytest.mark.parametrize("method", ["snapshot", "state_hash"])
def test_a_branch_point_that_cannot_be_kept_has_no_value(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn before was played; nobody knows where it led, and that is no reward of zero."""
    bank, calls = env_class(BUILTIN[0]), itertools.count()
    whole = getattr(bank, method)

    def failing(self: Any) -> Any:
        if next(calls) == 1:
            raise ConnectionError("the bank is gone")
        return whole(self)

    monkeypatch.setattr(bank, method, failing)
    world = LanguageWorld(ScriptedPlayer(chat(), oracle), 64, KWARGS)
    (tree,) = world.begin(tasks(1))
    (path,) = tree.paths
    assert len(path.steps) == 1 and path.failure == "ConnectionError: the bank is gone"
    assert not any(node.terminal for node in tree.nodes.values())
    assert expected_backup(tree)[tree.root].value is None
    run_searches(world, [CreditSearch(tree, [path], Budget(continuations=4))])
    assert expected_backup(tree)[tree.root].value == 1.0


def unopened(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The first openings of a bank fail."""
    bank, calls = env_class(BUILTIN[0]), itertools.count()
    whole = bank.open_state

    def failing(self: Any, task: Any) -> Any:
        if next(calls) < times:
            raise ConnectionError("the bank is gone")
        return whole(self, task)

    monkeypatch.setattr(bank, "open_state", failing)


@pytest.mark.parametrize("values", [TreeCredit(), RTMC()], ids=lambda it: type(it).__name__)
def test_a_reset_that_fails_costs_its_own_trajectory_only(
    values: StepEstimator,
    student: HFPlayer,
    teacher: LocalTeacher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unopened(monkeypatch, 1)
    rollouts = TreeRollouts(values, rows=4, trajectories=2)
    (it,), spent = trees(rollouts, student, teacher, tasks(1, rows=4))
    assert expected_backup(it.tree)[it.tree.root].value is not None
    assert [path.failure is None for path in it.tree.paths] == [False, True, True, True]
    assert len(rollouts.episodes(it)) == 3
    assert spent.failures == 1


@pytest.mark.parametrize("values", [TreeCredit(), RTMC()], ids=lambda it: type(it).__name__)
def test_a_task_that_cannot_be_opened_has_no_rows(
    values: StepEstimator,
    student: HFPlayer,
    teacher: LocalTeacher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unopened(monkeypatch, 2)
    rollouts = TreeRollouts(values, rows=4, trajectories=2)
    (lost, whole), _ = trees(rollouts, student, teacher, tasks(2, rows=4))
    assert not lost.playable and len(lost.tree.paths) == 2
    assert rollouts.episodes(lost) == []
    assert len(rollouts.episodes(whole)) == 4


@pytest.mark.parametrize("max_context", [8, 20])
def test_a_prompt_that_does_not_fit_has_no_rows(max_context: int, teacher: LocalTeacher) -> None:
    short = load_student("embedded-student", render="names", max_context=max_context, device="cpu")
    rollouts = TreeRollouts(rows=4, trajectories=2)
    grown, _ = trees(rollouts, short, teacher, tasks(2, rows=4))
    failures = {path.failure for it in grown for path in it.tree.paths}
    assert failures == {"the prompt does not fit max_context"}
    assert [row for it in grown for row in rollouts.episodes(it)] == []


class TwoWordings:
    """Gives up half the time; else makes the gold call, in one of two wordings.

    Only one of them is gone on from to the end. So Q of the call is 0.5, and V is 0.25.
    """

    dialect = chat()
    max_context = 1 << 20
    loser = "I think so.\n"

    def open(self, conversations: Sequence[Conversation]) -> "TwoWordings":
        self._conversations = [self._play(it) for it in conversations]
        self._ready = list(range(len(conversations)))
        return self

    def _play(self, it: Conversation) -> Iterator[str]:
        gold = [render_hermes(call) for call in it.env.task.gold]
        done, lost = it.env.snapshot().turns, self.loser in chat().decode(it.tokens)
        if not done:
            first = random.Random(it.seed).choice(
                ["Answer: no", "Answer: no", gold[0], self.loser + gold[0]]
            )
            done, lost = 1, first.startswith(self.loser)
            yield first
        while not lost and done < len(gold):
            done += 1
            yield gold[done - 1]
        yield "Answer: no" if lost else f"Answer: {it.env.task.answer}"

    @property
    def idle(self) -> bool:
        return not self._ready

    def advance(self) -> list[Turn]:
        ready, self._ready = self._ready, []
        written = [tuple(chat().turn(next(self._conversations[row]))) for row in ready]
        return [Turn(row, it, (0.0,) * len(it)) for row, it in zip(ready, written, strict=True)]

    def extend(self, row: int, tokens: Sequence[int], messages: Sequence[Message] = ()) -> None:
        self._ready.append(row)

    def finish(self, row: int) -> None:
        pass


def test_a_call_in_two_wordings_is_repeated_in_both() -> None:
    """As the student writes it: to repeat the first that was seen drew Q towards 0 or 1."""
    orders = env_class(BUILTIN[2])
    task = next(i for i in orders.tasks("test") if len(orders.load_task(i).gold) > 1)
    call = orders.load_task(task).gold[0].canonical()
    repeated, gaps = 0, []
    for seed in range(6):
        world = LanguageWorld(TwoWordings(), 64, {"max_turns": 12})
        (tree,) = world.begin([TaskRef(BUILTIN[2], task, 100 * seed + row) for row in range(4)])
        budget = Budget(continuations=150)
        run_searches(world, [CreditSearch(tree, list(tree.paths), budget, seed=seed)])
        own = [
            path.returns()[0]
            for path in tree.paths
            if path.kind is Kind.SAMPLED and path.keys[0] == tree.root
            if path.steps[0].action == call
        ]
        q = expected_backup(tree)[tree.root].actions[call].q
        assert q == pytest.approx(fmean(own), abs=0.03)
        gaps.append(q - 0.5)
        repeated += tree.nodes[tree.root].edges[call].forced
    assert abs(fmean(gaps)) < 0.1
    assert repeated > 60  # or else this would say nothing


def test_a_state_that_cannot_be_restored_leaves_the_trajectories(
    student: HFPlayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a replay that does not reproduce: no branch has a value, and the search gives up."""
    world = LanguageWorld(student.at(temperature=0.0), 64, KWARGS)
    trees = world.begin(tasks(1, rows=2))
    before = expected_backup(trees[0])
    monkeypatch.setattr(env_class(BUILTIN[0]), "restore", _lost)
    run_searches(world, [CreditSearch(trees[0], list(trees[0].paths), Budget(continuations=40))])
    assert len(trees[0].paths) == 2 + PATIENCE
    assert expected_backup(trees[0]) == before


def _lost(self: Any, snapshot: Any) -> None:
    raise ReplayError("cell 1 of 2 gave '2' when it was replayed, not '0'")


def test_without_snapshots_there_is_no_search(
    student: HFPlayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot(self: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(env_class(BUILTIN[0]), "snapshot", snapshot)
    with pytest.raises(NoSnapshotError, match=r"BankEnv takes no snapshots, .* search=credit"):
        LanguageWorld(student, 64, KWARGS).begin(tasks(1))


def _broken(self: Any, call: ToolCall) -> Any:
    raise ConnectionError("the bank is gone")


def grow(student: HFPlayer, teacher: LocalTeacher, **settings: Any) -> Forest:
    rollouts = TreeRollouts(**{"rows": 4, "trajectories": 2, **settings})
    return forest(rollouts, student, teacher, tasks(2, rollouts.rows))


def forest(
    rollouts: TreeRollouts, student: HFPlayer, teacher: LocalTeacher, refs: Sequence[TaskRef]
) -> Forest:
    """Episodes of trees, with a teacher that scores and plays."""
    return rollouts.play(student, Annotations(teacher), teacher.player(student), refs, 64, KWARGS)


def trees(
    rollouts: TreeRollouts,
    student: HFPlayer,
    teacher: LocalTeacher,
    refs: Sequence[TaskRef],
    kwargs: dict[str, Any] = KWARGS,
) -> tuple[list[Grown], Spent]:
    """The trees themselves."""
    return rollouts.grow(student, Annotations(teacher), teacher.player(student), refs, 64, kwargs)


def test_rows_fill_the_batch_and_are_trained_once(student: HFPlayer, teacher: LocalTeacher) -> None:
    grown = grow(student, teacher)
    rows = grown.rows
    assert len(rows) == 8
    assert sum(row.episode.first_step > 0 for row in rows) >= 2
    for row in rows:
        episode = row.episode
        assert len(row.steps) == len(episode.steps)
        start = episode.steps[episode.first_step].span[0]
        assert not any(episode.mask[:start])
        for k, known in enumerate(row.steps):
            assert (known is None) == (k < episode.first_step)
    chosen = sum(sum(row.episode.mask) for row in rows)
    assert grown.spent.sampled_tokens == chosen


def test_equal_seeds_grow_equal_trees(student: HFPlayer, teacher: LocalTeacher) -> None:
    one, other = grow(student, teacher), grow(student, teacher)
    assert [r.episode for r in one.rows] == [r.episode for r in other.rows]
    assert [r.steps for r in one.rows] == [r.steps for r in other.rows]
    assert one.spent == other.spent


@pytest.mark.parametrize(
    "values", sorted(p.name for p in (importlib.resources.files(conf) / "values").iterdir())
)
def test_every_estimator_finds_advantages_in_training(
    values: str, student: HFPlayer, teacher: LocalTeacher
) -> None:
    text = (importlib.resources.files(conf) / "values" / values).read_text()
    orders = [TaskRef(BUILTIN[2], f"train/{i // 8}", seed=1000 * (i // 8) + i) for i in range(32)]
    rollouts = TreeRollouts(instantiate(OmegaConf.create(text)))
    rows = forest(rollouts, student, teacher, orders).rows
    credit = [e.credit for row in rows for e in row.steps if e is not None]
    assert sum(abs(it) > 1e-9 for it in credit) >= 5


def test_gigpo_takes_the_teachers_calls(student: HFPlayer, teacher: LocalTeacher) -> None:
    """They lead to states that the student never came to by itself."""
    orders = [TaskRef(BUILTIN[2], f"train/{i // 8}", seed=i) for i in range(24)]
    rollouts = TreeRollouts(GiGPO(), follow=False)
    grown, _ = trees(rollouts, student, teacher, orders)
    assert any(path.kind is Kind.TEACHER for it in grown for path in it.tree.paths)
    assert len([row for it in grown for row in rollouts.episodes(it)]) == 24


def stepped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Task ids, one a turn that is played from here on."""
    turns: list[str] = []
    step = ToolEnv.step

    def counting(self: ToolEnv, action: Any) -> Any:
        turns.append(self.task.id)
        return step(self, action)

    monkeypatch.setattr(ToolEnv, "step", counting)
    return turns


@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize("limits", [{"env_steps": 0}, {"tokens": 0}])
def test_without_a_budget_the_teacher_does_not_play(
    limits: dict[str, int],
    follow: bool,
    student: HFPlayer,
    teacher: LocalTeacher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns = stepped(monkeypatch)
    rollouts = TreeRollouts(tries=3, follow=follow, **limits)  # type: ignore[arg-type]
    grown, spent = trees(rollouts, student, teacher, tasks(3, rows=8))
    assert len(turns) == sum(len(p.steps) for it in grown for p in it.trajectories)
    assert spent.teacher_tokens == 0
    assert spent.env_steps == len(turns)


@pytest.mark.parametrize("follow", [True, False])
def test_the_teachers_play_is_charged(
    follow: bool, student: HFPlayer, teacher: LocalTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits are kept to, but for what a continuation is longer than those before it."""
    turns = stepped(monkeypatch)
    rollouts = TreeRollouts(tries=3, follow=follow, env_steps=6)
    grown, spent = trees(rollouts, student, teacher, tasks(6, rows=8))
    assert spent.env_steps == len(turns)
    assert spent.teacher_tokens == sum(it.teacher_tokens for it in grown) > 0
    for it in grown:
        assert it.spent.env_steps is not None and it.spent.env_steps <= 6 + 2
    assert follow == any(it.teacher_steps for it in grown)


def test_budgets_end_a_search_early(student: HFPlayer, teacher: LocalTeacher) -> None:
    assert len(grow(student, teacher, env_steps=0).rows) == 4
    assert len(grow(student, teacher, tokens=0).rows) == 4
    few = grow(student, teacher, rows=12, env_steps=8).rows
    assert 4 < len(few) < 24


def test_many_searches_share_each_batch(student: HFPlayer) -> None:
    """64 searches in one process: every round is one batch of conversations."""

    class Counting(HFPlayer):
        opened: list[int]

        def open(self, conversations: Sequence[Any]) -> Any:
            self.opened.append(len(conversations))
            return super().open(conversations)

    player = Counting(student.model, student.dialect, Sampling(max_tokens=4))
    player.opened = []
    world = LanguageWorld(player, 64, {"max_turns": 2})
    trees = world.begin(tasks(64))
    searches = [
        CreditSearch(t, list(t.paths), Budget(continuations=2), width=1, seed=i)
        for i, t in enumerate(trees)
    ]
    run_searches(world, searches)
    assert player.opened == [64, 64, 64]


SHORT = {"max_turns": 2}
"""So that 64 searches take seconds."""


class Company(NamedTuple):
    """64 searches, what they cost, and the tokens drawn for them."""

    rollouts: TreeRollouts
    grown: list[Grown]
    spent: Spent
    drawn: int


@pytest.fixture(scope="module")
def company(student: HFPlayer, teacher: LocalTeacher) -> Company:
    """64 searches side by side, and the tokens drawn for them, counted where they are drawn."""
    drawn, write = 0, hf._Row.write

    def counting(row: hf._Row, token: int, logprob: float) -> None:
        nonlocal drawn
        drawn += 1
        write(row, token, logprob)

    rollouts = TreeRollouts(rows=3, trajectories=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf._Row, "write", counting)
        grown, spent = trees(rollouts, student, teacher, tasks(64, rows=3), SHORT)
    return Company(rollouts, grown, spent, drawn)


def test_no_token_of_64_searches_is_drawn_or_trained_twice(
    company: Company,
) -> None:
    rollouts, grown, spent, drawn = company
    episodes = [row.episode for it in grown for row in rollouts.episodes(it)]
    trained = sum(sum(episode.mask) for episode in episodes)
    assert len(episodes) == 64 * 3
    assert drawn == trained + spent.teacher_tokens
    assert trained == spent.sampled_tokens
    shared = sum(step.span[1] - step.span[0] for e in episodes for step in e.steps[: e.first_step])
    assert shared > 0.1 * trained  # or else the counts would say little


def test_a_tree_is_the_same_alone_and_in_company(
    student: HFPlayer,
    teacher: LocalTeacher,
    company: Company,
) -> None:
    """A batch changes logits in their last bits; a token is another one once in a million."""
    every = tasks(64, rows=3)
    for i in (0, 31, 62):
        rows = every[3 * i : 3 * i + 3]
        (alone,), _ = trees(TreeRollouts(rows=3, trajectories=1), student, teacher, rows, SHORT)
        assert alone.tree.to_json() == company.grown[i].tree.to_json()


def test_a_greedy_student_has_no_advantages(student: HFPlayer, teacher: LocalTeacher) -> None:
    """A policy without dice: every sample is the same, and only the teacher's calls differ."""
    rows = grow(student.at(temperature=0.0), teacher).rows
    known = [e for row in rows for e in row.steps if e is not None]
    assert {e.influence for e in known} == {0.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 0}, "trajectories=2: expected 1 to rows=0"),
        ({"trajectories": 9}, "trajectories=9: expected 1 to rows=4"),
        ({"tries": -1}, "tries=-1: expected at least 0"),
        ({"agreement": 0.0}, "agreement=0.0: expected above 0"),
        ({"env_steps": -1}, "budget env_steps=-1: expected at least 0"),
    ],
)
def test_bad_settings(
    student: HFPlayer, teacher: LocalTeacher, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        grow(student, teacher, **settings)


def test_one_row_a_task_is_a_plain_rollout(student: HFPlayer, teacher: LocalTeacher) -> None:
    rows = grow(student, teacher, rows=1, trajectories=1).rows
    assert len(rows) == 2
    assert all(isinstance(row.episode, Episode) and row.episode.first_step == 0 for row in rows)


def test_a_place_says_where_it_is(student: HFPlayer) -> None:
    (tree,) = LanguageWorld(ScriptedPlayer(chat(), no_op), 8, KWARGS).begin(tasks(1))
    place: Fork = tree.nodes[tree.root].handle
    assert place.prefix == place.parent.tokens[: place.parent.steps[0].span[0]]
    assert render_hermes(ToolCall("f")) not in chat().decode(place.prefix)
