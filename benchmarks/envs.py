"""Steps a second of an environment, what a branch point costs, and vectors whose tools wait.

    python benchmarks/envs.py [--json FILE] [--seconds S]

All on one thread, except the vector. Medians with a 95% interval of the median (order statistics),
over repeats that are interleaved, so that a slow spell of the machine hits all rows.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
from immutables import Map

from journeyman.agents.runs.folder import machine
from journeyman.envs import Task, ToolEnv, make, register
from journeyman.envs.core import Action
from journeyman.envs.task import answer_text
from journeyman.tools import ToolCall, render_hermes, tool
from journeyman.tools.apis.bank import Account, BankState

BANK = "journeyman/Bank-v0"
SEED = 0
RECORDS = (10, 1_000, 10_000, 100_000)
VECTOR = 64
WAIT_S = 0.02
ALONE, TOGETHER = "waiting tool, 1 environment", f"waiting tool, {VECTOR} environments"


@tool
def wait(state: None) -> tuple[None, str]:
    """Wait as a tool that asks a server does."""
    time.sleep(WAIT_S)
    return state, "done"


class WaitingEnv(ToolEnv):
    """One tool, which waits."""

    toolset = (wait,)
    waits = True

    @classmethod
    def generate(cls, rng: random.Random, split: str, level: str) -> Task:
        """The one task."""
        return Task("", "wait", "Wait.", None, (ToolCall("wait"),), None)


register("benchmark/Waiting-v0", WaitingEnv)


def steps(text: bool, tasks: int = 200) -> Callable[[], float]:
    """Gold episodes of the bank, from reset to answer; seconds a step."""
    env = make(BANK)
    episodes: list[tuple[Task, list[Action]]] = []
    for i in range(tasks):
        task = env.load_task(f"train/{SEED + i}")
        calls: list[Action] = [render_hermes(c) if text else [c] for c in task.gold]
        episodes.append((task, [*calls, answer_text(task.turns[0])]))
    count = sum(len(actions) for _, actions in episodes)

    def measure() -> float:
        started = time.perf_counter()
        for task, actions in episodes:
            env.begin(task)
            for action in actions:
                env.step(action)
        return (time.perf_counter() - started) / count

    return measure


def branch(records: int, repeats: int = 2000) -> Callable[[], float]:
    """Snapshot and restore of a bank with so many accounts; seconds for the two."""
    env = make(BANK)
    task = env.load_task("train/0")
    accounts = {f"A{i:06}": Account(f"Owner {i}", i) for i in range(records)}
    env.begin(replace(task, state=BankState(Map(accounts))))
    env.step([ToolCall("freeze", {"account": "A000001"})])  # the state is not the initial one

    def measure() -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            env.restore(env.snapshot())
        return (time.perf_counter() - started) / repeats

    return measure


def vector(count: int, turns: int = 10) -> Callable[[], float]:
    """Steps of a vector whose tools all wait; seconds a step of one environment."""
    envs: Any = gymnasium.make_vec("benchmark/Waiting-v0", count, max_turns=2 * turns)
    actions = [[ToolCall("wait")]] * count

    def measure() -> float:
        envs.reset(seed=SEED)
        started = time.perf_counter()
        for _ in range(turns):
            envs.step(actions)
        return (time.perf_counter() - started) / (turns * count)

    return measure


def interval(values: list[float]) -> tuple[float, float]:
    """Distribution-free 95% interval of the median: binomial order statistics."""
    ordered, n = sorted(values), len(values)
    reach = math.ceil(0.98 * math.sqrt(n))
    low, high = max(0, n // 2 - reach), min(n - 1, n // 2 + reach)
    return ordered[low], ordered[high]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="default: %(default)s")
    options = parser.parse_args()
    rows: dict[str, Callable[[], float]] = {
        "bank step, calls": steps(text=False),
        "bank step, text": steps(text=True),
        **{f"snapshot+restore, {n} records": branch(n) for n in RECORDS},
        ALONE: vector(1),
        TOGETHER: vector(VECTOR),
    }
    for measure in rows.values():  # schemas, threads, caches
        measure()
    values: dict[str, list[float]] = {name: [] for name in rows}
    started = time.perf_counter()
    while time.perf_counter() - started < options.seconds or len(values["bank step, text"]) < 7:
        for name, measure in rows.items():
            values[name].append(measure())
    print(f"{'seed':40} {SEED}, {len(values['bank step, text'])} repeats")
    for name, seconds in values.items():
        median, (low, high) = statistics.median(seconds), interval(seconds)
        rate = f"{1 / median:9.0f} /s  ({1 / high:.0f} - {1 / low:.0f})"
        print(f"{name:40} {1e6 * median:9.2f} us  ({1e6 * low:.2f} - {1e6 * high:.2f})  {rate}")
    one, many = (statistics.median(values[name]) for name in (ALONE, TOGETHER))
    print(f"{'vector, times one environment':40} {one / many:9.1f}")
    print(json.dumps(machine()))
    if options.json:
        report = {"seconds": values, "seed": SEED, "machine": machine()}
        options.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
