"""The processes of a job (`torchrun`) as a person sees them: one prints, one says what failed."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings

TURN = 0.5
"""Seconds in which a launcher has ended a process for another one that has failed."""
LATE = 10.0
"""The same, with room, for one that only lost the others."""
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

    A launcher ends all processes once one has failed. So of those that fail of the same the first
    speaks; and one that has lost the others in the middle of an exchange waits longest.
    """
    if _count() == 1:
        return
    lost = isinstance(error, RuntimeError) and any(
        name in str(error).lower() for name in _TRANSPORTS
    )
    time.sleep(LATE if lost else TURN * min(8, int(os.environ.get("LOCAL_RANK", "0"))))


def _count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
