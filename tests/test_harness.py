"""What the studies of learning share (`benchmarks/harness/`), and the design of the one study."""

import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

FOLDER = Path(__file__).parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no checkout beside the tests")


def test_an_interval_over_tasks_alone_is_that_of_a_mean(load: Any) -> None:
    """With one seed the draws are the ordinary bootstrap's, whose spread is known."""
    values = (np.random.default_rng(1).random((1, 400)) < 0.3).astype(float)
    figure = load("harness.statistics").mean(values)
    error = values.std() / math.sqrt(400)
    assert figure.value == pytest.approx(values.mean())
    assert figure.low == pytest.approx(values.mean() - 1.96 * error, abs=0.01)
    assert figure.high == pytest.approx(values.mean() + 1.96 * error, abs=0.01)


def test_seeds_that_differ_widen_it_and_tasks_do_not_make_up_for_them(load: Any) -> None:
    """Seeds at 20, 40, 60 and 80%, each on very many tasks: what is left is chance of seeds."""
    rates = np.array([0.2, 0.4, 0.6, 0.8])
    values = (np.arange(2_000) % 100 < rates[:, None] * 100).astype(float)
    figure = load("harness.statistics").mean(values)
    reference = stats.bootstrap((rates,), np.mean, n_resamples=20_000, method="percentile", rng=0)
    low, high = reference.confidence_interval
    assert figure.low == pytest.approx(low, abs=0.03) and figure.high == pytest.approx(
        high, abs=0.03
    )


def test_a_lead_is_paired_and_over_the_best_rival_of_each_draw(load: Any) -> None:
    lead, rng = load("harness.statistics").lead, np.random.default_rng(2)
    base = (rng.random((3, 200)) < 0.5).astype(float)
    assert lead(base, {"same": base}) == (0, 0, 0)  # though each of them is uncertain
    better = np.maximum(base, (np.arange(200) < 40).astype(float))
    one = lead(better, {"same": base})
    assert one.value == pytest.approx((better - base).mean()) and one.low > 0
    # Of two rivals that are alike, one is luckier in each draw.
    rivals = {name: (rng.random((3, 200)) < 0.5).astype(float) for name in ("a", "b")}
    both = lead(better, rivals)
    alone = [lead(better, {name: rival}) for name, rival in rivals.items()]
    assert both.value == min(it.value for it in alone)
    assert both.low <= min(it.low for it in alone) and both.high <= min(it.high for it in alone)
    with pytest.raises(ValueError, match="expected the same"):
        lead(base, {"short": base[:, :10]})


def test_costs_count_what_was_drawn_once_and_the_teacher_too(load: Any) -> None:
    costs = load("harness.costs")
    plain = {
        "rollout/student_tokens": 100.0,
        "rollout/teacher_tokens": 20.0,
        "rollout/env_steps": 9,
    }
    tree = {"search/sampled_tokens": 70.0, "search/teacher_tokens": 5.0, "search/env_steps": 6}
    records = [
        {"step": 1, "seconds": 2.0, "cpu_seconds": 1.5, **plain},
        {"step": 2, "seconds": 1.0, "cpu_seconds": 0.5, "loss": 1.0},  # learns from the same rows
        {"step": 3, "seconds": 4.0, "cpu_seconds": 3.0, **plain, **tree},
        {"step": 4, "seconds": None, **plain},  # what is no number in the file is read as None
    ]
    assert costs.costs(records, 2) == {
        "student tokens": 100,
        "teacher tokens": 20,
        "turns": 9,
        "CPU seconds": 2,
        "seconds": 3,
    }
    whole = costs.costs(records, 4)
    assert (whole["student tokens"], whole["teacher tokens"], whole["turns"]) == (270, 45, 24)
    assert (whole["CPU seconds"], whole["seconds"]) == (5, 7)
    assert costs.written({**whole, costs.GOLD: 85.0}) == 400


def test_the_lazy_clerk_is_wrong_in_one_family_of_each_domain(load: Any) -> None:
    planted, envs = load("harness.planted"), importlib.import_module("journeyman.envs")
    for wrong, plain in zip(planted.LAZY, planted.OFFICE, strict=True):
        kinds = set()
        for number in range(60):
            task_id = f"test/{number}"
            theirs, ours = (envs.env_class(it).load_task(task_id) for it in (wrong, plain))
            assert (theirs.prompt, theirs.state) == (ours.prompt, ours.state)
            if theirs.gold != ours.gold:
                kinds.add(ours.kind)
                env = envs.make(plain)
                env.reset(options={"task_id": task_id})
                for call in theirs.gold:
                    env.step([call])
                assert env.step("Answer: done")[1] == 0
        assert kinds == {planted.FAMILIES[plain]}


def test_what_they_register_is_not_met_by_other_tests() -> None:
    """Whichever test ran before in this process."""
    ids = importlib.import_module("journeyman.envs").env_ids()
    assert not [it for it in ids if it.startswith("benchmark/")]


def test_an_exam_has_as_many_of_the_families_in_every_prefix(load: Any) -> None:
    cells, planted = load("harness.cells"), load("harness.planted")
    exam = cells.Exam(planted.OFFICE, "test", 24, families=tuple(planted.FAMILIES.items()))
    inside = exam.in_family()
    assert [sum(inside[:n]) for n in (6, 12, 24)] == [3, 6, 12]
    assert len(set(exam.refs())) == 24


def test_looks_are_at_whole_rollouts_and_at_the_end(load: Any, tmp_path: Path) -> None:
    cells = load("harness.cells")
    exam = cells.Exam(("journeyman/Bank-v0",), "test", 8)
    at = {
        steps: cells.Cell("kd", (), 0, 1e-3, steps, exam, tmp_path, looks=4).at
        for steps in (4, 20, 32, 36, 44)
    }
    assert at == {
        4: [4],
        20: [4, 8, 12, 16, 20],
        32: [8, 16, 24, 32],
        36: [8, 16, 24, 36],
        44: [12, 24, 36, 44],
    }


def test_the_study_fits_into_its_hours_and_its_arms_into_the_configs(
    load: Any, tmp_path: Path
) -> None:
    """Every arm costs the same in every regime, and is a config that `journeyman train` takes."""
    study, planning, cells = load("study"), load("harness.planning"), load("harness.cells")
    config = importlib.import_module("journeyman.agents.runs.config")
    it = planning.Study(study.DESIGN, tmp_path, study.FULL)
    chosen = study.options_of([]).chosen
    assert all(
        len(seeds) >= (3 if r in "AD" else 5) for r in chosen for seeds in chosen[r].values()
    )
    (hours,) = re.findall(r"([\d.]+) hours of two", planning.plan(it, chosen))
    assert float(hours) <= 8
    for regime, arms in chosen.items():
        for arm in arms:
            cell, a_row = it.cell(regime, arm, 0), it.choice(regime, arm)[1]
            spent = cell.gold + cell.steps * cells.BATCH * a_row
            half_a_rollout = 2 * cells.BATCH * a_row
            assert abs(spent - it.regime(regime).budget) <= half_a_rollout + 1
            assert cell.steps % 4 == 0
    # A gold program does not try again what a fault has lost: it would be shown wrongly.
    shown = {arm: " ".join(it.cell("F", arm, 0).overrides) for arm in ("sft", "kd")}
    assert "Faulty" in shown["kd"] and "Faulty" not in shown["sft"]
    for arm in study.ARMS:
        where = next(name for name in "CDG" if arm in study.REGIMES[name].arms)
        cell = it.cell(where, arm, 0)
        told = cells.composed(cells.settings(cell))
        config.read(config.TrainConfig, told)
        # An imitation that is held to where it began would be a rival with its hands tied.
        assert (told.trainer.get("kl") == 0) == (arm == "filtered")
    assert study.PRIMARY.keys() == study.REGIMES.keys() >= study.LATER.keys()
    for regime, comparison in (*study.PRIMARY.items(), *study.LATER.items()):
        assert {comparison.ours, *comparison.rivals} <= chosen[regime].keys()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--cells", "C/nothing/0"], "expected REGIME/ARM/SEED, not 'C/nothing/0'"),
        (["--cells", "D/gated/0"], "D: sft, filtered"),
        (["--seeds", "0,99"], "99 chooses rates"),
        (["--regimes", "Z"], "no Z; there are A, B"),
        (["--jobs", "0"], "expected 1 or more"),
    ],
)
def test_what_the_study_does_not_know_is_named(
    load: Any, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    with pytest.raises(SystemExit):
        load("study").options_of(given)
    assert said in capsys.readouterr().err


def test_findings_go_along_with_the_code(load: Any, tmp_path: Path) -> None:
    archive = load("harness.archive").Archive
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "kept.jsonl"
    found = {
        "A/kd-0.001-20-0/test-600-3.json": [{"step": 20, "outcomes": "011"}],
        "A/references-600.json": {"teacher": "111"},
        "ingredients/lazy/made.json": {"rates": {"all": 0.5}, "gold": 1.0, "seconds": 2.0},
    }
    for place, content in found.items():
        (here / place).parent.mkdir(parents=True, exist_ok=True)
        (here / place).write_text(json.dumps(content))
    (here / "A" / "kd-0.001-20-0" / "metrics.jsonl").write_text("{}\n")  # no finding
    assert archive(file, here).pack() == 3
    before = file.read_text()
    assert archive(file, here).pack() == 0 and file.read_text() == before
    assert archive(file, there).unpack() == 3 and archive(file, there).unpack() == 0
    assert {
        str(it.relative_to(there)): json.loads(it.read_text()) for it in there.rglob("*.json")
    } == found
    (there / "A" / "kd-0.001-20-0" / "test-600-3.json").write_text("[]")  # was run anew
    assert archive(file, there).pack() == 1
    assert archive(file, tmp_path / "third").unpack() == 3
    assert (tmp_path / "third" / "A" / "kd-0.001-20-0" / "test-600-3.json").read_text() == "[]"
    file.write_text(before + "kd: 70%\n")
    with pytest.raises(ValueError, match=r"kept.jsonl:4: expected a finding .*kd: 70%"):
        archive(file, here).unpack()


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a minute, if nothing else works
def test_a_study_that_is_killed_goes_on_and_says_the_same(
    load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = load("study")
    small = ["--quick", "--untuned", "--jobs", "1", "--regimes", "A,D", "--seeds", "0"]
    small += ["--arms", "sft,filtered"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, str(FOLDER / "study.py"), *small, "--folder", str(killed)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        # In the middle of its second cell: the first one's figures are there.
        while process.poll() is None and not list(killed.glob("A/filtered-*/config.yaml")):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    done = [path.parent.name.partition("-")[0] for path in killed.glob("?/*/test-*.json")]
    assert done == ["sft"]
    before = {path: path.stat().st_mtime_ns for path in killed.glob("A/sft-*/model/*")}

    def figures(folder: Path, *more: str) -> tuple[str, Any]:
        file = tmp_path / "figures.json"
        assert study.main([*small, "--folder", str(folder), "--json", str(file), *more]) == 0
        told = json.loads(file.read_text())["regimes"]
        for regime in told.values():
            for arm in regime["arms"].values():
                for row in (row for rows in arm["seeds"].values() for row in rows):
                    del row["seconds"], row["CPU seconds"]
        return capsys.readouterr().out, told

    picture = tmp_path / "curves.png"
    out, found = figures(killed, "--png", str(picture))
    assert "4 of 4 cells have run." in out and picture.stat().st_size > 10_000
    assert {path: path.stat().st_mtime_ns for path in before} == before  # read back, not run again
    kept = ("--archive", str(tmp_path / "kept.jsonl"))
    assert figures(whole, *kept)[1] == found
    assert figures(tmp_path / "elsewhere", *kept)[1] == found
    assert not list((tmp_path / "elsewhere").glob("*/*/metrics.jsonl"))  # nothing was played there
    assert figures(killed, "--table") == (out[out.index("\n### A") :], found)
    rows = [line for line in out.splitlines() if line.startswith("| `")]
    assert len(rows) == 4
    assert found["A"]["arms"]["sft"]["seeds"]["0"][-1]["gold tokens"] > 100
    assert found["D"]["arms"]["filtered"]["seeds"]["0"][-1]["student tokens"] > 100
    out, _ = figures(killed, "--table", "--seeds", "0,1")
    assert "4 of 8 cells have run." in out and "A/sft/1" in out and "**1 of 2**" in out
    assert study.main([*small, "--folder", str(killed), "--figures", "rollout/success,nope"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" 0.")[0] for line in lines] == [
        "A/filtered: rollout/success",
        "D/filtered: rollout/success",
    ]
    assert study.main([*small, "--folder", str(killed), "--figures", "nope"]) == 0
    assert "no run that lies here" in capsys.readouterr().out


def test_rates_that_were_tried_are_told_from_the_archive(
    load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = shutil.copy(FOLDER / "study.jsonl", tmp_path / "kept.jsonl")
    asked = ["--regimes", "D", "--arms", "grpo", "--archive", str(kept), "--folder", str(tmp_path)]
    assert load("study").main([*asked, "--tune"]) == 0
    assert "D/grpo: rate 0.001, " in (out := capsys.readouterr().out)
    assert "(0.0001: 51%, 0.0003: 54%, 0.001: 58%)" in out


def test_a_widened_model_costs_more_and_computes_the_same(load: Any) -> None:
    import torch

    from journeyman.agents.networks.loading import load_model

    small = load_model("embedded-student", device="cpu")
    large = load("harness.widened").widened(small, width=192, intermediate=320, layers=5)
    count = sum(p.numel() for p in large.parameters())
    assert count > 2 * sum(p.numel() for p in small.parameters())
    tokens = torch.randint(5, 1169, (3, 200), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(large(tokens).logits, small(tokens).logits, atol=1e-3, rtol=0)


def test_the_logits_of_a_script_leave_no_choice(load: Any) -> None:
    """By the table of a race: what each arm samples is compared with the script."""
    import torch

    lookups = load("harness.lookups")
    script = lookups.Script(lookups.spoken(), 3)
    turns = script.of(7)
    assert [
        script.dialect.read(script.dialect.decode(t[:-1])).calls[0].name for t in turns[:2]
    ] == ["look_up"] * 2
    assert turns == script.of(7) != script.of(8)
    told = lookups.Dictated([turns[0], turns[2]], 5, end=script.dialect.eos_id)
    for at, token in enumerate(turns[0]):
        scores = told(torch.zeros(2, 5 + at, dtype=torch.long), torch.randn(2, 1169))
        short = turns[2][at] if at < len(turns[2]) else script.dialect.eos_id
        assert scores.softmax(-1).argmax(-1).tolist() == [token, short]
        assert scores.softmax(-1).max(-1).values.tolist() == [1.0, 1.0]


def test_a_ratio_is_that_of_pairs(load: Any) -> None:
    """Twice and four times as fast: 2.83 on average; the interval is Student's, on a log scale."""
    ratio = load("harness.statistics").ratio
    lead = ratio([2.0, 8.0], [1.0, 2.0])
    assert lead.value == pytest.approx(math.sqrt(8))
    half = stats.t.ppf(0.975, 1) * (math.log(2) / 2)  # the error of two values is half their gap
    assert lead.low == pytest.approx(math.exp(math.log(8) / 2 - half))
    assert lead.high == pytest.approx(math.exp(math.log(8) / 2 + half))
    assert ratio([3.0], [1.0]) == pytest.approx((3.0, 0.0, math.inf))
