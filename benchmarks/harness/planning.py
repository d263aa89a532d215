"""The cells of a study, the models they begin with, and what all of it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path

import torch

from harness.cells import BATCH, ON_POLICY, ROWS, Cell, Exam, attempt, die_with_parent, known, load
from harness.costs import written
from harness.design import Arm, Design, Regime, Scale
from harness.ingredients import Shaken, Taught, is_made, make_once, told_of
from harness.planted import OFFICE, TOLD
from harness.results import references
from journeyman.agents.students.player import Player
from journeyman.agents.students.scripted import ScriptedPlayer, no_op, oracle

TUNING_SEED = 99
"""Rates are chosen with it, and it is never reported."""
TUNED_ON = 100
"""Validation tasks by which they are chosen."""
GOLD_ROW = 67.0
"""Gold tokens of a task of the easy level."""
READER = "reader_"
"""Before a regime's name: its student, taught to read hints."""

Chosen = Mapping[str, Mapping[str, Sequence[int]]]
"""Seeds by regime and arm."""


@dataclass(frozen=True)
class Study:
    """A design at a scale, in a folder."""

    design: Design
    folder: Path
    scale: Scale
    tuned: bool = True
    """Whether rates are chosen; else the middle ones stand."""

    def regime(self, name: str) -> Regime:
        """By name."""
        return self.design.regimes[name]

    def arm(self, name: str) -> Arm:
        """By name."""
        return self.design.arms[name]

    # Models

    @cached_property
    def recipes(self) -> dict[str, Taught | Shaken]:
        """Of the ingredients, and of students that read hints, one a regime."""
        made = dict(self.design.ingredients(self.scale))
        for name, regime in self.design.regimes.items():
            steps = regime.budget / 2 / (BATCH * GOLD_ROW * regime.longer)
            made[f"{READER}{name}"] = Taught(
                regime.student,
                (
                    f"env.ids=[{','.join(TOLD)}]",
                    f"split=train{regime.level}",
                    *("trainer.hint=answer", "trainer.error_rate=0.2"),
                ),
                self.scale.steps(round(steps)),
                3e-3,
                regime.exam("validation", 60 if self.scale.strict else 6),
            )
        return made

    def needs(self, regime: str, arms: Iterable[str]) -> list[str]:
        """Ingredients of a regime, readers last."""
        it = self.regime(regime)
        reads = any(self.arm(name).reads_hints for name in arms)
        wanted = [it.student, it.teacher or "", *([f"{READER}{regime}"] if reads else [])]
        return [name for name in wanted if name in self.recipes]

    def make(self, name: str) -> None:
        """Make an ingredient if it is not there."""
        recipe = self.recipes[name]
        if isinstance(recipe, Taught) and recipe.start in self.recipes:
            self.make(recipe.start)
            recipe = replace(recipe, start=self.model(recipe.start))
        make_once(self.place(name), recipe)

    def left(self, regime: str, arms: Mapping[str, Sequence[int]]) -> bool:
        """Whether anything of a regime is still to be run."""
        tuning = [it for arm in arms for it in self.tuning(regime, arm)] if self.tuned else []
        reports = [it.report for it in (*tuning, *self.cells(regime, arms))]
        return not all(file.exists() for file in (self.reference_file(regime), *reports))

    def place(self, name: str) -> Path:
        """Where an ingredient lies."""
        return self.folder / "ingredients" / name

    def is_made(self, name: str) -> bool:
        """Whether an ingredient is there."""
        return is_made(self.place(name))

    def model(self, name: str) -> str:
        """A model's name or folder, whether it is there or not."""
        return str(self.place(name) / "model") if name in self.recipes else name

    def reference_file(self, regime: str) -> Path:
        """What is known of who does not learn."""
        return self.folder / regime / f"references-{self.scale.tasks}.json"

    # Cells

    def exam(self, regime: str) -> Exam:
        """By which a regime's cells are reported."""
        return self.regime(regime).exam("test", self.scale.tasks, self.scale.looked)

    def cell(self, regime: str, arm: str, seed: int) -> Cell:
        """A cell that is reported."""
        rate, tokens = self.choice(regime, arm)
        budget = self.regime(regime).budget * self.scale.share
        return self._cell(regime, arm, seed, rate, tokens, budget, self.exam(regime))

    def cells(self, regime: str, arms: Mapping[str, Sequence[int]]) -> list[Cell]:
        """Those that are reported, of some arms and their seeds."""
        return [self.cell(regime, arm, seed) for arm, seeds in arms.items() for seed in seeds]

    def tuning(self, regime: str, arm: str) -> list[Cell]:
        """The cells by which a rate is chosen, with half of the budget."""
        it, scale = self.regime(regime), self.scale
        exam = it.exam("validation", min(TUNED_ON, scale.tasks))
        budget, tokens = it.budget * scale.share / 2, self.arm(arm).tokens * it.longer
        return [
            self._cell(regime, arm, TUNING_SEED, rate, tokens, budget, exam)
            for rate in self.design.rates[self.arm(arm).family]
        ]

    def tried(self, regime: str, arm: str) -> dict[float, float]:
        """Success by learning rate, as far as rates were tried."""
        cells = self.tuning(regime, arm)
        return {cell.rate: rows[-1]["success"] for cell in cells if (rows := known(cell))}

    def choice(self, regime: str, arm: str) -> tuple[float, float]:
        """Learning rate, and tokens of a row: as tuned, or as they are before."""
        middle = self.design.rates[self.arm(arm).family][1]
        tried = {cell: known(cell) for cell in self.tuning(regime, arm)} if self.tuned else {}
        rows = {cell: found for cell, found in tried.items() if found}
        if not rows or len(rows) < len(tried):
            return middle, self.arm(arm).tokens * self.regime(regime).longer
        best = max(rows, key=lambda cell: (rows[cell][-1]["success"], cell.rate == middle))
        spent = written(rows[best][-1]) - best.gold
        return best.rate, spent / (best.steps * BATCH)

    def _cell(
        self,
        regime: str,
        arm: str,
        seed: int,
        rate: float,
        tokens: float,
        budget: float,
        exam: Exam,
    ) -> Cell:
        it, how = self.regime(regime), self.arm(arm)
        gold, student = 0.0, it.student
        if how.reads_hints:
            student = f"{READER}{regime}"
            made = told_of(self.place(student))
            gold = min(made.gold if made else budget, budget / 2)
        # A gold program does not try again what a fault has lost: it is shown without any.
        ids = TOLD if how.reads_hints else it.ids if how.plays else OFFICE
        whole = ROWS // BATCH
        steps = whole * max(1, round((budget - gold) / (tokens * BATCH) / whole))
        overrides = (
            *how.overrides,
            *(ON_POLICY if how.plays else ()),
            f"env.ids=[{','.join(ids)}]",
            f"split=train{it.level}",
            f"student.model={self.model(student)}",
            *((f"teacher.model={self.model(it.teacher)}",) if how.teacher and it.teacher else ()),
        )
        looks = self.scale.looks if exam.looked else 1
        where = self.folder / regime
        return Cell(arm, overrides, seed, rate, steps, exam, where, looks, gold, tidy=True)

    def seconds_of(self, cell: Cell) -> float:
        """CPU seconds that a cell is expected to take, one thread on a quiet machine.

        Seconds of a thousand tokens (`Arm.seconds`) and of a task of an exam
        (`Regime.exam_seconds`) were measured as CPU time of a process (`cpu_seconds` of
        `metrics.jsonl`). Other work beside it raises that by what shared caches and cores cost, so
        that a quiet machine takes no longer.
        """
        regime, arm = self.regime(cell.folder.name), self.arm(cell.arm)
        trained = cell.steps * BATCH * arm.tokens * regime.longer * arm.seconds / 1000
        examined = cell.exam.tasks + (len(cell.at) - 1) * cell.exam.looked
        return 5 + trained + examined * regime.exam_seconds

    def seconds_to_make(self, name: str) -> float:
        """CPU seconds that an ingredient is expected to take."""
        if name in self.design.making:
            return self.design.making[name]
        it, steps = self.regime(name.removeprefix(READER)), self.recipes[name]
        assert isinstance(steps, Taught)
        shown = steps.steps * BATCH * GOLD_ROW * it.longer / 1000
        return 10 + shown + 60 * it.exam_seconds


def prepare(study: Study, name: str) -> None:
    """Make an ingredient; or, of a regime's name, examine who does not learn in it."""
    torch.set_num_threads(1)
    if name not in study.design.regimes:
        study.make(name)
        return
    regime, exam = study.regime(name), replace(study.exam(name), looked=0)
    dialect = load("embedded-student", exam).dialect
    students = {"student before": regime.student, "teacher": regime.teacher}

    def loaded(model: str) -> Player:
        return load(study.model(model), exam)

    references(
        study.reference_file(name),
        exam,
        {
            "no-op": lambda: ScriptedPlayer(dialect, no_op),
            "oracle": lambda: ScriptedPlayer(dialect, oracle),
            **{who: partial(loaded, model) for who, model in students.items() if model},
        },
    )


def prepare_all(study: Study, names: Sequence[str], jobs: int) -> dict[str, str]:
    """Prepare what does not hang on each other, side by side; what failed, by name."""
    failed: dict[str, str] = {}
    left = [
        name for name in names if not (study.reference_file(name).exists() or study.is_made(name))
    ]
    work = partial(prepare, study)

    def tell(name: str, told: str | None) -> None:
        if told:
            failed[name] = told
        print(f"{name}: {told or 'is there'}", flush=True)

    def log_of(name: str) -> Path:
        return study.folder / "ingredients" / f"{name}.log"

    if jobs == 1:
        for name in left:
            tell(name, attempt(work, name, log_of(name)))
        return failed
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=die_with_parent) as pool:
        asked = {pool.submit(attempt, work, name, log_of(name)): name for name in left}
        for future in as_completed(asked):
            tell(asked[future], future.result())
    return failed


def plan(study: Study, chosen: Chosen) -> str:
    """Everything that is to be done, with its seconds, and the total."""
    rows: list[tuple[str, float, bool]] = []
    wanted = (name for regime, arms in chosen.items() for name in study.needs(regime, arms))
    for name in dict.fromkeys(wanted):
        rows.append((f"model {name}", study.seconds_to_make(name), study.is_made(name)))
    for regime, arms in chosen.items():
        both = 2 * study.scale.tasks * study.regime(regime).exam_seconds
        rows.append((f"{regime}: not learning", both, study.reference_file(regime).exists()))
        tuning = [it for arm in arms for it in study.tuning(regime, arm)] if study.tuned else []
        for cell in (*tuning, *study.cells(regime, arms)):
            name = f"{regime}/{cell.arm}/{cell.seed} at {cell.rate:g}, {cell.steps} steps"
            rows.append((name, study.seconds_of(cell), cell.report.exists()))
    lines = [f"{took:7,.0f} s  {name}{'  (is there)' * done}" for name, took, done in rows]
    whole = sum(took for _, took, _ in rows)
    left = sum(took for _, took, done in rows if not done)
    lines.append(
        f"\n{len(rows)} pieces of work, {whole:,.0f} s of one core: {whole / 7200:.1f} hours of "
        f"two; {left / 7200:.1f} of them are left."
    )
    if study.tuned:
        lines.append(f"Cells of seed {TUNING_SEED} choose rates, and are not reported.")
    return "\n".join(lines)
