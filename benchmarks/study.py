"""When does credit pay? One study, whose arms, budgets and comparisons stand here before it runs.

    python benchmarks/study.py [--jobs 2]           # models, rates, every cell, the table: hours
    python benchmarks/study.py --plan               # every cell with its seconds, and the total
    python benchmarks/study.py --table              # run nothing, tell what is there
    python benchmarks/study.py --tune               # learning rates alone, and how each did
    python benchmarks/study.py --cells C/gated/0    # one cell anew
    python benchmarks/study.py --regimes C,E --arms kd,gated --seeds 0

A cell is a regime, an arm and a seed: a run of `journeyman train` in a folder of its own. Any
command goes on where another was killed: finished cells are read back, others continue from their
last checkpoint. What ran on other machines is in `ARCHIVE` and counts as run; what runs here is
added. Regimes are in `REGIMES`, arms in `ARMS`, what is asked of each regime is in `PRIMARY`,
and what was asked later, once some were read, in `LATER`; docs/study.md says what came out.

Arms cost the same: tokens that student and teacher write, gold tokens that are shown included. The
rate of each arm is the best of its family's three (`RATES`) at half of the budget, on validation
tasks, with a seed that is not reported; what a row costs is measured there too, and sets the steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from harness.archive import Archive
from harness.cells import Cell, known, run
from harness.design import Arm, Comparison, Design, Regime, Scale
from harness.drawing import draw
from harness.filtered import FILTERED
from harness.ingredients import Shaken, Taught, Window
from harness.planning import READER, TUNING_SEED, Chosen, Study, plan, prepare_all
from harness.planted import FAMILIES, FAULTY, LAZY
from harness.results import Results, panes, read_references, section

from journeyman.agents.evaluation.report import write_atomically
from journeyman.agents.learning.trainers.callbacks import read_metrics
from journeyman.agents.runs.folder import machine

_TREES = ("search=credit", "search.rows=4", "search.trajectories=1")
_JUDGED = ("loss=forward_kl", "credit=gated")
_GATED = (*_JUDGED, *_TREES)
RATES = {
    "supervised": (5e-4, 1e-3, 2e-3),
    "forward": (5e-4, 1e-3, 2e-3),
    "reverse": (3e-4, 1e-3, 2e-3),
    "outcome": (1e-4, 3e-4, 1e-3),
    "loose": (3e-4, 1e-3, 2e-3),
}
"""Candidates by family of losses: the trainers' own rate and one on each side, lower where outcomes
alone are learned from. The middle one stands until rates are tuned."""
_HELD = ("trainer.kl=0.5", "trainer.advantages=none")
_LOOSE = ("trainer.kl=0.05", "trainer.advantages=batch")
_ALONE = ("teacher=none", "loss=none", "search=credit", "search.tries=0", "credit=reinforce")
_TREE_COST = {"tokens": 98.0, "seconds": 0.85}
ARMS = {
    # Who plays is the teacher, or nobody: the student never sees its own mistakes.
    "sft": Arm(
        "gold episodes",
        ("method=sft",),
        "supervised",
        teacher=False,
        plays=False,
        tokens=67,
        seconds=1.0,
    ),
    "kd": Arm("forward KL on the teacher's episodes", ("method=kd",), "forward", tokens=67),
    # The student plays, the teacher judges.
    "opd": Arm("sampled reverse KL", ("method=opd",), "reverse"),
    "opd_forward": Arm("forward KL", ("loss=forward_kl",), "forward"),
    "trace": Arm("forward KL by trace", ("loss=forward_kl", "credit=trace"), "forward"),
    "sod": Arm("SOD: far steps weigh less", ("method=sod",), "reverse"),
    "opd_outcome": Arm(
        "sampled reverse KL plus the outcome", ("loss=sampled", "credit=outcome"), "reverse"
    ),
    # The student plays, nobody judges but the task.
    "filtered": Arm("own successes, imitated", FILTERED, "outcome", teacher=False),
    "grpo": Arm("GRPO, 8 episodes a task", ("method=grpo", *_HELD), "outcome", teacher=False),
    "negative": Arm(
        "a constant negative advantage", ("method=negative",), "outcome", teacher=False
    ),
    "credit": Arm(
        "advantages from trees alone",
        (*_ALONE, *_HELD, "search.rows=4", "search.trajectories=1"),
        "outcome",
        teacher=False,
        **_TREE_COST,
    ),
    # After D was read: a tenth as near to where they began, advantages of one size.
    "loose_grpo": Arm("GRPO, loose", ("method=grpo", *_LOOSE), "loose", teacher=False),
    "loose_credit": Arm(
        "advantages from trees alone, loose",
        (*_ALONE, *_LOOSE, "search.rows=4", "search.trajectories=1"),
        "loose",
        teacher=False,
        **_TREE_COST,
    ),
    "loose_whole": Arm(
        "advantages from 8 whole episodes as a tree, loose",
        (*_ALONE, *_LOOSE, "values=gradient", "search.rows=8", "search.trajectories=8"),
        "loose",
        teacher=False,
    ),
    # Credit: where to trust the teacher, and what to reinforce, measured in trees.
    "gated": Arm(
        "trace, gated, with advantages from trees, rows as they were played",
        (*_GATED, "credit.reach=false"),
        "forward",
        **_TREE_COST,
    ),
    "gated_gradient": Arm(
        "gated, rows weighed by reach, the budget where the gradient needs it",
        (*_GATED, "values=gradient"),
        "forward",
        **_TREE_COST,
    ),
    # After A, C, D and E were read, in which a tree of 4 rows a task had a quarter of the tasks.
    "gate": Arm(
        "trace, gated by a try of the teacher in each task, no search",
        (*_JUDGED, "search=credit", "search.rows=1", "search.trajectories=1"),
        "forward",
        **_TREE_COST,
    ),
    # The student is its own teacher; what it says with the answer in sight is tried out first.
    "self": Arm(
        "itself with the answer as hint, verified",
        (*_GATED, "teacher=self", "teacher.hint=answer"),
        "forward",
        teacher=False,
        reads_hints=True,
        **_TREE_COST,
    ),
}
OURS = "gated_gradient"
UNTAUGHT = ("sft", "filtered", "grpo", "negative", "credit", "self")
HARDLY_HELD = ("filtered", "loose_grpo", "loose_credit", "loose_whole")
LONG = ("opd_forward", "opd_outcome", "filtered", "grpo", "gated_gradient", "gate")
TAUGHT = tuple(
    name for name, it in ARMS.items() if name not in ("credit", "gate") and it.family != "loose"
)
WITH_GATE = (*TAUGHT, "gate")


REGIMES = {
    "A": Regime(
        "a teacher that is right", "embedded-student", "embedded-teacher", WITH_GATE, seeds=3
    ),
    "B": Regime(
        "a teacher that is right four times in five", "embedded-student", "early_teacher", WITH_GATE
    ),
    # More tokens: the student has everything to learn, and one family against its teacher.
    "C": Regime(
        "a teacher that is wrong on one family of each domain, a student weak everywhere",
        "weak_student",
        "lazy_teacher",
        WITH_GATE,
        families=tuple(FAMILIES.items()),
        budget=52_000,
    ),
    "D": Regime("no teacher", "embedded-student", None, UNTAUGHT, seeds=3),
    "E": Regime(
        "hard tasks of 8 to 12 calls, a narrow student",
        "narrow_student",
        "hard_teacher",
        TAUGHT,
        level="/hard",
        max_turns=16,
        max_context=960,
        budget=52_000,
        longer=2.4,
        exam_seconds=0.11,
    ),
    # One turn in five is lost to a fault: as much more room to play.
    "F": Regime(
        "tools that fail by dice",
        "embedded-student",
        "embedded-teacher",
        WITH_GATE,
        ids=FAULTY,
        max_turns=12,
        longer=1.3,
        exam_seconds=0.035,
    ),
    # Planned after D was read, in which none that is held so much gets away from its beginning.
    "G": Regime("no teacher, and hardly held", "embedded-student", None, HARDLY_HELD),
    # Planned after C was read, which ended long before its teacher was what held anybody back, and
    # after three of the arms had been tried at this length with the seed that chooses rates.
    "H": Regime(
        "as in C, three times as long",
        "weak_student",
        "lazy_teacher",
        LONG,
        families=tuple(FAMILIES.items()),
        budget=156_000,
    ),
    # Planned after E was read, in which those who play had 16 steps, and after these arms had been
    # tried at ten times its length, each once, with the seed that chooses rates. A third,
    # `opd_forward`, was stopped half way there: it played worse than at first.
    "I": Regime(
        "as in E, six times as long",
        "narrow_student",
        "hard_teacher",
        ("kd", "trace"),
        level="/hard",
        max_turns=16,
        max_context=960,
        budget=312_000,
        longer=2.4,
        exam_seconds=0.11,
    ),
}


PRIMARY = {
    "A": Comparison(OURS, ("kd", "opd", "opd_forward"), -0.05, "with a right teacher credit has "
                    "nothing to add: it must not cost much"),
    "B": Comparison(OURS, ("kd", "opd", "opd_forward", "opd_outcome"), 0.0, "credit says where the "
                    "teacher is to be trusted"),
    "C": Comparison(OURS, ("opd_outcome", "grpo", "filtered"), 0.10, "neither imitation nor reward "
                    "alone suffices"),
    "D": Comparison("credit", ("grpo", "filtered"), 0.0, "values of steps against outcomes of "
                    "episodes, where there is nothing else"),
    "E": Comparison("opd_forward", ("kd",), 0.0, "the same loss on the student's own episodes and "
                    "on the teacher's: only who plays differs"),
    "F": Comparison(OURS, ("opd", "opd_forward", "opd_outcome"), 0.0, "credit averages dice that "
                    "single episodes take for merit"),
    "G": Comparison("loose_whole", ("loose_grpo", "filtered"), 0.0, "D's question again, of what "
                    "is the better gradient in tabular tasks"),
    "H": Comparison("gate", ("opd_outcome", "grpo", "filtered"), 0.10, "C's question again, once "
                    "a student is as good as its teacher"),
    "I": Comparison("trace", ("kd",), 0.0, "E's question again, with tokens enough for imitation "
                    "to level off, of what learns most there of all that play"),
}  # fmt: skip
"""Success over the exam of 600 tasks after the whole budget; in C half of them are of the families.
Each is one comparison; all else in the tables is there to be looked at."""
LATER = {
    name: Comparison("gate", PRIMARY[name].rivals, PRIMARY[name].least, "the same of a gate that "
                     "leaves a rollout as many tasks as rows")
    for name in "ABCF"
}  # fmt: skip
"""Asked after A, C, D and E were read, and while B and F were under way."""


ARCHIVE = Path(__file__).with_name("study.jsonl")
"""What has been found so far, wherever it ran: a line a cell, an exam or a model that was made."""
FULL, QUICK = Scale(), Scale(0.01, 12, 6, 2, 0.01, strict=False)


def ingredients(scale: Scale) -> dict[str, Taught | Shaken]:
    """The models that the regimes need beside the embedded pair."""
    count = 240 if scale.strict else 12
    easy = REGIMES["A"].exam("validation", count)
    wrong, hard = (REGIMES[name].exam("validation", count) for name in "CE")
    lazy, level = f"env.ids=[{','.join(LAZY)}]", "split=train/hard"
    return {
        # The embedded student was stopped in the middle of its training: here it goes on for a
        # while, at a rate that stays, and is stopped again.
        "early_teacher": Taught(
            "embedded-student",
            ("trainer.error_rate=0.2",),
            scale.steps(80),
            1e-3,
            easy,
            scale.window(Window(0.75, 0.85)),
            stride=max(1, scale.steps(80) // 20),
        ),
        "lazy_teacher": Taught(
            "embedded-teacher",
            (lazy,),
            # After 120 steps at half of the rate it still invites in half of the cases.
            scale.steps(360),
            1e-3,
            wrong,
            scale.window(Window(0.95, 1.0, 0.0, 0.05)),
        ),
        "weak_student": Shaken(
            "embedded-student",
            wrong,
            scale.window(Window(0.10, 0.40, 0.055, 0.40)),
        ),
        "hard_teacher": Taught(
            "embedded-teacher",
            (level, "trainer.error_rate=0.1"),
            scale.steps(480),
            1e-3,
            hard,
            # It came to 69%: hard tasks stay hard for a model of this size.
            scale.window(Window(0.60, 1.0)),
        ),
        # Of 96 dimensions where its teacher has 160: half of it, 80, is less than the two heads of
        # 32 that copy, and what they write, leave room in.
        "narrow_student": Taught(
            "width:96",
            (level, "trainer.error_rate=0.2", "trainer.args.warmup_steps=50"),
            scale.steps(1400),
            4e-3,
            hard,
            scale.window(Window(0.10, 0.45)),
            stride=max(1, scale.steps(1400) // 28),
        ),
    }


DESIGN = Design(
    ARMS,
    REGIMES,
    RATES,
    PRIMARY,
    ingredients,
    {
        "early_teacher": 160,
        "lazy_teacher": 480,
        "weak_student": 60,
        "hard_teacher": 1500,
        "narrow_student": 2400,
    },
)


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--regimes", default=",".join(REGIMES), help="default: %(default)s")
    parser.add_argument("--arms", default=",".join(ARMS), help="default: %(default)s")
    parser.add_argument("--seeds", help="such as 0,1 (default: 5 of them, and 3 in A and D)")
    parser.add_argument("--cells", help="run these anew: REGIME/ARM/SEED, with commas between")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side: %(default)s")
    parser.add_argument("--untuned", action="store_true", help="take the middle rates")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it is wired")
    parser.add_argument("--folder", type=Path, default=Path("runs/study"))
    parser.add_argument("--archive", type=Path, help=f"default: {ARCHIVE.name}, of the full study")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--png", type=Path, help="draw the curves to this file")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--plan", action="store_true", help="run nothing, tell what would be")
    only.add_argument("--table", action="store_true", help="run nothing, tell what is there")
    only.add_argument("--tune", action="store_true", help="choose rates, and no more")
    only.add_argument("--figures", help="means over steps of these, from the runs that lie here")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: expected 1 or more")
    if options.cells:
        options.chosen = _cells(parser, options.cells)
        return options
    regimes, arms = options.regimes.split(","), options.arms.split(",")
    seeds = [_seed(parser, "--seeds", it) for it in (options.seeds or "").split(",") if it]
    for name, given, there in (("regimes", regimes, REGIMES), ("arms", arms, ARMS)):
        if unknown := [it for it in given if it not in there]:
            parser.error(f"--{name}: no {', '.join(unknown)}; there are {', '.join(there)}")
    options.chosen = {
        regime: {
            arm: seeds or list(range(REGIMES[regime].seeds))
            for arm in REGIMES[regime].arms
            if arm in arms
        }
        for regime in regimes
    }
    return options


def _cells(parser: argparse.ArgumentParser, given: str) -> Chosen:
    chosen: dict[str, dict[str, list[int]]] = {}
    for cell in given.split(","):
        regime, arm, seed = [*cell.split("/"), "", ""][:3]
        if regime not in REGIMES or arm not in REGIMES[regime].arms:
            there = "; ".join(f"{name}: {', '.join(REGIMES[name].arms)}" for name in REGIMES)
            parser.error(f"--cells: expected REGIME/ARM/SEED, not {cell!r}; there are {there}")
        found = chosen.setdefault(regime, {}).setdefault(arm, [])
        found.append(_seed(parser, "--cells", seed))
    return chosen


def _seed(parser: argparse.ArgumentParser, where: str, given: str) -> int:
    if not given.isdecimal() or int(given) == TUNING_SEED:
        parser.error(
            f"{where}: expected seeds as whole numbers, not {given!r} ({TUNING_SEED} chooses rates)"
        )
    return int(given)


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing, tune, run, and tell; 1 if a piece of it failed."""
    options = options_of(argv)
    chosen: Chosen = options.chosen
    scale = QUICK if options.quick else FULL
    study = Study(DESIGN, options.folder.resolve(), scale, not options.untuned)
    kept = options.archive or (None if options.quick or options.untuned else ARCHIVE)
    archive = Archive(kept, study.folder) if kept else None
    if archive is not None and (count := archive.unpack()):
        print(f"{count} findings are taken from {archive.file}")
    if options.plan:
        print(plan(study, chosen))
        return 0
    if options.figures:
        print(figures_of(study, chosen, options.figures.split(",")))
        return 0
    try:
        failed = {} if options.table else work(study, chosen, options)
    finally:
        if archive is not None and (count := archive.pack()):
            print(f"{count} findings are new in {archive.file}")
    if options.tune:
        for regime, arm in ((regime, arm) for regime, arms in chosen.items() for arm in arms):
            rate, tokens = study.choice(regime, arm)
            tried = ", ".join(f"{it:g}: {won:.0%}" for it, won in study.tried(regime, arm).items())
            print(f"{regime}/{arm}: rate {rate:g}, {tokens:.0f} tokens a row ({tried})")
    else:
        tell(study, chosen, options)
    for name, why in failed.items():
        print(f"failed: {name}: {why[:200]}")
    return 1 if failed else 0


def figures_of(study: Study, chosen: Chosen, names: Sequence[str]) -> str:
    """Means of figures of `metrics.jsonl`, over steps that have them and runs that lie here."""
    lines = []
    for regime, arms in chosen.items():
        for arm, seeds in arms.items():
            files = [study.cell(regime, arm, seed).path / "metrics.jsonl" for seed in seeds]
            steps = [step for file in files if file.exists() for step in read_metrics(file)]
            told = [
                f"{name} {statistics.fmean(values):.3f}"
                for name in names
                if (values := [step[name] for step in steps if name in step])
            ]
            lines += [f"{regime}/{arm}: {', '.join(told)}"] if told else []
    return "\n".join(lines) or "no run that lies here has any of them"


def work(study: Study, chosen: Chosen, options: argparse.Namespace) -> dict[str, str]:
    """Run what is left; what failed, by name."""
    torch.set_num_threads(1)
    if options.cells:
        for regime, arms in chosen.items():
            for cell in study.cells(regime, arms):
                shutil.rmtree(cell.path, ignore_errors=True)
    needed = {
        regime: study.needs(regime, arms)
        for regime, arms in chosen.items()
        if study.left(regime, arms)
    }
    names = list(dict.fromkeys(itertools.chain(*needed.values())))
    # Readers, and exams of who does not learn, need the models of the first wave.
    failed = prepare_all(study, [it for it in names if not it.startswith(READER)], options.jobs)
    playable = [regime for regime in needed if not failed.keys() & set(needed[regime])]
    readers = [f"{READER}{regime}" for regime in playable]
    second = [*(it for it in readers if it in names), *playable]
    failed |= prepare_all(study, second, options.jobs)

    def arms_of(regime: str) -> list[str]:
        unread = f"{READER}{regime}" in failed
        return [arm for arm in chosen[regime] if not (unread and ARMS[arm].reads_hints)]

    def play(cells: Sequence[Cell], what: str) -> None:
        for cell, rows in run(cells, options.jobs, what, study.seconds_of).items():
            if isinstance(rows, str):
                failed[f"{cell.folder.name}/{cell.path.name}"] = rows

    if study.tuned:
        play([it for r in playable for arm in arms_of(r) for it in study.tuning(r, arm)], "rates")
    if options.tune:
        return failed
    cells = [
        cell
        for regime in playable
        for cell in study.cells(regime, {arm: chosen[regime][arm] for arm in arms_of(regime)})
    ]
    # Seed by seed: a study that is cut short has as many of every arm.
    play(sorted(cells, key=lambda cell: cell.seed), "cells")
    return failed


def tell(study: Study, chosen: Chosen, options: argparse.Namespace) -> None:
    """Print the tables of what is there, and what is missing; write figures and pictures."""
    figures, pictures, missing, total = {}, [], [], 0
    for regime, seeds in chosen.items():
        arms = {}
        for arm, asked in seeds.items():
            cells = {seed: study.cell(regime, arm, seed) for seed in asked}
            runs = {seed: rows for seed, cell in cells.items() if (rows := known(cell))}
            arms[arm] = Results(runs, next(iter(cells.values())), asked)
            missing += [f"{regime}/{arm}/{seed}" for seed in asked if seed not in runs]
            total += len(asked)
        fixed = read_references(study.reference_file(regime))
        title = f"{regime}: {REGIMES[regime].what}"
        families = study.exam(regime).in_family()
        text, figures[regime] = section(
            title, PRIMARY[regime], LATER.get(regime), fixed, arms, families
        )
        print(text)
        if fixed and any(it.runs for it in arms.values()):
            pictures.append(panes(title, fixed, arms))
    print(f"\n{total - len(missing)} of {total} cells have run.")
    if missing:
        print(f"Missing: {', '.join(missing)}")
    if options.json:
        told = {"machine": machine(), "regimes": figures}
        write_atomically(options.json, (json.dumps(told, indent=1) + "\n").encode())
    if options.png and pictures:
        draw(options.png, pictures)


if __name__ == "__main__":
    raise SystemExit(main())
