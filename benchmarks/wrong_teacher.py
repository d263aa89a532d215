"""Does credit let a student pass a teacher that is wrong on one family of tasks?

    python benchmarks/wrong_teacher.py [--arms A,B] [--students S,T] [--seeds 0,1,2] [--steps N]
        [--jobs N] [--table] [--json FILE] [--folder RUNS]

The embedded teacher is taught a lazy habit: asked to cancel two orders, it cancels the first and
says that it is done. Everywhere else it is right. A student then learns on the order desk, from as
many rows in every arm: by on-policy distillation with traces (`trace`), with credit measured in
trees (`gated`), and by controls that ask no teacher, or trust it blindly and add the outcome. The
embedded student knows the family beforehand; `unknowing` is the same, shaken until it does not.

Runs resume if they are interrupted, and finished ones are not run again; `--table` runs nothing and
tells what is there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness.cells import ON_POLICY, Cell, Exam, known, learn, load, run
from harness.filtered import FILTERED
from harness.ingredients import Shaken, Window, make_once
from harness.planted import FAMILIES, LAZY
from harness.results import Results, percent, read_references, references, table
from harness.statistics import lead, mean

from journeyman.agents.evaluation.report import write_atomically
from journeyman.agents.runs.folder import machine

ORDERS = "journeyman/Orders-v0"
WRONG = next(env_id for env_id in LAZY if "Orders" in env_id)
_JUDGED = ("loss=forward_kl",)
_GATED = (*_JUDGED, "credit=gated", "search=credit", "search.rows=4", "search.trajectories=1")
ARMS = {
    "trace": (*_JUDGED, "credit=trace"),
    "gated": _GATED,
    # Without a part of it each: the teacher's call alone is tried, and the student plays on; the
    # teacher is followed wherever the student fails as well.
    "call": (*_GATED, "search.follow=false"),
    "no_bar": (*_GATED, "credit.bar=0"),
    # Controls. The first three hear no teacher, the others all that it says.
    "filtered": FILTERED,
    "grpo": ("method=grpo",),
    "negative": ("method=negative",),
    "opd_outcome": ("loss=sampled", "credit=outcome"),
    "forward_outcome": (*_JUDGED, "credit=outcome"),
}
DEFAULT = "trace,gated,filtered,grpo,negative,opd_outcome,forward_outcome"
ALONE = ("filtered", "grpo", "negative")
RATE, RATE_ALONE = 1e-3, 3e-4
"""Learning rates, and of those that learn from outcomes alone; none was tuned."""
UNKNOWING = Window(0.2, 0.6, 0.0, 0.15)
"""What the student that does not know the family may solve elsewhere, and of the family."""
STUDENTS = ("knowing", "unknowing")


def exam(tasks: int, split: str = "test") -> Exam:
    """So many tasks of the family, and as many others."""
    return Exam((ORDERS,), split, 2 * tasks, families=((ORDERS, FAMILIES[ORDERS]),))


def lazy_teacher(folder: Path, steps: int) -> Path:
    """Teach the embedded teacher its habit; returns the model's folder."""
    model = folder / "teacher" / "model"
    if not model.exists():
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
    return model


def student(name: str, folder: Path, strict: bool) -> str:
    """The model that arms begin with; one that does not know the family is made once."""
    if name == "knowing":
        return "embedded-student"
    window = UNKNOWING if strict else Window()
    recipe = Shaken("embedded-student", exam(100 if strict else 4, "validation"), window)
    make_once(folder / "unknowing", recipe)
    return str(folder / "unknowing" / "model")


def main(argv: Sequence[str] | None = None) -> None:
    """Teach the habit, run every arm with every seed, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument(
        "--arms", default=DEFAULT, help=f"of {', '.join(ARMS)} (default: %(default)s)"
    )
    parser.add_argument("--students", default=",".join(STUDENTS), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=144, help="default: %(default)s")
    parser.add_argument("--habit-steps", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--tasks", type=int, default=200, help="for each test: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side: %(default)s")
    parser.add_argument("--any-student", action="store_true", help="however much it knows")
    parser.add_argument("--table", action="store_true", help="run nothing, tell what is there")
    parser.add_argument("--folder", type=Path, default=Path("runs/wrong_teacher"))
    options = parser.parse_args(argv)
    arms, students = options.arms.split(","), options.students.split(",")
    for name, given, there in (("arms", arms, ARMS), ("students", students, STUDENTS)):
        if unknown := [it for it in given if it not in there]:
            parser.error(f"--{name}: no {', '.join(unknown)}; there are {', '.join(there)}")
    torch.set_num_threads(1)
    folder = options.folder.resolve()
    told = {name: study(name, folder, arms, options) for name in students}
    if options.json:
        figures = {"machine": machine(), "students": told}
        write_atomically(options.json, (json.dumps(figures, indent=2) + "\n").encode())


def study(
    name: str, folder: Path, arms: Sequence[str], options: argparse.Namespace
) -> dict[str, Any]:
    """All arms of one student; returns what it prints as figures."""
    tests, seeds = exam(options.tasks), [int(seed) for seed in options.seeds.split(",")]
    teacher, model = str(folder / "teacher" / "model"), str(folder / "unknowing" / "model")
    file = folder / name / f"references-{options.tasks}.json"
    if not options.table:
        teacher = str(lazy_teacher(folder, options.habit_steps))
        model = student(name, folder, strict=not options.any_student)
        players = {"teacher": teacher, "student before": model}
        references(file, tests, {who: partial(load, it, tests) for who, it in players.items()})
    elif name == "knowing":
        model = "embedded-student"

    def cell(arm: str, seed: int) -> Cell:
        given = [
            *ARMS[arm],
            *ON_POLICY,
            f"env.ids=[{ORDERS}]",
            f"student.model={model}",
            *(() if arm in ALONE else (f"teacher.model={teacher}",)),
        ]
        rate = RATE_ALONE if arm in ALONE else RATE
        return Cell(arm, tuple(given), seed, rate, options.steps, tests, folder / name)

    cells = [cell(arm, seed) for seed in seeds for arm in arms]
    if options.table:
        ran = {it: rows for it in cells if (rows := known(it)) is not None}
    else:
        ran = dict(run(cells, options.jobs, name))
    trained = {
        arm: Results(
            {
                it.seed: rows
                for it, rows in ran.items()
                if it.arm == arm and not isinstance(rows, str)
            },
            cell(arm, seeds[0]),
            seeds,
            {it.seed: rows for it, rows in ran.items() if it.arm == arm and isinstance(rows, str)},
        )
        for arm in arms
    }
    return report(name, read_references(file), trained, tests.in_family())


def report(
    name: str, fixed: Mapping[str, Any], trained: Mapping[str, Results], family: Sequence[bool]
) -> dict[str, Any]:
    """The table: the family that the teacher gets wrong, all else, and what it cost."""
    print(f"\n### The {name} student\n\n{table(fixed, trained, family)}\n")
    figures: dict[str, Any] = {"before": {who: mean(it) for who, it in fixed.items()}, "arms": {}}
    for arm, found in trained.items():
        figures["arms"][arm] = {"seeds": found.runs, "failed": found.failed}
        if found.runs and arm != "gated" and trained.get("gated") and trained["gated"].runs:
            seeds = sorted(found.runs.keys() & trained["gated"].runs.keys())
            if seeds:
                ahead = lead(
                    trained["gated"].outcomes(seeds=seeds), {arm: found.outcomes(seeds=seeds)}
                )
                figures["arms"][arm]["gated ahead"] = ahead
                print(f"gated is ahead of {arm} by {percent(ahead, '+')} of all")
    return figures


if __name__ == "__main__":
    main()
