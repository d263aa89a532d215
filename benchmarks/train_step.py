"""A training step on rows of trees: what they share read once, beside every row read whole.

    python benchmarks/train_step.py [--quick] [--json FILE]

The embedded student plays trees of 8 rows, with tools named in its prompt and with full schemas. A
step is what the trainer does with them: the teacher reads, student forward and backward. Repeats
are interleaved; a ratio is the geometric mean over them, with its 95% interval. Gradients are
compared in float64. Peak memory is of a process of its own, above what it has before the step;
"trl" is its padding of rows and its kernel of the divergence. "sft" is all memory of a process in
which `trainer=sft` trains an adapter of a model of 0.5 billion parameters for a step, activations
kept, and formed again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from journeyman.agents.credit import TokenCredit
from journeyman.agents.learning.losses import JSD, Predictions, TeacherView
from journeyman.agents.learning.samples import to_batch
from journeyman.agents.learning.trainers.beginning import hidden_states
from journeyman.agents.learning.trainers.sft import DemonstrationTuning
from journeyman.agents.networks import sharing
from journeyman.agents.networks.adapters import begin
from journeyman.agents.networks.heads import Head, backbone
from journeyman.agents.networks.loading import load_model
from journeyman.agents.networks.tries import Distinct
from journeyman.agents.rollouts.tasks import deal
from journeyman.agents.runs.application import offer_options
from journeyman.agents.runs.folder import machine
from journeyman.agents.runs.train import settle
from journeyman.agents.search.evidence import TreeRollouts
from journeyman.agents.students.hf import load_student
from journeyman.agents.teachers import Annotations, Detail
from journeyman.agents.teachers.local import LocalTeacher, load_teacher
from journeyman.envs import Episode

ENV_IDS = ("journeyman/Bank-v0", "journeyman/Orders-v0", "journeyman/Calendar-v0")
ROWS = 8
LONG_ROWS, LONG_ROW = 2, 650
SUPERVISED = {"sft": (), "sft, checkpointing": ("trainer.args.gradient_checkpointing=true",)}
HALF_A_BILLION = Qwen2Config(
    vocab_size=151_936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    tie_word_embeddings=True,
    dtype="float32",
)
T95 = {2: 4.303, 3: 3.182, 4: 2.776, 6: 2.447, 9: 2.262}
"""Quantiles of Student's t for a 95% interval, by degrees of freedom."""


def grow(render: str, trees: int) -> list[Episode]:
    """Rows of trees, as a rollout of `search=credit` gives them."""
    room = {"names": 640, "full": 1024}[render]
    student = load_student(
        "embedded-student", render=render, max_turn_tokens=48, max_context=room - 48
    )
    tasks = [
        dataclasses.replace(task, seed=1000 * i + k)
        for i, task in enumerate(deal(ENV_IDS, "train", 0, trees))
        for k in range(ROWS)
    ]
    annotations = Annotations(load_teacher("embedded-teacher"))
    forest = TreeRollouts(rows=ROWS).play(student, annotations, None, tasks, 64, {"max_turns": 8})
    return [row.episode for row in forest.rows]


def prepared(rows: Sequence[Episode]) -> dict[str, Tensor]:
    """As the trainer has them, every token with a weight of its own."""
    noise = torch.Generator().manual_seed(0)
    credit = [
        TokenCredit(torch.rand(len(row.tokens), generator=noise), torch.zeros(len(row.tokens)))
        for row in rows
    ]
    return to_batch(rows, credit, 0)


def step(
    student: PreTrainedModel, teacher: LocalTeacher, rows: Sequence[Episode], flat: bool
) -> None:
    """The teacher's reading, the student's forward and backward passes."""
    with ExitStack() as stack:
        if flat:
            stack.enter_context(mock.patch.object(sharing, "_can_share", lambda *_: False))
            stack.enter_context(mock.patch.object(Distinct, "of", _apart))
        student.zero_grad()
        batch = prepared(rows)
        chosen = (batch["tool_mask"] * batch["completion_mask"]).bool()
        signals = teacher.annotate(rows, Detail.FULL)
        told = [TeacherView.of(it, row.mask) for it, row in zip(signals, rows, strict=True)]
        view = TeacherView.join(told, student.device)
        states, distinct = hidden_states(student, batch, chosen)
        targets = batch["completion_ids"][chosen]
        known = Predictions(states, Head.of(student), targets, distinct=distinct)
        values = JSD()(known, view, {})
        ((values * batch["weights"][chosen]).sum() / chosen.sum()).backward()


def _apart(rows: Sequence[Sequence[int]], ends: Sequence[Sequence[int]]) -> Distinct:
    return Distinct.apart(sum(map(len, ends)), torch.device("cpu"))


def step_of_trl(
    student: PreTrainedModel, teacher: PreTrainedModel, rows: Sequence[Episode]
) -> None:
    """All rows padded to one block, as `trl.DistillationTrainer` has them, and its kernel."""
    batch = prepared(rows)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    chosen = (batch["tool_mask"] * batch["completion_mask"]).bool()
    kept = slice(-chosen.shape[1] - 1, -1)
    heads = [model.get_output_embeddings() for model in (student, teacher)]
    with torch.no_grad():
        theirs = backbone(teacher)(input_ids=ids, attention_mask=mask, use_cache=False)
    ours = backbone(student)(input_ids=ids, attention_mask=mask, use_cache=False)
    first, second = (it.last_hidden_state[:, kept][chosen] for it in (ours, theirs))
    values, _ = ChunkedDivergenceFunction.apply(
        *(first, heads[0].weight, heads[0].bias, second, heads[1].weight, heads[1].bias),
        *(1.0, 1.0, 1.0, None, 1.0, None),
    )
    values.mean().backward()


def unique_tokens(rows: Sequence[Episode]) -> int:
    """Places of the trie that all rows make."""
    return len({hash(row.tokens[: i + 1]) for row in rows for i in range(len(row.tokens))})


def difference(rows: Sequence[Episode]) -> float:
    """The largest of any gradient's entries, in float64, between both ways."""
    student = load_model("embedded-student", "float64")
    reader = load_teacher("embedded-teacher", dtype="float64")
    for model in (student, reader._model):
        for module in list(model.modules()):  # transformers' norms round to float32 inside
            for name, norm in module.named_children():
                if type(norm).__name__.endswith("RMSNorm"):
                    own = torch.nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon)
                    own.weight = norm.weight
                    setattr(module, name, own)
    found = []
    for flat in (False, True):
        step(student, reader, rows, flat)
        found.append([p.grad.clone() for p in student.parameters() if p.grad is not None])
    return max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))


def peak(way: str, rows: Path) -> float:
    """Megabytes that a step adds, in a process of its own."""
    command = [sys.executable, __file__, "--way", way, str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def resident() -> float:
    """Most memory that this program has had so far, in megabytes (Linux)."""
    # Not by `getrusage`: a process begins with the most that its parent has had.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def supervise(*given: str) -> None:
    """A step of `trainer=sft` on an adapter of rank 16, in Qwen2.5-0.5B's shape, as float32."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(initialize_config_module("journeyman.conf", version_base="1.3"))
        offer_options()
        config = compose("train", ["trainer=sft", "steps=1", f"run_dir={folder}", *given])
        settle(config)
        args = instantiate(config.trainer.args, per_device_train_batch_size=LONG_ROWS)
        student = load_student("embedded-student", max_context=LONG_ROW)
        student.model = begin(AutoModelForCausalLM.from_config(HALF_A_BILLION), {"r": 16})
        ids = torch.randint(1000, (LONG_ROWS, LONG_ROW)).tolist()
        rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
        DemonstrationTuning(student, args, rows).train()


def run_way(way: str, file: Path) -> None:
    """What a process of `peak` does; it prints megabytes."""
    if way in SUPERVISED:
        supervise(*SUPERVISED[way])
        print(resident())
        return
    rows = pickle.loads(file.read_bytes())
    student, teacher = load_model("embedded-student"), load_teacher("embedded-teacher")
    step(student, teacher, rows[:1], flat=True)  # libraries are loaded
    before = resident()
    if way == "trl":
        step_of_trl(student, load_model("embedded-teacher"), rows)
    else:
        step(student, teacher, rows, way == "flat")
    print(resident() - before)


def ratio(times: dict[str, list[float]]) -> tuple[float, float, float]:
    """How many times as long flat rows take, with a 95% interval over repeats."""
    logs = [math.log(a / b) for a, b in zip(times["flat"], times["shared"], strict=True)]
    half = T95[len(logs) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    middle = statistics.fmean(logs)
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def measured(rows: Sequence[Episode], repeats: int) -> dict[str, Any]:
    """Counts, times and gradients on some rows."""
    student, teacher = load_model("embedded-student"), load_teacher("embedded-teacher")
    times: dict[str, list[float]] = {"shared": [], "flat": []}
    for repeat in range(repeats + 1):
        for way, taken in times.items():
            started = time.perf_counter()
            step(student, teacher, rows, way == "flat")
            if repeat:  # the first one warms up
                taken.append(time.perf_counter() - started)
    return {
        "rows": len(rows),
        "row_tokens": sum(len(row.tokens) for row in rows),
        "unique_tokens": unique_tokens(rows),
        "seconds": times,
        "ratio": ratio(times),
        "difference": difference(rows[:ROWS]),
    }


def peaks(rows: Sequence[Episode]) -> dict[str, float]:
    """Megabytes that a step adds, by the way it goes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows"
        file.write_bytes(pickle.dumps(rows))
        return {way: peak(way, file) for way in ("shared", "flat", "trl")}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one tree, three repeats")
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        run_way(options.way[0], Path(options.way[1]))
        return
    found: dict[str, Any] = {"machine": machine(), "seed": 0}
    print("| prompt | tokens of rows | unique | flat, s | shared, s | times as fast |", end="")
    print(" gradients differ by |\n|" + "---|" * 7)
    for render in ("names", "full"):
        rows = grow(render, 1 if options.quick else 4)
        it = found[render] = measured(rows, 3 if options.quick else 5)
        flat, shared = (statistics.median(it["seconds"][way]) for way in ("flat", "shared"))
        value, low, high = it["ratio"]
        print(
            f"| {render} | {it['row_tokens']:,} | {it['unique_tokens']:,} | {flat:.2f} | "
            f"{shared:.2f} | {value:.2f} [{low:.2f}, {high:.2f}] | {it['difference']:.1e} |",
            flush=True,
        )
    found["peak_mb"] = peaks(rows)
    told = ", ".join(f"{way} {value:,.0f} MB" for way, value in found["peak_mb"].items())
    print(f"\nPeak memory of a step with full schemas: {told}")
    if not options.quick:
        found["sft_mb"] = {way: peak(way, Path()) for way in SUPERVISED}
        print(
            f"All memory of supervised learning, an adapter of 0.5 billion parameters in float32, "
            f"{LONG_ROWS} rows of {LONG_ROW} tokens: "
            + ", ".join(f"{way} {value:,.0f} MB" for way, value in found["sft_mb"].items())
        )
    print(json.dumps(found["machine"]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
