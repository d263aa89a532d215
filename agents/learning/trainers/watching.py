"""Says once that a run unlearns what its student could do, and ends the run if that is asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from journeyman.agents.errors import SettingError
from journeyman.agents.evaluation.remarks import COLLAPSED
from journeyman.agents.learning.collapse import ENOUGH, Detector
from journeyman.agents.learning.trainers.callbacks import read_metrics

logger = logging.getLogger(__name__)

OnCollapse = Literal["warn", "stop"]


class CollapseWatch(TrainerCallback):
    """Warns of a collapse, marks it in the figures, and ends the run if asked.

    It must come before whoever writes figures down. What a resumed run logged before is heard
    again, so that it says no more and no less than an unbroken one.
    """

    def __init__(self, do: str = "warn", tasks: float = ENOUGH) -> None:
        """Say what to do.

        Args:
            do: "warn", or "stop" as well.
            tasks: Different tasks of a rollout.

        Raises:
            SettingError: Something else is to be done.
        """
        if do not in get_args(OnCollapse):
            raise SettingError(
                f"trainer.on_collapse={do}: expected {' or '.join(get_args(OnCollapse))}"
            )
        self._do = do
        self._tasks = tasks
        self._detector = Detector(tasks)
        self._found: str | None = None
        self._marked = True
        self.best: Path | None = None
        """Where the best student by validation is kept, if it is."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Hear what a killed run logged up to the checkpoint we go on from."""
        self._detector = Detector(self._tasks)
        path = Path(str(args.output_dir)).parent / "metrics.jsonl"
        history: Sequence[Mapping[str, Any]] = read_metrics(path) if state.global_step else ()
        for figures in history:
            if figures["step"] <= state.global_step:
                self._found = self._detector.hear(figures) or self._found

    def see(self, step: int, figures: Mapping[str, Any]) -> None:
        """Hear of a look at validation tasks."""
        self._hear(step, figures)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Hear of a rollout; mark the line where a collapse shows."""
        if logs is None or "train_runtime" in logs:  # the trainer's summary is not a step
            return
        self._hear(state.global_step, logs)
        if not self._marked:
            self._marked = True
            logs[COLLAPSED] = 1.0
        if self._found is not None and self._do == "stop":
            control.should_training_stop = True

    def _hear(self, step: int, figures: Mapping[str, Any]) -> None:
        found = self._detector.hear(figures)
        if found is None:
            return
        self._found, self._marked = found, False
        rest = (
            "the run ends here (trainer.on_collapse=stop)"
            if self._do == "stop"
            else "to end such a run add trainer.on_collapse=stop"
        )
        kept = self.best is not None and self.best.exists()
        where = f"; its best student is kept in {self.best}" if kept else ""
        logger.warning(
            "step %d: training collapses: %s; take a smaller trainer.args.learning_rate or a "
            "larger trainer.kl; %s%s",
            *(step, found, rest, where),
        )
