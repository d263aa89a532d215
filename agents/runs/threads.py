"""How torch's threads wait for one another: said before torch loads, which reads it once."""

from __future__ import annotations

import os

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""By which a user says it."""


def wait_passively() -> None:
    """Let the threads of an operation sleep while they wait, unless the environment says how.

    By OpenMP's own choice a thread that has done its share spins for milliseconds. On a core that
    another program wants it then spins in the place of the thread it waits for, and so with each
    of the thousands of small operations of a step (`benchmarks/loaded.py`).
    """
    if not any(name in os.environ for name in VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "passive"
