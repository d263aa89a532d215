"""What does a student learn from as many rows? Every preset of `method=`, and more, side by side.

    python benchmarks/methods.py [--arms A,B] [--seeds 0,1,2] [--steps N] [--rates 3e-4,1e-3]
        [--folder RUNS] [--jobs N] [--table] [--json FILE] [--png FILE]

The embedded pair on the office domains, with as many rows and optimiser steps in every arm. An arm
is a file of `conf/method/`, or one of `CREDIT`. Held-out success stands against what it cost:
tokens that student and teacher wrote, turns played in environments, seconds of one core. Every run
resumes if it is interrupted, and a finished one is not run again; one that fails is a line of the
table, and is tried again by the next call. `--table` runs nothing and tells what is there.

A learning rate is fixed for each family of losses (`RATES`); with `--rates` every arm has the one
of these that did best on validation tasks, with a seed that is not among those reported.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.resources
import json
import math
import multiprocessing
import statistics
import traceback
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import torch
from hydra import compose, initialize_config_module
from matplotlib import pyplot
from omegaconf import DictConfig, OmegaConf
from scipy import stats
from tqdm import tqdm

from journeyman.agents.evaluation.intervals import wilson
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
TUNING_SEED = 99
"""Learning rates are chosen with it, and it is never reported."""
COMMON = (
    "env.kwargs.max_turns=8",
    "evaluation.tasks=0",
    "log_episodes=0",
    "threads=1",
    f"trainer.args.per_device_train_batch_size={BATCH}",
    "+trainer.args.adam_beta2=0.95",
)
ON_POLICY = (f"trainer.steps_per_generation={ROWS // BATCH}", f"trainer.rollout_batch={ROWS}")
"""Where there are rollouts."""
_TREES = ("loss=forward_kl", "search=credit", "search.rows=4", "search.trajectories=1")
CREDIT: dict[str, tuple[str, tuple[str, ...]]] = {
    "forward": ("On policy, forward KL.", ("loss=forward_kl",)),
    "trace": ("Forward KL by trace.", ("loss=forward_kl", "credit=trace")),
    "gae": ("Forward KL and a critic's advantages.", ("loss=forward_kl", "credit=gae")),
    "attention": ("Forward KL, outcome by attention.", ("loss=forward_kl", "credit=attention")),
    "additive": ("By trace, advantages from trees added.", (*_TREES, "credit=additive")),
    "gated": ("By trace, gated, advantages from trees.", (*_TREES, "credit=gated")),
    "policy_target": ("By trace, a target from trees.", (*_TREES, "credit=policy_target")),
}
"""The study of credit: what no preset says, by name."""
RATES = {"supervised": 1e-3, "forward": 1e-3, "reverse": 1e-3, "outcome": 3e-4}
"""Learning rates by family: what the trainers have, and less where all that is learned from is
whether episodes succeed."""
COSTS = ("student tokens", "teacher tokens", "turns", "CPU seconds", "seconds")


class Arm(NamedTuple):
    """One way to learn."""

    what: str
    overrides: tuple[str, ...]
    family: str
    """A key of `RATES`."""
    needs: str
    """What it asks for that the embedded pair has not; "" if nothing."""


@dataclass(frozen=True)
class Cell:
    """One run."""

    arm: str
    overrides: tuple[str, ...]
    seed: int
    rate: float
    steps: int
    looks: int
    tasks: int
    split: str
    folder: Path

    @property
    def path(self) -> Path:
        """Its run folder."""
        return self.folder / f"{self.arm}-{self.rate:g}-{self.steps}-{self.seed}"

    @property
    def report(self) -> Path:
        """What is known of it, once it is finished."""
        return self.path / f"{self.split}-{self.tasks}-{self.looks}.json"

    @property
    def at(self) -> list[int]:
        """Steps after which it is examined."""
        return [self.steps // self.looks * i for i in range(1, self.looks + 1)]


Rows = list[dict[str, float]]
"""Of one cell: step, success and costs so far, a look each."""


def arms() -> dict[str, Arm]:
    """The presets of `conf/method/` as they are found, then the study of credit."""
    told: dict[str, tuple[str, tuple[str, ...]]] = {}
    presets = importlib.resources.files("journeyman.conf") / "method"
    for file in sorted(presets.iterdir(), key=lambda file: file.name):
        name, _, kind = file.name.rpartition(".")
        if kind == "yaml":
            notes = [line for line in file.read_text().splitlines() if line.startswith("# ")]
            what = next((line[2:] for line in notes if "@package" not in line), name)
            told[name] = what, (f"method={name}",)
    with initialize_config_module("journeyman.conf", version_base="1.3"):
        return {name: _arm(*it) for name, it in (told | CREDIT).items()}


def _arm(what: str, overrides: tuple[str, ...]) -> Arm:
    config = compose("train", list(overrides))
    rollouts = ON_POLICY if "steps_per_generation" in config.trainer else ()
    return Arm(what, (*overrides, *rollouts), family(config), needs(config))


def family(config: DictConfig) -> str:
    """Which learning rate goes with it: a key of `RATES`."""
    loss = config.loss
    name = str(loss._target_).rpartition(".")[2]
    if "steps_per_generation" not in config.trainer:
        return "supervised"
    if name == "NoLoss":
        return "outcome"
    covering = (name == "JSD" and loss.beta == 0) or (name == "SkewedKL" and not loss.reverse)
    return "forward" if covering else "reverse"


def needs(config: DictConfig) -> str:
    """What has to be given, or served, before it can be run."""
    missing = sorted(OmegaConf.missing_keys(config))
    return ", ".join([*missing, *(f"a server ({place})" for place in _served(config, ""))])


def _served(node: object, place: str) -> Iterable[str]:
    if isinstance(node, DictConfig):
        for key in node:
            if OmegaConf.is_missing(node, key):
                continue
            if key == "base_url":
                yield f"{place}.base_url"
            yield from _served(node[key], f"{place}.{key}" if place else str(key))


def overrides(cell: Cell) -> list[str]:
    """What `journeyman train` is told."""
    return [
        *cell.overrides,
        *COMMON,
        f"steps={cell.steps}",
        f"seed={cell.seed}",
        f"first_task={cell.seed * 10_000}",
        f"trainer.args.learning_rate={cell.rate}",
        f"trainer.args.save_steps={cell.steps // cell.looks}",
        f"trainer.args.save_total_limit={cell.looks}",
        f"run_dir={cell.path}",
    ]


def play(cell: Cell) -> Rows:
    """Train, or go on, and examine each look."""
    if (found := known(cell)) is not None:
        return found
    torch.set_num_threads(1)
    learn(overrides(cell))
    records = read_metrics(cell.path / "metrics.jsonl")
    rows = []
    for step in cell.at:
        player = load(str(cell.path / "checkpoints" / f"checkpoint-{step}"))
        rows.append({"step": step, "success": success(player, cell)} | costs(records, step))
    write_atomically(cell.report, json.dumps(rows).encode())
    return rows


def learn(settings: Iterable[str]) -> None:
    """`journeyman train` in this process."""
    with initialize_config_module("journeyman.conf", version_base="1.3"):
        train(compose("train", list(settings)))


def known(cell: Cell) -> Rows | None:
    """What a finished run has shown; None of another."""
    if not cell.report.exists():
        return None
    rows: Rows = json.loads(cell.report.read_text())
    return rows


def attempt(cell: Cell) -> Rows | str:
    """Play a cell; what it says beside its figures goes to a log, what fails to the table."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    with (
        (cell.folder / f"{cell.path.name}.log").open("a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            return play(cell)
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"


def load(model: str) -> Player:
    """A model as it is examined: greedy, within the limits that it trains in."""
    return load_student(model, render="names", max_turn_tokens=48, max_context=640, temperature=0.0)


def success(player: Player, cell: Cell) -> float:
    """Greedy success on the cell's tasks."""
    tasks = deal(ENVS, cell.split, 0, cell.tasks)
    return statistics.fmean(e.success for e in rollout(player, tasks, 128, {"max_turns": 8}))


def costs(records: Iterable[Mapping[str, float]], step: float) -> dict[str, float]:
    """What a run had cost up to a step."""
    spent = dict.fromkeys(COSTS, 0.0)
    for record in records:
        if record["step"] > step:
            continue
        spent["CPU seconds"] += record.get("cpu_seconds", 0.0)
        spent["seconds"] += record.get("seconds", 0.0)
        if "search/sampled_tokens" in record:
            spent["student tokens"] += record["search/sampled_tokens"]
            spent["teacher tokens"] += record["search/teacher_tokens"]
            spent["turns"] += record["search/env_steps"]
        else:
            spent["student tokens"] += record.get("rollout/student_tokens", 0.0)
            spent["teacher tokens"] += record.get("rollout/teacher_tokens", 0.0)
            spent["turns"] += record.get("rollout/env_steps", 0.0)
    return spent


def run(cells: Sequence[Cell], jobs: int, what: str) -> dict[Cell, Rows | str]:
    """Play cells, `jobs` of them side by side; figures, or what went wrong, of each."""
    if jobs == 1:
        return {cell: attempt(cell) for cell in tqdm(cells, desc=what, unit="run")}
    found: dict[Cell, Rows | str] = {}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        asked = [(cell, pool.submit(attempt, cell)) for cell in cells]
        for cell, future in tqdm(asked, desc=what, unit="run"):
            try:
                found[cell] = future.result()
            except Exception as error:  # the process itself died, and those after it did not begin
                found[cell] = f"{type(error).__name__}: {error}"
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of a mean over seeds, by Student's t; all of the line for a single one."""
    if len(values) < 2:
        return -math.inf, math.inf
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - half, mean + half


def summarise(cells: Mapping[Cell, Rows | str | None]) -> dict[str, dict[str, Any]]:
    """Of each arm: rate, success of every seed at each look, mean costs, seeds that failed."""
    told: dict[str, dict[str, Any]] = {}
    for cell, rows in cells.items():
        arm = told.setdefault(
            cell.arm,
            {"rate": cell.rate, "at": cell.at, "seeds": {}, "costs": [], "failed": {}},
        )
        if isinstance(rows, str):
            arm["failed"][cell.seed] = rows
        elif rows is not None:
            arm["seeds"][cell.seed] = [row["success"] for row in rows]
            arm["costs"].append([[row[name] for name in COSTS] for row in rows])
    for arm in told.values():
        arm["costs"] = [
            dict(zip(COSTS, map(statistics.fmean, zip(*look, strict=True)), strict=True))
            for look in zip(*arm["costs"], strict=True)
        ]
    return told


def bounds(cell: Cell) -> dict[str, float]:
    """Success of who does not learn, on the same tasks."""
    file = cell.folder / f"bounds-{cell.tasks}.json"
    if not file.exists():
        cell.folder.mkdir(parents=True, exist_ok=True)
        student, teacher = load("embedded-student"), load("embedded-teacher")
        players: dict[str, Player] = {
            "no-op": ScriptedPlayer(student.dialect, no_op),
            "oracle": ScriptedPlayer(student.dialect, oracle),
            "student before": student,
            "teacher": teacher,
        }
        rates = {name: success(player, cell) for name, player in players.items()}
        write_atomically(file, json.dumps(rates).encode())
    found: dict[str, float] = json.loads(file.read_text())
    return found


def table(
    fixed: Mapping[str, float],
    told: Mapping[str, Mapping[str, Any]],
    known_arms: Mapping[str, Arm],
    options: argparse.Namespace,
) -> str:
    """The table in Markdown; intervals over seeds, and over tasks of a single one."""
    looks = [options.steps // options.looks * i for i in range(1, options.looks + 1)]
    head = ["arm", "rate", *(f"after {n} steps" for n in looks), "95%", "seeds", *COSTS]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    blank = [""] * (len(looks) - 1)

    def line(name: str, *columns: str) -> None:
        rest = [""] * (len(head) - 1 - len(columns))
        lines.append("| " + " | ".join([name, *columns, *rest]) + " |")

    for name, rate in fixed.items():
        low, high = wilson(rate * options.tasks, options.tasks)
        line(name, "", *blank, f"{rate:.1%}", f"{low:.1%} - {high:.1%}")
    asked = len(options.seeds.split(","))
    for name, arm in told.items():
        seeds, failed = list(arm["seeds"].values()), arm["failed"]
        count = f"{len(seeds)}" if len(seeds) == asked else f"**{len(seeds)} of {asked}**"
        if failed:
            count += f", {len(failed)} failed ({next(iter(failed.values()))[:80]})"
        if not seeds:
            line(f"`{name}`", f"{arm['rate']:g}", *blank, "", "", count)
            continue
        columns = list(zip(*seeds, strict=True))
        whole = columns[-1]
        alone = len(seeds) == 1  # says nothing of other seeds, but something of other tasks
        low, high = wilson(whole[0] * options.tasks, options.tasks) if alone else interval(whole)
        line(
            f"`{name}`",
            f"{arm['rate']:g}",
            *(f"{statistics.fmean(column):.1%}" for column in columns),
            f"{low:.1%} - {high:.1%}",
            count,
            *(f"{arm['costs'][-1][cost]:,.0f}" for cost in COSTS),
        )
    for name in options.arms.split(","):
        if known_arms[name].needs:
            line(f"`{name}`", *blank, "", "", "", f"not run: needs {known_arms[name].needs}")
    return "\n".join(lines)


def draw(path: Path, fixed: Mapping[str, float], told: Mapping[str, Mapping[str, Any]]) -> None:
    """Success against tokens written and against time."""
    figure, panes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    colours = pyplot.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for pane, axis, names in (
        (panes[0], "tokens that student and teacher wrote", COSTS[:2]),
        (panes[1], "CPU seconds of training", COSTS[3:4]),
    ):
        shown = [(name, arm) for name, arm in told.items() if arm["seeds"]]
        for i, (name, arm) in enumerate(shown):
            x = [0.0, *(sum(look[cost] for cost in names) for look in arm["costs"])]
            columns = list(zip(*arm["seeds"].values(), strict=True))
            y = [fixed["student before"], *map(statistics.fmean, columns)]
            spans = [(y[0], y[0]), *map(interval, columns)]
            colour = colours[i % len(colours)]
            pane.plot(x, y, marker="o", markersize=3, color=colour, label=name)
            pane.fill_between(x, *zip(*spans, strict=True), color=colour, alpha=0.1, linewidth=0)
        pane.axhline(fixed["teacher"], color="grey", linestyle=":", linewidth=1)
        pane.set(xlabel=axis, ylim=(0, 1.02))
    panes[0].set_ylabel("held-out success")
    panes[1].legend(fontsize=8, loc="lower right", ncols=2)
    figure.savefig(path, dpi=110)


def options_of(known_arms: Mapping[str, Arm], argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--png", type=Path, help="draw them to this file")
    parser.add_argument("--arms", default=",".join(known_arms), help="default: %(default)s")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--rates", help="choose each arm's of these (default: by family)")
    parser.add_argument("--steps", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--looks", type=int, default=4, help="on the way: %(default)s")
    parser.add_argument("--tasks", type=int, default=300, help="held out: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("runs/methods"))
    parser.add_argument("--table", action="store_true", help="run nothing, tell what is there")
    options = parser.parse_args(argv)
    if unknown := set(options.arms.split(",")) - known_arms.keys():
        told = ", ".join(sorted(unknown))
        parser.error(f"--arms: unknown {told}; there are {', '.join(known_arms)}")
    least = options.looks * ROWS // BATCH
    if options.looks < 1 or options.steps < least or options.steps % least:
        parser.error(f"--steps: expected a multiple of {max(least, ROWS // BATCH)}")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Run every arm with every seed, print the table."""
    known_arms = arms()
    options = options_of(known_arms, argv)
    torch.set_num_threads(1)
    folder = options.folder.resolve()
    names = [name for name in options.arms.split(",") if not known_arms[name].needs]

    def cell(name: str, seed: int, rate: float, split: str) -> Cell:
        how = (options.steps, options.looks, options.tasks)
        return Cell(name, known_arms[name].overrides, seed, rate, *how, split, folder)

    def look_at(cells: Sequence[Cell], what: str) -> Mapping[Cell, Rows | str | None]:
        if options.table:
            return {it: known(it) for it in cells}
        return run(cells, options.jobs, what)

    best = {name: (-1.0, RATES[known_arms[name].family]) for name in names}
    if options.rates:
        rates = [float(rate) for rate in options.rates.split(",")]
        tried = [cell(name, TUNING_SEED, rate, "validation") for name in names for rate in rates]
        for it, rows in look_at(tried, "rates").items():
            if isinstance(rows, list):
                best[it.arm] = max(best[it.arm], (rows[-1]["success"], it.rate))
    seeds = [int(seed) for seed in options.seeds.split(",")]
    # Seed by seed: a run that is cut short has as many of every arm.
    cells = [cell(name, seed, best[name][1], "test") for seed in seeds for name in names]
    fixed = bounds(Cell("", (), 0, 0.0, 0, 1, options.tasks, "test", folder))
    told = summarise(look_at(cells, "seeds"))
    print(f"\n{table(fixed, told, known_arms, options)}")
    if options.json:
        needed = {name: known_arms[name].needs for name in options.arms.split(",")}
        figures = {"machine": machine(), "fixed": fixed, "arms": told, "needs": needed}
        write_atomically(options.json, (json.dumps(figures, indent=2) + "\n").encode())
    if options.png:
        draw(options.png, fixed, told)


if __name__ == "__main__":
    main()
