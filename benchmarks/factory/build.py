"""`make embedded-models`: trains the embedded pair from scratch, once, and writes its weights.

Everything is seeded and counted in steps; a killed run continues from its last checkpoint and ends
with the same weights. Run it with one or two torch threads (`OMP_NUM_THREADS`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from vocabulary import train_tokenizer
from wiring import make_model

from journeyman.agents.rollouts.demonstrations import Demonstration, demonstrate
from journeyman.agents.students.dialect import Dialect
from journeyman.envs import answer_text, make

EMBEDDED = Path(__file__).parents[2] / "agents" / "embedded"
ENV_IDS = ("journeyman/Bank-v0", "journeyman/Orders-v0", "journeyman/Calendar-v0")
POOL = 192
"""Demonstrations sorted by length together before they are cut into batches."""
MAX_TURNS = 64
"""Room for demonstrations with many mistakes."""
CORPUS_TASKS = 600
"""Tasks an environment that the tokenizer is trained on."""
SAVE_EVERY = 100
"""Steps between checkpoints."""
VALIDATION = 100
"""Validation tasks an environment."""


@dataclass(frozen=True)
class Recipe:
    """How one model is made."""

    width: int
    layers: int
    steps: int
    error_rate: float
    learning_rate: float = 3e-3
    batch_size: int = 16
    seed: int = 0
    decay: bool = True
    """Whether the learning rate falls to nothing by the last step, or stays high."""


RECIPES = {
    "teacher": Recipe(width=160, layers=3, steps=2000, error_rate=0.2),
    # Stopped in the middle of its training: knows the form of things and slips on the rest.
    "student": Recipe(
        width=128, layers=3, steps=700, error_rate=0.2, learning_rate=5e-3, seed=1, decay=False
    ),
}


def corpus() -> Iterator[str]:
    """Text with every unit that prompts, calls and results are made of."""
    yield from (f"{n:02d}" for n in range(100))
    yield "system\nuser\nassistant\ntool\nTools: "
    for env_id in ENV_IDS:
        env = make(env_id)
        yield "Tools: " + " ".join(t.name for t in env.tools)
        for index in range(CORPUS_TASKS):
            messages, _ = env.reset(options={"task_id": f"train/{index}"})
            yield from (m.content for m in messages)
            for call in env.oracle():
                yield call.canonical()
                replies, *_ = env.step([call])
                yield from (m.content for m in replies)
            yield answer_text(env.user_turn)
        yield from ('"error": "no', "No tool did you mean", "The call is not valid JSON")


def batches(recipe: Recipe, dialect: Dialect, start: int) -> Iterator[list[Demonstration]]:
    """Batches from step `start` on; the batch of a step depends on the recipe alone."""
    envs = [make(env_id, max_turns=MAX_TURNS) for env_id in ENV_IDS]
    per_pool = POOL // recipe.batch_size
    pool_index = start // per_pool
    skip = start % per_pool
    while True:
        first = pool_index * POOL + recipe.seed * 10_000_000
        rows = [
            demonstrate(envs[i % len(envs)], f"train/{first + i}", dialect, recipe.error_rate)
            for i in range(POOL)
        ]
        rows.sort(key=lambda row: len(row.tokens))
        cut = [rows[i : i + recipe.batch_size] for i in range(0, POOL, recipe.batch_size)]
        random.Random(f"{recipe.seed}/{pool_index}").shuffle(cut)
        yield from cut[skip:]
        pool_index, skip = pool_index + 1, 0


def pad(rows: list[Demonstration], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded tokens [B, T] and loss mask [B, T]."""
    length = max(len(row.tokens) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.tokens)] = torch.tensor(row.tokens)
        mask[i, : len(row.tokens)] = torch.tensor(row.mask)
    return ids, mask


def losses(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each learned token [N], and which rows are right token by token [B]."""
    hidden = model.base_model(input_ids=ids).last_hidden_state[:, :-1]
    chosen = mask[:, 1:]
    logits = model.get_output_embeddings()(hidden[chosen])
    targets = ids[:, 1:][chosen]
    right = torch.ones_like(chosen)
    right[chosen] = logits.argmax(-1) == targets
    return cross_entropy(logits, targets, reduction="none"), right.all(1)


def schedule(step: int, recipe: Recipe) -> float:
    """Learning rate of a step: warm-up over 50 steps, then a cosine to 1% if it decays."""
    rate = recipe.learning_rate * min(1.0, (step + 1) / 50)
    if not recipe.decay:
        return rate
    return rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))


def train(
    name: str, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, work: Path
) -> PreTrainedModel:
    """Train one model, or go on where a killed run stopped."""
    dialect = Dialect(tokenizer, "names")
    model = make_model(
        len(tokenizer),
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        recipe.width,
        recipe.layers,
        recipe.seed,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.01)
    checkpoint, start = work / f"{name}.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    began, seen = time.perf_counter(), 0
    for step, rows in zip(
        range(start, recipe.steps), batches(recipe, dialect, start), strict=False
    ):
        ids, mask = pad(rows, tokenizer.pad_token_id)
        for group in optimizer.param_groups:
            group["lr"] = schedule(step, recipe)
        loss = losses(model, ids, mask)[0].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += ids.numel()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == recipe.steps:
            rate = seen / (time.perf_counter() - began)
            record = {
                "model": name,
                "step": step + 1,
                "loss": loss.item(),
                "tokens_per_s": round(rate),
            }
            if (step + 1) % 500 == 0 or step + 1 == recipe.steps:
                record |= validate(model, dialect)
            print(json.dumps(record), flush=True)
            with (work / f"{name}.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
            partial = checkpoint.with_suffix(".tmp")
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                },
                partial,
            )
            os.replace(partial, checkpoint)
    return model


@torch.no_grad()
def validate(model: PreTrainedModel, dialect: Dialect) -> dict[str, float]:
    """Share of validation tasks whose gold turns are the model's first choice token by token."""
    scores = {}
    for env_id in ENV_IDS:
        env = make(env_id)
        rows = [demonstrate(env, f"validation/{i}", dialect) for i in range(VALIDATION)]
        ids, mask = pad(rows, dialect.tokenizer.pad_token_id)
        scores[env_id.partition("/")[2]] = losses(model, ids, mask)[1].float().mean().item()
    return scores


def main(argv: Sequence[str] | None = None) -> None:
    """Make the tokenizer and both models; write them into the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/embedded"), help="checkpoints, log")
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    parser.add_argument("--only", choices=sorted(RECIPES))
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(corpus())
    for name, recipe in RECIPES.items():
        if args.only in (None, name):
            model = train(name, recipe, tokenizer, args.work)
            model.save_pretrained(args.out / name)
            tokenizer.save_pretrained(args.out / name)
    logs = sorted(args.work.glob("*.jsonl"))
    (args.out / "training.jsonl").write_text("".join(path.read_text() for path in logs))


if __name__ == "__main__":
    main()
