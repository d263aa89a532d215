"""BFCL as environments: gold and near-gold attempts, isolation, snapshots, single-turn verdicts."""

import copy
import random
import subprocess
import sys
from typing import Any

import pytest

from journeyman.agents.rollouts.tasks import deal
from journeyman.envs import bfcl, checker, env_class, env_ids, make
from journeyman.envs.benchmark import BenchmarkEnv
from journeyman.envs.errors import MissingBenchmarkError, UnknownTaskError
from journeyman.envs.task import Task
from journeyman.tools import CallStatus, ToolCall

benchmark = pytest.mark.benchmark
MULTI_TURN = [f"multi_turn_{name}" for name in bfcl.MULTI_TURN]

UNSOLVABLE = {
    "simple_java": {36, 64, 65},
    "live_simple": {106, 112},
    "live_multiple": {507, 862, 964},
}
"""Tasks whose accepted values the benchmark's own checker rejects, or cannot read as written."""


def open_env(category: str) -> BenchmarkEnv:
    env = make(f"journeyman/BFCL-{category}-v0")
    assert isinstance(env, BenchmarkEnv)
    return env


def attempt(env: BenchmarkEnv, number: int, drop_last: bool = False) -> bool:
    """Play the gold calls, perhaps all but the last one; returns the verdict."""
    env.reset(options={"task_id": f"test/{number}"})
    turns = env.task.turns
    last = max((i for i, turn in enumerate(turns) if turn.gold), default=None)
    for i, turn in enumerate(turns):
        calls = turn.gold[:-1] if drop_last and i == last else turn.gold
        for call in calls:
            env.step([call])
        *_, info = env.step("Done.")
    return bool(info["success"])


def passes(category: str, **how: bool) -> set[int]:
    with open_env(category) as env:
        return {i for i in range(env.size()) if attempt(env, i, **how)}


def test_listed_without_the_package() -> None:
    program = (
        "import sys, journeyman.envs as e; print('journeyman/BFCL-multi_turn_base-v0' in "
        "e.env_ids(), [m for m in sys.modules if m.partition('.')[0] in ('bfcl_eval', 'tau2')])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == "True []", run.stderr
    assert sum(env_id.startswith("journeyman/BFCL-") for env_id in env_ids()) == 17


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bfcl_eval", None)
    monkeypatch.setattr(bfcl.data, "records", bfcl.data.records.__wrapped__)
    env = open_env("multi_turn_base")
    for attempt in (lambda: env.reset(seed=0), lambda: next(env.tasks("test"))):
        with pytest.raises(MissingBenchmarkError, match=r"'bfcl_eval'.*`make benchmarks-extras`"):
            attempt()


@pytest.mark.parametrize("category", ["multi_turn_miss_func", "irrelevance"])
def test_no_tools_before_a_task(category: str) -> None:
    assert open_env(category).tools == []


@pytest.mark.parametrize("category", ["multi_turn_base", "irrelevance"])
def test_only_test_tasks(category: str) -> None:
    env = open_env(category)
    assert env.split == "test"
    assert list(env.tasks("train")) == []
    with pytest.raises(UnknownTaskError, match=r"has no tasks in train"):
        env.reset(seed=0, options={"split": "train"})
    with pytest.raises(UnknownTaskError, match=r"no task 'train/0': train has 0 tasks"):
        env.load_task("train/0")


@benchmark
def test_more_tasks_than_there_are() -> None:
    ids = ["journeyman/BFCL-multi_turn_base-v0", "journeyman/BFCL-live_parallel-v0"]
    assert len(deal(ids, "test", 0, 32)) == 32
    with pytest.raises(UnknownTaskError, match=r"BFCL-live_parallel-v0 cannot .* has 16 tasks"):
        deal(ids, "test", 0, 34)
    with pytest.raises(UnknownTaskError, match=r"has no train tasks, only test tasks"):
        deal(ids, "train", 0, 1)


@benchmark
@pytest.mark.parametrize("category", MULTI_TURN)
def test_gold_passes_and_less_fails(category: str) -> None:
    everything = set(range(200))
    assert passes(category) == everything
    assert passes(category, drop_last=True) == set()
    # A failed attempt leaves nothing behind, in the same env or another.
    assert passes(category) == everything


@benchmark
def test_no_op_fails() -> None:
    for category in MULTI_TURN:
        with open_env(category) as env:
            for task_id in env.tasks("test"):
                env.reset(options={"task_id": task_id})
                for _ in env.task.turns:
                    *_, info = env.step("Answer: done")
                assert not info["success"]


@benchmark
@pytest.mark.parametrize("category", bfcl.SINGLE_TURN)
def test_single_turn_gold(category: str) -> None:
    with open_env(category) as env:
        failed = set(range(env.size())) - passes(category)
    assert failed == UNSOLVABLE.get(category, set())


@benchmark
@pytest.mark.parametrize("category", ["simple_python", "parallel", "live_multiple"])
def test_single_turn_near_misses(category: str) -> None:
    with open_env(category) as env:
        assert passes(category, drop_last=True) == set()
        env.reset(options={"task_id": "test/0"})
        gold = env.task.gold
        for action in ([*gold, gold[0]], [*gold, ToolCall("other", {})], "<tool_call>\n{"):
            env.reset(options={"task_id": "test/0"})
            env.step(action)
            assert not env.step("Done.")[-1]["success"]


@benchmark
def test_single_turn_calls_side_by_side_and_a_snapshot() -> None:
    with open_env("parallel") as env:
        env.reset(options={"task_id": "test/0"})
        start, gold = env.snapshot(), list(env.task.gold)
        results = env.step(gold)[-1]["calls"]
        assert [r.call.status for r in results] == [CallStatus.OK] * len(gold)
        assert env.step("Done.")[-1]["success"]
        env.restore(start)
        assert not env.step("Done.")[-1]["success"]


@benchmark
def test_no_call_is_called_for() -> None:
    with open_env("irrelevance") as env, open_env("live_relevance") as other:
        for one, call, solved in ((env, False, True), (env, True, False), (other, False, False)):
            one.reset(options={"task_id": "test/1"})
            if call:
                one.step([ToolCall(one.tools[0].name, {})])
            assert one.step("I cannot.")[-1]["success"] is solved


@benchmark
def test_functions_that_are_held_back() -> None:
    with open_env("multi_turn_miss_func") as env:
        env.reset(options={"task_id": "test/0"})
        assert "sort" not in {tool.name for tool in env.tools}
        unknown = env.step([ToolCall("sorted", {})])[-1]["calls"][0].call
        assert unknown.status is CallStatus.UNKNOWN_TOOL
        assert "sort," not in str(unknown.error)
        for _ in range(3):
            (message,), *_ = env.step("No.")
        assert message.content.startswith('[{"type": "function", "function": {"name": "sort"')
        assert message.content.endswith("What about now?")
        assert "sort" in {tool.name for tool in env.tools}


@benchmark
@pytest.mark.parametrize("exponent", [5_000, 10**12])
def test_a_number_without_end_is_refused(exponent: int) -> None:
    with open_env("multi_turn_base") as env:
        env.reset(options={"task_id": "test/15"})
        call = ToolCall("power", {"base": 10, "exponent": exponent})
        *_, info = env.step([call, ToolCall("power", {"base": 10, "exponent": 3})])
        refused, fine = info["calls"]
    assert refused.call.status is CallStatus.TOOL_ERROR
    assert "Error during execution: " in refused.content and "digits" in refused.content
    assert fine.content == '{"result": 1000}'


@benchmark
def test_what_a_function_refuses_is_told() -> None:
    with open_env("multi_turn_base") as env:
        env.reset(options={"task_id": "test/0"})
        calls = [
            ToolCall("cd", {"folder": "nowhere"}),
            ToolCall("cd", {"folder": 7}),
            ToolCall("cd", {}),
            ToolCall("pwd"),
        ]
        *_, info = env.step(calls)
        assert [r.call.status for r in info["calls"]] == [
            CallStatus.TOOL_ERROR,
            CallStatus.TOOL_ERROR,
            CallStatus.INVALID_ARGUMENTS,
            CallStatus.OK,
        ]
        assert "No such file or directory" in info["calls"][0].content


@benchmark
def test_verdicts_are_those_of_the_benchmark() -> None:
    """Spoilt attempts are judged as by the benchmark's own loop."""
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

    rng = random.Random(0)
    verdicts = []
    for category in MULTI_TURN:
        env = open_env(category)
        for number in range(0, 200, 4):
            entry = copy.deepcopy(bfcl.data.entries(category)[number])
            gold = bfcl.data.ground_truth(category)[entry["id"]]
            made = [[[call] for call in turn if rng.random() < 0.93] for turn in gold]
            expected = multi_turn_checker(made, gold, entry, category, f"{category}-spoilt")
            env.reset(options={"task_id": f"test/{number}"})
            for turn in made:
                for (call,) in turn:
                    env.step([bfcl.data.gold_call(call, entry["involved_classes"])])
                *_, info = env.step("Done.")
            assert info["success"] == expected["valid"], (category, number)
            verdicts.append(expected["valid"])
    assert 40 < sum(verdicts) < 180


@benchmark
def test_attempts_at_one_task_side_by_side() -> None:
    """Whoever is ahead, behind or gone, gold is where each attempt is."""
    bfcl.CATEGORIES["multi_turn_long_context"]._gold.cache_clear()  # as in a new process
    for number in range(0, 200, 10):
        envs = [open_env("multi_turn_long_context") for _ in range(3)]
        for env in envs:
            env.reset(options={"task_id": f"test/{number}"})
        actions = gold_actions(envs[0].task)
        half = actions.index("Done.", 1) + 1
        for env, count in zip(envs, (half, len(actions), len(actions)), strict=True):
            for action in actions[:count]:
                *_, info = env.step(action)
        assert info["success"]
        for action in actions[half:]:
            *_, info = envs[0].step(action)
        assert info["success"]


def chain(env: BenchmarkEnv, actions: list[Any]) -> list[str]:
    hashes = []
    for action in actions:
        env.step(action)
        hashes.append(env.state_hash())
    return hashes


def gold_actions(task: Task) -> list[Any]:
    return [a for turn in task.turns for a in (*([call] for call in turn.gold), "Done.")]


@benchmark
def test_restore_and_continue_at_a_thousand_nodes() -> None:
    """The way on from a snapshot is the way on, after a detour and in another env too."""
    rng = random.Random(0)
    nodes = 0
    while nodes < 1000:
        category = rng.choice(MULTI_TURN)
        with open_env(category) as env, open_env(category) as other:
            env.reset(options={"task_id": f"test/{rng.randrange(200)}"})
            actions = gold_actions(env.task)
            cut = rng.randrange(len(actions))
            detour = [[call] for turn in env.task.turns for call in turn.gold]
            rng.shuffle(detour)
            chain(env, actions[:cut])
            node, before = env.snapshot(), env.state_hash()
            straight = chain(env, actions[cut:])
            env.restore(node)
            assert env.state_hash() == before
            chain(env, detour[:3])
            for one in (env, other):
                one.restore(node)
                assert one.state_hash() == before
                assert chain(one, actions[cut:]) == straight
            nodes += 1


@benchmark
def test_hashes_are_equal_in_every_process() -> None:
    program = (
        "from journeyman.envs import make\n"
        "env = make('journeyman/BFCL-multi_turn_long_context-v0')\n"
        "for i in range(0, 200, 20):\n"
        "    env.reset(options={'task_id': f'test/{i}'})\n"
        "    for call in env.task.gold: env.step([call])\n"
        "    print(env.state_hash())\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert len(set(runs[0].split())) == 10


@benchmark
@pytest.mark.parametrize("category", ["multi_turn_base", "multi_turn_miss_func", "multiple"])
def test_the_checker_has_no_objection(category: str) -> None:
    results = checker.check(f"journeyman/BFCL-{category}-v0", episodes=6)
    assert [r for r in results if not r.passed] == []


@benchmark
def test_schemas_are_json_schema() -> None:
    import jsonschema

    for category in (*MULTI_TURN, "simple_python", "simple_java", "live_multiple"):
        cls = env_class(f"journeyman/BFCL-{category}-v0")
        with cls() as env:
            for task_id in list(cls.tasks("test"))[::20]:
                env.reset(options={"task_id": task_id})
                for tool in env.tools:
                    jsonschema.Draft202012Validator.check_schema(dict(tool.parameters))
