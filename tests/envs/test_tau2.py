"""τ²-bench as environments: gold and no-op, branches, verdicts against its own evaluator."""

import random
import sys
from typing import Any

import pytest

from journeyman.envs import answer_text, checker, env_ids, make
from journeyman.envs.benchmark import BenchmarkEnv
from journeyman.envs.errors import MissingBenchmarkError
from journeyman.envs.tau2.domain import tau2 as module
from journeyman.tools import CallStatus, ToolCall

benchmark = pytest.mark.benchmark
SIZES = {"airline": 50, "retail": 114, "telecom": 114}
NO_OP = {"airline": 19, "retail": 7, "telecom": 0}
"""How many tasks are solved by doing nothing: the benchmark's own weakness."""


def open_env(domain: str) -> BenchmarkEnv:
    env = make(f"journeyman/Tau2-{domain}-v0")
    assert isinstance(env, BenchmarkEnv)
    return env


def gold_actions(env: BenchmarkEnv) -> list[Any]:
    return [*([call] for call in env.task.gold), answer_text(env.task.turns[0])]


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {f"journeyman/Tau2-{domain}-v0" for domain in SIZES} <= set(env_ids())
    monkeypatch.setitem(sys.modules, "loguru", None)
    with pytest.raises(MissingBenchmarkError, match=r"'loguru'.*`make benchmarks-extras`"):
        module("utils")


@benchmark
@pytest.mark.parametrize("domain", SIZES)
def test_gold_passes_and_doing_nothing_seldom(domain: str) -> None:
    gold = no_op = 0
    with open_env(domain) as env:
        for task_id in env.tasks("test"):
            env.reset(options={"task_id": task_id})
            no_op += env.step("Answer: done")[-1]["success"]
            env.reset(options={"task_id": task_id})
            for action in gold_actions(env):
                *_, info = env.step(action)
            gold += info["success"]
    assert (gold, no_op) == (SIZES[domain], NO_OP[domain])


@benchmark
@pytest.mark.parametrize("domain", SIZES)
def test_tools_are_known_before_a_task(domain: str) -> None:
    with open_env(domain) as env:
        before = env.tools
        env.reset(options={"task_id": "test/0"})
        assert before == env.tools != []


@benchmark
@pytest.mark.parametrize("domain", SIZES)
def test_restore_and_continue(domain: str) -> None:
    rng = random.Random(0)
    with open_env(domain) as env, open_env(domain) as other:
        untouched = [database.get_hash() for database in env.loaded().origin if database]

        def chain(one: BenchmarkEnv, actions: list[Any]) -> list[Any]:
            return [(one.step(action)[1:3], one.state_hash()) for action in actions]

        for _ in range(40):
            env.reset(options={"task_id": f"test/{rng.randrange(SIZES[domain])}"})
            actions = gold_actions(env)
            cut = rng.randrange(len(actions))
            chain(env, actions[:cut])
            node, before = env.snapshot(), env.state_hash()
            straight = chain(env, actions[cut:])
            env.restore(node)
            for call in rng.sample(env.task.gold, len(env.task.gold)):  # a detour
                env.step([call])
            for one in (env, other):
                one.restore(node)
                assert one.state_hash() == before
                assert chain(one, actions[cut:]) == straight
        assert [d.get_hash() for d in env.loaded().origin if d] == untouched


@benchmark
@pytest.mark.parametrize("domain", SIZES)
def test_verdicts_are_those_of_the_benchmark(domain: str) -> None:
    """Attempts with calls left out are judged as by the benchmark's own evaluators."""
    messages, tasks = module("data_model.message"), module("data_model.tasks")
    evaluators = [
        (
            {tasks.RewardType.ACTION},
            module("evaluator.evaluator_action").ActionEvaluator.calculate_reward,
        ),
        (
            {tasks.RewardType.COMMUNICATE},
            module("evaluator.evaluator_communicate").CommunicateEvaluator.calculate_reward,
        ),
    ]
    world = module("evaluator.evaluator_env").EnvironmentEvaluator
    constructor = module(f"domains.{domain}.environment").get_environment
    rng = random.Random(1)
    verdicts = []
    with open_env(domain) as env:
        for number in rng.sample(range(SIZES[domain]), 8):
            env.reset(options={"task_id": f"test/{number}"})
            trajectory: list[Any] = []
            for i, call in enumerate(c for c in env.task.gold if rng.random() < 0.8):
                (result,) = env.step([call])[-1]["calls"]
                made = messages.ToolCall(id=str(i), name=call.name, arguments=dict(call.arguments))
                trajectory.append(messages.AssistantMessage(role="assistant", tool_calls=[made]))
                content = result.content
                if result.call.status is CallStatus.TOOL_ERROR:
                    content = str(result.call.error)
                trajectory.append(messages.ToolMessage(id=str(i), role="tool", content=content))
            said = answer_text(env.task.turns[0])
            trajectory.append(messages.AssistantMessage(role="assistant", content=said))
            solved = env.step(said)[-1]["success"]
            original = env.loaded().tasks[number]
            expected = world.calculate_reward(
                constructor, original, trajectory, solo_mode=domain == "telecom"
            ).reward
            for basis, evaluate in evaluators:
                if basis & set(original.evaluation_criteria.reward_basis):
                    expected *= evaluate(original, trajectory).reward
            assert solved == (expected == 1.0), number
            verdicts.append(solved)
    assert len(set(verdicts)) == 2


@benchmark
def test_what_the_student_is_told() -> None:
    with open_env("retail") as env:
        (system, user), _ = env.reset(options={"task_id": "test/1"})
        assert "# Retail agent policy" in system.content
        assert "Yusuf Rossi" in user.content
        calls = [
            ToolCall("get_order_details", {"order_id": "#W0"}),
            ToolCall("get_order_details", {"id": "#W0"}),
            ToolCall("get_order_details", {"order_id": "#W2378156"}),
        ]
        results = env.step(calls)[-1]["calls"]
        assert [r.call.status for r in results] == [
            CallStatus.TOOL_ERROR,
            CallStatus.INVALID_ARGUMENTS,
            CallStatus.OK,
        ]
        assert "Error: Order not found" in results[0].content
        assert "mechanical keyboard" in results[2].content.lower()
    with open_env("telecom") as env:
        env.reset(options={"task_id": "test/0"})
        assert {"get_customer_by_phone", "toggle_data"} <= {tool.name for tool in env.tools}


@benchmark
@pytest.mark.parametrize("domain", ["telecom", "retail"])
def test_the_checker_has_no_objection(domain: str) -> None:
    results = checker.check(f"journeyman/Tau2-{domain}-v0", episodes=4)
    failed = {r.name: r.detail for r in results if not r.passed}
    assert set(failed) <= {"no_op"}, failed
