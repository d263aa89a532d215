"""Episodes on Ray's workers of this machine: the same as here? In which part of the time?

    python benchmarks/ray_workers.py [--tasks N] [--repeats N] [--steps N] [--seeds N] [--json FILE]

The embedded student plays test tasks greedily in this process, on one worker and on two, a thread
each, in turn; the medians are printed, and whether all episodes are alike. Then workers are killed
at three random moments. With --steps, runs of the demo's settings are trained here and on two
workers, of which one is killed on the way, and success on the test tasks is compared, with its 95%
interval over tasks. Times mean something on a machine of two idle cores.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from journeyman.agents.evaluation.files import folder_name
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import deal
from journeyman.agents.rollouts.workers.on_ray import OnRay, RayRollouts
from journeyman.agents.rollouts.workers.ray_crew import Hands
from journeyman.agents.runs import train as training
from journeyman.agents.runs.folder import machine
from journeyman.agents.students.hf import load_student
from journeyman.envs import Episode

ENV_IDS = ("journeyman/Bank-v0", "journeyman/Calendar-v0", "journeyman/Orders-v0")
KWARGS = {"max_turns": 8}
BATCH = 64


def told(episode: Episode) -> tuple[Any, ...]:
    return episode.tokens, episode.stop, episode.reward, episode.state_hash, episode.error


def alike(there: list[Episode], here: list[Episode]) -> int:
    return sum(told(a) == told(b) for a, b in zip(there, here, strict=True))


def timed(play: Any, student: Any, refs: Any) -> tuple[float, list[Episode]]:
    started = time.perf_counter()
    episodes = play(student, refs, BATCH, KWARGS)
    return time.perf_counter() - started, episodes


def evaluations(tasks: int, repeats: int, seed: int) -> dict[str, Any]:
    student = load_student(
        "embedded-student", render="names", max_turn_tokens=48, max_context=640, temperature=0.0
    )
    refs = deal(list(ENV_IDS), "test", 0, tasks)
    seconds: dict[str, list[float]] = {"here": [], "1 worker": [], "2 workers": []}
    _, here = timed(rollout, student, refs)
    same = []
    with OnRay(workers=2) as two:
        one = RayRollouts(importlib.import_module("ray"), Hands(1, cpus=0), 0, 300.0)
        for play in (one, two):
            play(student, refs[:8], 4, KWARGS)  # they are there, and have the weights
        for _ in range(repeats):
            for name, play in (("here", rollout), ("1 worker", one), ("2 workers", two)):
                spent, found = timed(play, student, refs)
                seconds[name].append(spent)
                same.append(alike(found, here))
        one.close()
        dice = random.Random(seed)
        moments = sorted(dice.sample(range(1, max(4, tasks * 5 // 6)), 3))
        places: list[int] = []

        def ended(place: int, episode: Episode) -> None:
            places.append(place)
            if moments and len(places) >= moments[0] and two.pids:
                moments.pop(0)
                os.kill(dice.choice(sorted(two.pids.values())), signal.SIGKILL)

        killed = alike(two.begin(student, refs, BATCH, KWARGS, ended=ended)(), here)
    found = {name: statistics.median(its) for name, its in seconds.items()}
    print(f"{'':12}{'seconds':>10}{'of 1 worker':>14}")
    for name, median in found.items():
        print(f"{name:12}{median:10.1f}{median / found['1 worker']:14.2f}")
    print(f"episodes as played here: {min(same)} of {tasks} at least, over {len(same)} rounds")
    print(
        f"killed at three random moments (seed {seed}): {killed} of {tasks} as played here, "
        f"{len(places)} told, {len(set(places))} different"
    )
    return {"seconds": seconds, "same": min(same), "killed": killed, "told": len(places)}


def killer(pids: Any, after: float) -> threading.Thread:
    """Kills a worker after so many seconds of training."""

    def kill() -> None:
        time.sleep(after)
        while not pids():
            time.sleep(0.1)
        os.kill(pids()[0], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def trainings(steps: int, tasks: int, seeds: int) -> dict[str, Any]:
    OmegaConf.register_new_resolver("folder", folder_name, replace=True)
    found: dict[str, list[Any]] = {}
    for seed in range(seeds):
        for name, asked in {
            "here": ["rollouts=local"],
            "2 workers, one killed": ["rollouts=ray"],
            "the same, a step ahead": ["rollouts=ray", "rollouts.staleness=1"],
        }.items():
            with tempfile.TemporaryDirectory() as folder:
                common = [f"steps={steps}", f"seed={seed}", "threads=1", f"run_dir={folder}"]
                common += [f"evaluation.tasks={tasks}", "env.kwargs={max_turns: 8}"]
                with initialize_config_module("journeyman.conf", version_base="1.3"):
                    config = compose("train", [*common, *asked])
                if asked[0] == "rollouts=ray":
                    killer(_workers, 20.0)
                training.train(config)
                rows = json.loads((Path(folder) / "summary.json").read_text())["rows"]
                found.setdefault(name, []).append(rows["student after"]["success"])
    for name, values in found.items():
        print(f"{name:26}", *(json.dumps(it) for it in values))
    return found


def _workers() -> list[int]:
    """Processes of actors of ours below this one."""
    from journeyman.agents.rollouts.workers.own_cluster import descendants

    names = {
        pid: Path(f"/proc/{pid}/cmdline").read_bytes()
        for pid in descendants(os.getpid())
        if Path(f"/proc/{pid}").exists()
    }
    return [pid for pid, name in names.items() if name.startswith(b"ray::Actor")]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="of training; 0 trains nothing")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"machine": machine()}
    if options.repeats:
        figures["evaluation"] = evaluations(options.tasks, options.repeats, random.randrange(999))
    if options.steps:
        figures["training"] = trainings(options.steps, options.tasks, options.seeds)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
