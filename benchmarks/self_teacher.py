"""Does a student get better by its own hints alone, and what does it take from a wrong hint?

    python benchmarks/self_teacher.py [--json FILE] [--seeds 0,1,2] [--tables gain,wrong]
                                      [--folder RUNS]

No other model takes part. The embedded student cannot read hints: it is first shown gold episodes
with their answers at the end of the prompts (`trainer=sft trainer.hint=answer`). Then

- *gain*: it plays without a hint and is taught by what it would have said with one (`teacher=self
  teacher.hint=answer`); beside it, the same student is shown as many gold episodes without hints.
  Both stand against the student that was warmed up, without a hint, task by task.
- *wrong*: the hint is wrong for one family of tasks: where a balance is asked for, it names the
  account's status. It teaches unverified (`credit=trace`) and verified, where the hinted policy is
  played on from the student's states and does not teach where it comes out worse (`search=credit
  credit=gated`, which also reinforces; *gate* is without that).

Runs resume if they are interrupted; finished ones are not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from harness.cells import Exam, learn, load
from harness.planted import OFFICE, TOLD, variants

from journeyman.agents.evaluation.comparison import Entry, Interval, Outcomes, contrast
from journeyman.agents.evaluation.report import write_atomically
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef, deal
from journeyman.agents.runs.folder import machine
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.player import Player
from journeyman.agents.teachers.hints import FinalAnswers
from journeyman.agents.teachers.privileged import SelfTeacher
from journeyman.envs import Episode, StopReason, ToolEnv, env_class
from journeyman.envs.task import ANSWER, Task

FAMILY = "balance"
FIRST_TASK = 50_000
"""Of those held out: the recipe was found by looking at others."""
WARM_TASK = 900_000
"""Where the warm-up's tasks begin: no arm trains on them."""
LIMITS = Exam(OFFICE, "test", 0)
"""Within which models are examined."""
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
_WRONG = (*_SELF, "teacher.hint={_target_: __main__.WrongBalance}")
_VERIFIED = (
    *_WRONG,
    *("credit=gated", "search=credit", "search.rows=4", "search.trajectories=1"),
)
WRONG = {
    "unverified": _WRONG,
    "verified": _VERIFIED,
    # Nothing is reinforced, and no call of the student's takes a hint's place.
    "gate": (*_VERIFIED, "credit.reinforce=0", "credit.correct=0"),
}


class Asking(ToolEnv):
    """Only tasks that ask for a value: of others the hint says nothing, and they teach nothing."""

    @classmethod
    def load_task(cls, task_id: str) -> Task:
        """The first such task from the 16-fold number on."""
        split, _, number = task_id.rpartition("/")
        tasks = (super(Asking, cls).load_task(f"{split}/{i}") for i in count(16 * int(number)))
        return replace(next(task for task in tasks if task.answer is not None), id=task_id)


class WrongBalance(FinalAnswers):
    """The answers; but the status of an account in place of its balance."""

    def tell(self, task: Task, dialect: Dialect, row: Episode | None) -> str | None:
        """See `Hint.tell`."""
        if task.kind == FAMILY:
            task = replace(task, answer=status_of(task))
        return super().tell(task, dialect, row)


def status_of(task: Task) -> str:
    """The status of the account whose balance is asked for."""
    return str(task.state.accounts[task.gold[-1].arguments["account"]].status)


def run(folder: Path, overrides: Sequence[str]) -> Path:
    """`journeyman train` in this process; returns the model's folder."""
    if not (folder / "table.txt").exists():
        learn([*overrides, f"run_dir={folder}"])
    return folder / "model"


def hinted(model: Path | str, hint: FinalAnswers) -> Player:
    """The same, which reads hints."""
    student, teacher = load(model, LIMITS), SelfTeacher(hint)
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
    """Whether it answers by the status in place of the balance."""
    task = env_class(episode.env_id).load_task(episode.task_id)
    if task.kind != FAMILY or episode.stop is not StopReason.ANSWERED:
        return False
    return episode.steps[-1].text == f"{ANSWER} {status_of(task)}"


Figure = tuple[float, Interval]


def rate(outcomes: Mapping[int, Outcomes]) -> Figure:
    """A share and its 95% interval: the wider of that over tasks and that over seeds."""
    return Entry("", "", outcomes, {}).success()


def change(before: Outcomes, after: Mapping[int, Outcomes]) -> Figure:
    """What is added to a share, task by task, and its 95% interval, as `rate` has it."""
    first = Entry("", "before", dict.fromkeys(after, before), {})
    found = contrast(first, Entry("", "after", after, {}))
    return found.value, found.interval


def in_words(figure: Figure, sign: str = "") -> str:
    """A share in percent with its interval."""
    value, (low, high) = figure
    return f"{value:{sign}.1%} [{low:{sign}.1%}, {high:{sign}.1%}]"


Exams = Mapping[int, Exam]
"""Of one policy, by seed."""


def success(exams: Exams, of: Callable[[str], bool] = lambda env_id: True) -> dict[int, Outcomes]:
    """What became of tasks of some environments."""
    return {
        seed: {key: value for key, value in exam.success.items() if of(key[0])}
        for seed, exam in exams.items()
    }


def copied(exams: Exams) -> dict[int, Outcomes]:
    """Where the wrong answer was given, of the family."""
    return {
        seed: {key: value for key, value in exam.copied.items() if is_bank(key[0])}
        for seed, exam in exams.items()
    }


def is_bank(env_id: str) -> bool:
    """The bank's tasks that ask for a value are the family."""
    return "Bank" in env_id


def gain(policies: Mapping[str, Exams]) -> dict[str, Figure]:
    """The first table; returns its figures."""
    figures = {}
    print("\n| student | success | above warmed up | above embedded |\n|---|---|---|---|")
    for name, exams in policies.items():
        figures[name] = rate(success(exams))
        cells = [in_words(figures[name])]
        for other in ("warmed up", "embedded") if name in GAIN else ():
            above = change(success(policies[other])[0], success(exams))
            figures[f"{name}, above {other}"] = above
            cells.append(in_words(above, "+"))
        print(f"| {name} | {' | '.join(cells + [''] * (3 - len(cells)))} |")
    return figures


def wrong(policies: Mapping[str, Exams]) -> dict[str, Figure]:
    """The second table; returns its figures."""
    figures = {}
    print("\n| student | family: success | family: error copied | elsewhere: success |")
    print("|---|---|---|---|")
    for name, exams in policies.items():
        row = {
            "family": rate(success(exams, is_bank)),
            "copied": rate(copied(exams)),
            "elsewhere": rate(success(exams, lambda env_id: not is_bank(env_id))),
        }
        figures |= {f"{name}, {what}": figure for what, figure in row.items()}
        print(f"| {name} | {' | '.join(map(in_words, row.values()))} |")
    print()
    for name in WRONG:
        after = copied(policies[name])
        figures[f"{name}, error added"] = change(copied(policies["warmed up"])[0], after)
        print(f"{name} adds to the error {in_words(figures[f'{name}, error added'], '+')}")
    return figures


TABLES = {"gain": (GAIN, gain), "wrong": (WRONG, wrong)}


def main() -> None:
    """Warm the student up, and make the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--tables", default="gain,wrong", help="default: %(default)s")
    parser.add_argument("--warm-steps", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=24, help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate: %(default)s")
    parser.add_argument("--tasks", type=int, default=200, help="held-out tasks: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("runs/self_teacher"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder, seeds = options.folder, [int(seed) for seed in options.seeds.split(",")]
    ids = ",".join(TOLD)
    warm = run(folder / "warm", [*WARM, f"steps={options.warm_steps}", f"env.ids=[{ids}]"])
    asking = variants(Asking)
    tasks = deal(asking, "test", FIRST_TASK, options.tasks)

    def look(name: str, player: Callable[[], Player]) -> Exam:
        return examine(folder / "exams" / f"{name}.json", player, tasks)

    def arm(name: str, seed: int, overrides: Sequence[str]) -> Exam:
        settings = [
            *overrides,
            f"env.ids=[{','.join(asking)}]",
            f"student.model={warm}",
            f"steps={options.steps}",
            f"trainer.args.learning_rate={options.rate}",
            f"seed={seed}",
            f"first_task={seed * 10_000}",
        ]
        model = run(folder / f"{name}-{seed}", settings)
        return look(f"{name}-{seed}", partial(load, model, LIMITS))

    answers, lies = FinalAnswers(), WrongBalance()
    fixed = {
        "embedded": look("embedded", lambda: load("embedded-student", LIMITS)),
        "embedded, hinted": look("embedded-hinted", lambda: hinted("embedded-student", answers)),
        "warmed up": look("warm", lambda: load(warm, LIMITS)),
        "warmed up, hinted": look("warm-hinted", lambda: hinted(warm, answers)),
        "warmed up, hinted wrongly": look("warm-wrong", lambda: hinted(warm, lies)),
    }
    figures: dict[str, Any] = {"machine": machine(), "seeds": seeds}
    for name in options.tables.split(","):
        arms, table = TABLES[name]
        trained: dict[str, dict[int, Exam]] = {it: {} for it in arms}
        for seed, it in product(seeds, arms):
            trained[it][seed] = arm(it, seed, arms[it])
        figures[name] = table({it: {0: exam} for it, exam in fixed.items()} | trained)
    print(f"\nseeds {seeds}; " + ", ".join(f"{k} {v}" for k, v in machine().items()))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
