"""`tracker=`: a run's figures where its user watches others, beside the run's own folder.

What speaks to TensorBoard, Weights & Biases and the like is accelerate's: one class each, with one
interface. Here is only what is told: the config, what training logs, validation, and the rows of
the table.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping
from typing import Any

from accelerate import PartialState
from accelerate.tracking import GeneralTracker
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from journeyman.agents.errors import SettingError
from journeyman.agents.evaluation.metrics import Metrics
from journeyman.agents.runs.config import Node, make


def load_tracker(node: Node | None) -> GeneralTracker | None:
    """Make a run's tracker, which tells nothing yet; None if the run has none.

    Raises:
        SettingError: Its package is not installed, or the node makes something else.
    """
    tracker = make(node, "tracker")
    if tracker is None:
        return None
    if not isinstance(tracker, GeneralTracker):
        raise SettingError(
            f"tracker: {type(tracker).__name__} is no accelerate.tracking.GeneralTracker"
        )
    package = str(tracker.name)
    ours = type(tracker).__module__ == GeneralTracker.__module__  # it is named after its package
    if ours and importlib.util.find_spec(package) is None:
        raise SettingError(f"tracker={package}: it is not installed: pip install {package}")
    return tracker


class Tracking(TrainerCallback):
    """Tells a tracker what happens, from `open` to `close`; without a tracker it does nothing."""

    def __init__(self, tracker: GeneralTracker | None) -> None:
        """Join the tracker; the first process of a job tells, and no other."""
        self._tracker = tracker if PartialState().is_main_process else None

    def open(self, config: Mapping[str, Any]) -> None:
        """Begin a run there, or go on with it.

        Args:
            config: The run's, as plain data.

        Raises:
            SettingError: The tracker refuses, for want of a login say.
        """
        if self._tracker is None:
            return
        try:
            self._tracker.start()
            self._tracker.store_init_configuration(dict(_flat(config)))
        except Exception as error:  # each service has errors of its own
            words = " ".join(str(error).split()) or type(error).__name__
            raise SettingError(f"tracker={self._tracker.name} cannot begin: {words}") from error

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Tell figures of an optimiser step; those that are no finite number are left out."""
        known = {
            name: value
            for name, value in figures.items()
            if type(value) in (int, float) and math.isfinite(value) and name != "step"
        }
        if self._tracker is not None and known:
            self._tracker.log(known, step=step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Tell what the trainer logs."""
        if "train_runtime" not in (logs or {}):  # the trainer's summary is not a step
            self.log(state.global_step, logs or {})

    def close(self, step: int, rows: Mapping[str, Metrics]) -> None:
        """Tell the table, as "table/<row>/<figure>", and end the run there.

        Args:
            step: Optimiser steps that were taken.
            rows: Name of a policy -> its metrics.
        """
        for row, metrics in rows.items():
            low, high = metrics.success.interval
            figures = {
                "success": metrics.success.value,
                "low": low,
                "high": high,
                "calls_per_task": metrics.calls_per_task,
                "tokens_per_task": metrics.tokens_per_task,
                "cost": metrics.cost,
            }
            self.log(step, {f"table/{row}/{name}": value for name, value in figures.items()})
        if self._tracker is not None:
            self._tracker.finish()


def _flat(config: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their full names; lists and empty parts as text."""
    if isinstance(config, Mapping) and config:
        for name, value in config.items():
            yield from _flat(value, f"{place}.{name}" if place else str(name))
    elif isinstance(config, bool | int | float | str):
        yield place, config
    else:
        yield place, str(config)
