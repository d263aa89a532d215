"""`journeyman train` of an experiment with stages: runs one after the other, one table over all.

A stage is a run like any other, in a folder below this one's: it goes on after a kill, and is kept
when it is done. Its student then plays the evaluation tasks, as a row of this run's table.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from journeyman.agents.evaluation.metrics import Metrics
from journeyman.agents.learning.trainers.callbacks import read_metrics
from journeyman.agents.rollouts.job import Job
from journeyman.agents.runs.config import TrainConfig, make, read
from journeyman.agents.runs.folder import RunFolder, explaining_full_disk
from journeyman.agents.runs.measuring import bounds, evaluate, tested
from journeyman.agents.runs.places import check_environments, env_kwargs
from journeyman.agents.runs.plan import Stage, learned
from journeyman.agents.runs.train import finish, train

CURVES = ("loss", "rollout/success", "eval/success")
"""Figures of training that are drawn, a curve a stage."""


def train_stages(composed: DictConfig, stages: Sequence[Stage]) -> None:
    """Run stages in order, from the start or from where a killed run stopped.

    Args:
        composed: The run's own config: what is evaluated, and where all of it goes.
        stages: See `journeyman.agents.runs.plan`.
    """
    started = time.perf_counter()
    config = read(TrainConfig, composed)
    job = Job.join()
    folder = RunFolder(composed, job.first)
    if folder.finished():
        return
    check_environments(config)
    folder.claim()
    rows: dict[str, Metrics] = {}
    history: list[dict[str, Any]] = []
    for number, stage in enumerate(stages, start=1):
        if job.first:
            print(f"\nStage {number} of {len(stages)}: {stage.name}", flush=True)
        train(stage.config)
        history += _curves(stage)
        _forget()
        if config.evaluation.tasks:
            _measure(stage, config, rows, job)
            _forget()
    if job.first:
        with explaining_full_disk(folder.path):
            finish(folder.path, rows, composed, time.perf_counter() - started, history=history)


def _measure(stage: Stage, config: TrainConfig, rows: dict[str, Metrics], job: Job) -> None:
    """Let the student of a stage play; before the first of them, those that every table has."""
    node = learned(stage.config.student, Path(stage.config.run_dir))
    player, kwargs = make(node, "student"), env_kwargs(config)
    if not rows:
        rows |= bounds(player.dialect, config, kwargs, job)
    rows[stage.name] = evaluate(stage.name, tested(player, config), config, kwargs, job)
    if job.first:
        success = rows[stage.name].success
        low, high = success.interval
        print(
            f"{stage.name}: {success.successes} of {success.episodes} tasks solved, "
            f"95% interval {low:.1%} - {high:.1%}",
            flush=True,
        )


def _curves(stage: Stage) -> list[dict[str, Any]]:
    """A stage's figures by step, each told as the stage's."""
    written = read_metrics(Path(stage.config.run_dir) / "metrics.jsonl")
    return [
        {"step": entry["step"]} | {f"{stage.name} {it}": entry[it] for it in CURVES if it in entry}
        for entry in written
        if "step" in entry
    ]


def _forget() -> None:
    """Let go of a stage's models: trainers hold themselves in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
