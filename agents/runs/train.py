"""`journeyman train`: config -> student, teacher, tasks -> trainer -> figures, top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from omegaconf import DictConfig, OmegaConf
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from journeyman.agents.credit import Credit
from journeyman.agents.errors import AgentError, SettingError, UnsupportedModelError
from journeyman.agents.evaluation.measures import chosen
from journeyman.agents.evaluation.metrics import Metrics
from journeyman.agents.evaluation.records import EpisodeFile
from journeyman.agents.evaluation.remarks import remarks
from journeyman.agents.evaluation.report import plot, write_atomically, write_summary
from journeyman.agents.evaluation.results import in_words
from journeyman.agents.learning.losses import Loss
from journeyman.agents.learning.trainers.callbacks import (
    MarkComplete,
    MetricsFile,
    Progress,
    complete,
    last_complete,
    read_metrics,
    step_of,
)
from journeyman.agents.learning.trainers.parts import Parts, Record
from journeyman.agents.learning.trainers.recording import TrainingLog
from journeyman.agents.learning.trainers.several import keep_rows
from journeyman.agents.learning.trainers.validation import Validation
from journeyman.agents.learning.trainers.watching import CollapseWatch
from journeyman.agents.networks.adapters import is_adapted, saved_bytes
from journeyman.agents.rollouts.job import Job
from journeyman.agents.rollouts.tasks import TaskRef, deal, pool, shortage
from journeyman.agents.rollouts.where import Rollouts
from journeyman.agents.runs.config import Node, TrainConfig, as_mapping, make, read
from journeyman.agents.runs.folder import RunFolder, explaining_full_disk, machine
from journeyman.agents.runs.measuring import attempts, bounds, evaluate, rollouts_of, tested
from journeyman.agents.runs.places import (
    check_environments,
    check_names,
    env_kwargs,
    told_shortages,
)
from journeyman.agents.runs.tracking import Tracking, load_tracker
from journeyman.agents.search.evidence import TreeRollouts
from journeyman.agents.students.player import Player, Trainable
from journeyman.agents.students.settings import remember
from journeyman.agents.teachers import Teacher

OPTIMISER_COPIES = 3
"""A checkpoint holds the weights and AdamW's two moments."""


def train(composed: DictConfig) -> None:
    """One run, from the start or from where a killed one stopped."""
    started = time.perf_counter()
    settle(composed)
    config = read(TrainConfig, composed)
    job = Job.join()
    folder = RunFolder(composed, job.first)
    if folder.finished():
        return
    # What can be known without a model is known before one is loaded.
    tasks = _check_tasks(config, job)
    check_environments(config)
    build_trainer = _trainer(config)
    check_names(config.student, config.teacher)
    with rollouts_of(config) as rollouts:
        _train(composed, config, tasks, build_trainer, job, folder, rollouts, started)


def settle(composed: DictConfig) -> None:
    """Decide what the config leaves to the machine; so the run folder says what it was."""
    args = OmegaConf.select(composed, "trainer.args")
    if not isinstance(args, DictConfig):
        return  # another package's trainer
    if args.get("use_cpu") is False and not torch.cuda.is_available():
        args.use_cpu = True
        if torch.accelerator.is_available():
            print("Trained on the CPU: of accelerators, those of CUDA alone are taken.")
    if "bf16" in args and args.bf16 is None:
        # Not on a CPU: few multiply in it, and passes of small models take longer then.
        on_gpu = torch.cuda.is_available() and not args.get("use_cpu") and not args.get("fp16")
        args.bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)


def _train(
    composed: DictConfig,
    config: TrainConfig,
    tasks: list[TaskRef],
    build_trainer: Any,
    job: Job,
    folder: RunFolder,
    rollouts: Rollouts,
    started: float,
) -> None:
    tracking = Tracking(load_tracker(config.tracker))
    log = TrainingLog(EpisodeFile(folder.path), config.log_episodes, job)
    parts = _parts(config, log.record, rollouts)
    master = playing(parts, config)
    trainer = _build(build_trainer, parts)
    trainer.add_callback(log)
    trainer.add_callback(tracking)
    size = saved_bytes(parts.student.model)
    kept = OmegaConf.select(config.trainer, "args.save_total_limit") or 2
    folder.need_space(
        size * (OPTIMISER_COPIES * (kept + 1) + (3 if config.evaluation.every else 1))
    )
    folder.claim()
    tracking.open(as_mapping(composed))

    rows: dict[str, Metrics] = {}
    said: list[str] = []

    def measure(name: str, player: Player) -> None:
        rows[name] = evaluate(name, tested(player, config), config, parts.env_kwargs, job, rollouts)

    if config.evaluation.tasks:
        rows |= bounds(parts.student.dialect, config, parts.env_kwargs, job)
        measure("student before", parts.student)
        if master is not None:
            measure("teacher", master)
        if job.first:
            said = remarks(rows)  # training takes long, and may be in vain
            for words in said:
                print(f"Mind: {words}")
    if config.evaluation.every:
        watch = next(
            (it for it in trainer.callback_handler.callbacks if isinstance(it, CollapseWatch)), None
        )
        best = None if watch is None else folder.path / "best"

        def tell(step: int, figures: Mapping[str, Any]) -> None:
            if job.first:
                tracking.log(step, figures)
            if watch is not None:
                watch.see(step, figures)

        if watch is not None:
            watch.best = best
        trainer.add_callback(
            Validation(
                parts.student,
                tasks,
                config.evaluation.every,
                folder.path / "metrics.jsonl",
                config.evaluation.batch_size,
                parts.env_kwargs,
                job,
                tell,
                best,
                rollouts,
                getattr(trainer, "bring", lambda: None),
            )
        )
    fit(trainer, folder.path)
    if job.first:
        remember(parts.student, folder.path / "model")
        print(f"\nmodel: {folder.path / 'model'}")
    job.share([])  # before anybody loads it, as a later stage does
    parts.student.model.eval()
    if rows:
        measure("student after", parts.student)
    if (of_teacher := rows.pop("teacher", None)) is not None:
        rows["teacher"] = of_teacher  # below the students
    tracking.close(config.steps, rows)
    if job.first:
        with explaining_full_disk(folder.path):
            finish(folder.path, rows, composed, time.perf_counter() - started, said)


def _check_tasks(config: TrainConfig, job: Job) -> list[Any]:
    """See that there are tasks to play, and say where they are few; returns the validation's."""
    said = []
    ids, first = config.env.ids, config.first_task
    given = (OmegaConf.select(config.trainer, name) for name in ("data", "episodes"))
    if all(it is None for it in given):  # else only evaluation plays
        deal(ids, config.split, first, len(ids))
        counts = [
            OmegaConf.select(config.trainer, f"args.{name}")
            for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
        ]
        rows = math.prod(count for count in counts if isinstance(count, int))
        needed = config.steps * rows * job.count
        for env_id, there in shortage(ids, config.split, first, needed).items():
            said.append(
                f"{env_id} has {there} tasks in {config.split} from first_task={first} on: they "
                f"are trained on again and again"
            )
    if config.evaluation.tasks:
        _check_untrained([ref for ref, _ in attempts(config)], config)
        said += told_shortages(config)
    for words in said if job.first else ():
        print(words)
    if not config.evaluation.every:
        return []
    count = config.evaluation.validation_tasks
    return deal(ids, "validation", 0, count, config.seed, short="cap")


def _check_untrained(played: Sequence[TaskRef], config: TrainConfig) -> None:
    """Refuse to evaluate on what is trained on.

    Raises:
        SettingError: Training comes to some of the tasks.
    """
    split = config.evaluation.split
    both = [
        f"{ref.env_id} {ref.task_id}"
        for ref in played
        if pool(ref.env_id, split) == pool(ref.env_id, config.split)
        and int(ref.task_id.rpartition("/")[2]) >= config.first_task
    ]
    if both:
        raise SettingError(
            f"split={config.split}: {len(both)} of the tasks that evaluation plays are trained on, "
            f"such as {both[0]}, and would measure nothing: leave them out of training by "
            f"first_task=…, or play fewer (evaluation.tasks=…, evaluation.split=…)"
        )


def _trainer(config: TrainConfig) -> Any:
    """What builds the trainer, its arguments checked by the libraries.

    Raises:
        SettingError: They are refused, or ask for a package that is not there.
    """
    build = make(config.trainer, "trainer")
    given = getattr(build, "keywords", {})
    if "args" not in given:
        return build  # another package's, with arguments of its own
    args = given["args"]
    if not isinstance(args, TrainingArguments):
        raise SettingError(f"trainer.args={args}: expected TRL's arguments, as in conf/trainer/")
    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    except (ImportError, RuntimeError, ValueError) as error:
        raise SettingError(f"trainer: {error}") from error
    keep_rows(args, next(reversed(complete(Path(str(args.output_dir)))), None))
    return build


def _parts(config: TrainConfig, record: Record, rollouts: Rollouts) -> Parts:
    """What the trainer is built from, after a look at whether it goes together."""
    credit: Credit = _part(config.credit, "credit", Credit)
    search: TreeRollouts | None = make(config.search, "search")
    if credit.needs_search and search is None:
        raise SettingError(
            f"credit={type(credit).__name__} reads what a search finds: add search=credit"
        )
    loss: Loss = _part(config.loss, "loss", Loss)
    student: Trainable = make(config.student, "student")
    if not hasattr(student, "sampling"):
        raise SettingError(
            f"student: {type(student).__name__} plays and has no weights to train; it is for "
            f"`journeyman eval` and `journeyman collect`"
        )
    if student.sampling.truncated or student.sampling.stops:
        raise SettingError(
            "student.top_p, top_k, min_p and stops are for `journeyman eval`: what is learned must "
            "be what the student itself would say"
        )
    adapted = is_adapted(student.model)
    if getattr(student.model, "is_quantized", False) and not adapted:
        raise SettingError(
            "student: its weights are quantised, and cannot be trained themselves; expected an "
            "adapter on them: add student.lora={r: 16}"
        )
    if student.model.dtype in (torch.float16, torch.bfloat16) and not adapted:
        # An optimiser's small steps round to nothing there; `trainer.args.bf16` runs passes in it.
        print(f"The student's weights are {student.model.dtype}; they are trained in float32.")
        student.model.float()
    teacher: Teacher | None = _part(config.teacher, "teacher", Teacher, type(None))
    if teacher is not None:
        teacher.check(student)
        teacher.check_environments(config.env.ids)
    credit.check(student)
    return Parts(
        student=student,
        teacher=teacher,
        loss=loss,
        credit=credit,
        tasks=lambda count: deal(
            config.env.ids, config.split, config.first_task, count, short="cycle"
        ),
        env_kwargs=env_kwargs(config),
        search=search,
        record=record,
        rollouts=rollouts,
    )


def _part(node: Node, place: str, *kinds: type) -> Any:
    """Make a part of a run and see that it is one."""
    part = make(node, place)
    if not isinstance(part, kinds):
        raise SettingError(
            f"{place}: {node['_target_']} gives {type(part).__name__}, expected {kinds[0].__name__}"
        )
    return part


def _build(build_trainer: Any, parts: Parts) -> Trainer:
    try:
        trainer: Trainer = build_trainer(parts=parts)
    except AgentError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise SettingError(f"trainer: {error}") from error
    return trainer


def playing(parts: Parts, config: TrainConfig) -> Player | None:
    """The teacher as one that plays, as the student does; None if it cannot and need not.

    Raises:
        UnsupportedModelError: It cannot, and the training asks it to.
    """
    if parts.teacher is None:
        return None
    try:
        return parts.teacher.player(parts.student)
    except UnsupportedModelError as error:
        lmbda = OmegaConf.select(config.trainer, "lmbda", default=1.0)
        guidance = OmegaConf.select(config.trainer, "curriculum.guidance", default=0.0)
        asking = {
            f"trainer.lmbda={lmbda}": lmbda < 1,
            f"trainer.curriculum.guidance={guidance}": guidance > 0,
            "search=credit": parts.search is not None,
        }
        asked = next((name for name, asks in asking.items() if asks), None)
        if asked is not None:
            raise UnsupportedModelError(
                f"{asked} lets the teacher play, and it cannot: {error}"
            ) from error
        if config.evaluation.tasks:
            print(f"The teacher is left out of the table, since it cannot play here: {error}")
        return None


def fit(trainer: Trainer, run: Path) -> None:
    """Train to the end, from the last whole checkpoint if there is one, and save the model.

    Raises:
        DiskFullError: The disk filled up on the way; earlier checkpoints are whole.
    """
    metrics = MetricsFile(run / "metrics.jsonl")
    trainer.add_callback(metrics)
    trainer.add_callback(MarkComplete(keep=trainer.args.save_total_limit))
    trainer.args.save_total_limit = None  # MarkComplete rotates
    if trainer.is_world_process_zero():
        trainer.add_callback(Progress())
    trainer.remove_callback(PrinterCallback)  # the bar and the metrics file say it already
    with explaining_full_disk(run):
        found: list[Path | None] = [None]
        if trainer.is_world_process_zero():
            found = [last_complete(Path(str(trainer.args.output_dir)))]
        (checkpoint,) = broadcast_object_list(found)  # what one process mends no other looks into
        if checkpoint and step_of(checkpoint) >= trainer.args.max_steps:
            # `train` would take a step more before it looks whether any is left.
            if trainer.is_world_process_zero():
                metrics.forget_after(step_of(checkpoint))
            trainer._load_from_checkpoint(str(checkpoint))
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.save_model(str(run / "model"))


def finish(
    run: Path,
    rows: dict[str, Metrics],
    composed: DictConfig,
    seconds: float,
    said: Sequence[str] = (),
    history: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write summary, picture and table, and print the table.

    Args:
        run: The folder.
        rows: Name of a policy -> its metrics; with none, the table says so and is all there is.
        composed: The config.
        seconds: That the run took.
        said: Remarks that were printed before; they are only written.
        history: Figures of training by step; None takes those that the run wrote.
    """
    if not rows:
        write_atomically(run / "table.txt", b"trained without evaluation (evaluation.tasks=0)\n")
        return
    history = read_metrics(run / "metrics.jsonl") if history is None else history
    found = remarks(rows, history)
    extra = {
        "machine": machine(),
        "seconds": round(seconds, 1),
        "config": as_mapping(composed),
        "history": history,
        "remarks": found,
    }
    write_summary(run / "summary.json", rows, extra)
    plot(run / "plot.png", rows, history)
    columns = chosen(OmegaConf.select(composed, "evaluation.metrics") or ())
    details = bool(OmegaConf.select(composed, "evaluation.breakdown"))
    write_atomically(run / "table.txt", f"{in_words(rows, details, found, columns)}\n".encode())
    text = in_words(rows, details, [words for words in found if words not in said], columns)
    print(f"\n{text}\n\nsummary: {run / 'summary.json'}\npicture: {run / 'plot.png'}")
