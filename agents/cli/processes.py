"""The processes of a job (`torchrun`) as a person sees them: one prints, one says what failed."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings

LATE = 10.0
"""Seconds in which a launcher has ended a process for another one that has failed."""
_TRANSPORTS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")


def place() -> int:
    """Of this process in its job, 0 for the first and for one that is alone."""
    return int(os.environ.get("RANK", "0")) if _count() > 1 else 0


def hush() -> None:
    """Print nothing and warn of nothing: the first process says the same."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def give_way(error: Exception) -> None:
    """Wait before saying what failed, while another process may have more to say.

    A launcher ends all processes once one has failed. So of those that have met the first to come
    speaks, and of those that have not the first by its place; one that has lost the others in the
    middle of an exchange lets them speak.
    """
    if _count() == 1:
        return
    lost = isinstance(error, RuntimeError) and any(
        name in str(error).lower() for name in _TRANSPORTS
    )
    first = None if lost else _first_to_fail()
    if first is None:
        first = not lost and os.environ.get("LOCAL_RANK", "0") == "0"
    if not first:
        time.sleep(LATE)


def _first_to_fail() -> bool | None:
    """True in the process that asks first; None if the processes have not met."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_initialized():
        return None
    try:
        store = dist.distributed_c10d._get_default_store()
        return bool(store.add("journeyman/failed", 1) == 1)
    except Exception:  # whoever kept it is gone
        return None


def _count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
