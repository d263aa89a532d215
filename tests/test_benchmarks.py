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


@pytest.mark.timeout(1200)  # minutes, beside other work
def test_methods(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "negative-0.0003-4-0").touch()  # no folder can be made there
    small = ["--steps", "4", "--looks", "1", "--tasks", "6", "--folder", str(runs), "--seeds"]
    arms = ["--arms", "sft,kd,grpo,gated,negative"]
    told = run("methods.py", tmp_path, *small, "0", *arms, "--png", str(tmp_path / "figures.png"))
    assert (tmp_path / "figures.png").stat().st_size > 10_000
    rows = {line.split("|")[1].strip(" `"): line for line in told.splitlines() if "|" in line}
    assert rows.keys() >= {"no-op", "oracle", "student before", "teacher", "gated"}
    assert "1 failed (FileExistsError" in rows["negative"]
    found = json.loads((tmp_path / "figures.json").read_text())["arms"]
    assert list(found.pop("negative")["failed"]) == ["0"]
    spent = {name: arm["costs"][-1] for name, arm in found.items()}
    assert spent["kd"]["student tokens"] == spent["grpo"]["teacher tokens"] == 0
    assert spent["kd"]["teacher tokens"] > 1000
    assert min(spent["kd"]["turns"], spent["grpo"]["turns"], spent["gated"]["turns"]) > 64
    assert all(cost["CPU seconds"] > 0 for cost in spent.values())

    # What is finished is not run again; a rate is chosen with a seed that is not reported.
    (runs / "sft-0.001-4-0" / "metrics.jsonl").unlink()
    run("methods.py", tmp_path, *small, "0", "--arms", "sft", "--rates", "1e-3")
    again = json.loads((tmp_path / "figures.json").read_text())["arms"]
    assert again == {"sft": found["sft"]}
    assert (runs / "sft-0.001-4-99" / "model").is_dir()

    # Of seeds that are not there a row says so, and nothing is run for it.
    told = run("methods.py", tmp_path, *small, "0,1", "--arms", "sft", "--table")
    assert "**1 of 2**" in told
    assert not (runs / "sft-0.001-4-1").exists()
