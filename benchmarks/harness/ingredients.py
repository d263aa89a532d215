"""Students and teachers whose weaknesses are known, each made once and kept in a folder.

Every recipe ends in a model that is examined on validation tasks. One that is not as weak, or as
strong, as was asked for is refused by its rates, and not used. Training is `journeyman train
trainer=sft`: what is killed goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from harness.cells import COMMON, Exam, composed, examine, gold_tokens, learn, load
from journeyman.agents.evaluation.report import write_atomically
from journeyman.agents.students.hf import load_student
from journeyman.agents.students.settings import remember

FIRST_TASK = 900_000
"""Where their training tasks begin: no arm comes so far."""
FACTORY = Path(__file__).parents[1] / "factory"
TOLD = "made.json"
"""Beside a model: its figures."""


@dataclass(frozen=True)
class Window:
    """What a model's rates must be: of all tasks, and of every family; bounds included."""

    least: float = 0.0
    most: float = 1.0
    family_least: float = 0.0
    family_most: float = 1.0

    def holds(self, rates: dict[str, float]) -> bool:
        """Whether they are; families have their names, `all` and `elsewhere` are the rest."""
        families = [rate for name, rate in rates.items() if name not in ("all", "elsewhere")]
        return self.least <= rates.get("elsewhere", rates["all"]) <= self.most and all(
            self.family_least <= rate <= self.family_most for rate in families
        )


@dataclass(frozen=True)
class Made:
    """A model that was made."""

    rates: dict[str, float]
    """Greedy success on validation tasks: `all`; with families, each one's and `elsewhere`."""
    gold: float
    """Gold tokens that its making showed."""
    seconds: float
    """CPU seconds, as far as they were not lost with a killed process."""


class NoSuchModelError(ValueError):
    """A recipe led to no model as weak, or as strong, as was asked for."""


def rates(model: str | Path, exam: Exam) -> dict[str, float]:
    """Success of a model: of all tasks; with families, of each and of all else."""
    outcomes = examine(load(model, exam), exam)
    found = {"all": statistics.fmean(outcomes)}
    if exam.families:
        groups: dict[str, list[float]] = {}
        for one, ref, inside in zip(outcomes, exam.refs(), exam.in_family(), strict=True):
            name = dict(exam.families)[ref.env_id] if inside else "elsewhere"
            groups.setdefault(name, []).append(one)
        found |= {name: statistics.fmean(of) for name, of in sorted(groups.items())}
    return found


def make_once(folder: Path, make: Callable[[Path], Made]) -> None:
    """Make a model that is not there, though it may be told of: it was made elsewhere then."""
    if is_made(folder):
        return
    told = told_of(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    began = time.process_time()
    made = replace(make(folder), seconds=time.process_time() - began)
    if told is not None and told.rates != made.rates:
        print(f"{folder.name}: {made.rates} here, {told.rates} where it was made before")
    write_atomically(folder / TOLD, (json.dumps(asdict(made), indent=2) + "\n").encode())


def is_made(folder: Path) -> bool:
    """Whether a model is there, with its figures."""
    return (folder / TOLD).exists() and (folder / "model" / "config.json").exists()


def told_of(folder: Path) -> Made | None:
    """A model's figures, whether it is there or was made elsewhere; None if it never was."""
    file = folder / TOLD
    return Made(**json.loads(file.read_text())) if file.exists() else None


@dataclass(frozen=True)
class Taught:
    """Supervised training on gold episodes, to the end or to the first checkpoint that fits."""

    start: str
    """The model that it begins with; `width:N` is a fresh one of so many dimensions."""
    overrides: tuple[str, ...]
    """What is shown: environments, split, hints."""
    steps: int
    rate: float
    exam: Exam
    window: Window = Window()
    stride: int = 0
    """Steps between two checkpoints that are looked at; 0 takes the last model."""

    def __call__(self, folder: Path) -> Made:
        """Train and choose."""
        start = self.start
        if start.startswith("width:"):
            start = str(fresh(folder / "fresh", int(start.removeprefix("width:")), self.exam))
        stride = self.stride or self.steps
        # A model that is taken in the middle of its training has not had its rate brought down.
        schedule = "constant_with_warmup" if self.stride else "cosine"
        settings = [
            *("trainer=sft", "teacher=none", *COMMON, *self.overrides),
            f"student.model={start}",
            f"student.max_context={self.exam.max_context}",
            f"steps={self.steps}",
            f"first_task={FIRST_TASK}",
            f"trainer.args.learning_rate={self.rate}",
            f"trainer.args.lr_scheduler_type={schedule}",
            f"trainer.args.save_steps={stride}",
            f"trainer.args.save_total_limit={self.steps // stride + 1}",
            f"run_dir={folder / 'run'}",
        ]
        learn(settings)
        seen = {}
        for step in range(stride, self.steps + 1, stride):
            at = folder / "run" / "checkpoints" / f"checkpoint-{step}"
            source = at if self.stride else folder / "run" / "model"
            seen[step] = rates(source, self.exam)
            print(f"step {step}: {seen[step]}", flush=True)
            if self.window.holds(seen[step]):
                student = load_student(
                    str(source),
                    render="names",
                    max_turn_tokens=48,
                    max_context=self.exam.max_context,
                )
                gold = gold_tokens(composed(settings), student.dialect) * step / self.steps
                keep(student, folder)
                return Made(seen[step], gold, 0.0)
        raise NoSuchModelError(f"{folder.name}: expected {self.window}, found {seen}")


@dataclass(frozen=True)
class Shaken:
    """A model whose weights are shaken until it is weak everywhere: it knows forms and slips.

    Noise of a few per cent of each matrix's size does to skill what cutting training short does,
    and takes seconds; of some strengths and seeds the first that fits is taken.
    """

    start: str
    exam: Exam
    window: Window
    strengths: tuple[float, ...] = (0.05, 0.045, 0.055, 0.06)
    seeds: int = 5

    def __call__(self, folder: Path) -> Made:
        """Shake and choose."""
        seen = {}
        for strength, seed in ((it, seed) for it in self.strengths for seed in range(self.seeds)):
            student = load_student(
                self.start,
                render="names",
                max_turn_tokens=48,
                max_context=self.exam.max_context,
            )
            dice = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for weights in student.model.parameters():
                    size = weights.pow(2).mean().sqrt()
                    weights += strength * size * torch.randn(weights.shape, generator=dice)
            model = keep(student, folder)
            seen[strength, seed] = rates(model, self.exam)
            print(f"strength {strength}, seed {seed}: {seen[strength, seed]}", flush=True)
            if self.window.holds(seen[strength, seed]):
                return Made(seen[strength, seed], 0.0, 0.0)
        raise NoSuchModelError(f"{folder.name}: expected {self.window}, found {seen}")


def fresh(folder: Path, width: int, exam: Exam) -> Path:
    """A wired model of other width that has learned nothing, with the embedded pair's tokenizer."""
    if (folder / "config.json").exists():
        return folder
    if str(FACTORY) not in sys.path:
        sys.path.append(str(FACTORY))
    from wiring import make_model  # it lies beside the factory, which is no package

    student = load_student(
        "embedded-student", render="names", max_turn_tokens=48, max_context=exam.max_context
    )
    tokenizer = student.dialect.tokenizer
    model = make_model(
        len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, width, layers=3, seed=1
    )
    partial = folder.with_name("fresh.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)
    return folder


def keep(student: object, folder: Path) -> Path:
    """Write a student with its ways; returns the model's folder."""
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    student.model.save_pretrained(model)  # type: ignore[attr-defined]
    student.dialect.tokenizer.save_pretrained(model)  # type: ignore[attr-defined]
    remember(student, model)  # type: ignore[arg-type]
    return model
