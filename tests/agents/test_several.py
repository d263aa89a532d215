"""Two processes learn what one does: by DDP, and with the student in shards (FSDP2); with gloo."""

import contextlib
import fcntl
import importlib.resources
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from journeyman.agents.learning.trainers.callbacks import COMPLETE, complete
from journeyman.agents.learning.trainers.validation import KEPT
from tests.agents import several

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first to ask waits for all runs

SCRIPT = Path(several.__file__)
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
        *("evaluation.every=2", "evaluation.validation_tasks=3"),
    ),
    "reinforced": (
        *("loss=sampled", "credit=outcome", "trainer.advantages=batch", "trainer.kl=0.1"),
        "trainer.args.gradient_accumulation_steps=2",
        "student.model=UNTIED",
    ),
    "trees": ("loss=reverse_kl", "credit=gated", "search=credit", "search.rows=4"),
    "adapter": ("loss=forward_kl", "student.lora={r: 4}"),
    "told": ("trainer=sft", "steps=3"),
}
ROWS = {"trees": 8}
"""Of a microbatch, over all processes; 4 for others."""
RESUMED = ("loss=forward_kl", "credit=gae", "steps=6", "trainer.args.save_steps=2")
WAYS = ("null", "fsdp2")
"""`trainer.sharding`; each run comes after one of another way, in the same processes."""


def start(folder: Path, processes: int, runs: Sequence[Sequence[str]], name: str) -> Any:
    """The processes of a job that makes runs one after another."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps(runs))
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / f"{name}.log").open("w") as output:
        return subprocess.Popen(
            (sys.executable, *launch, str(SCRIPT), str(file)),
            stdout=output,
            stderr=output,
            env=environment,
        )


def workers(job: Any) -> list[psutil.Process]:
    """The processes of a job without the launcher, which may be gone."""
    try:
        return list(psutil.Process(job.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def kill(job: Any) -> None:
    """All processes of a job, by SIGKILL."""
    processes = workers(job)
    job.kill()  # first: it would end the others itself
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=60)
    job.wait()


def finish(folder: Path, processes: int, runs: Sequence[Sequence[str]], name: str) -> str:
    job = start(folder, processes, runs, name)
    try:
        code = job.wait(timeout=600)
    finally:
        kill(job)
    printed = (folder / f"{name}.log").read_text()
    assert code == 0, printed[-5000:]
    return printed


def arguments(folder: Path, name: str, processes: int, way: str = "null") -> tuple[str, ...]:
    size = ROWS.get(name, 4) // processes
    where = folder / f"{name}-{processes}-{way}"
    batch = f"trainer.args.per_device_train_batch_size={size}"
    own = (it.replace("UNTIED", str(folder / "untied")) for it in RUNS[name])
    return (*SMALL, *own, batch, f"trainer.sharding={way}", f"run_dir={where}")


def begun(folder: Path, processes: int, way: str) -> tuple[str, ...]:
    """Of a run that is stopped and then gone on with by another number of processes."""
    size = f"trainer.args.per_device_train_batch_size={4 // processes}"
    where = f"run_dir={folder / f'begun-by-{processes}-{way}'}"
    return (*SMALL, *RESUMED, size, f"trainer.sharding={way}", where)


def untie(folder: Path) -> None:
    """Save the embedded student with an output layer of its own."""
    student = importlib.resources.files("journeyman.agents") / "embedded" / "student"
    shutil.copytree(str(student), folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(folder)
    assert "lm_head.weight" in load_file(folder / "model.safetensors")


@contextlib.contextmanager
def once(place: Path, what: str) -> Iterator[bool]:
    """True in the first process of pytest-xdist to come here; the others wait for it."""
    done = place / f"{what}.done"
    with (place / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not done.exists()
        done.touch()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "several"
    shared.mkdir(exist_ok=True)
    return shared


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    """All runs, by this process; and the first part of those that two go on with."""
    with once(place, "alone") as mine:
        if mine:
            run_alone(place)
    return place


def run_alone(place: Path) -> None:
    untie(place / "untied")
    runs = [arguments(place, name, 1) for name in RUNS]
    whole = (*SMALL, *RESUMED, "trainer.args.per_device_train_batch_size=4")
    runs.append((*whole, f"run_dir={place / 'unbroken'}"))
    for run in (*runs, *((*begun(place, 1, way), "stop_after=2") for way in WAYS)):
        assert several.run(list(run)) == 0


@pytest.fixture(scope="module")
def folder(alone: Path) -> Path:
    """All runs by two processes too; and those that this process began go on."""
    runs = [arguments(alone, name, 2, way) for name in RUNS for way in WAYS]
    runs += [(*begun(alone, 2, way), "stop_after=2") for way in WAYS]
    runs += [begun(alone, 1, way) for way in WAYS]
    with once(alone, "together") as mine:
        if mine:
            printed = finish(alone, 2, runs, "by-2")
            assert printed.count("4 rows a step, as before") == len(WAYS)
    return alone


@pytest.fixture(scope="module")
def resumed(folder: Path) -> Path:
    """This process too goes on with what two began."""
    with once(folder, "resumed") as mine:
        for way in WAYS if mine else ():
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                assert several.run(list(begun(folder, 2, way))) == 0
            assert "4 rows a step, as before" in printed.getvalue()
    return folder


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def weights(run: Path, kept: str = "model") -> dict[str, torch.Tensor]:
    (file,) = (run / kept).glob("*.safetensors")
    found: dict[str, torch.Tensor] = load_file(file)
    return found


def assert_alike(ours: Path, theirs: Path, kept: str = "model") -> None:
    known, found = losses(ours), losses(theirs)
    assert known.keys() == found.keys()
    assert list(found.values()) == pytest.approx(list(known.values()), rel=0, abs=1e-5)
    before, after = weights(ours, kept), weights(theirs, kept)
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
def test_another_number_of_processes_goes_on(resumed: Path, processes: int, way: str) -> None:
    """With optimiser, schedule, critic and rows: as if nothing had been."""
    unbroken, run = resumed / "unbroken", resumed / f"begun-by-{processes}-{way}"
    assert_alike(unbroken, run)
    kept = [[it.name for it in complete(place / "checkpoints")] for place in (unbroken, run)]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("way", WAYS)
def test_the_best_student_is_kept_in_one_piece(folder: Path, way: str) -> None:
    one, two = folder / "reused-1-null", folder / f"reused-2-{way}"
    assert (one / "best" / KEPT).read_text() == (two / "best" / KEPT).read_text()
    assert_alike(one, two, "best")


def test_learning_is_more_than_rounding(alone: Path) -> None:
    """Else the tests above would compare weights that never moved."""
    for name in RUNS:
        first, *_, last = losses(alone / f"{name}-1-null").values()
        assert abs(first - last) > 1e-3, name
    moved = [own.abs().max() for own in weights(alone / "adapter-1-null").values()]
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


def test_a_killed_job_goes_on_with_one_process(alone: Path, tmp_path: Path) -> None:
    """By SIGKILL, wherever it stands after its first checkpoint."""
    size = "trainer.args.per_device_train_batch_size=2"
    run = (*SMALL, *RESUMED, size, "trainer.sharding=fsdp2", f"run_dir={tmp_path / 'run'}")
    job = start(tmp_path, 2, [run], "killed")
    try:
        wait_for(tmp_path / "run" / "checkpoints" / "checkpoint-2" / COMPLETE, job)
    finally:
        kill(job)
    assert several.run(list(run)) == 0
    assert_alike(alone / "unbroken", tmp_path / "run")


def wait_for(file: Path, job: Any) -> None:
    end = time.monotonic() + 300
    while not file.exists():
        assert job.poll() is None, f"the job ended without {file}"
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_process_that_dies_ends_the_other(tmp_path: Path) -> None:
    """Which waits for it in the middle of an exchange, and would for half an hour."""
    run = (*SMALL, *RUNS["told"], "steps=200", f"run_dir={tmp_path / 'run'}")
    job = start(tmp_path, 2, [run], "dying")
    try:
        wait_for(tmp_path / "run" / "metrics.jsonl", job)
        processes = workers(job)
        assert len(processes) == 2
        processes[1].kill()
        assert job.wait(timeout=60) != 0
        assert not psutil.wait_procs(processes, timeout=10)[1]
    finally:
        kill(job)


@pytest.mark.parametrize("who", ("1", "all"))
def test_an_error_ends_all_and_is_told_once(tmp_path: Path, who: str) -> None:
    run = (*SMALL, *RUNS["adapter"], f"run_dir={tmp_path / 'run'}", f"broken={who}")
    job = start(tmp_path, 2, [run], "broken")
    try:
        assert job.wait(timeout=300) != 0
    finally:
        kill(job)
    printed = (tmp_path / "broken.log").read_text()
    assert printed.count(several.REASON) == 1, printed
    assert printed.count("[rank") == 0, printed  # of a traceback
