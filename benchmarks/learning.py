"""What does a student learn from as many episodes? Distillation, rivals, credit, side by side.

    python benchmarks/learning.py [--json FILE] [--png FILE] [--arms A,B] [--seeds 0,1] [--jobs N]

The embedded student on the office domains, with as many rows and optimiser steps in every arm, each
with its own learning rate of `--rates`: the one that did best on validation tasks with a seed that
is not among those reported. Held-out success after each quarter of the run stands against what it
cost: tokens that student and teacher wrote, turns played in environments, seconds of training on
one thread. Every run resumes if it is interrupted, and a finished one is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import torch
from hydra import compose, initialize_config_module
from matplotlib import pyplot
from scipy import stats
from tqdm import tqdm

from journeyman.agents.evaluation.report import write_atomically
from journeyman.agents.learning.trainers.callbacks import read_metrics
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import deal
from journeyman.agents.runs.folder import machine
from journeyman.agents.runs.train import train
from journeyman.agents.students.hf import load_student
from journeyman.agents.students.player import Player
from journeyman.agents.students.scripted import ScriptedPlayer, no_op, oracle

ENVS = ("journeyman/Bank-v0", "journeyman/Orders-v0", "journeyman/Calendar-v0")
BATCH = 16
"""Rows of an optimiser step."""
ROWS = 64
"""Rows of a rollout."""
QUARTERS = 4
TUNING_SEED = 99
"""Learning rates are chosen with it, and it is never reported."""
COMMON = (
    "env.kwargs.max_turns=8",
    "evaluation.tasks=0",
    "threads=1",
    f"trainer.args.per_device_train_batch_size={BATCH}",
    "+trainer.args.adam_beta2=0.95",
    f"trainer.args.save_total_limit={QUARTERS}",
)
_ROLLOUTS = (f"trainer.steps_per_generation={ROWS // BATCH}", f"trainer.rollout_batch={ROWS}")
_FORWARD = (*_ROLLOUTS, "loss=forward_kl")
_REVERSE = (*_ROLLOUTS, "loss=reverse_kl")
_TREES = (*_FORWARD, "search=credit", "search.rows=4", "search.trajectories=1")
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sft": ("gold episodes, supervised", ("trainer=sft", "trainer.error_rate=0")),
    "kd": ("the teacher's episodes, forward KL", (*_FORWARD, "trainer.lmbda=0")),
    "grpo": (
        "outcome of 8 episodes a task, no teacher",
        (
            *_REVERSE,
            *("credit=reinforce", "search=credit", "values=grpo"),
            *("search.rows=8", "search.trajectories=8", "search.tries=0"),
        ),
    ),
    "opd": ("on policy, reverse KL (TRL's own loss)", _REVERSE),
    "sod": ("on policy, reverse KL, step weights of SOD", (*_REVERSE, "credit=step_decay")),
    "opd_forward": ("on policy, forward KL", _FORWARD),
    "trace": ("on policy, forward KL by trace", (*_FORWARD, "credit=trace")),
    "gae": ("forward KL + a critic's advantages", (*_FORWARD, "credit=gae")),
    "attention": ("forward KL + outcome by attention", (*_FORWARD, "credit=attention")),
    "additive": ("by trace + advantages from trees (i)", (*_TREES, "credit=additive")),
    "gated": ("by trace, gated, + advantages from trees (ii)", (*_TREES, "credit=gated")),
    "policy_target": (
        "by trace + target from trees (iii)",
        (*_TREES, "credit=policy_target"),
    ),
}
COSTS = ("student tokens", "teacher tokens", "turns", "seconds")


@dataclass(frozen=True)
class Cell:
    """One run."""

    arm: str
    seed: int
    rate: float
    steps: int
    tasks: int
    split: str
    folder: Path

    @property
    def path(self) -> Path:
        """Its run folder."""
        return self.folder / f"{self.arm}-{self.rate:g}-{self.seed}"


def overrides(cell: Cell) -> list[str]:
    """What `journeyman train` is told."""
    return [
        *COMMON,
        *ARMS[cell.arm][1],
        f"steps={cell.steps}",
        f"seed={cell.seed}",
        f"first_task={cell.seed * 10_000}",
        f"trainer.args.learning_rate={cell.rate}",
        f"trainer.args.save_steps={cell.steps // QUARTERS}",
        f"run_dir={cell.path}",
    ]


def play(cell: Cell) -> list[dict[str, float]]:
    """Train, or go on, and examine each quarter; success and costs so far of each."""
    report = cell.path / "learning.json"
    if report.exists():
        found: list[dict[str, float]] = json.loads(report.read_text())
        return found
    torch.set_num_threads(1)
    with initialize_config_module("journeyman.conf", version_base="1.3"):
        train(compose("train", overrides(cell)))
    records = read_metrics(cell.path / "metrics.jsonl")
    rows = []
    for step in quarters(cell.steps):
        player = load(str(cell.path / "checkpoints" / f"checkpoint-{step}"))
        rows.append({"step": step, "success": success(player, cell)} | costs(records, step))
    write_atomically(report, json.dumps(rows).encode())
    return rows


def quarters(steps: int) -> list[int]:
    """Where a run is examined."""
    return [steps // QUARTERS * i for i in range(1, QUARTERS + 1)]


def load(model: str) -> Player:
    """A model as it is examined: greedy, within the limits that it trains in."""
    return load_student(model, render="names", max_turn_tokens=48, max_context=640, temperature=0.0)


def success(player: Player, cell: Cell) -> float:
    """Greedy success on the cell's tasks."""
    tasks = deal(ENVS, cell.split, 0, cell.tasks)
    return statistics.fmean(e.success for e in rollout(player, tasks, 128, {"max_turns": 8}))


def costs(records: Iterable[Mapping[str, float]], step: int) -> dict[str, float]:
    """What the run had cost up to a step."""
    spent = dict.fromkeys(COSTS, 0.0)
    for record in records:
        if record["step"] > step:
            continue
        spent["seconds"] += record.get("seconds", 0.0)
        if "search/sampled_tokens" in record:
            spent["student tokens"] += record["search/sampled_tokens"]
            spent["teacher tokens"] += record["search/teacher_tokens"]
            spent["turns"] += record["search/env_steps"]
        elif "rollout/tokens" in record:
            spent["student tokens"] += record["rollout/tokens"] * ROWS
            spent["turns"] += record["rollout/turns"] * ROWS
        spent["teacher tokens"] += record.get("rollout/teacher_tokens", 0.0)
    return spent


def run(cells: Sequence[Cell], jobs: int, what: str) -> dict[Cell, list[dict[str, float]]]:
    """Play cells side by side."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool:
        found = tqdm(pool.map(play, cells), total=len(cells), desc=what, unit="run")
        return dict(zip(cells, found, strict=True))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of a mean over seeds, by Student's t; all of the line for a single one."""
    if len(values) < 2:
        return -math.inf, math.inf
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - half, mean + half


def summarise(cells: Mapping[Cell, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Of each arm: rate, success of every seed after each quarter, mean costs at the end."""
    arms: dict[str, dict[str, Any]] = {}
    for cell, rows in cells.items():
        arm = arms.setdefault(cell.arm, {"rate": cell.rate, "seeds": {}, "costs": []})
        arm["seeds"][cell.seed] = [row["success"] for row in rows]
        arm["costs"].append([[row[name] for name in COSTS] for row in rows])
    for arm in arms.values():
        arm["costs"] = [
            dict(zip(COSTS, map(statistics.fmean, zip(*quarter, strict=True)), strict=True))
            for quarter in zip(*arm["costs"], strict=True)
        ]
    return arms


def report(fixed: Mapping[str, float], arms: Mapping[str, Mapping[str, Any]]) -> None:
    """The table."""
    print("\n| arm | what it learns from | rate | success after ¼ | ½ | ¾ | all | 95% |", end="")
    print(" student tokens | teacher tokens | turns | seconds |")
    print(f"|{'---|' * 12}")
    for name, rate in fixed.items():
        print(f"| {name} | | | | | | {rate:.1%} | | | | | |")
    for name, arm in arms.items():
        columns = list(zip(*arm["seeds"].values(), strict=True))
        means = " | ".join(f"{statistics.fmean(column):.1%}" for column in columns)
        low, high = interval(columns[-1])
        spent = arm["costs"][-1]
        print(
            f"| {name} | {ARMS[name][0]} | {arm['rate']:g} | {means} | {low:.1%} - {high:.1%} | "
            + " | ".join(f"{spent[cost]:,.0f}" for cost in COSTS)
            + " |"
        )


def draw(path: Path, fixed: Mapping[str, float], arms: Mapping[str, Mapping[str, Any]]) -> None:
    """Success against tokens written and against time."""
    figure, panes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    colours = pyplot.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for pane, axis, names in (
        (panes[0], "tokens that student and teacher wrote", COSTS[:2]),
        (panes[1], "seconds of training, one thread", COSTS[3:]),
    ):
        for (name, arm), colour in zip(arms.items(), colours, strict=False):
            x = [0.0, *(sum(q[cost] for cost in names) for q in arm["costs"])]
            columns = list(zip(*arm["seeds"].values(), strict=True))
            y = [fixed["student before"], *map(statistics.fmean, columns)]
            bounds = [(y[0], y[0]), *map(interval, columns)]
            pane.plot(x, y, marker="o", markersize=3, color=colour, label=name)
            pane.fill_between(x, *zip(*bounds, strict=True), color=colour, alpha=0.1, linewidth=0)
        pane.axhline(fixed["teacher"], color="grey", linestyle=":", linewidth=1)
        pane.set(xlabel=axis, ylim=(0, 1.02))
    panes[0].set_ylabel("held-out success")
    panes[1].legend(fontsize=8, loc="lower right", ncols=2)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Choose rates, run every arm with every seed, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--png", type=Path, help="draw them to this file")
    parser.add_argument("--arms", default=",".join(ARMS), help="default: %(default)s")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="default: %(default)s")
    parser.add_argument("--rates", default="3e-4,1e-3,3e-3", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--tasks", type=int, default=300, help="held out: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"))
    options = parser.parse_args()
    names = options.arms.split(",")
    if unknown := set(names) - ARMS.keys():
        parser.error(f"--arms: unknown {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    if options.steps % (QUARTERS * ROWS // BATCH):
        parser.error(f"--steps: expected a multiple of {QUARTERS * ROWS // BATCH}")
    torch.set_num_threads(1)

    def cell(arm: str, seed: int, rate: float, split: str) -> Cell:
        return Cell(arm, seed, rate, options.steps, options.tasks, split, options.folder)

    rates = [float(rate) for rate in options.rates.split(",")]
    tried = [cell(arm, TUNING_SEED, rate, "validation") for arm in names for rate in rates]
    best: dict[str, tuple[float, float]] = {}
    for it, rows in run(tried, options.jobs, "rates").items():
        best[it.arm] = max(best.get(it.arm, (-1.0, 0.0)), (rows[-1]["success"], it.rate))
    seeds = [int(seed) for seed in options.seeds.split(",")]
    # Seed by seed: a run that is cut short has as many of every arm.
    cells = [cell(arm, seed, best[arm][1], "test") for seed in seeds for arm in names]
    arms = summarise(run(cells, options.jobs, "seeds"))
    student, teacher = load("embedded-student"), load("embedded-teacher")
    bounds: dict[str, Player] = {
        "no-op": ScriptedPlayer(student.dialect, no_op),
        "oracle": ScriptedPlayer(student.dialect, oracle),
        "student before": student,
        "teacher": teacher,
    }
    fixed = {name: success(player, cells[0]) for name, player in bounds.items()}
    report(fixed, arms)
    if options.json:
        figures = {"machine": machine(), "rates": rates, "fixed": fixed, "arms": arms}
        write_atomically(options.json, (json.dumps(figures, indent=2) + "\n").encode())
    if options.png:
        draw(options.png, fixed, arms)


if __name__ == "__main__":
    main()
