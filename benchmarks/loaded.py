"""Seconds that training takes alone, and beside a program that keeps one core busy.

    python benchmarks/loaded.py [--steps N] [--repeats N] [--settings NAME …] [--json FILE]

The demo's first optimiser steps (12 of them learn from one rollout), without evaluations, in a
process of their own; libraries are loaded before the clock runs. Threads wait for one another as
OpenMP chooses, spinning for many rounds before they sleep, asleep at once, and as `journeyman` sets
it, spinning for few; settings are interleaved, each alone and then loaded, and medians printed. It
means something on a machine that does nothing else; the first setting is slow when loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from journeyman.agents.runs import threads

SETTINGS: dict[str, dict[str, str] | None] = {
    "as OpenMP chooses": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "as journeyman sets it": None,
}
"""Variables of the process; None leaves them to `wait_briefly`."""
BUSY = "while True: pass"


def child(steps: int, shipped: bool) -> None:
    """Load, wait for a line, train, and print the figures as JSON."""
    if shipped:
        threads.wait_briefly()
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from journeyman.agents.evaluation.files import folder_name
    from journeyman.agents.learning.trainers.callbacks import read_metrics
    from journeyman.agents.runs.folder import machine
    from journeyman.agents.runs.train import train

    OmegaConf.register_new_resolver("folder", folder_name)
    with tempfile.TemporaryDirectory() as folder:
        asked = ["experiment=demo", f"steps={steps}", "evaluation.tasks=0", f"run_dir={folder}"]
        with initialize_config_module("journeyman.conf", version_base="1.3"):
            config = compose("train", asked)
        print("ready", flush=True)
        sys.stdin.readline()
        wall, cpu = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train(config)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        loss = read_metrics(Path(folder) / "metrics.jsonl")[-1]["loss"]
    print(json.dumps({"seconds": wall, "cpu": cpu, "loss": loss, "machine": machine()}))


def measure(name: str, steps: int, loaded: bool) -> dict[str, Any]:
    """One process with a setting; with `loaded`, beside a busy one while it trains."""
    given = SETTINGS[name]
    env = {key: value for key, value in os.environ.items() if key not in threads.VARIABLES}
    command = [sys.executable, __file__, "--steps", str(steps)]
    command += ["--child", "own" if given is None else "given"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env=env | (given or {})
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{name}: the process failed, see above")
        busy = subprocess.Popen([sys.executable, "-c", BUSY]) if loaded else None
        try:
            told, _ = process.communicate("\n")
        finally:
            if busy is not None:
                busy.kill()
                busy.wait()
    found: dict[str, Any] = json.loads(told)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=[*SETTINGS])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=["own", "given"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.steps, options.child == "own")
        return
    found: dict[str, dict[bool, list[dict[str, Any]]]] = {
        name: {False: [], True: []} for name in options.settings
    }
    for _ in range(options.repeats):
        for name, cells in found.items():
            for loaded, cell in cells.items():
                cell.append(measure(name, options.steps, loaded))
    print("| threads wait | alone, s (CPU) | beside a busy loop, s (CPU) | ratio | loss |")
    print("|---|---|---|---|---|")
    for name, cells in found.items():
        (alone, alone_cpu), (beside, beside_cpu) = (
            [statistics.median(it[figure] for it in cell) for figure in ("seconds", "cpu")]
            for cell in cells.values()
        )
        losses = sorted({f"{it['loss']:.6f}" for cell in cells.values() for it in cell})
        print(
            f"| {name} | {alone:.1f} ({alone_cpu:.1f}) | {beside:.1f} ({beside_cpu:.1f}) "
            f"| {beside / alone:.2f} | {', '.join(losses)} |"
        )
    print(json.dumps(found[options.settings[0]][False][0]["machine"]))
    if options.json:
        plain = {
            name: {"loaded" if loaded else "alone": cell for loaded, cell in cells.items()}
            for name, cells in found.items()
        }
        options.json.write_text(json.dumps(plain, indent=2))


if __name__ == "__main__":
    main()
