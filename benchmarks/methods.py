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
import importlib.resources
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness.cells import (
    BATCH,
    ON_POLICY,
    ROWS,
    Cell,
    Exam,
    Rows,
    composed,
    examine,
    known,
    load,
    run,
)
from harness.costs import COSTS
from harness.drawing import Line, Pane, draw
from harness.statistics import interval
from omegaconf import DictConfig, OmegaConf

from journeyman.agents.evaluation.intervals import wilson
from journeyman.agents.evaluation.report import write_atomically
from journeyman.agents.runs.folder import machine
from journeyman.agents.students.player import Player
from journeyman.agents.students.scripted import ScriptedPlayer, no_op, oracle

ENVS = ("journeyman/Bank-v0", "journeyman/Orders-v0", "journeyman/Calendar-v0")
TUNING_SEED = 99
"""Learning rates are chosen with it, and it is never reported."""
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


class Arm(NamedTuple):
    """One way to learn."""

    what: str
    overrides: tuple[str, ...]
    family: str
    """A key of `RATES`."""
    needs: str
    """What it asks for that the embedded pair has not; "" if nothing."""


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
    return {name: _arm(*it) for name, it in (told | CREDIT).items()}


def _arm(what: str, overrides: tuple[str, ...]) -> Arm:
    config = composed(overrides)
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


def bounds(exam: Exam, folder: Path) -> dict[str, float]:
    """Success of who does not learn, on the same tasks."""
    file = folder / f"bounds-{exam.name}.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        student, teacher = load("embedded-student", exam), load("embedded-teacher", exam)
        players: dict[str, Player] = {
            "no-op": ScriptedPlayer(student.dialect, no_op),
            "oracle": ScriptedPlayer(student.dialect, oracle),
            "student before": student,
            "teacher": teacher,
        }
        rates = {name: statistics.fmean(examine(it, exam)) for name, it in players.items()}
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


def panes(fixed: Mapping[str, float], told: Mapping[str, Mapping[str, Any]]) -> list[Pane]:
    """Success against tokens written and against time."""
    return [
        Pane("", axis, {name: _line(fixed, arm, names) for name, arm in told.items()}, levels)
        for levels in [{"teacher": fixed["teacher"]}]
        for axis, names in (
            ("tokens that student and teacher wrote", COSTS[:2]),
            ("CPU seconds of training", COSTS[3:4]),
        )
    ]


def _line(fixed: Mapping[str, float], arm: Mapping[str, Any], names: Sequence[str]) -> Line:
    start = fixed["student before"]
    columns = list(zip(*arm["seeds"].values(), strict=True))
    spans = [(start, start), *map(interval, columns)]
    low, high = zip(*spans, strict=True)
    x = [0.0, *(sum(look[cost] for cost in names) for look in arm["costs"])]
    return Line(x, [start, *map(statistics.fmean, columns)], low, high)


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
        exam = Exam(ENVS, split, options.tasks)
        arm = known_arms[name].overrides
        return Cell(name, arm, seed, rate, options.steps, exam, folder, options.looks)

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
    fixed = bounds(Exam(ENVS, "test", options.tasks), folder)
    told = summarise(look_at(cells, "seeds"))
    print(f"\n{table(fixed, told, known_arms, options)}")
    if options.json:
        needed = {name: known_arms[name].needs for name in options.arms.split(",")}
        figures = {"machine": machine(), "fixed": fixed, "arms": told, "needs": needed}
        write_atomically(options.json, (json.dumps(figures, indent=2) + "\n").encode())
    if options.png:
        shown = {name: arm for name, arm in told.items() if arm["seeds"]}
        draw(options.png, [panes(fixed, shown)])


if __name__ == "__main__":
    main()
