"""A run that is killed and started again ends like a run that was not, bit for bit."""

import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from journeyman.agents.evaluation.metrics import summarise
from journeyman.agents.evaluation.records import EpisodeFile
from journeyman.agents.evaluation.report import plot, write_summary
from journeyman.agents.learning.trainers import callbacks
from journeyman.agents.learning.trainers.callbacks import (
    COMPLETE,
    MarkComplete,
    MetricsFile,
    complete,
    last_complete,
    mark,
    read_metrics,
)

STEPS, SAVE_STEPS = 6, 2
SMALL = (
    "threads=1",
    f"steps={STEPS}",
    "evaluation.tasks=0",
    "env.kwargs.max_turns=3",
    "student.max_turn_tokens=24",
    "trainer.args.per_device_train_batch_size=2",
    "trainer.args.warmup_steps=0",
    f"trainer.args.save_steps={SAVE_STEPS}",
)
PASSING = (
    *("seconds", "cpu_seconds", "rollout/seconds", "rollout/tokens_per_s"),
    *("step_time", "num_tokens"),
)
"""Logged figures that no two runs share: times, and TRL's count of tokens since the last start."""

KILL = """
import importlib, os, signal

owner = importlib.import_module({module!r})
*outer, last = {name!r}.split(".")
for part in outer:
    owner = getattr(owner, part)
original, calls = getattr(owner, last), 0

def counted(*args, **kwargs):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

setattr(owner, last, counted)
"""
"""Run before a command: the n-th call of a function kills the process instead."""

Moment = tuple[str, str, int, int | None]
"""Module, function, the call that kills, and the step of the newest whole checkpoint after it."""

AGENTS = "journeyman.agents"
CALLBACKS = f"{AGENTS}.learning.trainers.callbacks"
MOMENTS: dict[str, list[Moment]] = {
    "distill": [
        (f"{AGENTS}.students.hf", "HFStream.advance", 20, None),  # in the first rollouts
        (CALLBACKS, "MetricsFile.on_log", 2, None),  # after a step, before the first checkpoint
        ("transformers", "Trainer._save_optimizer_and_scheduler", 1, None),  # in checkpoint 2
        (f"{AGENTS}.learning.collector", "Collector._play", 4, 2),  # between steps 3 and 4
        ("transformers", "Trainer._save_rng_state", 1, 2),  # in checkpoint 4
        (CALLBACKS, "MarkComplete.on_save", 1, 2),  # checkpoint 4 is written and not marked
        (CALLBACKS, "shutil.rmtree", 1, 2),  # when what is left of it should go
        (CALLBACKS, "shutil.rmtree", 2, 4),  # checkpoint 4 is whole; 2 should go
        (CALLBACKS, "Progress.on_train_end", 1, 6),  # after the last checkpoint
        (f"{AGENTS}.runs.train", "write_atomically", 1, 6),  # the model is saved, the report is not
    ],
    "shared rollouts": [
        ("transformers", "Trainer.training_step", 2, None),  # between two steps on one rollout
        (f"{AGENTS}.learning.collector", "Collector._play", 2, 2),  # in the second rollout
        ("transformers", "Trainer.training_step", 2, 2),
        (CALLBACKS, "Progress.on_train_end", 1, 5),  # in the middle of a rollout
        (f"{AGENTS}.runs.train", "write_atomically", 1, 5),
    ],
    "trees": [
        ("transformers", "Trainer.training_step", 4, 2),
        (CALLBACKS, "Progress.on_train_end", 1, 6),
    ],
    "critic": [
        ("transformers", "Trainer.training_step", 3, 2),
        (f"{AGENTS}.credit.learned", "Critic.fit", 2, 4),  # after the rollout of steps 5 and 6
        (CALLBACKS, "Progress.on_train_end", 1, 6),
    ],
    "sft": [
        ("transformers", "Trainer.training_step", 2, None),
        ("transformers", "Trainer._save_optimizer_and_scheduler", 2, 2),
        ("transformers", "Trainer.training_step", 2, 2),
        (CALLBACKS, "MarkComplete.on_save", 2, 4),
        ("transformers", "Trainer.training_step", 1, 4),
        (CALLBACKS, "Progress.on_train_end", 1, 6),
    ],
}


TRAINERS = {
    "distill": ("trainer=distill",),
    "shared rollouts": ("trainer=distill", "trainer.steps_per_generation=2", "steps=5"),
    "trees": ("search=credit", "credit=additive", "search.rows=2", "search.trajectories=1"),
    # Episodes long enough for some to succeed: of failures alone a critic learns nothing.
    "critic": (
        "credit=gae",
        "credit.critic.hidden=8",
        "trainer.steps_per_generation=2",
        "trainer.args.per_device_train_batch_size=8",
        "env.kwargs.max_turns=8",
        "student.max_turn_tokens=48",
    ),
    "sft": ("trainer=sft",),
}


def last_step(trainer: str) -> int:
    return 5 if "steps=5" in TRAINERS[trainer] else STEPS


def overrides(trainer: str, teacher: Path, run: Path) -> tuple[str, ...]:
    return (*SMALL, *TRAINERS[trainer], f"teacher.model={teacher}", f"run_dir={run}")


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def figures(run: Path) -> list[dict[str, Any]]:
    """What was logged, without what depends on the process."""
    return [
        {name: value for name, value in record.items() if name not in PASSING}
        for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    ]


def newest(run: Path) -> int | None:
    whole = complete(run / "checkpoints")
    return int(whole[-1].name.rpartition("-")[2]) if whole else None


def same_end(run: Path, unbroken: Path, steps: int) -> None:
    assert weights(run) == weights(unbroken)
    assert figures(run) == figures(unbroken)
    assert [record["step"] for record in figures(run)] == list(range(1, steps + 1))


# --- killed at a known moment ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("trainer", MOMENTS)
def test_killed_at_any_moment_it_ends_the_same(
    trainer: str, tmp_path: Path, journeyman: Any, other_model: Path
) -> None:
    unbroken, run = tmp_path / "unbroken", tmp_path / "run"
    # One checkpoint is the least forgiving: the old one must stay until the new one is whole.
    options = ["trainer.args.save_total_limit=1", "log_episodes=1"]
    whole = journeyman("train", *overrides(trainer, other_model, unbroken), *options)
    assert whole.status == 0, whole.stderr

    command = ("train", *overrides(trainer, other_model, run), *options)
    for module, name, call, checkpoint in MOMENTS[trainer]:
        killed = journeyman(*command, before=KILL.format(module=module, name=name, call=call))
        assert killed.status == -signal.SIGKILL, (module, name, call, killed.stderr)
        assert newest(run) == checkpoint, (module, name, call)
        tear_last_line(run / "metrics.jsonl")
        tear_last_line(run / "episodes.jsonl")
    ended = journeyman(*command)
    assert ended.status == 0, ended.stderr
    assert "missing keys" not in ended.stderr  # of weights that are tied, and saved once
    assert not (run / "checkpoints" / "README.md").exists()

    steps = last_step(trainer)
    same_end(run, unbroken, steps)
    assert figures(run)[0]["grad_norm"] > 0.01  # it did train
    played, whole = (EpisodeFile(folder).read() for folder in (run, unbroken))
    assert played == whole
    assert bool(played) == (trainer != "sft")  # which plays no rollouts
    assert [folder.name for folder in (run / "checkpoints").glob("checkpoint-*")] == [
        f"checkpoint-{steps}"
    ]


def tear_last_line(metrics: Path) -> None:
    """As if the kill had struck while the line was written."""
    if metrics.exists() and (text := metrics.read_text()):
        metrics.write_text(text + text.splitlines()[-1][:40])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, journeyman: Any, other_model: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    done = journeyman("train", *overrides("sft", other_model, run), "steps=2")
    assert done.status == 0, done.stderr
    return run


ADAPTER = (
    "+trainer.peft_config._target_=peft.LoraConfig",
    "+trainer.peft_config.target_modules=[q_proj,v_proj]",
    "+trainer.peft_config.task_type=CAUSAL_LM",
    "+trainer.peft_config.r=4",
    "trainer.args.save_steps=1",
    "steps=2",
)


@pytest.mark.parametrize("trainer", [pytest.param("distill", marks=pytest.mark.slow), "sft"])
def test_an_adapter_is_trained_saved_and_taken_up_again(
    trainer: str, tmp_path: Path, journeyman: Any, other_model: Path
) -> None:
    unbroken, run = tmp_path / "unbroken", tmp_path / "run"
    whole = journeyman("train", *overrides(trainer, other_model, unbroken), *ADAPTER)
    assert whole.status == 0, whole.stderr
    command = ("train", *overrides(trainer, other_model, run), *ADAPTER)
    kill = KILL.format(module="transformers", name="Trainer.training_step", call=2)
    assert journeyman(*command, before=kill).status == -signal.SIGKILL
    assert newest(run) == 1
    ended = journeyman(*command)
    assert ended.status == 0, ended.stderr
    written, expected = (
        folder / "model" / "adapter_model.safetensors" for folder in (run, unbroken)
    )
    assert written.read_bytes() == expected.read_bytes()
    assert figures(run) == figures(unbroken)
    assert [record["step"] for record in figures(run)] == [1, 2]
    assert figures(run)[0]["grad_norm"] > 0
    known = json.loads((run / "model" / "adapter_config.json").read_text())
    assert sorted(known["target_modules"]) == ["q_proj", "v_proj"]


def test_a_finished_run_is_left_as_it_is(
    finished: Path, journeyman: Any, other_model: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in (finished / "model").iterdir()}
    again = journeyman("train", *overrides("sft", other_model, finished), "steps=2")
    assert again.status == 0, again.stderr
    assert f"{finished} is finished" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in (finished / "model").iterdir()} == before


def test_another_config_in_the_same_folder_is_refused(
    finished: Path, journeyman: Any, other_model: Path
) -> None:
    refused = journeyman("train", *overrides("sft", other_model, finished), "steps=3")
    assert refused.status == 2
    assert (
        "holds a run with another config (there 'max_steps: 2', now 'max_steps: 3')"
        in refused.stderr
    )
    assert "Traceback" not in refused.stderr


def test_a_mistake_leaves_the_folder_free(
    tmp_path: Path, journeyman: Any, other_model: Path
) -> None:
    run = tmp_path / "run"
    command = ("train", *overrides("sft", other_model, run), "steps=1")
    assert journeyman(*command, "student.model=embedded-studnet").status == 2
    mended = journeyman(*command)
    assert mended.status == 0, mended.stderr


# --- killed at some moment ------------------------------------------------------------------------


def marked(run: Path, step: int) -> bool:
    return (run / "checkpoints" / f"checkpoint-{step}" / COMPLETE).exists()


def begun(run: Path, step: int) -> bool:
    return (run / "checkpoints" / f"checkpoint-{step}").exists() or marked(run, step)


def logged(run: Path, step: int) -> bool:
    records = read_metrics(run / "metrics.jsonl")
    return bool(records) and records[-1]["step"] >= step


SIGHTS: tuple[Callable[[Path], bool], ...] = (
    lambda run: (run / "config.yaml").exists(),  # before anything is trained
    lambda run: logged(run, 1),
    lambda run: begun(run, 2),  # most often while the checkpoint is written
    lambda run: marked(run, 2),
    lambda run: logged(run, 3),
    lambda run: begun(run, 4),
    lambda run: logged(run, 5),
    lambda run: begun(run, 6),
    lambda run: (run / "model").exists(),
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("trainer", ["distill", "shared rollouts", "sft"])
def test_killed_when_something_is_seen_it_ends_the_same(
    trainer: str, tmp_path: Path, journeyman: Any, other_model: Path
) -> None:
    unbroken, run = tmp_path / "unbroken", tmp_path / "run"
    whole = journeyman("train", *overrides(trainer, other_model, unbroken))
    assert whole.status == 0, whole.stderr
    command = ("train", *overrides(trainer, other_model, run))
    dice = random.Random(0)
    kills = 0
    with ThreadPoolExecutor(1) as waiting:
        for seen in SIGHTS:
            process = journeyman.start(*command)
            end = waiting.submit(journeyman.wait)
            while not end.done() and not seen(run):
                time.sleep(0.001)
            time.sleep(dice.choice((0.0, 0.02, 0.2)))
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            ended = end.result()
            assert ended.status in (0, -signal.SIGKILL), ended.stderr
            kills += ended.status != 0
    assert kills >= 3  # before the last step there is work left, however fast the machine
    ended = journeyman(*command)
    assert ended.status == 0, ended.stderr
    same_end(run, unbroken, last_step(trainer))


# --- the callbacks alone --------------------------------------------------------------------------


def checkpoint(output_dir: Path, step: int, whole: bool = True) -> Path:
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    if whole:
        mark(folder)
    return folder


def save(callback: MarkComplete, output_dir: Path, step: int) -> None:
    args: Any = SimpleNamespace(output_dir=str(output_dir))
    callback.on_save(args, TrainerState(global_step=step), TrainerControl())


def test_checkpoints_are_ordered_by_step_not_by_name_or_age(tmp_path: Path) -> None:
    for step in (10, 9, 100):
        checkpoint(tmp_path, step)
    os.utime(tmp_path / "checkpoint-9")
    assert [f.name for f in complete(tmp_path)] == [
        "checkpoint-9",
        "checkpoint-10",
        "checkpoint-100",
    ]
    assert last_complete(tmp_path) == tmp_path / "checkpoint-100"


def test_half_a_checkpoint_is_removed_and_the_one_before_it_taken(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 2)
    half = checkpoint(tmp_path, 4, whole=False)
    (tmp_path / "README.md").touch()
    assert last_complete(tmp_path) == whole
    assert not half.exists()
    shutil.rmtree(whole)
    assert last_complete(tmp_path) is None
    assert last_complete(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("keep", "left"), [(1, [6]), (2, [4, 6]), (None, [2, 4, 6]), (0, [2, 4, 6])]
)
def test_old_checkpoints_go_once_the_new_one_is_marked(
    tmp_path: Path, keep: int | None, left: list[int]
) -> None:
    callback = MarkComplete(keep)
    for step in (2, 4, 6):
        checkpoint(tmp_path, step, whole=False)
        save(callback, tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"checkpoint-{step}" for step in left]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at it finds a second gone by, half of which the process was at work."""
    ticking = SimpleNamespace(
        perf_counter=itertools.count(0.0).__next__,
        process_time=itertools.count(0.0, 0.5).__next__,
    )
    monkeypatch.setattr(callbacks, "time", ticking)


@pytest.mark.usefixtures("clock")
def test_metrics_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    callback = MetricsFile(path)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state = TrainerState(global_step=2)
    callback.on_train_begin(args, state, TrainerControl())
    state.global_step = 3
    callback.on_log(args, state, TrainerControl(), {"loss": 0.5})
    callback.on_log(args, state, TrainerControl(), {"train_runtime": 1.0, "train_loss": 0.5})
    assert read_metrics(path) == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "loss": 0.5, "seconds": 1.0, "cpu_seconds": 0.5},
    ]


@pytest.mark.usefixtures("clock")
def test_metrics_stay_json_when_training_diverges(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n')  # as earlier versions wrote it
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state = TrainerState(global_step=2)
    logs = {"loss": 0.5, "grad_norm": float("nan"), "entropy": float("-inf")}
    MetricsFile(path).on_log(args, state, TrainerControl(), logs)
    assert path.read_text().splitlines()[1] == (
        '{"step": 2, "loss": 0.5, "grad_norm": null, "entropy": null, "seconds": 1.0, '
        '"cpu_seconds": 0.5}'
    )
    history = read_metrics(path)
    took = {"seconds": 1.0, "cpu_seconds": 0.5}
    assert history == [
        {"step": 1, "loss": None},
        {"step": 2, **logs, "grad_norm": None, "entropy": None, **took},
    ]
    write_summary(tmp_path / "summary.json", {}, {"history": history})  # which refuses NaN
    plot(tmp_path / "plot.png", {"no-op": summarise([])}, history)
