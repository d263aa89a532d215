"""Callbacks that every run has: progress, metrics as JSON lines, and checkpoints that are whole."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from journeyman.agents.evaluation.files import json_lines
from journeyman.agents.evaluation.remarks import NO_SIGNAL
from journeyman.agents.evaluation.report import write_atomically

logger = logging.getLogger(__name__)

COMPLETE = "COMPLETE"
"""Written last into a checkpoint, with what it holds: one without it was cut short."""
_NAME = re.compile(r"checkpoint-\d+", re.ASCII)


class Progress(TrainerCallback):
    """A bar with rate, time left, and the figures one watches."""

    shown = {"rollout/success": "success", "loss": "loss", "rollout/calls": "calls"}  # noqa: RUF012

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Open the bar where the run stands."""
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="training", mininterval=1.0
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """One step further."""
        self._bar.update(1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Show the latest figures."""
        logs = logs or {}
        figures = {n: f"{logs[k]:.3f}" for k, n in self.shown.items() if k in logs}
        if figures:
            self._bar.set_postfix(figures, refresh=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Close the bar."""
        self._bar.close()


class MetricsFile(TrainerCallback):
    """Appends what the trainer logs to a file, one JSON object a line; warns once of silence.

    Each line also says how many seconds have gone by since the line before, rollouts, checkpoints
    and validation included, and how many of a core this process used: their sums are what the run
    has taken so far, however often it was resumed.
    """

    def __init__(self, path: Path) -> None:
        """Append to `path`."""
        self._path = path
        self._since, self._used = time.perf_counter(), time.process_time()
        self._told = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Forget what a killed run logged after the checkpoint we go on from."""
        self._since, self._used = time.perf_counter(), time.process_time()
        if state.is_world_process_zero:
            self.forget_after(state.global_step)

    def forget_after(self, step: int) -> None:
        """Keep the whole lines up to a step."""
        kept = [r for r in read_metrics(self._path) if r["step"] <= step]
        write_atomically(self._path, "".join(map(_line, kept)).encode())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Write one line."""
        closing = "train_runtime" in (logs or {})  # the trainer's summary is not a step
        if closing or not state.is_world_process_zero:
            return
        if (logs or {}).get(NO_SIGNAL) == 1 and not self._told:
            self._told = True
            logger.warning(
                "step %d: all episodes of the rollout have one reward, and loss=none learns from "
                "differences alone: nothing is learned here; if this goes on, take easier tasks "
                "(split=…), more episodes a rollout, or a teacher with a loss=…",
                state.global_step,
            )
        now, used = time.perf_counter(), time.process_time()
        took = {"seconds": now - self._since, "cpu_seconds": used - self._used}
        self._since, self._used = now, used
        with self._path.open("a") as file:
            file.write(_line({"step": state.global_step, **(logs or {}), **took}))


def _line(record: dict[str, Any]) -> str:
    """A record as JSON, which knows no NaN and no infinity: null stands for them."""
    known = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
    return json.dumps(known, allow_nan=False) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line cut short by a kill is left out.

    NaN and infinities, which are no JSON, are read as None.

    Raises:
        RunFileError: A line is none that was written there.
    """
    return list(json_lines(path, {"step": int}, constant=lambda name: None))


class MarkComplete(TrainerCallback):
    """Marks a checkpoint once all its files are written, and only then lets old ones go.

    The mark lists the files with their sizes and checksums, by which `last_complete` knows damage.
    The trainer's own rotation (`save_total_limit`) deletes before the new checkpoint is marked: a
    kill in between could leave none.
    """

    def __init__(self, keep: int | None = None) -> None:
        """Keep the newest `keep` checkpoints; None or 0 keeps all."""
        self._keep = keep

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The checkpoint of this step is whole."""
        PartialState().wait_for_everyone()  # each process has files of its own in it
        if not state.is_world_process_zero:
            return
        output_dir = Path(str(args.output_dir))
        mark(output_dir / f"checkpoint-{state.global_step}")
        for folder in complete(output_dir)[: -self._keep] if self._keep else ():
            (folder / COMPLETE).unlink()  # first, so that half a folder never counts as whole
            shutil.rmtree(folder)


def mark(checkpoint: Path) -> None:
    """Say that a checkpoint is whole, and what it holds."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    held = {str(path.relative_to(checkpoint)): _sum(path) for path in files}
    write_atomically(checkpoint / COMPLETE, json.dumps(held, indent=1).encode())


def _sum(path: Path) -> list[int]:
    """A file's size and CRC-32, which costs a small part of having written it."""
    size = checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return [size, checksum]


def damage(checkpoint: Path) -> str | None:
    """What of a marked checkpoint is not as it was written; None if it is whole."""
    try:
        held = json.loads((checkpoint / COMPLETE).read_bytes())
    except ValueError:
        held = None
    if not isinstance(held, dict) or not held:
        return f"{COMPLETE} does not say what it holds"
    for name, known in held.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if _sum(path) != known:
            return f"{name} is not what was written"
    return None


def complete(output_dir: Path) -> list[Path]:
    """The marked checkpoints, oldest first."""
    return [folder for folder in _checkpoints(output_dir) if (folder / COMPLETE).exists()]


def _checkpoints(output_dir: Path) -> list[Path]:
    """All of a run's, oldest first; other names are nobody's business."""
    found = (f for f in output_dir.glob("checkpoint-*") if _NAME.fullmatch(f.name) and f.is_dir())
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def last_complete(output_dir: Path) -> Path | None:
    """The newest whole checkpoint; None if there is none.

    Those cut short by a kill are removed. Damaged ones (a disk that lost power, a copy that broke
    off) are set aside as `damaged-checkpoint-N`, with a line that says so.
    """
    marked = complete(output_dir)
    for folder in set(_checkpoints(output_dir)).difference(marked):
        shutil.rmtree(folder)
    while marked and (problem := damage(marked[-1])):
        folder = marked.pop()
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        instead = f"going on from {marked[-1].name}" if marked else "starting anew"
        print(f"{aside}: {problem}; {instead}", file=sys.stderr)
    return marked[-1] if marked else None
