"""Two processes learn what one does: by DDP, and with the student in shards (FSDP2); with gloo."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from journeyman.agents.learning.trainers.callbacks import COMPLETE

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("several.py")
SMALL = (
    *("train", "debug=tiny", "env=journeyman/Bank-v0", "threads=1", "evaluation.tasks=0"),
    *("+env.kwargs.max_turns=6", "log_episodes=3"),
    # Adam divides by the size of a gradient: where that is rounding alone, so is the step.
    "+trainer.args.adam_epsilon=1e-4",
)
RUNS = {
    "reused": (
        *("loss=forward_kl", "steps=4", "trainer.args.save_steps=4"),
        *("trainer.steps_per_generation=2", "trainer.num_iterations=2"),
    ),
    "reinforced": (
        *("loss=sampled", "credit=outcome", "trainer.advantages=batch", "trainer.kl=0.1"),
        "trainer.args.gradient_accumulation_steps=2",
    ),
    "trees": ("loss=reverse_kl", "credit=gated", "search=credit", "search.rows=4"),
    "adapter": ("loss=forward_kl", "student.lora={r: 4}"),
    "told": ("trainer=sft", "steps=3"),
}
ROWS = {"trees": 8}
"""Of a microbatch, over all processes; 4 for others."""
RESUMED = ("loss=forward_kl", "credit=gae", "steps=6", "trainer.args.save_steps=2")
WAYS = ("null", "fsdp2")
"""`trainer.sharding`."""
REASON = "the room is on fire"
"""Of the script."""


def start(folder: Path, processes: int, runs: list[tuple[str, ...]], name: str) -> Any:
    """The processes of a job that makes runs one after another."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps(runs))
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    command = (sys.executable, *(launch if processes > 1 else ()), str(SCRIPT), str(file))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / f"{name}.log").open("w") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment)


def finish(folder: Path, processes: int, runs: list[tuple[str, ...]], name: str) -> str:
    job = start(folder, processes, runs, name)
    try:
        code = job.wait(timeout=900)
    finally:
        job.kill()
    printed = (folder / f"{name}.log").read_text()
    assert code == 0, printed[-5000:]
    return printed


def arguments(folder: Path, name: str, processes: int, way: str = "null") -> tuple[str, ...]:
    size = ROWS.get(name, 4) // processes
    where = folder / f"{name}-{processes}-{way}"
    batch = f"trainer.args.per_device_train_batch_size={size}"
    return (*SMALL, *RUNS[name], batch, f"trainer.sharding={way}", f"run_dir={where}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, by one process and by two; of those that are resumed the first part."""
    place = tmp_path_factory.mktemp("several")
    alone = [arguments(place, name, 1) for name in RUNS]
    together = [arguments(place, name, 2, way) for name in RUNS for way in WAYS]
    resumed = (*SMALL, *RESUMED, "trainer.args.per_device_train_batch_size=4")
    alone.append((*resumed, f"run_dir={place / 'unbroken'}"))
    begun = {1: alone, 2: together}
    for processes, runs in begun.items():
        for way in WAYS:
            own = (f"trainer.sharding={way}", f"run_dir={place / f'begun-by-{processes}-{way}'}")
            size = f"trainer.args.per_device_train_batch_size={4 // processes}"
            runs.append((*SMALL, *RESUMED, size, *own, "stop_after=2"))
    for processes, runs in begun.items():
        finish(place, processes, runs, f"by-{processes}")
    for processes, runs in {2: alone, 1: together}.items():  # each goes on with the other's
        last = [run[:-1] for run in runs if run[-1] == "stop_after=2"]
        printed = finish(place, processes, last, f"resumed-by-{processes}")
        assert printed.count("4 rows a step, as before") == len(WAYS)
    return place


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "model").glob("*.safetensors")
    found: dict[str, torch.Tensor] = load_file(file)
    return found


def assert_alike(ours: Path, theirs: Path) -> None:
    known, found = losses(ours), losses(theirs)
    assert known.keys() == found.keys()
    assert list(found.values()) == pytest.approx(list(known.values()), rel=0, abs=1e-5)
    before, after = weights(ours), weights(theirs)
    assert before.keys() == after.keys()
    for name, own in before.items():
        torch.testing.assert_close(after[name], own, rtol=0, atol=2e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_learn_what_one_does(folder: Path, name: str, way: str) -> None:
    """The same rows, losses to 1e-5, and weights to 2e-6 of a learning rate of 1e-3."""
    assert_alike(folder / f"{name}-1-null", folder / f"{name}-2-{way}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("processes", (1, 2))
def test_another_number_of_processes_goes_on(folder: Path, processes: int, way: str) -> None:
    """With optimiser, schedule, critic and rows: as if nothing had been."""
    assert_alike(folder / "unbroken", folder / f"begun-by-{processes}-{way}")


def test_learning_is_more_than_rounding(folder: Path) -> None:
    """Else the tests above would compare weights that never moved."""
    for name in RUNS:
        first, *_, last = losses(folder / f"{name}-1-null").values()
        assert abs(first - last) > 1e-3, name
    moved = [own.abs().max() for own in weights(folder / "adapter-1-null").values()]
    assert max(moved) > 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_what_is_written_is_that_of_all(folder: Path, way: str) -> None:
    for name in ("reused", "trees"):
        one, two = folder / f"{name}-1-null", folder / f"{name}-2-{way}"
        played = [
            [
                (e["step"], e["task_id"], e["tokens"])
                for e in map(json.loads, (run / "episodes.jsonl").read_text().splitlines())
            ]
            for run in (one, two)
        ]
        assert played[0] == played[1]  # three a rollout, of which two are the first process's
        for ours, theirs in zip(
            *(
                map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
                for run in (one, two)
            ),
            strict=True,
        ):
            counts = ("rollout/student_tokens", "rollout/env_steps", "search/sampled_tokens")
            for figure in (it for it in counts if it in ours):
                assert theirs[figure] == ours[figure]


def test_a_model_of_shards_is_one_that_transformers_loads(folder: Path) -> None:
    run = folder / "reused-2-fsdp2"
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    checkpoint = load_file(run / "checkpoints" / "checkpoint-4" / "model.safetensors")
    for name, own in checkpoint.items():
        assert torch.equal(model.state_dict()[name], own)


def test_a_killed_job_goes_on_with_one_process(folder: Path, tmp_path: Path) -> None:
    """By SIGKILL, wherever it stands after its first checkpoint."""
    size = "trainer.args.per_device_train_batch_size=2"
    run = (*SMALL, *RESUMED, size, "trainer.sharding=fsdp2", f"run_dir={tmp_path / 'run'}")
    job = start(tmp_path, 2, [run], "killed")
    end = time.monotonic() + 300
    while not (tmp_path / "run" / "checkpoints" / "checkpoint-2" / COMPLETE).exists():
        assert job.poll() is None, (tmp_path / "killed.log").read_text()[-5000:]
        assert time.monotonic() < end
        time.sleep(0.05)
    processes = [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]
    for process in processes:
        process.kill()
    psutil.wait_procs(processes[:-1], timeout=60)
    job.wait()
    finish(tmp_path, 1, [run], "resumed")
    assert_alike(folder / "unbroken", tmp_path / "run")


@pytest.mark.parametrize("who", ("1", "all"))
def test_an_error_ends_all_and_is_told_once(tmp_path: Path, who: str) -> None:
    run = (*SMALL, *RUNS["reused"], f"run_dir={tmp_path / 'run'}", f"broken={who}")
    job = start(tmp_path, 2, [run], "broken")
    try:
        assert job.wait(timeout=300) != 0
    finally:
        job.kill()
    printed = (tmp_path / "broken.log").read_text()
    assert printed.count(REASON) == 1, printed
    assert printed.count("[rank") == 0, printed  # of a traceback
