"""A trainer among several processes: a student that lies in shards, checkpoints for any number.

Under FSDP2 each process holds a part of the weights that are learned, of their gradients and of the
optimiser. Who plays needs the weights whole, at times of its own: so the trainer gets a twin of the
student to cut up, and the student itself stays in one piece, brought up to date when it is asked
for. Playing, trees, credits and validation wait for nobody, and know nothing of shards.

A checkpoint holds what one process would have written, whoever writes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, set_seed
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments

from journeyman.agents.errors import SettingError
from journeyman.agents.networks.adapters import twin
from journeyman.agents.networks.heads import is_sharded
from journeyman.agents.networks.sharing import read_like

FSDP2 = "fsdp2"
ROWS = "rows.json"
"""In a checkpoint: rows that an optimiser step has, over all processes."""
OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
USED, VERSION = "ACCELERATE_USE_FSDP", "FSDP_VERSION"
"""In the environment: `accelerate launch` says both, and a trainer with shards leaves the first."""


def shard(args: TrainingArguments, sharding: str | None) -> None:
    """Have the student cut over the processes of the job; alone there is nothing to cut.

    Args:
        args: Of the trainer; `fsdp_config` says more (transformers' own names).
        sharding: "fsdp2", or None: every process has all of it (DDP), if `accelerate launch` says
            nothing else.

    Raises:
        SettingError: Another name, or a version of FSDP that cannot be played beside.
    """
    if sharding not in (None, FSDP2):
        raise SettingError(
            f"trainer.sharding={sharding}: expected {FSDP2}, or null, which is DDP where there are "
            f"several processes"
        )
    if VERSION not in os.environ:  # else `accelerate launch` said it; a run before this one, maybe
        os.environ.pop(USED, None)
    if args.world_size == 1:
        args.fsdp, args.fsdp_plugin_args = None, None
        os.environ.pop(USED, None)
        return
    if sharding is not None and not args.fsdp:
        args.fsdp = True  # type: ignore[assignment]  # its hint is older than it
        args.fsdp_plugin_args = args._process_fsdp_args()
    if not in_shards(args):
        return
    given = (args.fsdp_plugin_args or {}).get("fsdp_version")
    version = given or int(os.environ.get(VERSION, "1"))  # accelerate's default
    if version != 2:
        raise SettingError(
            f"FSDP version {version}: expected 2, which the student can be played beside: "
            f"trainer.sharding=fsdp2, or fsdp_version: 2 in the file of `accelerate launch`"
        )


def in_shards(args: TrainingArguments) -> bool:
    """True if the student will be cut, whoever says so."""
    launched = os.environ.get(USED, "false").lower() == "true"
    return args.world_size > 1 and bool(args.fsdp or launched)


def keep_rows(args: TrainingArguments, checkpoint: Path | None) -> None:
    """Give each step the rows that it had in a checkpoint, on any number of processes.

    Raises:
        SettingError: So many processes cannot share them evenly.
    """
    if checkpoint is None or not (file := checkpoint / ROWS).exists():
        return
    rows, most = int(json.loads(file.read_text())["rows"]), args.per_device_train_batch_size
    if rows == most * args.gradient_accumulation_steps * args.world_size:
        return
    own, rest = divmod(rows, args.world_size)
    if rest:
        raise SettingError(
            f"{checkpoint}: each step of this run has {rows} rows, which {args.world_size} "
            f"processes cannot share evenly: start it with a number that divides {rows}"
        )
    size = max(it for it in range(1, min(most, own) + 1) if own % it == 0)
    args.per_device_train_batch_size, args.gradient_accumulation_steps = size, own // size
    if args.process_index == 0:
        print(
            f"{checkpoint}: {rows} rows a step, as before: {args.world_size} x "
            f"per_device_train_batch_size={size} x gradient_accumulation_steps={own // size}"
        )


def to_train(student: PreTrainedModel, args: TrainingArguments, **others: Any) -> PreTrainedModel:
    """The model that a trainer gets: the student's own, or a twin of it that will be cut up.

    Args:
        student: Its model.
        args: Of the trainer.
        others: Settings of the trainer that go with no shards.

    Raises:
        SettingError: The trainer would change the twin alone.
    """
    if not in_shards(args):
        return student
    if others.get("peft_config") is not None:
        raise SettingError(
            "trainer.peft_config: under FSDP2 an adapter is the student's from the start; expected "
            "student.lora={…}"
        )
    cut = twin(student)
    read_like(student, cut)
    return cut


class AmongSeveral(Trainer):
    """Checkpoints that any number of processes go on from; a student in one piece beside shards."""

    def __init__(self, *, whole: PreTrainedModel, **kwargs: Any) -> None:
        """Join the others.

        Args:
            whole: The student's model; with shards another one than `model`, see `to_train`.
            kwargs: The trainer's.
        """
        super().__init__(**kwargs)
        self._whole = whole if in_shards(self.args) else None
        self._brought: int | None = None
        """The step whose weights the student has."""
        if self._whole is not None:
            self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")

    def create_accelerator_and_postprocess(self) -> None:
        """As the library does; and accelerate leaves shards out where there is no accelerator."""
        super().create_accelerator_and_postprocess()
        if in_shards(self.args) and not self.is_fsdp_enabled:
            state = self.accelerator.state
            given = self.args.fsdp_plugin_args or {}
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**given)
            for known in (state, PartialState()):  # as accelerate has it on a GPU
                known.distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True

    @torch.no_grad()
    def bring(self) -> None:
        """Bring the student's weights up to date, in all processes at once."""
        if self._whole is None or self._brought == self.state.global_step:
            return
        self._brought = self.state.global_step
        model: Any = self.model
        for part in model.modules():
            if is_sharded(part):
                part.reshard()
        learned = dict(model.named_parameters(remove_duplicate=False))
        for name, own in self._whole.named_parameters():
            if own.requires_grad:
                own.copy_(_in_one_piece(learned[name]))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student, in one piece."""
        if self._whole is None:
            super().save_model(output_dir, _internal_call)
            return
        self.bring()
        if self.args.should_save:
            self._save(output_dir, state_dict=self._whole.state_dict())

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        if self._whole is not None and resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
        prepared: Any = super()._prepare_for_training(  # type: ignore[no-untyped-call]
            max_steps, train_dataloader, resume_from_checkpoint
        )
        return prepared

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        """Load the weights; before they are cut."""
        model = self.model if model is None else model
        if self._whole is None:
            super()._load_from_checkpoint(checkpoint, model)
        elif not is_sharded(model):
            with self._as_if_whole():
                super()._load_from_checkpoint(checkpoint, model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        if self._whole is None:
            super()._save_optimizer_and_scheduler(output_dir)
        else:
            optimizer: Any = self.optimizer
            scheduler: Any = self.lr_scheduler
            state = optimizer.state_dict()
            state["state"] = {
                i: {name: _in_one_piece(it) for name, it in own.items()}
                for i, own in state["state"].items()
            }
            if self.args.should_save:
                folder.mkdir(parents=True, exist_ok=True)
                torch.save(state, folder / OPTIMIZER)
                torch.save(scheduler.state_dict(), folder / SCHEDULER)
        if self.args.should_save:
            args = self.args
            own = args.per_device_train_batch_size * args.gradient_accumulation_steps
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ROWS).write_text(json.dumps({"rows": own * args.world_size}) + "\n")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        alone = self.args.world_size == 1 or self.is_deepspeed_enabled
        if alone or checkpoint is None or not (Path(checkpoint) / OPTIMIZER).exists():
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)  # transformers would load to "cpu:0", which torch does not know
        # Mapped: of each moment a process reads the part that it keeps.
        state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True, mmap=True)
        optimizer: Any = self.optimizer
        scheduler: Any = self.lr_scheduler
        kept = [it for group in optimizer.param_groups for it in group["params"]]
        for i, own in state["state"].items():
            own.update({name: _cut_like(kept[i], it) for name, it in own.items()})
        optimizer.load_state_dict(state)
        scheduler.load_state_dict(torch.load(folder / SCHEDULER, weights_only=True))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As they were; where the job had another number of processes, dice of this step's own."""
        if checkpoint is None:
            return
        alone = self.args.world_size == 1
        name = "rng_state.pth" if alone else f"rng_state_{self.args.process_index}.pth"
        last = Path(checkpoint) / f"rng_state_{self.args.world_size}.pth"
        if (Path(checkpoint) / name).exists() and (alone or not last.exists()):
            super()._load_rng_state(checkpoint)
            return
        key = (self.args.seed, self.state.global_step, self.args.process_index)
        set_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    @contextmanager
    def _as_if_whole(self) -> Iterator[None]:
        """What the library does to a model that is in one piece."""
        self.is_fsdp_enabled = False
        try:
            yield
        finally:
            self.is_fsdp_enabled = True


def _in_one_piece(it: Any) -> Any:
    return it.full_tensor() if isinstance(it, DTensor) else it


def _cut_like(kept: nn.Parameter, it: Any) -> Any:
    """The part of an optimiser's value that belongs to a part of the weights; counters stay."""
    if not isinstance(kept, DTensor) or not isinstance(it, torch.Tensor) or not it.ndim:
        return it
    return distribute_tensor(
        it.to(kept.device), kept.device_mesh, kept.placements, src_data_rank=None
    )
