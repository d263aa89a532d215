"""Does credit let a student pass a teacher that is wrong on one family of tasks?

    python benchmarks/wrong_teacher.py [--json FILE] [--seeds 0,1,2] [--steps N] [--folder RUNS]

The embedded teacher is taught a lazy habit: asked to cancel two orders, it cancels the first and
says that it is done. Everywhere else it is right. The embedded student then learns from it, on the
order desk, by on-policy distillation with traces (`credit=trace`) and with credit measured in trees
(`credit=gated`), from as many rows and no more generated tokens (the teacher's own episodes count).
Runs resume if they are interrupted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from methods import COMMON as ALIKE
from methods import ON_POLICY, costs, interval, learn, load

from journeyman.agents.learning.trainers.callbacks import read_metrics
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.runs.folder import machine
from journeyman.envs import Task, register
from journeyman.envs.tasks.orders import OrdersEnv

FAMILY = "cancel_two"
WRONG = "benchmark/LazyOrders-v0"
ORDERS = "journeyman/Orders-v0"
COMMON = (
    f"env.ids=[{ORDERS}]",
    *ALIKE,
    *ON_POLICY,
    "loss=forward_kl",
    "trainer.args.learning_rate=1e-3",
    "trainer.args.save_steps=12",
)
_GATED = ("credit=gated", "search=credit", "search.rows=4", "search.trajectories=1")
ARMS = {
    "trace": ("credit=trace",),
    "gated": _GATED,
    # Without a part of it each: the teacher's call alone is tried, and the student plays on; the
    # teacher is followed wherever the student fails as well.
    "call": (*_GATED, "search.follow=false"),
    "no_bar": (*_GATED, "credit.bar=0"),
}


class LazyOrders(OrdersEnv):
    """Orders whose gold program for two cancellations stops after the first."""

    @classmethod
    def load_task(cls, task_id: str) -> Task:
        """The task of the order desk, with the lazy program for the family."""
        task = OrdersEnv.load_task(task_id)
        return replace(task, gold=task.gold[:2]) if task.kind == FAMILY else task


def lazy_teacher(folder: Path, steps: int) -> Path:
    """Teach the embedded teacher its habit; returns the model's folder."""
    register(WRONG, LazyOrders)
    learn(
        (
            "trainer=sft",
            "student.model=embedded-teacher",
            f"env.ids=[{WRONG}]",
            f"steps={steps}",
            "trainer.args.learning_rate=5e-4",
            "trainer.args.save_steps=20",
            f"run_dir={folder}/teacher",
            "evaluation.tasks=0",
            "threads=1",
        )
    )
    return folder / "teacher" / "model"


def generated(run_dir: Path) -> float:
    """Tokens that student and teacher wrote in training."""
    spent = costs(read_metrics(run_dir / "metrics.jsonl"), math.inf)
    return spent["student tokens"] + spent["teacher tokens"]


def held_out(family: bool, count: int) -> list[TaskRef]:
    """Test tasks of the family, or of all others."""
    ids = (i for i in OrdersEnv.tasks("test") if (OrdersEnv.load_task(i).kind == FAMILY) == family)
    return [TaskRef(ORDERS, task_id) for task_id in itertools.islice(ids, count)]


def examine(model: str | Path, count: int) -> dict[str, float]:
    """Greedy success on the family and elsewhere."""
    player = load(str(model))
    found = {}
    for name, family in (("family", True), ("elsewhere", False)):
        episodes = rollout(player, held_out(family, count), 128, {"max_turns": 8})
        found[name] = statistics.fmean(e.success for e in episodes)
    return found


def over_seeds(values: Sequence[float]) -> str:
    """Mean and 95% interval over seeds; the mean alone of a single one."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.1%}"
    low, high = interval(values)
    return f"{mean:.1%} [{low:.1%}, {high:.1%}]"


def main() -> None:
    """Teach the habit, run every arm with every seed, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument(
        "--arms", default="trace,gated", help=f"of {', '.join(ARMS)} (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=144, help="default: %(default)s")
    parser.add_argument("--habit-steps", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--tasks", type=int, default=200, help="for each test: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("runs/wrong_teacher"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds, arms = options.seeds.split(","), options.arms.split(",")
    teacher = options.folder / "teacher" / "model"
    if not teacher.exists():
        teacher = lazy_teacher(options.folder, options.habit_steps)
    fixed = {
        "teacher": examine(teacher, options.tasks),
        "student before": examine("embedded-student", options.tasks),
    }
    trained: dict[str, dict[str, dict[str, float]]] = {arm: {} for arm in arms}
    for seed, arm in itertools.product(seeds, arms):
        folder = options.folder / f"{arm}-{seed}"
        learn(
            (
                *COMMON,
                *ARMS[arm],
                f"steps={options.steps}",
                f"seed={seed}",
                f"first_task={int(seed) * 10_000}",
                f"teacher.model={teacher}",
                f"run_dir={folder}",
            )
        )
        row = examine(folder / "model", options.tasks) | {"tokens": generated(folder)}
        trained[arm][seed] = row
        print(f"{arm}, seed {seed}: {row}", flush=True)
    report(fixed, trained)
    if options.json:
        figures = {"machine": machine(), "fixed": fixed, "trained": trained}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def report(
    fixed: dict[str, dict[str, float]], trained: dict[str, dict[str, dict[str, float]]]
) -> None:
    """The table: the family that the teacher gets wrong, all else, and tokens generated."""
    print("\n| policy | family | elsewhere | tokens a run, most |\n|---|---|---|---|")
    for name, row in fixed.items():
        print(f"| {name} | {row['family']:.1%} | {row['elsewhere']:.1%} | |")
    for arm, rows in trained.items():
        found = {k: [row[k] for row in rows.values()] for k in ("family", "elsewhere", "tokens")}
        print(
            f"| {arm} | {over_seeds(found['family'])} | {over_seeds(found['elsewhere'])} | "
            f"{max(found['tokens']):,.0f} |"
        )
        ahead = [value - fixed["teacher"]["family"] for value in found["family"]]
        print(f"\n{arm} ahead of the teacher on the family: {over_seeds(ahead)}\n")


if __name__ == "__main__":
    main()
