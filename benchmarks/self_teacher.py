"""Does a student get better by its own hints alone, and what does it take from a wrong hint?

    python benchmarks/self_teacher.py [--json FILE] [--seeds 0,1,2] [--tables gain,wrong]
                                      [--folder RUNS]

No other model takes part. The embedded student cannot read hints: it is first shown gold episodes
with their answers at the end of the prompts (`trainer=sft trainer.hint=answer`). Then

- *gain*: it plays without a hint and is taught by what it would have said with one (`teacher=self
  teacher.hint=answer`); beside it, the same student is shown as many gold episodes without hints.
  Both stand against the student that was warmed up, without a hint, task by task.
- *wrong*: at the bank the hint is wrong for one family: where a balance is asked for, it names the
  account. It teaches unverified (`credit=trace`) and verified, where the hinted policy is played on
  from the student's states and does not teach where it comes out worse (`search=credit
  credit=gated`).

Runs resume if they are interrupted; finished ones are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from hydra import compose, initialize_config_module

from journeyman.agents.evaluation.comparison import Entry, Interval, Outcomes, difference
from journeyman.agents.evaluation.report import write_atomically
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef, deal
from journeyman.agents.runs.folder import machine
from journeyman.agents.runs.train import train
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.hf import load_student
from journeyman.agents.students.player import Player
from journeyman.agents.teachers.hints import FinalAnswers
from journeyman.agents.teachers.privileged import SelfTeacher
from journeyman.envs import Episode, StopReason, env_class, register
from journeyman.envs.task import ANSWER, Task
from journeyman.envs.tasks.bank import BankEnv

OFFICE = ("journeyman/Bank-v0", "journeyman/Orders-v0", "journeyman/Calendar-v0")
BANK = "journeyman/Bank-v0"
FAMILY = "balance"
WARM_TASK = 900_000
"""Where the warm-up's tasks begin: no arm trains on them."""
COMMON = (
    "evaluation.tasks=0",
    "threads=1",
    "trainer.args.per_device_train_batch_size=16",
    "+trainer.args.adam_beta2=0.95",
)
WARM = (
    *COMMON,
    *("teacher=none", "trainer=sft", "trainer.hint=answer", "trainer.error_rate=0.2"),
    f"first_task={WARM_TASK}",
    "trainer.args.learning_rate=3e-3",
    "trainer.args.save_steps=20",
)
_SELF = (
    *COMMON,
    *(
        "teacher=self",
        "teacher.hint=answer",
        "loss=forward_kl",
        "credit=trace",
        "env.kwargs.max_turns=8",
    ),
    *("trainer.steps_per_generation=4", "trainer.args.save_steps=12"),
)
_GOLD = (
    *COMMON,
    *("teacher=none", "trainer=sft", "trainer.error_rate=0", "trainer.args.save_steps=12"),
)
GAIN = {"self": _SELF, "gold": _GOLD}
_WRONG = (*_SELF, f"env.ids=[{BANK}]", "teacher.hint={_target_: __main__.WrongBalance}")
WRONG = {
    "unverified": _WRONG,
    "verified": (
        *_WRONG,
        *("credit=gated", "search=credit", "search.rows=4", "search.trajectories=1"),
    ),
}


def told(env_id: str) -> str:
    """Register an environment whose answers cannot be known unless they are told; returns its id.

    Every second task is to be answered as the next one is. Where hint and tools agree always, a
    student that reads tools learns nothing of hints.
    """

    class Told(env_class(env_id)):  # type: ignore[misc]
        @classmethod
        def load_task(cls, task_id: str) -> Task:
            task: Task = super().load_task(task_id)
            split, _, number = task_id.rpartition("/")
            if int(number) % 2:
                return task
            other = super().load_task(f"{split}/{int(number) + 1}")
            return replace(task, answer=other.answer or other.remark)

    name = f"benchmark/Told{env_id.rpartition('/')[2]}"
    register(name, Told)
    return name


class WrongBalance(FinalAnswers):
    """The answers; but the account in place of its balance."""

    def tell(self, task: Task, dialect: Dialect, row: Episode | None) -> str | None:
        """See `Hint.tell`."""
        if task.kind == FAMILY:
            task = replace(task, answer=account_of(task))
        return super().tell(task, dialect, row)


def account_of(task: Task) -> str:
    """The account whose balance is asked for."""
    return str(task.gold[-1].arguments["account"])


def run(folder: Path, overrides: Sequence[str]) -> Path:
    """`journeyman train` in this process; returns the model's folder."""
    if not (folder / "table.txt").exists():
        with initialize_config_module("journeyman.conf", version_base="1.3"):
            train(compose("train", [*overrides, f"run_dir={folder}"]))
    return folder / "model"


def arm(folder: Path, name: str, seed: int, *overrides: str) -> Path:
    """One arm with one seed: which tasks it trains on, and its dice."""
    own = (f"seed={seed}", f"first_task={seed * 10_000}")
    return run(folder / f"{name}-{seed}", [*overrides, *own])


def load(model: Path | str) -> Player:
    """A model as it is examined: greedy."""
    return load_student(
        str(model), render="names", max_turn_tokens=48, max_context=640, temperature=0.0
    )


def hinted(model: Path | str, hint: FinalAnswers) -> Player:
    """The same, which reads hints."""
    student, teacher = load(model), SelfTeacher(hint)
    teacher.check(student)
    player = teacher.player(student)
    assert player is not None
    return player


@dataclass(frozen=True)
class Exam:
    """What became of each task, greedily."""

    success: Outcomes
    copied: Outcomes
    """Where the wrong answer of the hint was given."""


def examine(file: Path, player: Callable[[], Player], tasks: Sequence[TaskRef]) -> Exam:
    """Play the tasks, and keep what became of them in a file."""
    if not file.exists():
        episodes = rollout(player(), tasks, 128, {"max_turns": 8})
        found = {
            "success": [float(it.success) for it in episodes],
            "copied": [float(is_copied(it)) for it in episodes],
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(found).encode())
        print(f"{file.stem}: {fmean(found['success']):.1%}", flush=True)
    keys = [(it.env_id, it.task_id) for it in tasks]
    told = json.loads(file.read_text())
    return Exam(**{name: dict(zip(keys, told[name], strict=True)) for name in told})


def is_copied(episode: Episode) -> bool:
    """Whether it answers by the account in place of its balance."""
    task = env_class(episode.env_id).load_task(episode.task_id)
    if task.kind != FAMILY or episode.stop is not StopReason.ANSWERED:
        return False
    return episode.steps[-1].text == f"{ANSWER} {account_of(task)}"


def of_family(inside: bool, count: int) -> list[TaskRef]:
    """Test tasks of the family, or of all others of the bank."""
    ids = (i for i in BankEnv.tasks("test") if (BankEnv.load_task(i).kind == FAMILY) == inside)
    return [TaskRef(BANK, task_id) for task_id in itertools.islice(ids, count)]


Figure = tuple[float, Interval]


def rate(outcomes: Mapping[int, Outcomes]) -> Figure:
    """A share and its 95% interval: the wider of that over tasks and that over seeds."""
    return Entry("", "", outcomes, {}).success()


def change(before: Outcomes, after: Mapping[int, Outcomes]) -> Figure:
    """What is added to a share, task by task, and its 95% interval, as `rate` has it."""
    first = Entry("", "before", dict.fromkeys(after, before), {})
    found = difference(first, Entry("", "after", after, {}))
    return found.value, found.interval


def in_words(figure: Figure, sign: str = "") -> str:
    """A share in percent with its interval."""
    value, (low, high) = figure
    return f"{value:{sign}.1%} [{low:{sign}.1%}, {high:{sign}.1%}]"


def gain(options: argparse.Namespace, warm: Path) -> dict[str, Figure]:
    """The first table; returns its figures."""
    folder, seeds = options.folder, options.seeds
    exams = folder / "exams"
    tasks = deal(OFFICE, "test", 0, options.tasks)
    answers = FinalAnswers()
    plain = {
        "embedded": examine(exams / "embedded.json", lambda: load("embedded-student"), tasks),
        "warmed up": examine(exams / "warm.json", lambda: load(warm), tasks),
    }
    told = {
        "embedded": examine(
            exams / "embedded-hinted.json", lambda: hinted("embedded-student", answers), tasks
        ),
        "warmed up": examine(exams / "warm-hinted.json", lambda: hinted(warm, answers), tasks),
    }
    figures = {name: rate({0: it.success}) for name, it in plain.items()}
    figures |= {f"{name}, hinted": rate({0: it.success}) for name, it in told.items()}
    print("\n| student | without a hint | with a hint | gained |\n|---|---|---|---|")
    for name in plain:
        own, more = figures[name], figures[f"{name}, hinted"]
        print(f"| {name} | {in_words(own)} | {in_words(more)} | |")
    for name, overrides in GAIN.items():
        after = {}
        for seed in seeds:
            model = arm(folder, name, seed, *overrides, *_length(options), f"student.model={warm}")
            after[seed] = examine(
                exams / f"{name}-{seed}.json", partial(load, model), tasks
            ).success
        figures[name] = rate(after)
        figures[f"{name}, gained"] = change(plain["warmed up"].success, after)
        gained = in_words(figures[f"{name}, gained"], "+")
        print(f"| {name} | {in_words(figures[name])} | | {gained} |", flush=True)
    return figures


def _length(options: argparse.Namespace) -> tuple[str, str]:
    return f"steps={options.steps}", f"trainer.args.learning_rate={options.rate}"


def wrong(options: argparse.Namespace, warm: Path) -> dict[str, Figure]:
    """The second table; returns its figures."""
    folder, seeds = options.folder, options.seeds
    tasks = {"family": of_family(True, options.tasks), "else": of_family(False, options.tasks)}

    def look(name: str, player: Callable[[], Player]) -> dict[str, Exam]:
        return {
            part: examine(folder / "exams" / f"{name}-{part}.json", player, some)
            for part, some in tasks.items()
        }

    exams = {
        "warmed up": {0: look("bank-warm", lambda: load(warm))},
        "warmed up, hinted": {0: look("bank-hinted", lambda: hinted(warm, WrongBalance()))},
    }
    for name, overrides in WRONG.items():
        exams[name] = {}
        for seed in seeds:
            model = arm(folder, name, seed, *overrides, *_length(options), f"student.model={warm}")
            exams[name][seed] = look(f"{name}-{seed}", partial(load, model))
    figures = {}
    print("\n| student | family: success | family: error copied | elsewhere: success |")
    print("|---|---|---|---|")
    for name, found in exams.items():
        row = {
            "success": rate({seed: it["family"].success for seed, it in found.items()}),
            "copied": rate({seed: it["family"].copied for seed, it in found.items()}),
            "elsewhere": rate({seed: it["else"].success for seed, it in found.items()}),
        }
        figures |= {f"{name}, {what}": figure for what, figure in row.items()}
        print(f"| {name} | {' | '.join(map(in_words, row.values()))} |")
    before = exams["warmed up"][0]["family"].copied
    for name in WRONG:
        after = {seed: it["family"].copied for seed, it in exams[name].items()}
        figures[f"{name}, error added"] = change(before, after)
        print(f"\n{name} adds to the error {in_words(figures[f'{name}, error added'], '+')}")
    return figures


TABLES = {"gain": gain, "wrong": wrong}


def main() -> None:
    """Warm the student up, and make the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--tables", default="gain,wrong", help="default: %(default)s")
    parser.add_argument("--warm-steps", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=96, help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate: %(default)s")
    parser.add_argument("--tasks", type=int, default=300, help="for each test: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("runs/self_teacher"))
    options = parser.parse_args()
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    torch.set_num_threads(1)
    ids = ",".join(map(told, OFFICE))
    warm = run(options.folder / "warm", [*WARM, f"steps={options.warm_steps}", f"env.ids=[{ids}]"])
    where = ", ".join(f"{name} {value}" for name, value in machine().items())
    print(f"seeds {options.seeds}; {where}", flush=True)
    figures = {name: TABLES[name](options, warm) for name in options.tables.split(",")}
    if options.json:
        known = {"machine": machine(), "seeds": options.seeds}
        options.json.write_text(json.dumps(known | figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
