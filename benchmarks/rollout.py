"""Tokens a second of the rollout loop, beside transformers' own `generate` and TRL's own loop.

    python benchmarks/rollout.py [--json FILE]
    python benchmarks/rollout.py --peers [--quick] [--students embedded] [--batches 16 64] …

Without options: one model and batch, where `generate` writes one turn from a left-padded batch of
opening prompts and knows no tools; the rollout loop plays whole episodes: parsing, environments,
tool results fed back. Repeats are interleaved; medians are printed with the range.

With `--peers`, three loops play the same conversations, token for token: ours, that of TRL's
`GRPOTrainer(environment_factory=…)`, and `generate` on the whole conversation again for each turn;
with the embedded student, and with one of 28M parameters that has the same logits. Beside them: an
episode against an ideal one, tools that sleep, places taken, greedy tokens. A row that misses its
target says so. On two cores it takes hours with 28M parameters and long results; `--quick` takes
less than a minute, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import deal
from journeyman.agents.runs.folder import machine
from journeyman.agents.students.hf import HFPlayer, load_student
from journeyman.envs import make

ENV_IDS = ("journeyman/Bank-v0", "journeyman/Orders-v0", "journeyman/Calendar-v0")
NEW_TOKENS = 128


def episodes(player: HFPlayer, batch: int) -> int:
    """Play `batch` episodes; returns the tokens that went through the model."""
    played = rollout(player, deal(ENV_IDS, "validation", 0, batch), batch)
    return sum(len(e.tokens) for e in played)


@torch.inference_mode()
def generate(player: HFPlayer, batch: int) -> int:
    """Let transformers write `NEW_TOKENS` tokens a row; returns the tokens processed."""
    rows = []
    for task in deal(ENV_IDS, "validation", 0, batch):
        env = make(task.env_id)
        messages, _ = env.reset(options={"task_id": task.task_id})
        rows.append(player.dialect.opening(messages, env.tools))
    length = max(map(len, rows))
    pad = player.dialect.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    player.model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
    )
    return sum(map(len, rows)) + batch * NEW_TOKENS


def against_peers(options: argparse.Namespace) -> None:
    """Measure our loop against others, and print."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from harness.racing import QUICK, Scale, as_dict, measure, table

    asked = {
        name: tuple(value) if isinstance(value, list) else value
        for name in ("students", "batches", "results", "repeats")
        if (value := getattr(options, name)) is not None
    }
    scale = replace(QUICK if options.quick else Scale(), **asked)
    results = measure(scale)
    print(table(results, scale))
    print()
    print(json.dumps(machine()))
    if options.json:
        told = as_dict(results, scale) | {"machine": machine()}
        options.json.write_text(json.dumps(told, indent=2))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, help="5; 3 of the peers")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--quick", action="store_true", help="next to nothing of the peers")
    parser.add_argument("--students", nargs="+", choices=("embedded", "28M"))
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--results", nargs="+", type=int, help="tokens")
    options = parser.parse_args()
    if options.peers or options.quick:
        against_peers(options)
        return
    options.repeats = options.repeats or 5
    player = load_student("embedded-student", render="names", max_turn_tokens=48, max_context=640)
    ways: dict[str, Callable[[HFPlayer, int], int]] = {"rollout": episodes, "generate": generate}
    rates: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        for batch in (1, 16, 64):
            for name, way in ways.items():
                started = time.perf_counter()
                tokens = way(player, batch)
                rate = tokens / (time.perf_counter() - started)
                rates.setdefault(f"{name} batch {batch}", []).append(rate)
    for name, values in rates.items():
        low, high = min(values), max(values)
        print(f"{name:20} {statistics.median(values):8.0f} tokens/s  ({low:.0f} - {high:.0f})")
    print(json.dumps(machine()))
    if options.json:
        options.json.write_text(json.dumps({"rates": rates, "machine": machine()}, indent=2))


if __name__ == "__main__":
    main()
