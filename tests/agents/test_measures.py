"""Each measure against an independent computation on the same records."""

import itertools
import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from journeyman.agents.cli import main
from journeyman.agents.errors import SettingError
from journeyman.agents.evaluation import measures as module
from journeyman.agents.evaluation.intervals import bootstrap, measured, wilson
from journeyman.agents.evaluation.matching import canonical, greatest, matching
from journeyman.agents.evaluation.measures import (
    Measure,
    chosen,
    estimate,
    estimates,
    functions,
    measures,
)
from journeyman.agents.evaluation.metrics import summarise
from journeyman.agents.evaluation.passes import passes
from journeyman.agents.evaluation.records import EpisodeFile, Played
from journeyman.agents.evaluation.results import in_words
from journeyman.agents.runs.config import EvaluationConfig
from journeyman.envs.types import Episode, Step, StopReason, Usage
from journeyman.tools import CallStatus, ToolCall, ToolResult

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"
ENV = "journeyman/Bank-v0"
OK, REFUSED, TIMEOUT = CallStatus.OK, CallStatus.TOOL_ERROR, CallStatus.TIMEOUT


def call(name: str, status: CallStatus = OK, /, **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments, status)


def turn(*calls: ToolCall, usage: Usage | None = None, truncated: bool = False) -> Step:
    results = tuple(ToolResult(it, "{}", 0.25) for it in calls)
    return Step((0, 1), "" if calls else "Answer: 1", results, usage=usage, truncated=truncated)


def episode(
    *steps: Step,
    gold: Sequence[Sequence[ToolCall]] | None = None,
    task: str = "test/0",
    success: bool = False,
    stop: StopReason = StopReason.ANSWERED,
    score: float | None = None,
) -> Episode:
    known = None if gold is None else tuple(map(tuple, gold))
    mask = (False, True, True)
    zeros = (0.0,) * 3
    return Episode(
        *(ENV, task, (1, 2, 3), zeros, mask, steps, stop),
        success=success,
        score=score,
        gold=known,
    )


def value(name: str, *episodes: Episode) -> float | None:
    return estimate(measures()[name], episodes).value


# By hand


def test_a_refused_call_is_valid_and_no_success() -> None:
    played = episode(turn(call("f"), call("f", REFUSED)), turn(call("g", CallStatus.UNKNOWN_TOOL)))
    assert value("valid_calls", played) == pytest.approx(2 / 3)
    assert value("tool_call_success", played) == pytest.approx(1 / 3)


def test_order_does_not_count_within_what_the_user_said_and_does_across() -> None:
    f, g = call("f", x=1), call("g", x=2)
    there = episode(turn(g), turn(f), turn(), gold=[[f, g]])
    across = episode(turn(g), turn(), turn(f), turn(), gold=[[f], [g]])
    assert value("call_exact", there) == 1.0
    assert value("call_exact", across) == value("tool_recall", across) == 0.0
    # A user who goes on past gold's turns, as a simulated one does: all count as one.
    assert value("call_exact", episode(turn(g), turn(), turn(f), turn(), gold=[[f, g]])) == 1.0


def test_levels_by_hand() -> None:
    gold = [[call("f", x=1, y=2), call("f", x=3, y=4), call("g", z=5)]]
    steps = (
        turn(call("f", x=1, y=2)),  # as gold
        turn(call("f", x=3, y=0)),  # a wrong value
        turn(call("f", x=9)),  # a call too many
        turn(call("", CallStatus.INVALID_JSON)),
    )
    played = episode(*steps, gold=gold)
    assert [value(f"{level}_precision", played) for level in ("tool", "signature", "call")] == [
        2 / 4,
        2 / 4,
        1 / 4,
    ]
    assert [value(f"{level}_recall", played) for level in ("tool", "signature", "call")] == [
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
    ]
    assert value("argument_recall", played) == 3 / 5
    assert value("needless_calls", played) == 1 / 4
    assert value("missing_calls", played) == pytest.approx(1 / 3)
    assert value("call_exact", played) == 0.0
    assert value("call_exact", episode(*steps)) is None  # nobody knows its gold


def test_user_turns_that_were_not_reached_are_missing() -> None:
    played = episode(turn(call("f")), gold=[[call("f")], [call("g")]], stop=StopReason.MAX_TURNS)
    assert value("missing_calls", played) == value("tool_recall", played) == 0.5


def test_recovery_is_by_a_later_turn_with_the_same_tool_before_the_user_speaks() -> None:
    failed = call("f", REFUSED)
    cases = {
        1.0: [turn(failed), turn(call("g")), turn(call("f")), turn()],
        0.0: [turn(failed), turn(call("g")), turn()],
        0.0 + 1e-9: [turn(failed, call("f")), turn()],  # side by side: it has not seen the error
        0.0 + 2e-9: [turn(failed), turn(), turn(call("f")), turn()],  # the user spoke between
        0.5: [turn(failed), turn(failed, call("f")), turn()],
    }
    for share, steps in cases.items():
        assert value("recovery", episode(*steps)) == pytest.approx(share, abs=1e-6), steps
    malformed = turn(call("", CallStatus.UNCLOSED))
    assert value("recovery", episode(malformed, turn(call("g")), turn())) == 1.0
    assert value("recovery", episode(turn(call("f")), turn())) is None
    # Gold has it turned down: that is no failure.
    told = episode(turn(failed), turn(), gold=[[call("f", REFUSED)]])
    assert value("recovery", told) is None


def test_irrelevance_and_relevance_are_about_different_tasks() -> None:
    calls, silent = turn(call("f")), turn()
    unread = turn(call("", CallStatus.INVALID_JSON))
    nothing_wanted = [episode(*steps, gold=[[]]) for steps in ((calls, silent), (silent,))]
    assert value("irrelevance", *nothing_wanted, episode(unread, gold=[[]])) == pytest.approx(2 / 3)
    assert value("relevance", *nothing_wanted) is None
    wanted = [episode(*steps, gold=[[call("g")]]) for steps in ((calls,), (silent,), (silent,))]
    assert value("relevance", *wanted) == pytest.approx(1 / 3)
    assert value("irrelevance", *wanted, episode(silent)) is None


def test_a_server_counts_its_tokens_and_says_what_it_does_not_know() -> None:
    first = episode(turn(usage=Usage(100, 7, 0.5)), turn(usage=Usage(50, 5, 0.25)))
    second = episode(turn(usage=Usage(10, 1, 0.25)), task="test/1")
    assert value("tokens", first, second) == 13 / 2
    assert value("prompt_tokens", first, second) == 80
    assert value("cost", first, second) == 0.5
    assert value("tokens", episode(turn())) == 2  # no server: the tokens that were chosen
    assert value("cost", episode(turn())) is None
    unknown = episode(turn(usage=Usage(10, None, None)), task="test/2")
    assert value("tokens", first, unknown) is value("cost", first, unknown) is None
    assert value("prompt_tokens", first, unknown) == 80


def test_values_that_json_does_not_tell_apart_are_the_same() -> None:
    same = [(5, 5.0), ((1, 2), [1, 2.0]), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), ({3, 1}, {1, 3})]
    assert all(canonical(one) == canonical(other) for one, other in same)
    others = [(1, True), (1, "1"), (None, "null"), ([1, 2], [2, 1]), (0.1, 0.10000001)]
    assert all(canonical(one) != canonical(other) for one, other in others)


# Against brute force and libraries


def brute_arguments(made: Sequence[ToolCall], gold: Sequence[ToolCall]) -> int:
    """Most gold arguments that a pairing of calls of one tool finds, by trying all."""
    size = max(len(made), len(gold))
    padded = [*made, *[None] * (size - len(made))]
    best = 0
    for order in itertools.permutations(padded):
        pairs = zip(gold, order, strict=False)
        best = max(
            best,
            sum(
                (name, argument) in mine.arguments.items()
                for want, mine in pairs
                if mine is not None and mine.name == want.name
                for name, argument in want.arguments.items()
            ),
        )
    return best


def brute_pairs(made: Sequence[Any], gold: Sequence[Any]) -> int:
    """As many equal pairs as can be made, one element each time."""
    left, found = list(gold), 0
    for it in made:
        if it in left:
            left.remove(it)
            found += 1
    return found


def dice_call(dice: random.Random) -> ToolCall:
    arguments = {name: dice.randrange(3) for name in "xyz" if dice.random() < 0.6}
    return ToolCall(dice.choice("fg"), arguments, dice.choice([OK, OK, REFUSED]))


def test_matching_agrees_with_trying_all_pairings() -> None:
    dice = random.Random(0)
    for _ in range(150):
        made, gold = ([dice_call(dice) for _ in range(dice.randrange(6))] for _ in range(2))
        steps = [turn(it) for it in made]
        found = matching(episode(*steps, turn(), gold=[gold]))
        assert found is not None
        assert (found.made, found.wanted) == (len(made), len(gold))
        assert found.tools == brute_pairs([m.name for m in made], [g.name for g in gold])
        names = ([(c.name, sorted(c.arguments)) for c in calls] for calls in (made, gold))
        assert found.names == brute_pairs(*names)
        whole = ([(c.name, dict(c.arguments)) for c in calls] for calls in (made, gold))
        assert found.values == brute_pairs(*whole)
        assert found.arguments == brute_arguments(made, gold)
        ran = [c.name for c in made if c.status is OK]
        assert found.needless == len(ran) - brute_pairs(ran, [g.name for g in gold])


def test_the_assignment_is_scipys() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    dice = np.random.default_rng(0)
    for _ in range(300):
        weights = dice.integers(0, 5, size=dice.integers(1, 8, size=2))
        rows, columns = optimize.linear_sum_assignment(weights, maximize=True)
        assert greatest(weights.tolist()) == weights[rows, columns].sum()
    assert greatest([]) == greatest([[]]) == 0
    # Taking the best pair first finds 5.
    assert greatest([[4, 3], [3, 1]]) == 6


def test_wilsons_interval_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for successes, total in [(0, 1), (1, 1), (0, 30), (7, 30), (30, 30), (199, 600)]:
        known = stats.binomtest(successes, total).proportion_ci(0.95, method="wilson")
        assert wilson(successes, total) == pytest.approx((known.low, known.high), abs=1e-12)


def ratio(above: Any, below: Any, axis: int = -1) -> Any:
    return above.sum(axis) / below.sum(axis)


def test_the_bootstrap_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    dice = np.random.default_rng(1)
    below = dice.poisson(3.0, size=200).astype(float) + 1
    above = dice.binomial(below.astype(int), 0.3).astype(float)
    known = stats.bootstrap(
        (above, below), ratio, paired=True, n_resamples=20_000, method="percentile", rng=0
    ).confidence_interval
    low, high = bootstrap(above[:, None], below[:, None])[:, 0]
    width = known.high - known.low
    assert low == pytest.approx(known.low, abs=width / 20)
    assert high == pytest.approx(known.high, abs=width / 20)
    # A column has the same draws with others beside it as alone, and each time.
    beside = bootstrap(np.stack([below, above], 1), np.stack([below, below], 1))
    assert beside[:, 1].tolist() == [low, high]


def test_figures_have_the_interval_that_suits_them() -> None:
    def one(above: Sequence[float], below: Sequence[float], bounded: bool, binary: bool) -> Any:
        columns = (np.array(it, dtype=float)[:, None] for it in (above, below))
        (found,) = measured(*columns, [bounded], [binary])
        return found

    solved = one([1, 0, 1, 1], [1, 1, 1, 1], True, True)
    assert (solved.low, solved.high) == wilson(3, 4)
    # All calls of 10 tasks ran: no draw differs, which is no certainty.
    agreed = one([3] * 10, [3] * 10, True, False)
    assert (agreed.value, agreed.low, agreed.high) == (1.0, *wilson(10, 10))
    mean = one([2, 4, 9], [1, 1, 1], False, False)
    assert mean.low < mean.value == 5 < mean.high
    alone = one([7], [1], False, False)
    assert (alone.value, alone.low, alone.high, alone.tasks) == (7, None, None, 1)
    nothing = one([0, 0], [0, 0], True, True)
    assert (nothing.value, nothing.low, nothing.tasks) == (None, None, 0)
    unknown = one([math.nan, 1], [1, 1], False, False)
    assert (unknown.value, unknown.numerator, unknown.tasks) == (None, None, 2)


def attempts(*outcomes: str) -> list[Episode]:
    """Tasks by their outcomes, such as "110"."""
    return [
        episode(turn(), task=f"test/{i}", success=mark == "1")
        for i, marks in enumerate(outcomes)
        for mark in marks
    ]


def test_passes_agree_with_drawing_every_subset() -> None:
    dice = random.Random(3)
    outcomes = ["".join(dice.choice("01") for _ in range(5)) for _ in range(30)]
    found = passes(attempts(*outcomes), range(1, 6))
    for k in range(1, 6):
        drawn = [list(itertools.combinations(marks, k)) for marks in outcomes]
        every = [np.mean([set(marks) == {"1"} for marks in task]) for task in drawn]
        some = [np.mean(["1" in marks for marks in task]) for task in drawn]
        assert found[f"pass^{k}"].value == pytest.approx(np.mean(every))
        assert found[f"pass@{k}"].value == pytest.approx(np.mean(some))
        for name in (f"pass^{k}", f"pass@{k}"):
            figure = found[name]
            assert 0 <= figure.low <= figure.value <= figure.high <= 1
            assert figure.tasks == 30
    # At k = n a task has passed or not: a proportion.
    share = found["pass^5"].value
    assert (found["pass^5"].low, found["pass^5"].high) == wilson(share * 30, 30)


def test_intervals_of_passes_are_scipys_bootstrap() -> None:
    stats = pytest.importorskip("scipy.stats")
    dice = random.Random(4)
    outcomes = ["".join(dice.choice("0111") for _ in range(4)) for _ in range(80)]
    figure = passes(attempts(*outcomes), [2])["pass^2"]
    each = np.array([math.comb(marks.count("1"), 2) / math.comb(4, 2) for marks in outcomes])
    known = stats.bootstrap(
        (each,), np.mean, n_resamples=20_000, method="percentile", rng=0
    ).confidence_interval
    width = known.high - known.low
    assert (figure.low, figure.high) == pytest.approx((known.low, known.high), abs=width / 20)


# Every measure, by loops over the JSON lines

STATUSES = [s for s in CallStatus if s is not CallStatus.PARSED]
UNREAD = {"invalid_json", "unclosed", "missing_name"}


def played_at_random(count: int) -> list[Episode]:
    dice = random.Random(7)
    found = []
    for i in range(count):
        steps = []
        for _ in range(dice.randrange(6)):
            many = dice.randrange(3)
            calls = [
                ToolCall(
                    dice.choice("fgh"),
                    {name: dice.choice([1, 2, "a"]) for name in "xy" if dice.random() < 0.7},
                    dice.choice([OK, OK, OK, *STATUSES]),
                )
                for _ in range(many)
            ]
            usage = Usage(dice.randrange(99), dice.randrange(9), dice.random())
            served = usage if i % 2 else None
            steps.append(turn(*calls, usage=served, truncated=dice.random() < 0.2))
        gold = [
            [
                ToolCall(dice.choice("fg"), {"x": dice.choice([1, 2])})
                for _ in range(dice.randrange(3))
            ]
            for _ in range(dice.choice([1, 1, 2]))
        ]
        found.append(
            episode(
                *steps,
                gold=None if i % 7 == 0 else gold,
                task=f"test/{i // 2}",
                success=dice.random() < 0.4,
                stop=dice.choice(list(StopReason)),
                score=None if i % 5 == 0 else dice.random(),
            )
        )
    return found


def by_loops(lines: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Every measure from the lines of a file, written down by its sentence in the docs."""
    lines = [line for line in lines if line["stop"] != "infra_error"]
    calls = [c for line in lines for step in line["steps"] for c in step["calls"]]
    steps = [step for line in lines for step in line["steps"]]
    ratios: dict[str, list[float]] = {name: [0.0, 0.0] for name in measures()}

    def add(name: str, above: float, below: float = 1) -> None:
        ratios[name][0] += above
        ratios[name][1] += below

    for c in calls:
        add("tool_call_success", c["status"] == "ok")
        add("valid_calls", c["status"] in ("ok", "tool_error", "timeout"))
    for step in steps:
        add("truncated_turns", step.get("truncated", False))
    for line in lines:
        own = [c for step in line["steps"] for c in step["calls"]]
        add("success", line["success"])
        if "score" in line:
            add("score", line["score"])
        add("turns", len(line["steps"]))
        add("calls", len(own))
        add("tool_seconds", sum(c["seconds"] for c in own))
        bill = [step["usage"] for step in line["steps"] if "usage" in step]
        add("tokens", sum(u["completion"] for u in bill) if bill else 2)
        if bill:
            add("prompt_tokens", sum(u["prompt"] for u in bill))
            add("completion_tokens", sum(u["completion"] for u in bill))
            add("cost", sum(u["cost"] for u in bill))
        for stop in ("answered", "max_turns", "context_full"):
            add(stop, line["stop"] == stop)
        add("unplayed", line["stop"] == "context_full" and not line["steps"])
        turns: list[list[dict[str, Any]]] = [[]]
        for i, step in enumerate(line["steps"]):
            if step["calls"]:
                turns[-1].append(step)
            elif i < len(line["steps"]) - 1:
                turns.append([])
        for said in turns:
            for i, step in enumerate(said):
                for c in (c for c in step["calls"] if c["status"] != "ok"):
                    later = [d for after in said[i + 1 :] for d in after["calls"]]
                    later = [d for d in later if d["status"] == "ok"]
                    named = c["status"] not in {*UNREAD, "unknown_tool"}
                    add("recovery", any(not named or d["name"] == c["name"] for d in later))
        if "gold" not in line:
            continue
        readable = any(c["status"] not in UNREAD for c in own)
        wanted = any(line["gold"])
        add("relevance" if wanted else "irrelevance", readable if wanted else not readable)
        gold, made = line["gold"], [[c for s in said for c in s["calls"]] for said in turns]
        if len(made) > len(gold):
            gold, made = ([list(itertools.chain(*turns))] for turns in (gold, made))
        made += [[]] * (len(gold) - len(made))
        keys = {
            "tool": lambda c: c["name"],
            "signature": lambda c: (c["name"], sorted(c["arguments"])),
            "call": lambda c: (c["name"], c["arguments"]),
        }
        good = [[c for c in t if c["status"] not in {*UNREAD, "unknown_tool"}] for t in made]
        many, few = sum(map(len, made)), sum(map(len, gold))
        for level, key in keys.items():
            pairs = sum(
                brute_pairs([*map(key, mine)], [*map(key, theirs)])
                for mine, theirs in zip(good, gold, strict=True)
            )
            add(f"{level}_precision", pairs, many)
            add(f"{level}_recall", pairs, few)
            add(f"{level}_exact", many == few == pairs)
            if level == "tool":
                add("missing_calls", few - pairs, few)
        for mine, theirs in zip(good, gold, strict=True):
            as_calls = [
                [ToolCall(c["name"], c["arguments"]) for c in calls] for calls in (mine, theirs)
            ]
            total = sum(len(c["arguments"]) for c in theirs)
            add("argument_recall", brute_arguments(*as_calls), total)
            ran = [c["name"] for c in mine if c["status"] == "ok"]
            extra = len(ran) - brute_pairs(ran, [c["name"] for c in theirs])
            add("needless_calls", extra, 0)
        add("needless_calls", 0, many)
    return {name: above / below if below else None for name, (above, below) in ratios.items()}


def test_every_measure_agrees_with_loops_over_the_lines(tmp_path: Path) -> None:
    episodes = played_at_random(120)
    file = EpisodeFile(tmp_path)
    file.append([Played("student", it, "sum", i % 2) for i, it in enumerate(episodes)])
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    expected = by_loops(lines)
    assert None not in expected.values()
    again = [p.episode for p in file.read()]
    for them in (episodes, again):
        found = estimates(measures(), them)
        assert {n: it.value for n, it in found.items()} == pytest.approx(expected, nan_ok=True)
    for name, it in found.items():
        assert it.low <= it.value <= it.high, name
    # The summary's figures are the same ones.
    metrics = summarise(again)
    assert metrics.call_validity == found["valid_calls"].value
    assert metrics.tokens_per_task == found["tokens"].value
    assert metrics.cost == pytest.approx(found["cost"].numerator)
    assert "tool_seconds" not in metrics.measures  # another one each time
    told = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))["measures"]
    assert set(told) == set(measures()) - {"tool_seconds"}
    assert told["recovery"] == found["recovery"].to_dict()
    assert set(told["recovery"]) == {"value", "low", "high", "tasks"}


# Names, columns, groups


def test_unknown_names_are_refused_with_near_ones() -> None:
    with pytest.raises(SettingError, match=r"no metric 'call_recal': did you mean 'call_recall'"):
        chosen(["success", "call_recal"])
    with pytest.raises(SettingError, match=r"no metric 7: .*metrics list"):
        chosen([7])  # type: ignore[list-item]


def test_settings_with_an_unknown_metric_are_refused() -> None:
    known = {"tasks": 1, "split": "test", "attempts": 1, "temperature": 0.0, "batch_size": 1}
    assert EvaluationConfig(**known, metrics=["recovery"]).metrics == ["recovery"]
    with pytest.raises(
        SettingError, match=r"evaluation\.metrics=\['recoverry'\]: .*did you mean 'recovery'\?"
    ):
        EvaluationConfig(**known, metrics=["recoverry"])


def test_chosen_measures_have_columns_groups_and_intervals() -> None:
    gold = [[call("f", x=1)]]
    episodes = [
        episode(turn(call("f", x=1)), turn(), gold=gold, success=True),
        episode(turn(call("f", x=2)), turn(), gold=gold, task="test/hard/1"),
    ]
    kinds = {(ENV, "test/0"): "one", (ENV, "test/hard/1"): "two"}
    columns = chosen(["call_recall", "calls"])
    rows = {"student": summarise(episodes, kinds, chosen=columns)}
    text = in_words(rows, details=True, chosen=columns)
    header, _, line, *_ = text.splitlines()
    assert header.endswith("infra  call recall")  # calls/task is there anyway
    assert line.endswith("0        50.0%")
    tables = {part.splitlines()[0].split("  ")[0]: part for part in text.split("\n\n")}
    assert next(iter(tables)) == "policy"
    assert tables["kind: call recall"].splitlines()[2:] == [
        "one                 100.0%",
        "two                   0.0%",
    ]
    assert tables["tool of gold calls"].split()[-2:] == ["f", "50.0%"]
    assert tables["level: calls/task"].split()[-2:] == ["hard", "1.0"]
    assert tables["failure: call recall"].splitlines()[-1].split() == ["wrong", "argument", "0.0%"]
    low, high = wilson(1, 2)
    last = tables["policy: metric"].splitlines()[2]
    assert last.split() == [
        "student:",
        "call_recall",
        "2",
        "50.0%",
        f"{100 * low:.1f}",
        "-",
        f"{100 * high:.1f}",
    ]
    groups = rows["student"].to_dict()["groups"]
    assert groups["kind"]["one"]["call_recall"]["value"] == 1.0
    assert groups["tool"]["f"]["success"]["value"] == 0.5


def test_several_attempts_show_every_k() -> None:
    rows = {"student": summarise(attempts("110", "111"), attempts=3)}
    text = in_words(rows, details=True)
    for name, share in (("pass^2", "66.7%"), ("pass@2", "100.0%"), ("pass^3", "50.0%")):
        (line,) = [line for line in text.splitlines() if line.startswith(f"student: {name} ")]
        assert line.split()[2:4] == ["2", share]
    assert rows["student"].measures["pass^1"].value == pytest.approx(5 / 6)


def mine(episodes: Sequence[Episode]) -> float:
    """Mine."""
    return float(len(episodes))


def test_other_packages_bring_measures_and_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    short = Measure("short", "short", "share", lambda e: (len(e.steps) < 2, 1), "…", None)
    found = {"acme_short": short, "mine": mine}
    monkeypatch.setattr(module, "load_group", lambda group, objection: found)
    assert list(chosen()) == ["short"]
    assert [*measures()][-1] == "short" and functions() == {"mine": mine}
    assert list(chosen(["mine", "recovery"])) == ["recovery", "short"]
    metrics = summarise([episode(turn()), episode(turn(), turn())], chosen=chosen())
    assert (metrics.extra, metrics.measures["short"].value) == ({"mine": 2.0}, 0.5)
    taken = Measure("success", "success", "share", lambda e: None, "…", None)
    assert "'success' already" in str(module._objection(taken))
    assert "not 3" in str(module._objection(3))


@pytest.mark.skipif(not DOCS.exists(), reason="the wheel's tests come without docs/")
def test_the_docs_name_every_metric() -> None:
    """In the table of the section, and nothing else there."""
    section = DOCS.read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(named) == sorted([*measures(), "pass^k", "pass@k"])


def test_the_list_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", "list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [it["name"] for it in told] == [*measures(), "pass^k", "pass@k"]
    assert all(it["figure"] for it in told)
