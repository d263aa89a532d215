"""What a run has cost, from the lines of its `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

COSTS = ("student tokens", "teacher tokens", "turns", "CPU seconds", "seconds")
GOLD = "gold tokens"
"""Tokens of gold turns that were shown: nobody wrote them, but somebody would have had to."""
WRITTEN = ("student tokens", "teacher tokens", GOLD)
"""What is set equal between arms: tokens, whoever writes them."""


def costs(records: Iterable[Mapping[str, Any]], step: float) -> dict[str, float]:
    """What a run had cost up to a step.

    Where rollouts grow into trees, a token that several rows share is drawn once and counts once,
    and the teacher's tries count too; so do turns.

    Args:
        records: Lines of the run's metrics.
        step: The last optimiser step to count.

    Returns:
        `COSTS`: tokens that student and teacher wrote, turns that environments played, seconds.
    """
    spent = dict.fromkeys(COSTS, 0.0)
    for record in records:
        if record["step"] > step:
            continue
        tree = "search/sampled_tokens" in record
        told = {
            "student tokens": "search/sampled_tokens" if tree else "rollout/student_tokens",
            "teacher tokens": "search/teacher_tokens" if tree else "rollout/teacher_tokens",
            "turns": "search/env_steps" if tree else "rollout/env_steps",
            "CPU seconds": "cpu_seconds",
            "seconds": "seconds",
        }
        for name, key in told.items():
            spent[name] += record.get(key) or 0.0
    return spent


def written(spent: Mapping[str, float]) -> float:
    """Tokens in all: the student's, the teacher's, and gold ones that were shown."""
    return sum(spent.get(name, 0.0) for name in WRITTEN)
