"""BFCL and τ²-bench as our environments: verdicts on gold and less, and speed beside their own.

    python benchmarks/third_party.py [--json FILE]

Needs `make benchmarks-extras`. The first table: how many tasks are solved by the gold calls, by the
gold calls without the last one, by doing nothing, and by the gold calls after all that in the same
process. The second: seconds for the same work by the benchmark's own code in the same run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from journeyman.envs import answer_text, bfcl, tau2
from journeyman.envs.benchmark import BenchmarkEnv
from journeyman.envs.bfcl.data import entries, ground_truth
from journeyman.envs.tau2.domain import tau2 as tau2_module
from journeyman.tools import ToolCall

STEPS = 3
"""Steps of τ²-bench's own wrapper that are timed: each takes seconds."""


def attempt(env: BenchmarkEnv, task_id: str, drop_last: bool = False, no_op: bool = False) -> bool:
    env.reset(options={"task_id": task_id})
    turns = env.task.turns
    last = max((i for i, turn in enumerate(turns) if turn.gold), default=None)
    for i, turn in enumerate(turns):
        calls = turn.gold[:-1] if drop_last and i == last else turn.gold
        for call in () if no_op else calls:
            env.step([call])
        *_, info = env.step("Answer: done" if no_op else answer_text(turn))
    return bool(info["success"])


def verdicts(name: str, env: BenchmarkEnv) -> dict[str, Any]:
    started = time.perf_counter()
    ids = list(env.tasks("test"))
    row: dict[str, Any] = {"environment": name, "tasks": len(ids)}
    row["gold"] = sum(attempt(env, i) for i in ids)
    row["less one call"] = sum(attempt(env, i, drop_last=True) for i in ids)
    row["no-op"] = sum(attempt(env, i, no_op=True) for i in ids)
    row["gold again"] = sum(attempt(env, i) for i in ids)
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


def environments() -> Iterator[tuple[str, BenchmarkEnv]]:
    for category, cls in bfcl.CATEGORIES.items():
        yield f"BFCL-{category}", cls()
    for domain, environment in tau2.DOMAINS.items():
        yield f"Tau2-{domain}", environment()


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def bfcl_speed(category: str) -> list[dict[str, Any]]:
    """Gold replay of a category: our environment, and the benchmark's checker in its loop.

    Ours is timed for the first attempt at each task in a process, the second, and a later one: the
    checker plays gold every time, we do it along with the first attempt, and again for the second,
    whose turns the later ones find.
    """
    module = "bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker"
    checker = importlib.import_module(module).multi_turn_checker
    gold = ground_truth(category)
    env = bfcl.CATEGORIES[category]()
    ids = list(env.tasks("test"))

    def own_loop(name: str) -> None:
        for entry in entries(category):
            steps = [[[call] for call in turn] for turn in gold[entry["id"]]]
            assert checker(steps, gold[entry["id"]], entry, category, name)["valid"]

    def play() -> None:
        assert all(attempt(env, task_id) for task_id in ids)

    theirs: list[float] = []
    ours: dict[str, list[float]] = {"first": [], "second": [], "later": []}
    for i in range(3):
        # The checker keeps its objects under the name it is given: every round needs another.
        theirs.append(seconds(lambda name=f"gold{i}": own_loop(name)))
        for cache in (env._gold, env._initial):
            cache.cache_clear()
        for attempts in ours.values():
            attempts.append(seconds(play))
    other = statistics.median(theirs)
    return [
        {"what": f"{category}, {name}", "ours": statistics.median(times), "theirs": other}
        for name, times in ours.items()
    ]


def telecom_speed() -> dict[str, Any]:
    """A step of the same call in our environment and in τ²-bench's Gymnasium wrapper."""
    gym = _tau2_gym()
    env = tau2.Telecom()
    original = env.loaded().tasks[0]
    wrapper = gym.AgentGymEnv("telecom", original.id, solo_mode=True)
    wrapper.reset()
    theirs = [seconds(lambda: wrapper.step("check_status_bar()")) for _ in range(STEPS)]
    env.reset(options={"task_id": "test/0"})
    call = [ToolCall("check_status_bar")]
    ours = []
    for _ in range(100):
        env.reset(options={"task_id": "test/0"})
        ours.append(seconds(lambda: env.step(call)))
    mine, other = statistics.median(ours), statistics.median(theirs)
    return {"what": "telecom, a step", "ours": mine, "theirs": other}


def _tau2_gym() -> Any:
    """The wrapper's module. Its imports include clients of model providers, of no use here."""
    tau2_module("utils")
    while True:
        try:
            return importlib.import_module("tau2.gym.gym_agent")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("tau2"):
                raise
            sys.modules[error.name] = MagicMock()


def print_table(rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    cells = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        head, *rest = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join((head.strip().ljust(widths[0]), *rest)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    started = time.perf_counter()
    solved = [verdicts(name, env) for name, env in environments()]
    print_table(solved)
    verdict_seconds = time.perf_counter() - started
    print(f"all verdicts: {verdict_seconds:.0f} s\n")
    speed = [row for name in bfcl.MULTI_TURN for row in bfcl_speed(f"multi_turn_{name}")]
    speed.append(telecom_speed())
    print_table(
        [
            {
                "seconds": row["what"],
                "ours": f"{row['ours']:.5f}",
                "theirs": f"{row['theirs']:.5f}",
                "theirs / ours": f"{row['theirs'] / row['ours']:.1f}",
            }
            for row in speed
        ]
    )
    if options.json:
        figures = {"verdicts": solved, "verdict_seconds": verdict_seconds, "speed": speed}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
