"""How torch's threads wait for one another: said before torch loads, which reads it once."""

from __future__ import annotations

import os

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""By which a user says it."""


def wait_briefly() -> None:
    """Let threads of an operation soon sleep while they wait, unless the environment says how.

    By OpenMP's own choice a thread that has done its share spins for milliseconds. On a core that
    another program wants it then spins in the place of the thread it waits for, and so with each
    of the thousands of small operations of a step. A thread that sleeps at once is woken as often:
    that costs a quiet machine half of its speed (`benchmarks/loaded.py`).
    """
    if not any(name in os.environ for name in VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = "2000"
