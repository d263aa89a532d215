"""What a search costs beside the model and the environments, with 64 side by side in one process.

    python benchmarks/search.py [--json FILE] [--repeats N] [--searches N] [--threads N]

The embedded pair on the office domains, with the settings of `journeyman train search=credit`; and
a quarter as many episodes, whose first two turns are chosen as `journeyman eval
evaluation.search=gumbel` does, since each search plays three times as many conversations.

Time is exclusive: while the model runs, no other clock does. The model: forward passes of student
and teacher, what is read off their logits, moving the key-value cache when a batch shrinks (growing
it is inside the forward pass), and the decoding loop, which hands the model its next tokens: a
plain rollout of as many tokens has it too. Environments: making, resetting, stepping, snapshot,
restore. All else is overhead: text and tokens, hashes of states, trees, values, choices, the
rollout loop. The decoding loop's share is shown, and once more as if it were overhead.

Each repeat has tasks and seeds of its own; of 6 repeats, lowest to highest is a 97% interval of the
median. Ends with status 1 if overhead has 5% of the time or more in any repeat, or if the tokens
drawn are not those trained and the teacher's.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig
from transformers import PreTrainedModel

from journeyman.agents.networks.heads import backbone
from journeyman.agents.rollouts import rollout
from journeyman.agents.rollouts.tasks import TaskRef, deal
from journeyman.agents.runs.folder import machine
from journeyman.agents.search import CreditSearch, ImprovementSearch, Tree
from journeyman.agents.search.evidence import TreeRollouts
from journeyman.agents.search.playing import SearchPlayer
from journeyman.agents.students import hf
from journeyman.agents.students.cache import RowCache
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.hf import HFPlayer, HFStream
from journeyman.agents.students.player import Turn
from journeyman.agents.teachers import Annotations, Detail
from journeyman.agents.teachers.local import LocalTeacher
from journeyman.envs import Episode, ToolEnv

CREDIT, IMPROVEMENT = "search=credit", "evaluation.search=gumbel"
BOUND = 0.05
"""Overhead's share of the time is below it."""
BATCH = 64
STUDENT, TEACHER = "student's forward passes", "teacher's forward passes"
SAMPLING, SCORING, CACHE = "sampling", "reading the teacher's logits", "moving the cache"
ENVIRONMENT = "environments"
HASHES, TEXT, DECODING = "hashes of states", "text and tokens", "decoding loop"
SEARCH, REST = "trees, values, choices", "rollout loop and the rest"
PAID = (STUDENT, TEACHER, SAMPLING, SCORING, CACHE, DECODING, ENVIRONMENT)
OVERHEAD = (TEXT, HASHES, SEARCH, REST)
SEAMS: tuple[tuple[object, str, str], ...] = (
    (hf, "sample", SAMPLING),
    (LocalTeacher, "annotate", SCORING),
    *((RowCache, name, CACHE) for name in ("reserve", "move", "taken", "put")),
    (rollout, "make_for_run", ENVIRONMENT),
    (ToolEnv, "state_hash", HASHES),
    *((ToolEnv, name, ENVIRONMENT) for name in ("reset", "step", "snapshot", "restore", "close")),
    *((Dialect, name, TEXT) for name in ("opening", "reply", "decode", "read")),
    *((CreditSearch, name, SEARCH) for name in ("__init__", "ask", "tell")),
    *((ImprovementSearch, name, SEARCH) for name in ("__init__", "ask", "tell", "best")),
    (TreeRollouts, "episodes", SEARCH),
)
"""Where clocks change, besides the forward passes: owner, function, row."""


class Clock:
    """Wall seconds by row, each exclusive of the rows that begin inside it. For one thread."""

    def __init__(self) -> None:
        """Start in the row `REST`."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        """Of each function on a clock."""
        self.sampled = 0
        """Tokens that turns were written of, whoever's and whatever for."""
        self._rows = [REST]
        self._since = time.perf_counter()

    @property
    def wall(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())

    def share(self, rows: Iterable[str]) -> float:
        """Of these rows, of all time."""
        return sum(self.seconds[row] for row in rows) / self.wall

    def begin(self, row: str) -> None:
        """Stop the present row's clock and start another's."""
        self._settle()
        self._rows.append(row)

    def end(self) -> None:
        """Go back to the row before."""
        self._settle()
        self._rows.pop()

    def _settle(self) -> None:
        now = time.perf_counter()
        self.seconds[self._rows[-1]] += now - self._since
        self._since = now

    def timed(self, function: Callable[..., Any], row: str) -> Callable[..., Any]:
        """The same function, on the clock of a row."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.begin(row)
            self.calls[function.__qualname__] += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.end()

        return run

    def counted(self, advance: Callable[[HFStream], list[Turn]]) -> Callable[..., list[Turn]]:
        """`HFStream.advance`, its tokens counted; one that ends a turn by force was not drawn."""

        @functools.wraps(advance)
        def run(stream: HFStream) -> list[Turn]:
            turns = advance(stream)
            self.sampled += sum(len(turn.tokens) - turn.truncated for turn in turns)
            return turns

        return run


@contextmanager
def timing(student: PreTrainedModel, teacher: PreTrainedModel) -> Iterator[Clock]:
    """Time everything that happens inside."""
    with ExitStack() as stack:
        clock = Clock()
        seams = [(owner, name, getattr(owner, name), row) for owner, name, row in SEAMS]
        advance = (HFStream, "advance", clock.counted(HFStream.advance), DECODING)
        for owner, name, function, row in (*seams, advance):
            stack.enter_context(patch.object(owner, name, clock.timed(function, row)))
        # The teacher's scores come from its backbone, what it plays from all of it.
        passes = ((student, STUDENT), (teacher, TEACHER), (backbone(teacher), TEACHER))
        for model, row in passes:
            before = model.register_forward_pre_hook(lambda *_, row=row: clock.begin(row))
            after = model.register_forward_hook(lambda *_: clock.end())
            stack.callback(before.remove)
            stack.callback(after.remove)
        yield clock
        clock.end()


@dataclass(frozen=True)
class Pair:
    """What is measured with: models and settings as `journeyman train search=credit` has them."""

    config: DictConfig
    student: HFPlayer
    teacher: LocalTeacher

    @classmethod
    def load(cls) -> Pair:
        """By the package's own configs."""
        with initialize_config_module("journeyman.conf", version_base="1.3"):
            config = compose("train", ["search=credit"])
        return cls(config, instantiate(config.student), instantiate(config.teacher))

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """For the environments."""
        return dict(self.config.env.kwargs)

    def tasks(self, repeat: int, count: int) -> list[TaskRef]:
        """Tasks that no other repeat has."""
        ids = list(self.config.env.ids)
        first = repeat * math.ceil(count / len(ids))
        return deal(ids, "train", first, count, seed=repeat << 16)

    def timing(self) -> AbstractContextManager[Clock]:
        """See `timing`."""
        return timing(self.student.model, self.teacher._model)


def credit(pair: Pair, tasks: Sequence[TaskRef]) -> tuple[Clock, dict[str, float], list[Tree]]:
    """One credit search a task, side by side; returns times, counts and trees."""
    rollouts: TreeRollouts = instantiate(pair.config.search)
    refs = [
        replace(task, seed=(task.seed << 8) + row) for task in tasks for row in range(rollouts.rows)
    ]
    with pair.timing() as clock:
        master = pair.teacher.player(pair.student.at(temperature=0.0))
        annotations = Annotations(pair.teacher, Detail.FULL)  # as `loss=reverse_kl` asks for them
        grown, spent = rollouts.grow(
            pair.student, annotations, master, refs, BATCH, pair.env_kwargs
        )
        rows = [row.episode for it in grown for row in rollouts.episodes(it)]
    trees = [it.tree for it in grown]
    figures = {
        "trees": len(trees),
        "nodes": sum(len(tree.nodes) for tree in trees),
        "rows": len(rows),
        "environment steps": clock.calls["ToolEnv.step"],
        "tokens drawn": clock.sampled,
        "of these the teacher's": spent.teacher_tokens,
        "tokens trained": sum(sum(row.mask) for row in rows),
        "tokens if each row were played and trained from its start": sum(map(whole, rows)),
    }
    return clock, figures, trees


def whole(row: Episode) -> int:
    """Tokens of all turns of a row, its parents' too; ends of turn that were forced left out."""
    return sum(end - start - step.truncated for step in row.steps for start, end in [step.span])


def improvement(pair: Pair, tasks: Sequence[TaskRef]) -> tuple[Clock, dict[str, float]]:
    """Choose the first two turns of each task, side by side; returns times and counts."""
    player = SearchPlayer(pair.student, "gumbel", env_kwargs=pair.env_kwargs)
    with pair.timing() as clock:
        rollout.rollout(player, tasks, BATCH, {**pair.env_kwargs, "max_turns": 2})
    figures = {
        "searches": clock.calls["ImprovementSearch.__init__"],
        "simulations": clock.calls["ImprovementSearch.tell"],
        "environment steps": clock.calls["ToolEnv.step"],
        "tokens drawn": clock.sampled,
    }
    return clock, figures


def alone(pair: Pair, tasks: Sequence[TaskRef], together: Sequence[Tree]) -> tuple[float, int]:
    """Seconds a search by itself, and how many of the trees are the ones they were in company."""
    seconds, same = 0.0, 0
    for task, tree in zip(tasks, together, strict=False):
        clock, _, (found,) = credit(pair, [task])
        seconds += clock.wall
        same += found.to_json() == tree.to_json()
    return seconds / len(tasks), same


def report(kind: str, clocks: Sequence[Clock], counts: Sequence[dict[str, float]]) -> None:
    """Shares of the time by row, then counts of all repeats."""
    print(f"\n### {kind}\n\n| | share of the time | lowest - highest |\n|---|---|---|")
    sums = {
        "model and environments": PAID,
        "overhead": OVERHEAD,
        "overhead and decoding loop": (*OVERHEAD, DECODING),
    }
    for name, rows in {**{row: (row,) for row in (*PAID, *OVERHEAD)}, **sums}.items():
        shares = [clock.share(rows) for clock in clocks]
        if max(shares) > 0:
            spread = f"{min(shares):.2%} - {max(shares):.2%}"
            print(f"| {name} | {statistics.median(shares):.2%} | {spread} |")
    totals = {name: sum(it[name] for it in counts) for name in counts[0]}
    seconds = sum(clock.wall for clock in clocks)
    print(f"\n{seconds:.0f} s; {totals['tokens drawn'] / seconds:,.0f} tokens drawn a second")
    for name, total in totals.items():
        print(f"{name}: {total:,}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--repeats", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--searches", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--alone", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="torch's; default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pair = Pair.load()
    clocks: dict[str, list[Clock]] = defaultdict(list)
    counts: dict[str, list[dict[str, float]]] = defaultdict(list)
    improvement(pair, pair.tasks(0, 1))  # what is done once only is not a search's cost
    for repeat in range(options.repeats):
        tasks = pair.tasks(repeat, options.searches)
        clock, figures, trees = credit(pair, tasks)
        clocks[CREDIT].append(clock)
        counts[CREDIT].append(figures)
        if repeat == 0:
            seconds, same = alone(pair, tasks[: options.alone], trees)
            speed_up = seconds * len(tasks) / clock.wall
        clock, figures = improvement(pair, tasks[: math.ceil(len(tasks) / 4)])
        clocks[IMPROVEMENT].append(clock)
        counts[IMPROVEMENT].append(figures)
        shares = ", ".join(f"{kind} {it[-1].share(OVERHEAD):.2%}" for kind, it in clocks.items())
        print(f"repeat {repeat}: overhead {shares}", flush=True)
    for kind, found in clocks.items():
        report(kind, found, counts[kind])
    print(
        f"\n{options.searches} credit searches side by side: {speed_up:.1f} times as fast as one "
        f"after the other; {same} of {options.alone} trees are the same alone\n"
    )
    verdicts = bounds(clocks, counts[CREDIT])
    for what, holds in verdicts.items():
        print(f"{what}: {'holds' if holds else 'FAILS'}")
    print(json.dumps(machine()))
    if options.json:
        figures = {
            "seconds": {kind: [clock.seconds for clock in it] for kind, it in clocks.items()},
            "counts": counts,
            "speed_up": speed_up,
            "same_alone": [same, options.alone],
            "bounds": verdicts,
            "machine": machine(),
        }
        options.json.write_text(json.dumps(figures, indent=2))
    return 0 if all(verdicts.values()) else 1


def bounds(
    clocks: Mapping[str, Sequence[Clock]], counts: Sequence[dict[str, float]]
) -> dict[str, bool]:
    """What must hold -> whether it does, in every repeat."""
    return {
        f"overhead below {BOUND:.0%}": all(
            clock.share(OVERHEAD) < BOUND for it in clocks.values() for clock in it
        ),
        "no token drawn twice, none trained twice": all(
            it["tokens drawn"] == it["tokens trained"] + it["of these the teacher's"]
            for it in counts
        ),
    }


if __name__ == "__main__":
    raise SystemExit(main())
