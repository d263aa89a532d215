"""Tokens a second of the rollout loop, beside transformers' own `generate`, in one run.

    python benchmarks/rollout.py [--json FILE]

Both decode with the same model and batch. `generate` writes one turn from a left-padded batch of
opening prompts and knows no tools; the rollout loop plays whole episodes: parsing, environments,
tool results fed back. Repeats are interleaved; medians are printed with the range.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
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
