import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import matplotlib.image
import pytest

from journeyman.agents.evaluation import report
from journeyman.agents.evaluation.metrics import Metrics, summarise
from journeyman.envs.types import Episode, Step, StopReason
from journeyman.tools import CallStatus, ToolCall, ToolResult


def metrics(successes: int, total: int, calls: Sequence[CallStatus] = ()) -> Metrics:
    results = tuple(ToolResult(ToolCall("f", status=s), "{}") for s in calls)
    return summarise(
        [
            Episode(
                env_id="journeyman/Bank-v0",
                task_id=f"test/{i}",
                tokens=(1, 2),
                logprobs=(0.0, 0.0),
                mask=(False, True),
                steps=(Step((1, 2), "", results),),
                stop=StopReason.ANSWERED,
                success=i < successes,
            )
            for i in range(total)
        ]
    )


EPISODE = Episode(
    env_id="journeyman/Bank-v0",
    task_id="test/0",
    tokens=(1, 2),
    logprobs=(0.0, 0.0),
    mask=(False, True),
    steps=(
        Step(
            (1, 2),
            "",
            tuple(
                ToolResult(ToolCall("f", status=s), "{}")
                for s in (CallStatus.OK, CallStatus.TOOL_ERROR)
            ),
        ),
    ),
    stop=StopReason.ANSWERED,
    success=True,
)
ROWS = {
    "no-op": metrics(0, 50),
    "oracle": metrics(50, 50, [CallStatus.OK] * 3),
    "student before": metrics(18, 50, [CallStatus.OK, CallStatus.UNCLOSED]),
    "student after": metrics(44, 50, [CallStatus.OK]),
    "teacher": metrics(47, 50, [CallStatus.OK]),
}
HISTORY: list[dict[str, Any]] = [
    {"step": 0, "success": 0.36},
    {"step": 10, "loss": 0.7, "lr": 1e-3},
    {"step": 20, "loss": 0.3, "success": 0.88},
]


def test_table_shows_every_figure_in_its_column() -> None:
    header, rule, *lines = report.table(ROWS).splitlines()
    assert len(lines) == len(ROWS)
    assert set(rule) == {"-"}
    assert len({len(line) for line in (header, rule, *lines)}) == 1
    row = lines[list(ROWS).index("student before")]
    assert row.split() == [
        "student",
        "before",
        *["50", "36.0%", "24.1", "-", "49.9", "50.0%", "50.0%", "2.0", "1.0", "0"],
    ]
    for title, figure in (("success", "36.0%"), ("calls ok", "50.0%"), ("infra", "0")):
        end = header.index(title) + len(title)
        assert row[:end].endswith(figure), title


def test_table_shows_a_dash_for_what_does_not_exist() -> None:
    nothing = report.table({"nobody": metrics(0, 0)}).splitlines()[-1]
    assert nothing.split() == ["nobody", "0", "-", "-", "-", "-", "-", "-", "0"]
    assert len(report.table({}).splitlines()) == 2


def test_table_has_columns_for_several_attempts() -> None:
    episodes = [dataclasses.replace(EPISODE, success=i == 0) for i in range(2)]
    rows = {"student": summarise(episodes, attempts=2), "once": metrics(1, 1)}
    header, _, first, second = report.table(rows).splitlines()
    assert header.split()[5:7] == ["pass^2", "pass@2"]
    assert first.split()[5:8] == ["94.5", "0.0%", "100.0%"]
    assert second.split()[5:8] == ["100.0", "-", "-"]


def test_breakdown_has_a_table_for_each_question() -> None:
    kinds = {(EPISODE.env_id, EPISODE.task_id): "sum"}
    rows = {"student": summarise([EPISODE], kinds), "no-op": metrics(0, 2)}
    envs, by_kind, failures, tools = report.breakdown(rows).split("\n\n")
    assert envs.splitlines()[-1].split() == ["journeyman/Bank-v0", "2", "100.0%", "0.0%"]
    assert by_kind.splitlines()[-1].split() == ["sum", "1", "100.0%", "-"]
    assert failures.splitlines()[0].split() == ["failure", "student", "no-op"]
    assert failures.splitlines()[-1].split() == ["silent", "0", "2"]
    assert tools.splitlines()[0].split() == ["policy:", "tool", "calls", "ok", "tool_error"]
    assert tools.splitlines()[-1].split() == ["student:", "f", "2", "1", "1"]
    assert report.breakdown({"nobody": metrics(0, 0)}) == ""


def test_breakdown_by_level_is_in_the_order_of_levels() -> None:
    at = [
        dataclasses.replace(EPISODE, task_id=f"test/{level}1") for level in ("hard/", "medium/", "")
    ]
    rows = {"student": summarise([dataclasses.replace(at[0], success=False), *at[1:]])}
    _, levels, *_ = report.breakdown(rows).split("\n\n")
    assert [line.split() for line in levels.splitlines()][2:] == [
        ["easy", "1", "100.0%"],
        ["medium", "1", "100.0%"],
        ["hard", "1", "0.0%"],
    ]
    assert list(rows["student"].to_dict()["by_level"]) == ["easy", "medium", "hard"]
    assert rows["student"].to_dict()["by_failure"] == {"unexplained": 1}


def test_summary_holds_the_rows_and_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "new" / "summary.json"
    report.write_summary(path, ROWS, {"seed": 7, "note": "ü"})
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read["rows"] == {name: m.to_dict() for name, m in ROWS.items()}
    assert (read["seed"], read["note"]) == (7, "ü")


def test_summary_does_not_let_extra_hide_the_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows"):
        report.write_summary(tmp_path / "s.json", ROWS, {"rows": 1})


def test_summary_refuses_what_json_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        report.write_summary(tmp_path / "s.json", ROWS, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    report.write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        report.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_ours_is_readable_by_others(tmp_path: Path) -> None:
    report.write_atomically(tmp_path / "f", b"")
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o644


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """Figures that `plot` saves, for a look at what is in them."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def spy(self: matplotlib.figure.Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    return figures


def test_plot_draws_bars_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn(monkeypatch)
    path = tmp_path / "plots" / "success.png"
    report.plot(path, ROWS, HISTORY)
    assert matplotlib.image.imread(path).shape[1] > 1000
    bars, success, loss = figures[0].axes
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([0, 100, 36, 88, 94])
    assert [t.get_text() for t in bars.get_xticklabels()][2] == "student\nbefore"
    curve, teacher = success.lines
    assert list(zip(*curve.get_data(), strict=True)) == [(0, 36), (20, 88)]
    assert teacher.get_ydata()[0] == 94
    assert list(zip(*loss.lines[0].get_data(), strict=True)) == [(10, 0.7), (20, 0.3)]


def test_plot_shows_the_interval_of_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = drawn(monkeypatch)
    look = {"eval/success": 0.5, "eval/low": 0.25, "eval/high": 0.75}
    history = [{"step": 1, "loss": 1.0}, {"step": 2, **look}, {"step": 4, **look}]
    report.plot(tmp_path / "a.png", ROWS, history)
    (band,) = figures[0].axes[1].collections
    (outline,) = band.get_paths()
    assert outline.get_extents().extents.tolist() == [2, 25, 4, 75]


def test_plot_names_curves_of_one_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn(monkeypatch)
    report.plot(tmp_path / "a.png", {}, [{"step": 1, "kl_loss": 1.0, "sft_loss": 2.0}])
    legend = figures[0].axes[1].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["kl_loss", "sft_loss"]


@pytest.mark.parametrize("history", [[], [{"step": 1, "lr": 0.1}], [{"loss": 1.0}, {"step": 1}]])
def test_plot_without_a_curve_is_bars_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, history: list[dict[str, Any]]
) -> None:
    figures = drawn(monkeypatch)
    report.plot(tmp_path / "a.png", {"nobody": metrics(0, 0), **ROWS}, history)
    assert len(figures[0].axes) == 1
