"""Benchmarks reach into what they measure: here each of them runs once, on next to nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="no checkout beside the tests"),
]


def run(script: str, folder: Path, *arguments: str, statuses: tuple[int, ...] = (0,)) -> str:
    """What a benchmark prints; its figures are in `folder`/figures.json."""
    command = [sys.executable, str(FOLDER / script), "--json", str(folder / "figures.json")]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode in statuses, done.stderr
    assert json.loads((folder / "figures.json").read_text())
    return done.stdout


def test_search(tmp_path: Path) -> None:
    """So few searches may cost more than the bound: status 1 says so."""
    told = run("search.py", tmp_path, "--searches", "4", "--repeats", "1", statuses=(0, 1))
    assert "teacher's forward passes" in told


@pytest.mark.timeout(600)  # half a minute, if nothing else works
def test_self_teacher(tmp_path: Path) -> None:
    options = ["--seeds", "3", "--warm-steps", "1", "--steps", "4", "--tasks", "3"]
    told = run("self_teacher.py", tmp_path, *options)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"self, above warmed up", "gold, above embedded"} <= figures["gain"].keys()
    value, (low, high) = figures["wrong"]["verified, error added"]
    assert low <= value <= high
    assert "| unverified |" in told
    searched = (tmp_path / "runs/self_teacher/verified-3/metrics.jsonl").read_text()
    assert "gate/mean" in searched  # the wrong hint was tried out


@pytest.mark.timeout(1200)  # minutes, beside other work
def test_learning(tmp_path: Path) -> None:
    options = [
        "--arms",
        "sft,kd,grpo,gated",
        "--steps",
        "16",
        "--tasks",
        "6",
        "--seeds",
        "0",
        "--rates",
        "1e-3",
    ]
    told = run("learning.py", tmp_path, *options, "--png", str(tmp_path / "figures.png"))
    assert "| gated |" in told
    assert (tmp_path / "figures.png").stat().st_size > 10_000
    spent = json.loads((tmp_path / "figures.json").read_text())["arms"]
    assert spent["kd"]["costs"][-1]["student tokens"] == 0
    assert spent["kd"]["costs"][-1]["teacher tokens"] > 1000
    assert spent["grpo"]["costs"][-1]["teacher tokens"] == 0
    assert all(arm["costs"][-1]["seconds"] > 0 for arm in spent.values())
