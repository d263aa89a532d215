"""Our measures beside what the benchmarks' own packages compute."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from journeyman.agents.evaluation.measures import estimate, measures
from journeyman.agents.evaluation.passes import passes
from journeyman.envs import make
from journeyman.envs.benchmark import BenchmarkEnv
from journeyman.envs.types import Episode, Step, StopReason
from journeyman.tools import ToolCall, ToolResult

pytestmark = pytest.mark.benchmark

GREEDY = {"parallel": {("the other way round", 178)}}
"""Where the benchmark's checker takes, for a gold call that accepts two companies, the first call
that fits, though another gold call accepts that one alone; then nothing is left for that."""


def episode(
    results: Sequence[ToolResult] = (),
    gold: Sequence[ToolCall] | None = None,
    task: str = "test/0",
    success: bool = False,
) -> Episode:
    steps = tuple(Step((0, 0), "", (result,)) for result in results)
    known = None if gold is None else (tuple(gold),)
    ended = StopReason.ANSWERED
    return Episode("journeyman/X-v0", task, (), (), (), steps, ended, success=success, gold=known)


def test_pass_hat_k_is_tau2s() -> None:
    theirs = pytest.importorskip("tau2.metrics.agent_metrics").pass_hat_k
    dice = random.Random(0)
    tasks = [[dice.random() < 0.6 for _ in range(5)] for _ in range(40)]
    episodes = [
        episode(task=f"test/{i}", success=success)
        for i, outcomes in enumerate(tasks)
        for success in outcomes
    ]
    found = passes(episodes, range(1, 6))
    for k in range(1, 6):
        each = [theirs(len(outcomes), sum(outcomes), k) for outcomes in tasks]
        assert found[f"pass^{k}"].value == pytest.approx(sum(each) / len(each))


def other(value: Any) -> Any:
    """A value that no task accepts in the place of one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 987_654
    if isinstance(value, str):
        return f"{value} zzqx"
    return ["zzqx"] if isinstance(value, list) else {"zzqx": 1}


def variants(gold: Sequence[ToolCall]) -> Iterator[tuple[str, list[ToolCall]]]:
    """Gold calls, and others that are nearly so."""
    first, *rest = gold
    yield "gold", list(gold)
    yield "the other way round", [*rest[::-1], first]
    yield "one missing", rest
    yield "one twice", [*gold, first]
    yield "another tool", [ToolCall(f"{first.name}_x", first.arguments), *rest]
    yield "an argument more", [ToolCall(first.name, {**first.arguments, "zzqx": 1}), *rest]
    if first.arguments:
        name, value = next(iter(first.arguments.items()))
        without = {key: it for key, it in first.arguments.items() if key != name}
        yield "an argument less", [ToolCall(first.name, without), *rest]
        yield "other value", [ToolCall(first.name, {**without, name: other(value)}), *rest]


@pytest.mark.parametrize("category", ["simple_python", "multiple", "parallel", "parallel_multiple"])
def test_calls_against_gold_agree_with_bfcls_checker(category: str) -> None:
    exact = measures()["call_exact"]
    differ = set()
    with make(f"journeyman/BFCL-{category}-v0") as env:
        assert isinstance(env, BenchmarkEnv)
        for number in range(env.size()):
            env.reset(options={"task_id": f"test/{number}"})
            gold = env.task.gold
            for name, calls in variants(gold):
                env.reset(options={"task_id": f"test/{number}"})
                results = [r for call in calls for r in env.step([call])[-1]["calls"]]
                verdict = env.step("Done.")[-1]["success"]  # bfcl_eval's ast_checker
                if estimate(exact, [episode(results, gold)]).value != float(verdict):
                    differ.add((name, number))
    assert differ == GREEDY.get(category, set())


@pytest.mark.parametrize("category", ["irrelevance", "live_relevance"])
def test_irrelevance_and_relevance_are_bfcls(category: str) -> None:
    measure = measures()[category.removeprefix("live_")]
    with make(f"journeyman/BFCL-{category}-v0") as env:
        assert isinstance(env, BenchmarkEnv)
        for number in range(10):
            for calls in (0, 1):
                env.reset(options={"task_id": f"test/{number}"})
                name = env.tools[0].name if env.tools else "none"
                results = env.step([ToolCall(name, {})])[-1]["calls"] if calls else ()
                verdict = env.step("Done.")[-1]["success"]
                found = estimate(measure, [episode(results, env.task.gold)])
                assert found.value == float(verdict)
