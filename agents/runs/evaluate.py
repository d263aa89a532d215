"""`journeyman eval`: a student's figures beside the no-op and the oracle, without training."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from journeyman.agents.evaluation.measures import chosen
from journeyman.agents.evaluation.remarks import remarks
from journeyman.agents.evaluation.report import plot, write_summary
from journeyman.agents.evaluation.results import in_words
from journeyman.agents.rollouts.job import Job
from journeyman.agents.rollouts.where import Rollouts
from journeyman.agents.runs.config import EvalConfig, as_mapping, read
from journeyman.agents.runs.folder import RunFolder, machine
from journeyman.agents.runs.measuring import (
    bounds,
    evaluate,
    looked_over,
    rollouts_of,
    searching,
    student_of,
    tested,
)
from journeyman.agents.runs.tracking import Tracking, load_tracker


def evaluate_student(composed: DictConfig) -> None:
    """Evaluate, print the table, write summary and picture."""
    config = read(EvalConfig, composed)
    job = Job.join()
    folder = RunFolder(composed, job.first, replaces=True)
    kwargs = looked_over(config, job)
    with rollouts_of(config) as rollouts:
        _evaluate(composed, config, folder, kwargs, job, rollouts)


def _evaluate(
    composed: DictConfig,
    config: EvalConfig,
    folder: RunFolder,
    kwargs: dict[str, Any],
    job: Job,
    rollouts: Rollouts,
) -> None:
    tracking = Tracking(load_tracker(config.tracker))
    student = student_of(config, folder, job)
    player = tested(student, config)
    searched = searching(player, config, kwargs)
    folder.claim()
    tracking.open(as_mapping(composed))
    rows = bounds(student.dialect, config, kwargs, job)
    rows["student"] = evaluate("student", player, config, kwargs, job, rollouts)
    if searched is not None:
        # Its turns are judged by forks of the tests themselves: a row of its own.
        name = f"student, {searched.rule} search"
        rows[name] = evaluate(name, searched, config, kwargs, job, rollouts)
    tracking.close(0, rows)
    if not job.first:
        return
    said = remarks(rows)
    extra = {"machine": machine(), "config": as_mapping(composed), "remarks": said}
    write_summary(folder.path / "summary.json", rows, extra)
    plot(folder.path / "plot.png", rows)
    columns = chosen(config.evaluation.metrics or ())
    text = in_words(rows, config.evaluation.breakdown, said, columns)
    print(f"\n{text}\n")
    print(f"summary: {folder.path / 'summary.json'}")
