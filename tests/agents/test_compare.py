"""Runs side by side, task by task."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from journeyman.agents.cli import main
from journeyman.agents.errors import AgentError
from journeyman.agents.evaluation.comparison import (
    Entry,
    contrast,
    pairs,
    sign_test,
)
from journeyman.agents.evaluation.entries import read_entries
from journeyman.agents.evaluation.intervals import wilson
from journeyman.agents.evaluation.records import EpisodeFile, Played
from journeyman.envs import Episode, StopReason

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
