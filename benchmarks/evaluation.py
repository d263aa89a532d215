"""What an evaluation costs beside model and environments, and what reading its episodes does.

    python benchmarks/evaluation.py [--tasks N] [--student-tasks N] [--json FILE]

The oracle plays the mock APIs by `journeyman eval` (rows no-op, oracle, student), in a process of
its own, and the commands that read a run read that one. Then the embedded student plays in this
process, with a clock at the doors of the model and of the environments: the rest is overhead.
Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

ENV_IDS = ("journeyman/Bank-v0", "journeyman/Orders-v0", "journeyman/Calendar-v0")
RUN = "scripted"
READERS = {
    "show": ["show", RUN, "--limit", "10"],
    "show --summary": ["show", RUN, "--summary"],
    "compare": ["compare", f"{RUN}:student", f"{RUN}:no-op"],
    "compare --metric": ["compare", f"{RUN}:student", f"{RUN}:no-op", "--metric", "valid_calls"],
    "leaderboard": ["leaderboard", RUN],
    "report": ["report", RUN, "-o", "page.html"],
}


def measured(arguments: list[str], folder: Path) -> dict[str, float]:
    """Seconds (of the clock, and of the processor) and the most memory in MB of a command."""
    command = [sys.executable, "-m", "journeyman.agents.cli", *arguments]
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: status {process.returncode}")
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mb": used.ru_maxrss / 1024,  # Linux counts it in KiB
    }


class Clock:
    """Seconds spent behind some methods, each counted once however they call each other."""

    def __init__(self) -> None:
        """Nothing is spent yet."""
        self.seconds = 0.0
        self._inside = False

    def timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, on this clock."""

        def on_clock(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return method(*args, **kwargs)
            self._inside, started = True, time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started
                self._inside = False

        return on_clock


def shares(tasks: int, folder: Path) -> dict[str, float]:
    """Seconds of an evaluation of the embedded student: in all, in the model, in environments."""
    # Not above: what a process holds counts as the peak of those that it starts.
    from journeyman.agents.evaluation.records import EpisodeFile, Played, kind_of, metrics_of
    from journeyman.agents.evaluation.stored import StoredEpisode
    from journeyman.agents.rollouts.rollout import rollout
    from journeyman.agents.rollouts.tasks import deal
    from journeyman.agents.students.hf import HFPlayer, HFStream, load_student
    from journeyman.envs import ToolEnv

    model = {HFPlayer: ("open",), HFStream: ("advance", "extend", "finish")}
    environments = {ToolEnv: ("reset", "step", "state_hash", "close")}
    player = load_student("embedded-student", render="names", max_turn_tokens=48, max_context=640)
    player = player.at(temperature=0.0)
    clocks = {"model": Clock(), "environments": Clock()}
    with ExitStack() as patched:
        for clock, doors in zip(clocks.values(), (model, environments), strict=True):
            for cls, names in doors.items():
                for name in names:
                    timed = clock.timed(getattr(cls, name))
                    patched.enter_context(mock.patch.object(cls, name, timed))
        metrics_of([Played("", e) for e in rollout(player, deal(ENV_IDS, "train", 0, 3))])
        for clock in clocks.values():  # what is loaded once is not counted
            clock.seconds = 0.0
        refs = deal(ENV_IDS, "test", 0, tasks)
        started = time.perf_counter()
        episodes = rollout(player, refs, 128, {"max_turns": 20})
        made_again = clocks["environments"].timed(kind_of)  # an environment makes the task
        played = [Played("student", StoredEpisode.of(e), made_again(e)) for e in episodes]
        EpisodeFile(folder).append(played)
        metrics_of(played)
        total = time.perf_counter() - started
    return {"all": total, **{name: clock.seconds for name, clock in clocks.items()}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--student-tasks", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = ["student=oracle", f"evaluation.tasks={options.tasks}", f"name={RUN}"]
        parts = {"eval": measured(["eval", *settings], folder)}
        parts |= {told: measured(arguments, folder) for told, arguments in READERS.items()}
        size = (folder / "runs" / RUN / "episodes.jsonl").stat().st_size
        spent = shares(options.student_tasks, folder)
    from journeyman.agents.runs.folder import machine

    rest = spent["all"] - spent["model"] - spent["environments"]
    where = machine()
    print(f"{options.tasks} tasks, {3 * options.tasks} episodes, {size / 1e6:.0f} MB on disk")
    print(f"{where['date']}, {where['cpus']} CPUs, {where['threads']} threads, {where['device']}\n")
    print("| `journeyman …` | seconds | CPU seconds | peak MB |\n|:---|---:|---:|---:|")
    for told, it in parts.items():
        figures = (it["seconds"], it["cpu_seconds"], it["peak_mb"])
        print(f"| {told} | {' | '.join(f'{figure:.1f}' for figure in figures)} |")
    print(f"\nembedded student, {options.student_tasks} tasks: {spent['all']:.1f} s\n")
    print("| where | share |\n|:---|---:|")
    for told, seconds in {**spent, "the rest": rest}.items():
        if told != "all":
            print(f"| {told} | {seconds / spent['all']:.1%} |")
    if options.json:
        report = {"parts": parts, "student": spent, "bytes": size, "machine": where}
        options.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
