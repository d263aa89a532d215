"""The processes of a job (`torchrun`): each plays its share, one of them writes."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """This process among those of its job; without `torchrun` it is alone."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> Job:
        """Meet the others, if `torchrun` started any; whoever has met them knows them."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        # `accelerate launch` may ask for weights in the first process alone; all of them play.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
            atexit.register(_leave)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """True for the one that writes and prints."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """What all processes give here, in the order of their ranks; all wait for the last."""
        if self.count == 1:
            return list(items)
        gathered: list[list[T]] = [[] for _ in range(self.count)]
        dist.all_gather_object(gathered, list(items))
        return [item for items in gathered for item in items]


def _leave() -> None:
    """Wait for the threads of gloo: one that lets go of a tensor while Python ends aborts all."""
    if dist.is_initialized():
        dist.destroy_process_group()
