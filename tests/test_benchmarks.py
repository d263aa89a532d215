"""Benchmarks reach into what they measure: here each of them runs once, on next to nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

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
    assert "| unverified |" in told and "| gate |" in told
    searched = (tmp_path / "runs/self_teacher/verified-3/metrics.jsonl").read_text()
    assert "gate/mean" in searched  # the wrong hint was tried out


@pytest.mark.timeout(1200)  # minutes, beside other work
def test_methods(tmp_path: Path, load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Three calls in this process, which imports torch and TRL once."""
    methods = load("methods")
    runs, figures, picture = tmp_path / "runs", tmp_path / "figures.json", tmp_path / "figures.png"
    small = ["--steps", "4", "--looks", "1", "--tasks", "6", "--folder", str(runs)]

    def call(*arguments: str) -> dict[str, Any]:
        methods.main([*small, "--json", str(figures), *arguments])
        found: dict[str, Any] = json.loads(figures.read_text())["arms"]
        return found

    runs.mkdir()
    (runs / "negative-0.0003-4-0").touch()  # no folder can be made there
    found = call(
        *("--arms", "sft,kd,grpo,gated,negative"), *("--seeds", "0"), *("--png", str(picture))
    )
    assert picture.stat().st_size > 10_000
    told = capsys.readouterr().out.splitlines()
    rows = {line.split("|")[1].strip(" `"): line for line in told if line.startswith("|")}
    assert rows.keys() >= {"no-op", "oracle", "student before", "teacher", "gated"}
    assert "1 failed (FileExistsError" in rows["negative"]
    assert list(found.pop("negative")["failed"]) == ["0"]
    spent = {name: arm["costs"][-1] for name, arm in found.items()}
    assert spent["kd"]["student tokens"] == spent["grpo"]["teacher tokens"] == 0
    assert spent["kd"]["teacher tokens"] > 1000
    assert min(spent[name]["turns"] for name in ("kd", "grpo", "gated")) > 64
    assert all(cost["CPU seconds"] > 0 for cost in spent.values())

    # What is finished is not run again; a rate is chosen with a seed that is not reported.
    (runs / "sft-0.001-4-0" / "metrics.jsonl").unlink()
    again = call("--arms", "sft", "--seeds", "0", "--rates", "1e-3")
    assert again == {"sft": found["sft"]}
    assert (runs / "sft-0.001-4-99" / "model").is_dir()

    # Of seeds that are not there a row says so, and nothing is run for them.
    call("--arms", "sft", "--seeds", "0,1", "--table")
    assert "**1 of 2**" in capsys.readouterr().out
    assert not (runs / "sft-0.001-4-1").exists()


@pytest.mark.timeout(1200)  # half a minute, if nothing else works
def test_wrong_teacher(tmp_path: Path, load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Every control trains, on a student that was shaken."""
    wrong = load("wrong_teacher")
    figures = tmp_path / "figures.json"
    small = [
        *("--steps", "4", "--habit-steps", "1", "--tasks", "3", "--seeds", "3", "--any-student"),
        *("--students", "unknowing", "--folder", str(tmp_path / "runs"), "--json", str(figures)),
    ]
    wrong.main(small)
    arms = json.loads(figures.read_text())["students"]["unknowing"]["arms"]
    assert arms.keys() == set(wrong.DEFAULT.split(",")) and not any(
        arm["failed"] for arm in arms.values()
    )
    rows = {name: arm["seeds"]["3"][-1] for name, arm in arms.items()}
    assert all(len(row["outcomes"]) == 6 and row["student tokens"] > 100 for row in rows.values())
    assert rows["gated"]["teacher tokens"] > 0 == rows["filtered"]["teacher tokens"]
    out = capsys.readouterr().out
    assert "| student before |" in out and "gated is ahead of filtered by" in out
    # A table alone of more seeds says how many there are.
    wrong.main([*small, "--seeds", "3,4", "--table"])
    assert "**1 of 2**" in capsys.readouterr().out


def test_an_arm_that_needs_more_than_the_embedded_pair_says_what(load: Any) -> None:
    methods = load("methods")
    with initialize_config_module("journeyman.conf", version_base="1.3"):
        told = {
            t: methods.needs(compose("train", [f"teacher={t}"])) for t in ("hf", "served", "self")
        }
    assert told == {"hf": "teacher.model", "served": "a server (teacher.base_url)", "self": ""}
    arms = methods.arms()
    assert {arms[name].family for name in ("kd", "forward", "gated")} == {"forward"}
    found = [arms[name].family for name in ("sft", "opd", "distillm", "negative")]
    assert found == ["supervised", "reverse", "forward", "outcome"]


@pytest.mark.timeout(900)
def test_evaluation(tmp_path: Path) -> None:
    """The bounds are far from what is measured: no machine is so slow, but a list too many is."""
    told = run("evaluation.py", tmp_path, "--tasks", "600", "--student-tasks", "24")
    assert "| eval |" in told and "| the rest |" in told
    figures = json.loads((tmp_path / "figures.json").read_text())
    parts = figures["parts"]
    assert parts.keys() > {"eval", "show", "show --summary", "compare", "leaderboard", "report"}
    assert parts["eval"]["peak_mb"] < 1000
    assert all(it["cpu_seconds"] < 60 for it in parts.values())
    assert parts["show"]["peak_mb"] < 200  # no model library is there
    spent = figures["student"]
    assert spent["model"] + spent["environments"] > 0.75 * spent["all"]


@pytest.mark.timeout(600)  # half a minute, if nothing else works
def test_loaded(tmp_path: Path) -> None:
    """Not as OpenMP chooses, which takes minutes beside a busy loop: that is the point."""
    settings = ["--settings", "OMP_WAIT_POLICY=passive", "as journeyman sets it"]
    told = run("loaded.py", tmp_path, "--steps", "1", *settings)
    figures = json.loads((tmp_path / "figures.json").read_text())
    losses = {it["loss"] for cells in figures.values() for cell in cells.values() for it in cell}
    assert len(losses) == 1  # how threads wait changes no figure
    assert told.count("\n| ") == len(figures)


@pytest.mark.timeout(600)  # less than a minute, if nothing else works
def test_rollout_against_its_peers(tmp_path: Path) -> None:
    """Each arm samples the script's tokens, or there is no figure; whoever misses is named."""
    told = run("rollout.py", tmp_path, "--peers", "--quick")
    figures = json.loads((tmp_path / "figures.json").read_text())
    cells = {f"{student}/4/{mean}" for student in ("embedded", "28M") for mean in (20, 60)}
    assert figures["seconds"].keys() == figures["leads"].keys() == cells
    for cell, arms in figures["seconds"].items():
        assert arms.keys() == {"ours", "TRL", "generate"}
        assert all(len(times) == 2 for times in arms.values())
        for peer, lead in figures["leads"][cell].items():
            pairs = zip(arms[peer], arms["ours"], strict=True)
            product = [theirs / ours for theirs, ours in pairs]
            assert lead["value"] == pytest.approx((product[0] * product[1]) ** 0.5)
    assert figures["greedy"]["compared"] == figures["greedy"]["same"] == 3
    assert figures["occupancy"]["4"]["share"] == 1.0
    assert 0 < figures["occupancy"]["4"]["overall"] <= 1.0
    rows = [line for line in told.splitlines() if line.startswith("|")]
    assert sum("holds" in row or "MISSED" in row for row in rows) == 4 + 2 + 1 + 1 + 1
    assert figures["machine"]["date"]


@pytest.mark.timeout(600)  # a few seconds, if nothing else works
def test_scale(tmp_path: Path) -> None:
    """In virtual time: shares and results are the same anywhere, seconds are not."""
    picture = tmp_path / "figures.png"
    told = run("scale.py", tmp_path, "--quick", "--png", str(picture))
    assert picture.stat().st_size > 10_000
    figures = json.loads((tmp_path / "figures.json").read_text())
    driver = figures["driver"]
    assert driver["nobody dies"]["digest"] == driver["5% die"]["digest"]
    assert driver["each dies once"]["lost"] > 0
    assert driver["nobody dies"]["share"] > 0.95 > driver["no place is refilled"]["share"]
    assert driver["each dies once"]["share"] > 0.8
    parts = driver["nobody dies"]["parts"]
    assert parts["unpickle"] > 0 and sum(parts.values()) == pytest.approx(
        driver["nobody dies"]["ms"]
    )
    assert driver["nobody dies"]["ms"] < 20  # far from what is measured
    sizes = figures["pushes"]
    assert sizes["all weights"] == 4 * sizes["parameters"]
    assert sizes["LoRA of rank 32"] == 4 * sizes["LoRA of rank 8"]
    assert list(figures["crowds"]) == ["1", "4", "16"]
    rows = [line for line in told.splitlines() if line.startswith("|")]
    assert sum(row.endswith("| holds |") or row.endswith("| MISSED |") for row in rows) == 5


@pytest.mark.timeout(1200)  # less than a minute, if nothing else works
def test_train_step(tmp_path: Path) -> None:
    """What is counted holds anywhere; how fast it is hangs on the machine."""
    told = run("train_step.py", tmp_path, "--quick")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert "| names |" in told and "| full |" in told
    for render, least in (("names", 1.7), ("full", 3.0)):
        found = figures[render]
        assert found["row_tokens"] > least * found["unique_tokens"]
        assert 0 < found["difference"] <= 1e-8
    assert figures["peak_mb"]["shared"] < figures["peak_mb"]["flat"]
    assert figures["peak_mb"]["shared"] < 1.1 * figures["peak_mb"]["trl"]


@pytest.mark.timeout(1200)  # under a minute, if nothing else works
def test_gpu(tmp_path: Path, load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Every part on a CPU, from the shape of a model to the stages that ship."""
    gpu = load("gpu")
    options = ["--device", "cpu", "--tiny", "--out", str(tmp_path), "--limit", "1200"]
    assert gpu.main(options) == 1  # nothing was measured at batch 64
    told = json.loads((tmp_path / "gpu.json").read_text())
    parts = told["parts"]
    assert list(parts) == ["ticks", "generate", "training", "real"]
    assert not [it for figures in parts.values() for it in figures if {"error", "failed"} & set(it)]
    assert [(it["dtype"], it["batch"]) for it in parts["ticks"]] == [
        *(("bfloat16", 1), ("bfloat16", 4)),
        *(("float32", 1), ("float32", 4)),
    ]
    for it in (*parts["ticks"], *parts["generate"]):
        assert it["tokens_a_second"] > 0
    for it in parts["ticks"]:
        assert it["tick_ms"] * it["tokens_a_second"] == pytest.approx(1000 * it["batch"])
    assert [it["way"] for it in parts["generate"]] == ["generate"] * 2 + ["continuous batching"] * 2
    rows = {it["row"]: it for it in parts["real"][1:]}
    assert list(rows) == ["no-op", "oracle", "student", "teacher", "on-policy", "self"]
    assert parts["real"][0]["finished"] and rows["oracle"]["success"] == 1
    assert told["must hold"]["the real result is finished"]["holds"] is True
    assert (tmp_path / "gpu.md").read_text() in capsys.readouterr().out


def test_what_a_gpu_must_hold_is_told_from_figures(load: Any) -> None:
    gpu = load("gpu")
    ticks = [
        {"dtype": "bfloat16", "batch": 64, "tick_ms": 3.9},
        {"dtype": "float32", "batch": 64, "tick_ms": 3.8},
    ]
    real = [
        {"finished": True, "status": 0, "seconds": 200.0},
        {"row": "student", "success": 0.30, "low": 0.24, "high": 0.37},
        {"row": "on-policy", "success": 0.56, "low": 0.49, "high": 0.63},
    ]
    held = gpu.verdicts({"ticks": ticks, "real": real}).values()
    assert [holds for holds, _ in held] == [True, False, True, True]
    real[2] |= {"success": 0.54}
    (*_, (holds, words)) = gpu.verdicts({"real": real}).values()
    assert (holds, words) == (False, "+24.0 points")
    real[2] |= {"success": 0.60, "low": 0.36}  # far enough, but the intervals meet
    (*_, (holds, _)) = gpu.verdicts({"real": real}).values()
    assert holds is False
    assert [holds for holds, _ in gpu.verdicts({}).values()] == [None] * 4
