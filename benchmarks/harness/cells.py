"""Cells: a `journeyman train` run each, examined on the way, and read back once it is finished."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import statistics
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from tqdm import tqdm

from harness.costs import GOLD, costs
from journeyman.agents.evaluation.report import write_atomically
from journeyman.agents.learning.trainers.callbacks import read_metrics
from journeyman.agents.rollouts.demonstrations import demonstrate
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef, deal
from journeyman.agents.runs.train import train
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.hf import load_student
from journeyman.agents.students.player import Player
from journeyman.envs import env_class, make

BATCH = 16
"""Rows of an optimiser step."""
ROWS = 64
"""Rows of a rollout."""
COMMON = (
    "evaluation.tasks=0",
    "log_episodes=0",
    "threads=1",
    f"trainer.args.per_device_train_batch_size={BATCH}",
    "+trainer.args.adam_beta2=0.95",
)
ON_POLICY = (f"trainer.steps_per_generation={ROWS // BATCH}", f"trainer.rollout_batch={ROWS}")
"""Where there are rollouts."""
SIDE_BY_SIDE = 128
"""Conversations of an exam."""
DEMONSTRATED = 64
"""Turns that a demonstration may have."""

Rows = list[dict[str, Any]]
"""Of one cell: step, success, outcomes and costs so far, a look each."""
Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Exam:
    """What a policy is examined by: greedy success on held-out tasks, within fixed limits."""

    ids: tuple[str, ...]
    split: str
    tasks: int
    looked: int = 0
    """Tasks of the looks on the way, the first of all; 0 is all of them."""
    max_turns: int = 8
    max_context: int = 640
    families: tuple[tuple[str, str], ...] = ()
    """Environment and kind of task: half of the tasks are of these, and none of the others is."""

    @property
    def name(self) -> str:
        """Of files: which tasks, and how many."""
        return f"{self.split.replace('/', '-')}-{self.tasks}"

    def refs(self) -> list[TaskRef]:
        """The tasks; every prefix has as many of each environment, and of the families."""
        return list(_refs(self))

    def in_family(self) -> list[bool]:
        """Whether each task is of one of the families."""
        return [
            (ref.env_id, env_class(ref.env_id).load_task(ref.task_id).kind) in self.families
            for ref in self.refs()
        ]


@cache
def _refs(exam: Exam) -> tuple[TaskRef, ...]:
    if not exam.families:
        return tuple(deal(exam.ids, exam.split, 0, exam.tasks))
    kinds = dict(exam.families)

    def of(env_id: str, family: bool) -> Iterator[TaskRef]:
        for task_id in env_class(env_id).tasks(exam.split):
            if (env_class(env_id).load_task(task_id).kind == kinds.get(env_id)) == family:
                yield TaskRef(env_id, task_id)

    turn = [of(env_id, family) for family in (True, False) for env_id in exam.ids]
    return tuple(next(turn[i % len(turn)]) for i in range(exam.tasks))


@dataclass(frozen=True)
class Cell:
    """One run."""

    arm: str
    overrides: tuple[str, ...]
    seed: int
    rate: float
    steps: int
    exam: Exam
    folder: Path
    looks: int = 1
    gold: float = 0.0
    """Gold tokens that went into the model it starts from."""
    tidy: bool = False
    """Let checkpoints go once they are examined."""

    @property
    def path(self) -> Path:
        """Its run folder."""
        return self.folder / f"{self.arm}-{self.rate:g}-{self.steps}-{self.seed}"

    @property
    def report(self) -> Path:
        """What is known of it, once it is finished."""
        return self.path / f"{self.exam.name}-{self.looks}.json"

    @property
    def stride(self) -> int:
        """Steps between two looks: whole rollouts."""
        whole = ROWS // BATCH
        return max(whole, whole * round(self.steps / self.looks / whole))

    @property
    def at(self) -> list[int]:
        """Steps after which it is examined: all strides but the last, and the end."""
        return [*range(self.stride, self.steps - self.stride // 2, self.stride), self.steps]


def settings(cell: Cell) -> list[str]:
    """What `journeyman train` is told."""
    return [
        *cell.overrides,
        *COMMON,
        f"++env.kwargs.max_turns={cell.exam.max_turns}",
        f"student.max_context={cell.exam.max_context}",
        f"steps={cell.steps}",
        f"seed={cell.seed}",
        f"first_task={cell.seed * 10_000}",
        f"trainer.args.learning_rate={cell.rate}",
        f"trainer.args.save_steps={cell.stride}",
        f"trainer.args.save_total_limit={cell.looks + 1}",
        f"run_dir={cell.path}",
    ]


def composed(overrides: Iterable[str]) -> DictConfig:
    """The config of a `journeyman train` command."""
    with initialize_config_module("journeyman.conf", version_base="1.3"):
        return compose("train", list(overrides))


def learn(overrides: Iterable[str]) -> None:
    """`journeyman train` in this process."""
    train(composed(overrides))


def play(cell: Cell) -> Rows:
    """Train, or go on, and examine each look."""
    if (found := known(cell)) is not None:
        return found
    torch.set_num_threads(1)
    told = settings(cell)
    learn(told)
    records = read_metrics(cell.path / "metrics.jsonl")
    rows: Rows = []
    for step in cell.at:
        last = step == cell.steps
        model = cell.path / ("model" if last else f"checkpoints/checkpoint-{step}")
        player = load(model, cell.exam)
        outcomes = examine(player, cell.exam, cell.exam.tasks if last else cell.exam.looked)
        if not rows:
            shown = gold_tokens(composed(told), player.dialect)
        rows.append(
            {
                "step": step,
                "success": statistics.fmean(outcomes),
                "outcomes": "".join(str(int(it)) for it in outcomes),
                **costs(records, step),
                GOLD: cell.gold + shown * step / cell.steps,
            }
        )
    write_atomically(cell.report, json.dumps(rows).encode())
    if cell.tidy:
        shutil.rmtree(cell.path / "checkpoints", ignore_errors=True)
    return rows


def gold_tokens(config: DictConfig, dialect: Dialect) -> float:
    """Tokens of gold turns that a supervised run shows; 0 of any other run."""
    if "error_rate" not in config.trainer or config.trainer.data is not None:
        return 0.0
    count = config.steps * config.trainer.args.per_device_train_batch_size
    envs = {env_id: make(env_id, max_turns=DEMONSTRATED) for env_id in config.env.ids}
    rate = config.trainer.error_rate
    refs = deal(config.env.ids, config.split, config.first_task, count)
    rows = (demonstrate(envs[it.env_id], it.task_id, dialect, rate) for it in refs)
    return float(sum(sum(row.mask) for row in rows))


def known(cell: Cell) -> Rows | None:
    """What a finished run has shown; None of another."""
    if not cell.report.exists():
        return None
    rows: Rows = json.loads(cell.report.read_text())
    return rows


def load(model: str | Path, exam: Exam) -> Player:
    """A model as it is examined: greedy, within the limits that it trains in."""
    return load_student(
        str(model),
        render="names",
        max_turn_tokens=48,
        max_context=exam.max_context,
        temperature=0.0,
    )


def examine(player: Player, exam: Exam, count: int = 0) -> list[float]:
    """Success of each of the exam's first tasks, all of them by default."""
    refs = exam.refs()[: count or None]
    episodes = rollout(player, refs, SIDE_BY_SIDE, {"max_turns": exam.max_turns})
    return [float(episode.success) for episode in episodes]


def attempt(work: Callable[[Item], Found], item: Item, log: Path) -> Found | str:
    """Do a piece of work; what it says goes to a log, what fails is returned in words."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        try:
            return work(item)
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"


def run(
    cells: Sequence[Cell],
    jobs: int,
    what: str,
    seconds: Callable[[Cell], float] = lambda cell: 1.0,
    work: Callable[[Cell], Rows] = play,
) -> dict[Cell, Rows | str]:
    """Play cells, `jobs` of them side by side; figures, or what went wrong, of each.

    A killed run is called again: finished cells are read back, and others go on from their last
    checkpoint. A bar tells the rate and the time left.

    Args:
        cells: In the order in which they begin.
        jobs: Processes.
        what: Name of the bar.
        seconds: What a cell is expected to take, by which the bar advances.
        work: What is done with each, at the top of a module.
    """
    found: dict[Cell, Rows | str] = {cell: rows for cell in cells if (rows := known(cell))}
    left = [cell for cell in cells if cell not in found]
    weigh = {cell: seconds(cell) for cell in cells}
    bar = tqdm(
        total=sum(weigh.values()),
        initial=sum(weigh[cell] for cell in found),
        desc=f"{what}: {len(found)}/{len(cells)}",
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}",
    )

    def told(cell: Cell, rows: Rows | str) -> None:
        found[cell] = rows
        bar.set_description(f"{what}: {len(found)}/{len(cells)}", refresh=False)
        bar.set_postfix_str(f"{cell.folder.name}/{cell.path.name}", refresh=False)
        bar.update(weigh[cell])

    with bar:
        if jobs == 1:
            for cell in left:
                told(cell, attempt(work, cell, log_of(cell)))
            return found
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, initializer=die_with_parent) as pool:
            asked = {pool.submit(attempt, work, cell, log_of(cell)): cell for cell in left}
            for future in as_completed(asked):
                try:
                    told(asked[future], future.result())
                except Exception as error:  # the process died, and those after it did not begin
                    told(asked[future], f"{type(error).__name__}: {error}")
    return {cell: found[cell] for cell in cells}


def log_of(cell: Cell) -> Path:
    """Where a cell's output goes."""
    return cell.folder / f"{cell.path.name}.log"


def die_with_parent() -> None:
    """End with a parent that is killed: the lock on a run folder must not outlive it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
