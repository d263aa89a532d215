"""Runs side by side, task by task."""

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from journeyman.agents.cli import main
from journeyman.agents.errors import AgentError
from journeyman.agents.evaluation.comparison import (
    Amounts,
    Entry,
    contrast,
    pairs,
    sign_test,
)
from journeyman.agents.evaluation.entries import read_entries
from journeyman.agents.evaluation.files import folder_name
from journeyman.agents.evaluation.intervals import wilson
from journeyman.agents.evaluation.measures import Measure, measures
from journeyman.agents.evaluation.mismatches import mismatches
from journeyman.agents.evaluation.ranking import common_tasks, places
from journeyman.agents.evaluation.records import UNJUDGED, EpisodeFile, Played
from journeyman.envs import Episode, Step, StopReason
from journeyman.tools import CallStatus, ToolCall, ToolResult

BANK, ORDERS = "journeyman/Bank-v0", "journeyman/Orders-v0"


def entry(*seeds: Sequence[float], run: str = "a", row: str = "student") -> Entry:
    """An entry with an outcome a task and seed."""
    by_seed = {s: {(BANK, f"test/{i}"): o for i, o in enumerate(os)} for s, os in enumerate(seeds)}
    return Entry(run, row, by_seed, dict.fromkeys(by_seed[0], "k"))


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    # scipy.stats.binomtest(worse, better + worse).pvalue
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 0.0625),
        (8, 9, 1.0),
        (10, 2, 0.03857421875),
        (3, 9, 0.1459960938),
    ],
)
def test_the_sign_test_is_exact(better: int, worse: int, p: float) -> None:
    assert sign_test(better, worse) == pytest.approx(p)


def test_a_difference_by_hand() -> None:
    first, second = entry([0, 0, 1, 1, 0]), entry([1, 1, 1, 0, 1], run="b")
    found = contrast(first, second)
    assert (found.tasks, found.better, found.worse) == (5, 3, 1)
    assert found.value == pytest.approx(0.4)
    assert found.p == sign_test(3, 1)
    # Agresti and Min (2005): 3.5 and 1.5 discordant pairs of 7.
    mean, half = 2 / 7, 1.96 / 7 * math.sqrt(5 - 4 / 7)
    assert found.interval == pytest.approx((mean - half, mean + half), abs=1e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_an_interval_holds_the_difference_and_has_a_width(
    outcomes: list[tuple[bool, bool]],
) -> None:
    first, second = (entry([float(o[i]) for o in outcomes]) for i in (0, 1))
    found, mirrored = contrast(first, second), contrast(second, first)
    low, high = found.interval
    assert -1 <= low <= found.value <= high <= 1
    assert high - low > 0.01
    assert (-mirrored.interval[1], -mirrored.interval[0]) == pytest.approx(found.interval)
    assert mirrored.value == pytest.approx(-found.value)


def test_only_common_tasks_are_compared() -> None:
    found = contrast(entry([1, 0, 1]), entry([1, 1]))
    assert found.tasks == 2
    assert found.value == 0.5
    other = Entry("b", "student", {0: {(ORDERS, "test/0"): 1.0}}, {})
    with pytest.raises(AgentError, match="a: student and b: student have no task in common"):
        contrast(entry([1]), other)


def test_seeds_are_one_row_with_an_interval_over_them() -> None:
    one = entry([1, 0, 1, 0])
    assert one.success() == (0.5, wilson(2, 4))
    far = entry([1.0] * 40, [0.0] * 40, [1.0] * 40)
    value, (low, high) = far.success()
    assert value == pytest.approx(2 / 3)
    assert (low, high) == (0.0, 1.0)  # three seeds that disagree say little
    # Seeds that agree do not make forty tasks more.
    assert entry([1, 0] * 20, [0, 1] * 20).success() == (0.5, wilson(20, 40))


def test_a_difference_over_the_same_seeds_is_paired() -> None:
    first = entry([1, 0] * 50, [0, 0] * 50, [1, 1] * 50)
    second = entry([1, 0] * 50, [0, 0] * 50, [1, 1] * 50, run="b")
    low, high = contrast(first, second).interval
    assert -0.05 < low < 0 < high < 0.05  # though the seeds are far apart
    worse = entry([0, 0] * 50, [1, 1] * 50, [0, 0] * 50, run="b")
    low, high = contrast(first, worse).interval
    assert high - low > 1


def test_what_is_compared_with_what() -> None:
    def labels(*arguments: list[Entry]) -> list[tuple[str, str]]:
        return [(a.label, b.label) for a, b in pairs(arguments)]

    before, after, teacher = (entry([1], run="a", row=r) for r in ("before", "after", "teacher"))
    assert labels([before, after, teacher]) == [
        ("a: before", "a: after"),
        ("a: before", "a: teacher"),
    ]
    other = [entry([1], run="b", row=r) for r in ("after", "student")]
    assert labels([before, after], other) == [("a: after", "b: after")]
    assert labels([after], other) == [("a: after", "b: after"), ("a: after", "b: student")]
    sweep = [entry([1], run=r, row="after") for r in ("s/x", "s/y")]
    assert labels(sweep) == [("s/x: after", "s/y: after")]


# --- from run folders -----------------------------------------------------------------------------


def played(row: str, outcomes: Sequence[bool | None], env_id: str = BANK) -> list[Played]:
    """Episodes of a row; None is one that broke."""
    episodes = [
        Episode(
            env_id,
            f"test/{i}",
            (),
            (),
            (),
            (),
            StopReason.ANSWERED if o is not None else StopReason.INFRA_ERROR,
            success=bool(o),
        )
        for i, o in enumerate(outcomes)
    ]
    return [Played(row, e, kind=f"kind{i % 2}") for i, e in enumerate(episodes)]


def write(folder: Path, seed: int, outcomes: Sequence[bool | None], **config: Any) -> Path:
    folder.mkdir(parents=True)
    settings = {"seed": seed, "run_dir": folder, "trainer": f"{{args: {{seed: {seed}}}}}"} | config
    (folder / "config.yaml").write_text("".join(f"{k}: {v}\n" for k, v in settings.items()))
    file = EpisodeFile(folder)
    file.append(played("oracle", [True] * len(outcomes)))
    file.append(played("student", outcomes))
    file.append(played("student", outcomes[:2], ORDERS))
    return folder


def test_compare_prints_rates_and_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a", 0, [True, False, False, False, None])
    b = write(tmp_path / "b", 0, [True, True, True, False, True])
    assert main(["compare", str(a), str(b), "--by", "kind"]) == 0
    rates, differences, by_kind = capsys.readouterr().out.split("\n\n")
    assert [line.split()[:5] for line in rates.splitlines()[2:]] == [
        [f"{a}:", "student", "1", "6", "33.3%"],
        [f"{b}:", "student", "1", "7", "85.7%"],
    ]
    (line,) = differences.splitlines()[2:]
    assert line.startswith(f"{b}: student - {a}: student ")
    assert line.split()[5:7] == ["6", "+50.0"]
    assert line.split()[-3:] == ["3", "0", "0.25"]
    assert [line.split()[:3] for line in by_kind.splitlines()[3:]] == [
        ["kind0", "3", "+33.3"],
        ["kind1", "3", "+66.7"],
    ]
    assert main(["compare", f"{a}:student", f"{a}:oracle", "--by", "env"]) == 0
    assert f"{a}: oracle - {a}: student" in capsys.readouterr().out


def test_what_was_played_again_counts_once(tmp_path: Path) -> None:
    run = write(tmp_path / "a", 0, [None, True])
    EpisodeFile(run).append(played("student", [False]))
    (found,) = read_entries(str(run))
    assert found.seeds == {
        0: {(BANK, "test/0"): 0.0, (BANK, "test/1"): 1.0, (ORDERS, "test/1"): 1.0}
    }


def test_a_sweeps_seeds_are_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, outcomes in enumerate(([True, False], [True, True], [True, False])):
        write(tmp_path / "sweep" / f"credit=x,name=n,seed={seed}", seed, outcomes, credit="x")
    (found,) = read_entries(str(tmp_path / "sweep"))
    assert found.label == f"{tmp_path / 'sweep'}: student"
    assert list(found.seeds) == [0, 1, 2]
    write(tmp_path / "sweep" / "credit=y,name=n,seed=0", 0, [False, False], credit="y")
    x, y = read_entries(f"{tmp_path / 'sweep'}/:student")
    assert x.label == f"{tmp_path / 'sweep'}/credit=x: student"
    assert (len(x.seeds), len(y.seeds)) == (3, 1)
    assert main(["compare", str(tmp_path / "sweep")]) == 0
    assert "credit=y: student - " in capsys.readouterr().out


def test_compare_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a", 0, [True]), write(tmp_path / "b", 0, [True])
    for arguments, message in (
        (["nowhere"], "no run folder 'nowhere'"),
        ([f"{a}:studnet"], "has no row 'studnet'; it has oracle, student"),
        ([f"{a}:oracle", f"{a}:student", f"{b}:"], "has no row ''"),
    ):
        assert main(["compare", *arguments]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text("seed: 0\n")
    EpisodeFile(tmp_path / "c").append([])
    assert main(["compare", str(tmp_path / "c")]) == 2
    assert "nothing was evaluated there yet" in capsys.readouterr().err
    assert main(["compare", f"{a}", f"{b}"]) == 0


# --- any metric -----------------------------------------------------------------------------------


def with_calls(*seeds: Mapping[int, tuple[float, float]], run: str = "a") -> Entry:
    """An entry whose tasks add what is given to `valid_calls`."""
    tasks = {
        s: {(BANK, f"test/{t}"): parts for t, parts in it.items()} for s, it in enumerate(seeds)
    }
    outcomes = {s: dict.fromkeys(it, 0.0) for s, it in tasks.items()}
    return Entry(run, "student", outcomes, {}, {"valid_calls": Amounts(tasks, binary=False)})


VALID_CALLS = measures()["valid_calls"]


def test_a_difference_of_ratios_is_the_paired_bootstraps() -> None:
    dice = np.random.default_rng(1)
    made = dice.integers(1, 7, size=(2, 150))
    valid = dice.binomial(made, [[0.6], [0.75]])
    first, second = (
        with_calls(
            {t: (float(v), float(m)) for t, (v, m) in enumerate(zip(*it, strict=True))}, run=r
        )
        for it, r in (((valid[0], made[0]), "a"), ((valid[1], made[1]), "b"))
    )
    found = contrast(first, second, None, VALID_CALLS)

    def statistic(a: Any, of_a: Any, b: Any, of_b: Any) -> float:
        return float(b.sum() / of_b.sum() - a.sum() / of_a.sum())

    data = (valid[0], made[0], valid[1], made[1])
    assert found.value == pytest.approx(statistic(*data))
    reference = scipy.stats.bootstrap(
        data, statistic, paired=True, vectorized=False, method="percentile", n_resamples=4000, rng=2
    ).confidence_interval
    width = reference.high - reference.low
    assert found.interval == pytest.approx((reference.low, reference.high), abs=0.07 * width)
    each = valid[1] / made[1] - valid[0] / made[0]
    assert (found.better, found.worse) == ((each > 0).sum(), (each < 0).sum())
    assert found.p == pytest.approx(
        scipy.stats.binomtest(found.worse, found.better + found.worse).pvalue
    )
    assert contrast(first, second, None, VALID_CALLS) == found  # its dice are always the same


def test_only_tasks_that_both_figures_are_about_are_paired() -> None:
    first = with_calls({0: (1, 2), 1: (2, 2)})
    second = with_calls({0: (2, 2), 2: (0, 4)}, run="b")
    second = Entry(
        "b", "student", {0: {**second.seeds[0], (BANK, "test/1"): 0.0}}, {}, second.amounts
    )
    found = contrast(first, second, None, VALID_CALLS)
    assert (found.tasks, found.value) == (1, 0.5)
    assert found.interval == (-1.0, 1.0)  # one task says nothing of others
    nothing = contrast(first, with_calls({0: (0, 0)}), None, VALID_CALLS)
    assert (nothing.tasks, math.isnan(nothing.value)) == (0, True)


def test_less_is_better_where_the_measure_says_so() -> None:
    less = Measure("valid_calls", "x", "count", lambda e: (0, 1), "", "lower")
    first, second = (
        with_calls(dict.fromkeys(range(3), (2, 1))),
        with_calls({0: (1, 1), 1: (3, 1), 2: (1, 1)}),
    )
    found = contrast(first, second, None, less)
    assert (found.better, found.worse) == (2, 1)


def test_a_figure_over_seeds_has_the_wider_interval() -> None:
    far = with_calls(dict.fromkeys(range(40), (1, 1)), dict.fromkeys(range(40), (0, 1)))
    found = far.figure(VALID_CALLS)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    same = with_calls(*[{t: (t % 2, 1) for t in range(40)}] * 2).figure(VALID_CALLS)
    assert same.low is not None and same.low > 0.3


def calling(row: str, statuses: Sequence[Sequence[CallStatus]]) -> list[Played]:
    """Episodes of one turn with calls of these statuses; none of them is a success."""
    found = []
    for i, told in enumerate(statuses):
        results = tuple(ToolResult(ToolCall("t", {}, status), "") for status in told)
        step = Step((0, 1), "x", results)
        episode = Episode(BANK, f"test/{i}", (7,), (-0.5,), (True,), (step,), StopReason.ANSWERED)
        found.append(Played(row, episode, kind="k"))
    return found


def write_calls(folder: Path, statuses: Sequence[Sequence[CallStatus]], **config: Any) -> Path:
    folder.mkdir(parents=True)
    settings = {"seed": 0, "run_dir": folder} | config
    (folder / "config.yaml").write_text("".join(f"{k}: {v}\n" for k, v in settings.items()))
    EpisodeFile(folder).append(calling("student", statuses))
    return folder


def test_compare_by_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ok, refused = CallStatus.OK, CallStatus.TOOL_ERROR
    a = write_calls(tmp_path / "a", [[ok, refused], [ok, refused], [ok]])
    b = write_calls(tmp_path / "b", [[ok, ok], [ok], [ok, ok, ok, refused]])
    asked = ["--metric", "tool_call_success", "--metric", "calls", "--format", "csv"]
    assert main(["compare", str(a), str(b), *asked]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    one, two, between, fewer, more, calls = lines
    assert (one["run: row"], one["calls ok"]) == (f"{a}: student", "0.6")
    assert float(two["calls ok"]) == 6 / 7
    assert float(between["calls ok, points"]) == pytest.approx(6 / 7 - 0.6)
    assert (between["better"], between["worse"]) == ("2", "1")
    assert (float(fewer["calls/task"]), float(more["calls/task"])) == (5 / 3, 7 / 3)
    assert (calls["more"], calls["less"]) == ("1", "1")
    output = tmp_path / "t.tex"
    assert main(["compare", str(a), str(b), "--format", "latex", "--output", str(output)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"tables: {output}"]
    assert output.read_text().count("\\toprule") == 2
    assert main(["compare", str(a), "--metric", "valid_call"]) == 2
    assert "no metric 'valid_call'; did you mean 'valid_calls'?" in capsys.readouterr().err


# --- what else differs ----------------------------------------------------------------------------


def test_settings_that_differ_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = "{_target_: m.load, model: %s, max_context: %d, temperature: %d}"
    common = {"name": "x", "threads": 1, "loss": "{_target_: m.JSD}"}
    a = write(
        tmp_path / "a",
        0,
        [True],
        env="{ids: [e], kwargs: {max_turns: 4}}",
        evaluation="{temperature: 0.0, batch_size: 8, search: null}",
        student=student % ("one", 640, 0),
        **common,
    )
    b = write(
        tmp_path / "b",
        0,
        [True, False],
        env="{ids: [e], kwargs: {max_turns: 8}}",
        evaluation="{temperature: 0.7, batch_size: 9}",
        student=student % ("two", 1280, 1),
        sandbox="{_target_: m.Sandbox, backend: docker}",
        **(common | {"name": "y", "loss": "{_target_: m.KL}"}),
    )
    (a / "machine.json").write_text(
        '{"date": "1", "cpus": 2, "versions": {"torch": "1", "trl": "1"}}'
    )
    (b / "machine.json").write_text(
        '{"date": "2", "cpus": 4, "versions": {"torch": "2", "trl": "1"}}'
    )
    entries = [e for run in (a, b) for e in read_entries(str(run))]
    assert mismatches(entries, "so it is") == [
        f"env.kwargs.max_turns differs: 4 ({a}), 8 ({b})",
        f"evaluation.temperature differs: 0.0 ({a}), 0.7 ({b})",
        f"student.max_context differs: 640 ({a}), 1280 ({b})",
        f"versions.torch differs: 1 ({a}), 2 ({b})",
        f"sandbox.backend differs: not set ({a}), docker ({b})",
        f"tasks that were played differ: 2 ({a}), 4 ({b}); so it is",
    ]
    assert mismatches(entries[:1], "") == []
    assert main(["compare", str(a), str(b)]) == 0
    assert capsys.readouterr().out.count("\nMind: ") == 6
    assert main(["compare", str(a), str(b), "--format", "csv"]) == 0
    told = capsys.readouterr()
    assert "Mind" not in told.out and told.err.count("Mind: ") == 6


def test_environments_differ_by_their_code_alone(tmp_path: Path) -> None:
    def entry_of(name: str, environments: str) -> Entry:
        run = write(tmp_path / name, 0, [True])
        (run / "machine.json").write_text(f'{{"versions": {{}}{environments}}}')
        return read_entries(str(run))[0]

    def origin(digest: str, commit: str) -> str:
        return f', "environments": {{"e": {{"digest": "{digest}", "commit": "{commit}"}}}}'

    older, a, b, c = (
        entry_of("older", ""),  # of before they were written down
        entry_of("a", origin("d1", "c1")),
        entry_of("b", origin("d1", "c2")),
        entry_of("c", origin("d2", "c2")),
    )
    assert mismatches([older, a, b], "") == []
    assert mismatches([b, c], "") == [f"environments.e differs: d1 ({b.run}), d2 ({c.run})"]


def test_what_has_no_verdict_is_not_ranked(tmp_path: Path) -> None:
    run = write(tmp_path / "a", 0, [True, False])
    lines = (run / "episodes.jsonl").read_text()
    with (run / "episodes.jsonl").open("a") as file:
        file.write(lines.replace('"row":"student"', f'"row":"{UNJUDGED}"'))
    for every in (True, False):
        assert UNJUDGED not in [it.row for it in read_entries(str(run), every_row=every)]
    (named,) = read_entries(f"{run}:{UNJUDGED}")
    assert named.row == UNJUDGED


# --- sweeps ---------------------------------------------------------------------------------------


def test_overrides_with_slashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split, seed in itertools.product(("test/easy", "test/hard"), (1, 2)):
        overrides = f"env=journeyman/Bank-v0,evaluation.split={split},seed={seed}"
        folder = Path("runs/sweep") / folder_name(overrides)
        write(folder, seed, [split == "test/easy"], evaluation=f"{{split: {split}}}")
    easy, hard = read_entries("sweep")
    assert easy.label == "sweep/evaluation.split=test/easy: student"
    assert list(hard.seeds) == [1, 2]
    for name in ("sweep/evaluation.split=test/hard", "runs/sweep/evaluation.split=test/hard"):
        (found,) = read_entries(name)
        assert (found.run, found.seeds) == (name, hard.seeds)
        (found,) = read_entries(f"{name}:oracle")
        assert (found.run, found.row) == (name, "oracle")
    (one,) = read_entries("sweep/env=journeyman/Bank-v0,evaluation.split=test/hard,seed=2")
    assert list(one.seeds) == [2]


def test_a_module_in_an_override_is_no_row(tmp_path: Path) -> None:
    for env in ("a.b:X-v0", "a.b:Y-v0"):
        write(tmp_path / "sweep" / folder_name(f"env={env}"), 0, [True], env=f"'{env}'")
    (found,) = read_entries(f"{tmp_path}/sweep/env=a.b:Y-v0:student")
    assert found.label == f"{tmp_path}/sweep/env=a.b:Y-v0: student"


# --- leaderboard ----------------------------------------------------------------------------------


def test_ranks_are_ranges_where_intervals_overlap() -> None:
    success = measures()["success"]
    shares = {"best": 0.9, "good": 0.85, "poor": 0.1, "none": 0.0}
    entries = [entry([i < 100 * share for i in range(100)], run=r) for r, share in shares.items()]
    found = places(entries[::-1], success)
    assert [(it.entry.run, it.ranks) for it in found] == [
        ("best", (1, 2)),
        ("good", (1, 2)),
        ("poor", (3, 3)),
        ("none", (4, 4)),
    ]
    lower = Measure("success", "s", "share", success.of, "", "lower")
    assert places(entries, lower)[0].entry.run == "none"


def test_a_figure_that_nobody_has_comes_last() -> None:
    some, none = with_calls({0: (0, 2), 1: (1, 2)}), with_calls({0: (0, 0), 1: (0, 0)}, run="b")
    found = places([none, some], VALID_CALLS)
    assert [(it.entry.run, it.ranks) for it in found] == [("a", (1, 1)), ("b", None)]


def test_leaderboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = "{_target_: m.load_student, model: org/small-1b}"
    server = "{_target_: m.Player, model: null, base_url: 'http://me:pw@host:80/v1'}"
    a = write(tmp_path / "a", 0, [True] * 30, student=model, evaluation="{attempts: 1}")
    b = write(tmp_path / "b", 0, [False] * 40, student=server)
    (a / "machine.json").write_text(
        '{"date": "2026-01-02T03:04", "versions": {"journeyman": "1.2"}}'
    )
    assert main(["leaderboard", str(a), str(b), "--format", "csv", "--by", "env"]) == 0
    told = capsys.readouterr()
    lines = list(csv.DictReader(io.StringIO(told.out)))
    assert [(line["run: row"], line["model"]) for line in lines] == [
        (f"{a}: oracle", "oracle"),  # b's has done the same
        (f"{a}: student", "org/small-1b"),
        (f"{b}: student", "host:80"),
    ]
    assert [(line["rank low"], line["rank high"]) for line in lines] == [
        ("1", "2"),
        ("1", "2"),
        ("3", "3"),
    ]
    # Of 30 and 40 tasks and two of another environment, which the oracle did not play.
    assert [line["tasks"] for line in lines] == ["30"] * 3
    assert [line[BANK] for line in lines] == ["1.0", "1.0", "0.0"]
    assert [lines[1][key] for key in ("attempts", "version", "date")] == ["1", "1.2", "2026-01-02"]
    assert "ranked by the 30 that all played" in told.err
    assert main(["leaderboard", str(a), str(b), "--all-tasks"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) > 6 and "each is ranked by its own" in out
    assert "pw" not in out
    other = entry([1])
    far = Entry("far", "student", {0: {(ORDERS, "test/0"): 1.0}}, {})
    with pytest.raises(AgentError, match="no task was played by all of a: student, far: student"):
        common_tasks([other, far])
