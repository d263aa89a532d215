"""Callbacks that every run has: progress, metrics as JSON lines, and checkpoints that are whole."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from journeyman.agents.evaluation.report import write_atomically

COMPLETE = "COMPLETE"
"""Written last into a checkpoint: one without it was cut short and is not resumed from."""


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
    """Appends what the trainer logs to a file, one JSON object a line.

    Each line also says how many seconds have gone by since the line before, rollouts, checkpoints
    and validation included: their sum is what the run has taken so far, however often it was
    resumed.
    """

    def __init__(self, path: Path) -> None:
        """Append to `path`."""
        self._path = path
        self._since = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Forget what a killed run logged after the checkpoint we go on from."""
        self._since = time.perf_counter()
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
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        with self._path.open("a") as file:
            file.write(_line({"step": state.global_step, **(logs or {}), "seconds": seconds}))


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
    """
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line, parse_constant=lambda name: None))
        except ValueError:
            continue
    return records


class MarkComplete(TrainerCallback):
    """Marks a checkpoint once all its files are written, and only then lets old ones go.

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
        if not state.is_world_process_zero:
            return
        output_dir = Path(str(args.output_dir))
        (output_dir / f"checkpoint-{state.global_step}" / COMPLETE).touch()
        for folder in complete(output_dir)[: -self._keep] if self._keep else ():
            (folder / COMPLETE).unlink()  # first, so that half a folder never counts as whole
            shutil.rmtree(folder)


def complete(output_dir: Path) -> list[Path]:
    """The whole checkpoints, oldest first."""
    marks = output_dir.glob(f"checkpoint-[0-9]*/{COMPLETE}")
    return sorted((m.parent for m in marks), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def last_complete(output_dir: Path, mend: bool = True) -> Path | None:
    """The newest whole checkpoint; those cut short by a kill are removed if this process may."""
    whole = complete(output_dir)
    for folder in set(output_dir.glob("checkpoint-[0-9]*")).difference(whole) if mend else ():
        shutil.rmtree(folder)
    return whole[-1] if whole else None
