"""`journeyman train`: config -> student, teacher, tasks -> trainer -> figures, top to bottom."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import PrinterCallback, Trainer

from journeyman.agents.errors import UnsupportedModelError, UserError
from journeyman.agents.evaluation.metrics import Metrics
from journeyman.agents.evaluation.records import EpisodeFile
from journeyman.agents.evaluation.report import (
    breakdown,
    plot,
    table,
    write_atomically,
    write_summary,
)
from journeyman.agents.learning.trainers.callbacks import (
    MarkComplete,
    MetricsFile,
    Progress,
    last_complete,
    read_metrics,
    step_of,
)
from journeyman.agents.learning.trainers.parts import Parts
from journeyman.agents.learning.trainers.recording import TrainingLog
from journeyman.agents.learning.trainers.validation import Validation
from journeyman.agents.rollouts.rollout import TaskRef
from journeyman.agents.runs.app import (
    RunFolder,
    attempts,
    check,
    check_environments,
    deal,
    env_kwargs,
    evaluate,
    explaining_full_disk,
    machine,
    run_app,
)
from journeyman.agents.students.hf import alike
from journeyman.agents.students.player import Student
from journeyman.agents.students.scripted import ScriptedPolicy, no_op, oracle
from journeyman.agents.teachers.local import LocalTeacher, check_vocabulary

OPTIMISER_COPIES = 3
"""A checkpoint holds the weights and AdamW's two moments."""


def main(argv: Sequence[str]) -> None:
    """Entry of the command line."""
    run_app("train", train, argv)


def train(config: DictConfig) -> None:
    """One run, from the start or from where a killed one stopped."""
    started = time.perf_counter()
    check(config)
    folder = RunFolder(config)
    report = folder.path / "table.txt"
    if report.exists():
        print(f"{folder.path} is finished; delete it to run anew.\n\n{report.read_text()}")
        return
    steps = config.trainer.args.max_steps
    if not isinstance(steps, int) or steps < 1:
        raise UserError(f"steps={steps}: expected a whole number above zero")
    ids = list(config.env.ids)
    if str(config.split).partition("/")[0] != "train":
        raise UserError(
            f"split={config.split}: expected train or train/<level>; other tasks are for evaluation"
        )
    deal(ids, config.split, config.first_task, len(ids))  # mistakes show before models load
    check_environments(config)
    if config.evaluation.tasks:
        attempts(config)  # and so do tasks that do not exist
    every, validation = config.evaluation.every, _validation_tasks(config)
    credit, search = instantiate(config.credit), instantiate(config.get("search"))
    if credit.needs_search and search is None:
        raise UserError(
            f"credit={type(credit).__name__} reads what a search finds: add search=credit"
        )
    policy: Student = instantiate(config.student)
    if policy.search is not None:
        raise UserError(
            f"student.search={policy.search}: that is for `journeyman eval`; to learn from what a "
            f"search finds, use search=credit"
        )
    teacher = instantiate(config.teacher)
    check_vocabulary(policy.format.tokenizer, teacher.tokenizer)
    master = playing(policy, teacher, config)
    build_trainer = instantiate(config.trainer)
    size = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    kept = OmegaConf.select(config, "trainer.args.save_total_limit") or 2
    folder.need_space(size * (OPTIMISER_COPIES * (kept + 1) + 1))
    folder.claim()

    rows: dict[str, Metrics] = {}
    if config.evaluation.tasks:
        rows = bounds(policy, config)
        rows["student before"] = evaluate("student before", _tested(policy, config), config)
    log = TrainingLog(EpisodeFile(folder.path), config.log_episodes)
    parts = Parts(
        policy=policy,
        teacher=teacher,
        credit=credit,
        tasks=lambda count: deal(ids, config.split, config.first_task, count),
        env_kwargs=env_kwargs(config),
        search=search,
        record=log.record,
    )
    try:
        trainer = build_trainer(parts=parts)
    except UserError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"trainer: {error}") from error
    trainer.add_callback(log)
    if every:
        batch, kwargs = config.evaluation.batch_size, parts.env_kwargs
        figures = folder.path / "metrics.jsonl"
        trainer.add_callback(Validation(policy, validation, every, figures, batch, kwargs))
    fit(trainer, folder.path)
    print(f"\nmodel: {folder.path / 'model'}")
    policy.model.eval()
    if not rows:
        write_atomically(report, b"trained without evaluation (evaluation.tasks=0)\n")
        return
    rows["student after"] = evaluate("student after", _tested(policy, config), config)
    if master is not None:
        rows["teacher"] = evaluate("teacher", _tested(master, config), config)
    with explaining_full_disk(folder.path):
        finish(folder.path, rows, config, time.perf_counter() - started)


def playing(policy: Student, teacher: LocalTeacher, config: DictConfig) -> Student | None:
    """The teacher as one that plays, as the student does; None if it cannot and need not.

    Raises:
        UnsupportedModelError: It cannot, and the training asks it to.
    """
    try:
        return alike(policy, teacher.model)
    except UnsupportedModelError as error:
        shared = OmegaConf.select(config, "trainer.lmbda", default=1.0) < 1
        if shared or config.get("search") is not None:
            asked = f"trainer.lmbda={config.trainer.lmbda}" if shared else "search=credit"
            raise UnsupportedModelError(
                f"{asked} lets the teacher play, and it cannot: {error}"
            ) from error
        if config.evaluation.tasks:
            print(f"The teacher is left out of the table, since it cannot play here: {error}")
        return None


def _validation_tasks(config: DictConfig) -> list[TaskRef]:
    """What the student plays while it is trained; nothing by default.

    Raises:
        UserError: The options are none.
        UnknownTaskError: An environment has fewer validation tasks.
    """
    every, count = config.evaluation.every, config.evaluation.validation_tasks
    for name, value, least in (("every", every, 0), ("validation_tasks", count, 1)):
        if not isinstance(value, int) or value < least:
            raise UserError(f"evaluation.{name}={value}: expected a whole number from {least}")
    return deal(list(config.env.ids), "validation", 0, count, config.seed) if every else []


def bounds(policy: Student, config: DictConfig) -> dict[str, Metrics]:
    """The rows every evaluation prints: doing nothing, and the gold calls.

    Raises:
        UserError: No gold episode came to its end: nothing could be learned or measured here.
    """
    scripts = {"no-op": no_op, "oracle": oracle}
    rows = {n: evaluate(n, ScriptedPolicy(policy.format, s), config) for n, s in scripts.items()}
    if rows["oracle"].infra_failures and not rows["oracle"].tasks:
        raise UserError(
            f"every oracle episode broke ({rows['oracle'].first_error}): mend the environment, "
            f"then run again"
        )
    return rows


def fit(trainer: Trainer, run: Path) -> None:
    """Train to the end, from the last whole checkpoint if there is one, and save the model.

    Raises:
        DiskFullError: The disk filled up on the way; earlier checkpoints are whole.
    """
    metrics = MetricsFile(run / "metrics.jsonl")
    trainer.add_callback(metrics)
    trainer.add_callback(MarkComplete(keep=trainer.args.save_total_limit))
    trainer.args.save_total_limit = None  # MarkComplete rotates
    trainer.add_callback(Progress())
    trainer.remove_callback(PrinterCallback)  # the bar and the metrics file say it already
    with explaining_full_disk(run):
        checkpoint = last_complete(Path(str(trainer.args.output_dir)))
        if checkpoint and step_of(checkpoint) >= trainer.args.max_steps:
            # `train` would take a step more before it looks whether any is left.
            if trainer.is_world_process_zero():
                metrics.forget_after(step_of(checkpoint))
            trainer._load_from_checkpoint(str(checkpoint))
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.save_model(str(run / "model"))


def finish(run: Path, rows: dict[str, Metrics], config: DictConfig, seconds: float) -> None:
    """Write summary, picture and table, and print the table."""
    history = read_metrics(run / "metrics.jsonl")
    extra = {
        "machine": machine(),
        "seconds": round(seconds, 1),
        "config": OmegaConf.to_container(config, resolve=True),
        "history": history,
    }
    write_summary(run / "summary.json", rows, extra)
    plot(run / "plot.png", rows, history)
    text = f"{table(rows)}\n"
    if config.evaluation.breakdown:
        text += f"\n{breakdown(rows)}\n"
    write_atomically(run / "table.txt", text.encode())
    print(f"\n{text}\nsummary: {run / 'summary.json'}\npicture: {run / 'plot.png'}")


def _tested(policy: Student, config: DictConfig) -> Student:
    return policy.at(config.evaluation.temperature)
