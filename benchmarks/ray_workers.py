"""Episodes on Ray's workers of this machine: the same as here? In which part of the time?

    python benchmarks/ray_workers.py [--quick] [--tasks N] [--repeats N] [--steps N] [--seeds N]
        [--json FILE]

The embedded student plays test tasks greedily in this process, on one worker and on two, a thread
each, in turn; the medians are printed, and whether all episodes are alike. Then workers are killed
at three random moments. With --steps, runs are trained here and on two workers, of which one is
killed half-way, and success on the test tasks is compared, with its 95% interval over tasks, and
the weights bit for bit. Seconds mean something on a machine of two idle cores; processor seconds
of the busiest worker say what they would be there where others compute too.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
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
from journeyman.agents.learning.trainers.callbacks import read_metrics
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import deal
from journeyman.agents.rollouts.workers.on_ray import OnRay, RayRollouts
from journeyman.agents.rollouts.workers.own_cluster import descendants, standing
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


def timed(play: Any, student: Any, refs: Any) -> tuple[float, float, list[Episode]]:
    """Seconds, processor seconds of the busiest process that plays, and what was played."""
    pids = list(play.pids.values()) if isinstance(play, RayRollouts) else [os.getpid()]
    before = list(map(processor, pids))
    started = time.perf_counter()
    episodes = play(student, refs, BATCH, KWARGS)
    spent = time.perf_counter() - started
    busy = max(processor(pid) - then for pid, then in zip(pids, before, strict=True))
    return spent, busy, episodes


def processor(pid: int) -> float:
    """Seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def evaluations(tasks: int, repeats: int, seed: int) -> dict[str, Any]:
    student = load_student(
        "embedded-student", render="names", max_turn_tokens=48, max_context=640, temperature=0.0
    )
    refs = deal(list(ENV_IDS), "test", 0, tasks)
    seconds: dict[str, list[float]] = {"here": [], "1 worker": [], "2 workers": []}
    busiest: dict[str, list[float]] = {name: [] for name in seconds}
    here = rollout(student, refs, BATCH, KWARGS)
    same = []
    with OnRay(workers=2) as two:
        one = RayRollouts(importlib.import_module("ray"), Hands(1, cpus=0), 0, 300.0)
        for play in (one, two):
            while len(play.pids) < (1 if play is one else 2):
                play(student, refs[:2], 4, KWARGS)  # a rollout takes in who has come
            play(student, refs[:8], 4, KWARGS)  # and they have the weights
        for _ in range(repeats):
            for name, play in (("here", rollout), ("1 worker", one), ("2 workers", two)):
                spent, busy, found = timed(play, student, refs)
                seconds[name].append(spent)
                busiest[name].append(busy)
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
    print(f"{'':12}{'seconds':>10}{'of 1 worker':>14}{'processor':>12}{'of 1 worker':>14}")
    for name in seconds:
        line = f"{name:12}"
        for its, width in ((seconds, 10), (busiest, 12)):
            median = statistics.median(its[name])
            line += f"{median:{width}.1f}{median / statistics.median(its['1 worker']):14.2f}"
        print(line)
    print(f"episodes as played here: {min(same)} of {tasks} at least, over {len(same)} rounds")
    print(
        f"killed at three random moments (seed {seed}): {killed} of {tasks} as played here, "
        f"{len(places)} told, {len(set(places))} different"
    )
    return {
        "seconds": seconds,
        "processor_seconds": busiest,
        "same": min(same),
        "killed": killed,
        "told": len(places),
    }


class Killer(threading.Thread):
    """Kills a worker of this process once a training has taken so many steps."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(daemon=True)
        self._file, self._step = folder / "metrics.jsonl", step
        self._over = threading.Event()
        self.killed = 0

    def run(self) -> None:
        """Wait for the step, and kill; or until it is stopped."""
        while not self._over.wait(0.05):
            lines = read_metrics(self._file) if self._file.exists() else []
            if sum("loss" in it for it in lines) >= self._step and (pids := _workers()):
                os.kill(random.choice(pids), signal.SIGKILL)
                self.killed += 1
                return

    def stop(self) -> None:
        """Kill nobody from now on."""
        self._over.set()
        self.join()


def trainings(steps: int, tasks: int, seeds: int) -> dict[str, Any]:
    OmegaConf.register_new_resolver("folder", folder_name, replace=True)
    ways = {
        "here": ["rollouts=local"],
        "2 workers, one killed": ["rollouts=ray"],
        "the same, a step ahead": ["rollouts=ray", "rollouts.staleness=1"],
    }
    found: dict[str, list[Any]] = {name: [] for name in ways}
    for seed in range(seeds):
        weights: dict[str, bytes] = {}
        for name, asked in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                common = [f"steps={steps}", f"seed={seed}", "threads=1", f"run_dir={folder}"]
                common += [f"evaluation.tasks={tasks}", "env.kwargs.max_turns=8"]
                with initialize_config_module("journeyman.conf", version_base="1.3"):
                    config = compose("train", [*common, *asked])
                killer = Killer(Path(folder), steps // 2)
                if asked[0] == "rollouts=ray":
                    killer.start()
                started = time.perf_counter()
                training.train(config)
                spent = time.perf_counter() - started
                if asked[0] == "rollouts=ray":
                    killer.stop()
                rows = json.loads((Path(folder) / "summary.json").read_text())["rows"]
                weights[name] = (Path(folder) / "model" / "model.safetensors").read_bytes()
                found[name].append(
                    {key: rows["student after"]["success"][key] for key in ("rate", "low", "high")}
                    | {"seconds": spent, "killed": killer.killed}
                    | {"same_weights": weights[name] == weights["here"]}
                )
    print(f"{'':26}{'seed':>5}{'success':>9}  {'95% interval':16}{'killed':>7}  weights as here")
    for name, values in found.items():
        for seed, it in enumerate(values):
            between = f"{it['low']:.1%} to {it['high']:.1%}"
            print(
                f"{name:26}{seed:5}{it['rate']:9.1%}  {between:16}{it['killed']:7}"
                f"  {'yes' if it['same_weights'] else 'no'}"
            )
        print(f"{name:26}{'mean':>5}{statistics.mean(it['rate'] for it in values):9.1%}")
    return found


def _workers() -> list[int]:
    """Processes of our actors: of a cluster below this process, or of one that stays up."""
    known = standing()
    roots = [os.getpid(), *([known.pid] if known is not None and known.alive else [])]
    names: dict[int, bytes] = {}
    for pid in itertools.chain.from_iterable(map(descendants, roots)):
        with contextlib.suppress(OSError):  # it is gone
            names[pid] = Path(f"/proc/{pid}/cmdline").read_bytes()
    return [pid for pid, name in names.items() if name.startswith(b"ray::Actor")]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="next to nothing: that it runs")
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="of training; 0 trains nothing")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if options.quick:
        options.tasks, options.repeats, options.steps = 24, 1, 2
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
