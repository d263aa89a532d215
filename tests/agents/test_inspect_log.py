"""Logs for inspect-ai, read back by inspect-ai itself (`make test-inspect`)."""

import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from journeyman.agents.cli import main
from journeyman.agents.evaluation.records import EpisodeFile, Played
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.scripted import ScriptedPlayer, no_op, oracle
from journeyman.agents.students.spoken import plain_dialect
from journeyman.envs import StopReason, ToolEnv
from journeyman.tools import ToolCall

BANK = "journeyman/Bank-v0"


def clumsy(env: ToolEnv) -> Iterator[ToolCall | str]:
    """Malformed, unknown, refused; then it gives up."""
    yield "<tool_call>\n{oops\n</tool_call>"
    yield ToolCall("no_such_tool", {})
    yield ToolCall("get_account", {"account": "A0"})
    yield "I give up."


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two rows; one episode was broken, and one was broken and played again."""
    file = EpisodeFile(tmp_path / "run")
    file.path.parent.mkdir()
    refs = [TaskRef(BANK, f"test/{i}", seed=i) for i in range(3)]
    for row, script in (("oracle", oracle), ("the student", clumsy), ("no-op", no_op)):
        episodes = rollout(ScriptedPlayer(plain_dialect(), script), refs)
        broken = [
            replace(e, success=False, stop=StopReason.INFRA_ERROR, error="gone") for e in episodes
        ]
        file.append([Played(row, broken[1], "kind"), Played(row, broken[2], "kind")])
        file.append(Played(row, e, "kind") for e in episodes[:2])
    return tmp_path / "run"


def test_without_its_library_it_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    assert main(["show", str(run), "--inspect", str(tmp_path / "logs")]) == 2
    assert "pip install 'journeyman[inspect]'" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


def read(run: Path, logs: Path) -> dict[str, Any]:
    inspect_log = pytest.importorskip("inspect_ai.log", reason="inspect-ai needs its own venv")
    assert main(["show", str(run), "--limit", "0", "--inspect", str(logs)]) == 0
    return {file.stem: inspect_log.read_eval_log(str(file)) for file in sorted(logs.iterdir())}


def test_what_inspect_reads(run: Path, tmp_path: Path) -> None:
    logs = read(run, tmp_path / "logs")
    assert list(logs) == ["no-op", "oracle", "the-student"]
    played = {(p.row, p.episode.task_id): p.episode for p in EpisodeFile(run).read()}
    for row, success in (("oracle", 1.0), ("the-student", 0.0)):
        log = logs[row]
        assert log.eval.model == row.replace("-", " ")
        assert (log.results.total_samples, log.results.completed_samples) == (3, 2)
        assert log.results.scores[0].metrics["success"].value == success
        first, second, third = sorted(log.samples, key=lambda sample: sample.id)
        assert first.id == f"{BANK} test/0"
        assert first.scores["success"].value == second.scores["success"].value
        assert first.scores["success"].value == ("C" if success else "I")
        assert (third.scores, third.error.message) == (None, "gone")
        episode = played[log.eval.model, "test/0"]
        said = [(m.role, m.text) for m in first.messages]
        assert said == [(m.role, m.content) for m in episode.messages]


def test_calls_and_what_is_wrong_with_them(run: Path, tmp_path: Path) -> None:
    first = read(run, tmp_path / "logs")["the-student"].samples[0]
    called = [m.tool_calls[0] for m in first.messages if m.role == "assistant" and m.tool_calls]
    assert [call.function for call in called] == ["", "no_such_tool", "get_account"]
    assert called[0].parse_error
    assert called[1].parse_error is None
    assert called[2].arguments == {"account": "A0"}
    answers = [m for m in first.messages if m.role == "tool"]
    assert [m.tool_call_id for m in answers] == [call.id for call in called]
    assert [m.error.type for m in answers] == ["parsing", "parsing", "unknown"]


def test_inspects_own_table_has_the_verdicts(run: Path, tmp_path: Path) -> None:
    read(run, tmp_path / "logs")
    analysis = pytest.importorskip("inspect_ai.analysis")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own pandas calls
        table = analysis.samples_df(str(tmp_path / "logs"), quiet=True)
    assert sorted(table["score_success"].dropna()) == ["C"] * 2 + ["I"] * 4
    assert len(table) == 9
