"""What every trainer is built from; each takes the parts it needs."""

from __future__ import annotations

import ctypes
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainingArguments

from journeyman.agents.credit import Credit
from journeyman.agents.errors import SettingError
from journeyman.agents.evaluation.scores import Scores
from journeyman.agents.learning.losses import Loss
from journeyman.agents.learning.rollout_figures import counted
from journeyman.agents.learning.trainers.several import AmongSeveral
from journeyman.agents.rollouts.prefixes import Prefixes
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.rollouts.where import Rollouts
from journeyman.agents.search.evidence import TreeRollouts
from journeyman.agents.students.player import Trainable
from journeyman.agents.teachers import Teacher
from journeyman.envs import Episode

Record = Callable[[int, Sequence[Episode], Iterable[Scores]], object]
"""(step, episodes, scores): the optimiser step that learns from a rollout first, its episodes, and
what was said of each, which is worked out as it is read."""


@dataclass(frozen=True)
class Parts:
    """The pieces of a run."""

    student: Trainable
    """Its model is trained."""
    teacher: Teacher | None
    """Judges the student's tokens; supervised training and reinforcement have no use for it."""
    loss: Loss
    """How far the student is from its teacher."""
    credit: Credit
    """Token weights and advantages."""
    tasks: Callable[[int], Sequence[TaskRef]]
    """The first n training tasks."""
    env_kwargs: dict[str, Any]
    """For every environment."""
    search: TreeRollouts | None = None
    """Grows rollouts into trees; for distillation only."""
    record: Record = lambda step, episodes, scores: None
    """Told of every rollout."""
    rollouts: Rollouts = rollout
    """Where episodes are played."""


class KeepsCredit(Trainer):
    """What credit and teacher have learned goes into checkpoints too, and comes back from them.

    So do the episodes from inside of which others begin.
    """

    credit: Credit
    teacher: Teacher | None = None
    prefixes: Prefixes | None = None

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # the main process may be later
        learned = self.credit.state_dict()
        if learned and self.accelerator.is_main_process:  # it is the same in all
            torch.save(learned, Path(output_dir) / "credit.pt")
        if self.prefixes is not None:
            torch.save(self.prefixes.state_dict(), self._own_file(output_dir, "prefixes"))
        kept = {} if self.teacher is None else self.teacher.state_dict()
        if kept and self.accelerator.is_main_process:  # and so is this
            torch.save(kept, Path(output_dir) / "teacher.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (file := _credit_file(Path(checkpoint))) is not None:
            self.credit.load_state_dict(torch.load(file))
        if checkpoint is not None and self.prefixes is not None:
            file = self._own_file(checkpoint, "prefixes")
            if file.exists():  # else the job had fewer processes: this one has kept nothing yet
                self.prefixes.load_state_dict(torch.load(file))
        if checkpoint is not None and self.teacher is not None:
            file = Path(checkpoint) / "teacher.pt"
            state = torch.load(file, map_location="cpu") if file.exists() else {}
            self.teacher.load_state_dict(state)

    def _own_file(self, checkpoint: str, name: str) -> Path:
        """Each process keeps its own episodes."""
        return Path(checkpoint) / f"{name}_{self.accelerator.process_index}.pt"


def _credit_file(checkpoint: Path) -> Path | None:
    """Holds what a credit has learned; None if that is nothing.

    Older releases had a credit for each process: what one that was alone has learned is as good.

    Raises:
        SettingError: There were several, each of which knew its own episodes only.
    """
    files = sorted(checkpoint.glob("credit_*.pt"))
    if len(files) > 1:
        raise SettingError(
            f"{checkpoint} is of an older release, in which each of {len(files)} processes had a "
            f"critic of its own, and now they have one: begin anew (run_dir=…), or end the run "
            f"with that release"
        )
    return next((it for it in (checkpoint / "credit.pt", *files) if it.exists()), None)


class PlainTrainer(AmongSeveral):
    """What the libraries' trainers say and write that would mislead here is left out."""

    _metrics: Any
    """Of TRL's trainers: figures by "train" and "eval" since the last line of the log."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `transformers.Trainer.train`; who forms activations again gets their memory back."""
        if self.args.gradient_checkpointing:
            _return_what_is_freed()
        return super().train(*args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card in checkpoints: TRL's would call the model a fine-tuned version of nothing."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log figures as their mean over the processes of the job; what is counted, as the sum."""
        mine: dict[str, list[float]] = getattr(self, "_metrics", {}).get(self._mode, {})
        if self.accelerator.num_processes > 1:
            told: list[dict[str, float]] = gather_object(
                [{name: sum(values) / len(values) for name, values in mine.items() if values}]
            )
            for name in dict.fromkeys(name for figures in told for name in figures):
                known = [figures[name] for figures in told if name in figures]
                mine[name] = [sum(known) / (1 if counted(name) else len(known))]
        super().log(logs, start_time)

    def note(self, figures: dict[str, float]) -> None:
        """Keep figures until the next line of the log, which has their mean."""
        for name, figure in figures.items():
            self._metrics[self._mode][name].append(figure)

    @property
    def _mode(self) -> str:
        model: Any = self.model
        return "train" if model.training else "eval"

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Weights that are tied to others are saved as those, not missing."""
        tied: Any = getattr(self.model, "all_tied_weights_keys", {})
        missing = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))


_M_MMAP_THRESHOLD = -3
"""`mallopt`'s parameter (malloc.h)."""
_LARGE_BLOCK = 1 << 22
"""Bytes: activations of a real model are larger, and few of the embedded pair's."""


def _return_what_is_freed() -> None:
    """Have the C library give large blocks back to the system when they are freed (glibc).

    Left alone it keeps blocks of up to 32 MB once some were freed (mallopt(3), M_MMAP_THRESHOLD);
    activations that come and go between those that are kept then hold memory that nobody uses. It
    holds for the process from then on.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def check_settings(name: str, trainer: type[Trainer], given: Collection[str]) -> None:
    """See that a trainer of the libraries takes what is left for it.

    Args:
        name: The option of `trainer=`.
        trainer: Which gets the settings.
        given: Their names.

    Raises:
        SettingError: It does not know one.
    """
    strange = [it for it in given if it not in inspect.signature(trainer).parameters]
    if strange:
        raise SettingError(
            f"trainer={name} has no {', '.join(strange)}: that is another trainer's, set by an "
            f"experiment or a method perhaps; take it out: "
            f"{' '.join(f'~trainer.{it}' for it in strange)}"
        )


def tasks_needed(
    args: TrainingArguments, steps_per_generation: int = 1, num_iterations: int = 1
) -> int:
    """Rows a run of `max_steps` draws over all processes, in whole rollouts.

    Raises:
        SettingError: `max_steps` is not set.
    """
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if type(count := getattr(args, name)) is not int or count < 1:
            raise SettingError(f"trainer.args.{name}={count}: expected a whole number, 1 or more")
    if args.max_steps <= 0:
        raise SettingError("set steps (trainer.args.max_steps) to a number above zero")
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    generations = -(-args.max_steps // (steps_per_generation * num_iterations))
    return int(generations * steps_per_generation * rows)
