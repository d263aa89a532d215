import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from journeyman.agents.evaluation.intervals import wilson
from journeyman.agents.evaluation.metrics import Metrics, pass_at_k, pass_hat_k, summarise
from journeyman.envs.types import Episode, Step, StopReason
from journeyman.tools import CallStatus, ToolCall, ToolResult

BANK, ORDERS = "journeyman/Bank-v0", "journeyman/Orders-v0"


def step(*statuses: CallStatus, truncated: bool = False) -> Step:
    results = tuple(ToolResult(ToolCall("f", status=s), "{}") for s in statuses)
    return Step((0, 1), "", results, truncated=truncated)


def episode(
    task: str = "test/0",
    success: bool = False,
    steps: tuple[Step, ...] = (),
    env: str = BANK,
    student_tokens: int = 1,
    stop: StopReason = StopReason.ANSWERED,
) -> Episode:
    mask = (False, False) + (True,) * student_tokens
    zeros = (0,) * len(mask)
    return Episode(env, task, zeros, tuple(map(float, zeros)), mask, steps, stop, success=success)


def broken(task: str = "test/9") -> Episode:
    # Its tokens, steps and (impossible) success would show in any average that let it in.
    steps = (step(CallStatus.INVALID_JSON, truncated=True),)
    return episode(task, True, steps, student_tokens=99, stop=StopReason.INFRA_ERROR)


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        # Newcombe (1998), Two-sided confidence intervals for the single proportion, table I.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_published_values(
    successes: int, total: int, low: float, high: float
) -> None:
    assert wilson(successes, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 500), st.integers(0, 500))
def test_wilson_holds_the_rate_and_stays_in_bounds(successes: int, failures: int) -> None:
    total = successes + failures
    low, high = wilson(successes, total)
    assert 0 <= low < high <= 1
    if total:
        assert low <= successes / total <= high
        mirrored = wilson(failures, total)
        assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))


@pytest.mark.parametrize(("successes", "total"), [(2, 1), (-1, 1)])
def test_wilson_rejects_impossible_counts(successes: int, total: int) -> None:
    with pytest.raises(ValueError, match="successes of 1"):
        wilson(successes, total)


def test_averages_are_over_what_infrastructure_let_finish() -> None:
    metrics = summarise(
        [
            episode("test/0", True, (step(CallStatus.OK, CallStatus.OK), step()), student_tokens=8),
            episode("test/1", False, (step(CallStatus.INVALID_JSON, truncated=True),)),
            broken(),
        ]
    )
    assert metrics.tasks == 2
    assert metrics.success.value == 0.5
    assert metrics.success.interval == wilson(1, 2)
    assert metrics.calls == 3
    assert metrics.calls_per_task == 1.5
    assert metrics.tokens_per_task == 4.5
    assert metrics.turns_per_task == 1.5
    assert metrics.truncated_turns == 1
    assert metrics.infra_failures == 1
    assert metrics.stops == {"answered": 2, "infra_error": 1}
    assert metrics.by_kind == {}


@pytest.mark.parametrize("status", [s for s in CallStatus if s is not CallStatus.PARSED])
def test_a_call_is_valid_if_it_reached_a_tool(status: CallStatus) -> None:
    metrics = summarise([episode(steps=(step(status),))])
    reached = status in (CallStatus.OK, CallStatus.TOOL_ERROR, CallStatus.TIMEOUT)
    assert metrics.call_validity == float(reached)
    assert metrics.call_statuses == {status.value: 1}


def test_validity_without_calls_is_unknown_not_zero() -> None:
    metrics = summarise([episode(success=True)])
    assert metrics.call_validity is None
    assert metrics.calls_per_task == 0


@pytest.mark.parametrize("episodes", [[], [broken()]])
def test_nothing_to_measure_gives_no_figures(episodes: list[Episode]) -> None:
    metrics = summarise(episodes)
    assert metrics.success.value is None
    assert metrics.success.interval == (0.0, 1.0)
    assert metrics.calls_per_task is metrics.tokens_per_task is metrics.turns_per_task is None
    assert metrics.infra_failures == len(episodes)


def test_success_is_broken_down_by_environment_and_kind() -> None:
    episodes = [
        episode("test/0", True),
        episode("test/1", False),
        episode("test/0", True, env=ORDERS),  # a task id says nothing without its environment
    ]
    kinds = {(BANK, "test/0"): "balance", (BANK, "test/1"): "transfer", (ORDERS, "test/0"): "find"}
    metrics = summarise(episodes, kinds)
    assert metrics.tasks == 3
    assert {name: rate.value for name, rate in metrics.by_env.items()} == {BANK: 0.5, ORDERS: 1.0}
    assert {name: rate.value for name, rate in metrics.by_kind.items()} == {
        "balance": 1.0,
        "transfer": 0.0,
        "find": 1.0,
    }


def test_a_task_without_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="test/0"):
        summarise([episode("test/0")], kinds={})


def test_repeated_episodes_of_a_task_do_not_narrow_the_interval() -> None:
    once = summarise([episode(f"test/{i}", i < 5) for i in range(10)])
    often = summarise([episode(f"test/{i}", i < 5) for i in range(10) for _ in range(8)])
    assert often.success.episodes == 80
    assert often.success.interval == pytest.approx(once.success.interval)


def test_to_dict_is_json_with_the_derived_figures() -> None:
    episodes = [episode(success=True, steps=(step(CallStatus.OK),)), broken()]
    metrics = summarise(episodes, {(BANK, "test/0"): "balance"})
    read = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    low, high = wilson(1, 1)
    rate = {"successes": 1, "episodes": 1, "tasks": 1, "rate": 1.0, "low": low, "high": high}
    assert read["success"] == read["by_env"][BANK] == read["by_kind"]["balance"] == rate
    assert read["tasks"] == 1
    assert read["call_statuses"] == {"ok": 1}
    assert set(read) == {"tasks", *Metrics.__dataclass_fields__}


def samples(*successes_of_four: int) -> list[Episode]:
    return [
        episode(f"test/{task}", i < count)
        for task, count in enumerate(successes_of_four)
        for i in range(4)
    ]


def test_pass_k_by_hand() -> None:
    episodes = samples(4, 2, 0)
    assert pass_hat_k(episodes, 1) == pass_at_k(episodes, 1) == pytest.approx(0.5)
    assert pass_hat_k(episodes, 2) == pytest.approx((1 + 1 / 6 + 0) / 3)
    assert pass_at_k(episodes, 2) == pytest.approx((1 + 5 / 6 + 0) / 3)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_pass_k_is_ordered(counts: list[int]) -> None:
    episodes = samples(*counts)
    every = [pass_hat_k(episodes, k) for k in range(1, 5)]
    some = [pass_at_k(episodes, k) for k in range(1, 5)]
    assert every[3] == sum(c == 4 for c in counts) / len(counts)
    assert some[3] == sum(c > 0 for c in counts) / len(counts)
    assert every == sorted(every, key=lambda v: -(v or 0))
    assert some == sorted(some, key=lambda v: v or 0)
    assert math.isclose(every[0] or 0, some[0] or 0, abs_tol=1e-12)


def test_pass_k_passes_over_tasks_that_infrastructure_cut_short() -> None:
    episodes = [*samples(4), episode("test/1", False), broken("test/1")]
    assert pass_hat_k(episodes, 2) == 1.0
    assert pass_hat_k(episodes, 5) is None


def test_pass_k_needs_a_k() -> None:
    with pytest.raises(ValueError, match="k=0"):
        pass_at_k(samples(1), 0)


def test_attempts_give_pass_k_and_one_attempt_does_not() -> None:
    metrics = summarise(samples(4, 2, 0), attempts=4)
    assert metrics.attempts == 4
    assert metrics.pass_hat[4] == pytest.approx(1 / 3)
    assert metrics.pass_at[4] == pytest.approx(2 / 3)
    assert list(metrics.pass_hat) == list(metrics.pass_at) == [1, 2, 3, 4]
    assert summarise(samples(4)).pass_hat == {}


def test_calls_are_broken_down_by_tool() -> None:
    calls = [
        ToolCall("find", status=CallStatus.OK),
        ToolCall("find", status=CallStatus.TOOL_ERROR),
        ToolCall("invented", status=CallStatus.UNKNOWN_TOOL),
        ToolCall("", status=CallStatus.UNCLOSED),
    ]
    results = tuple(ToolResult(call, "") for call in calls)
    metrics = summarise([episode(steps=(Step((0, 1), "", results),)), broken()])
    assert metrics.by_tool == {
        "(no tool)": {"unclosed": 1, "unknown_tool": 1},
        "find": {"ok": 1, "tool_error": 1},
    }
    assert metrics.to_dict()["by_tool"]["find"] == {
        "calls": 2,
        "statuses": {"ok": 1, "tool_error": 1},
    }
