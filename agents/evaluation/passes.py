"""Several attempts at each task: the chance that all succeed, and that at least one does.

Of a task with n episodes of which c succeeded, k of them drawn without replacement all succeed with
chance C(c,k)/C(n,k) (pass^k, Yao et al. 2024, tau-bench), and at least one does with chance
1 - C(n-c,k)/C(n,k) (pass@k, Chen et al. 2021). Both are unbiased, and averaged over tasks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from journeyman.agents.evaluation.intervals import Measured, measured
from journeyman.envs.types import Episode, StopReason

FORMULAS = (
    (
        "pass^k",
        "chance that k attempts at a task all succeed: mean over tasks of C(c,k)/C(n,k), c of n "
        "episodes succeeding; for k = 1..evaluation.attempts",
        "Yao et al. 2024 (tau-bench)",
    ),
    (
        "pass@k",
        "chance that one of k attempts at least does: mean over tasks of 1 - C(n-c,k)/C(n,k)",
        "Chen et al. 2021",
    ),
)
"""Name, formula and source of each, for lists."""

_CHANCES: dict[str, Callable[[int, int, int], float]] = {
    "pass^": lambda n, c, k: math.comb(c, k) / math.comb(n, k),
    "pass@": lambda n, c, k: 1 - math.comb(n - c, k) / math.comb(n, k),
}


def pass_hat_k(episodes: Iterable[Episode], k: int) -> float | None:
    """pass^k: the chance that k episodes of a task ALL succeed, averaged over tasks.

    Args:
        episodes: n >= k episodes of each task. Tasks left with fewer, because infrastructure broke
            some, are passed over.
        k: Episodes drawn from each task's, without replacement.

    Returns:
        The mean of C(c,k)/C(n,k); None if no task has k episodes.

    Raises:
        ValueError: `k` is below 1.
    """
    return passes(episodes, [k])[f"pass^{k}"].value


def pass_at_k(episodes: Iterable[Episode], k: int) -> float | None:
    """pass@k: the chance that AT LEAST ONE of k episodes of a task succeeds, averaged over tasks.

    The mean of 1 - C(n-c,k)/C(n,k); arguments, result and errors are those of `pass_hat_k`.
    """
    return passes(episodes, [k])[f"pass@{k}"].value


def passes(episodes: Iterable[Episode], ks: Iterable[int]) -> dict[str, Measured]:
    """pass^k and pass@k with their 95% intervals over tasks, by names such as "pass^2".

    Args:
        episodes: As for `pass_hat_k`.
        ks: Which.

    Raises:
        ValueError: One is below 1.
    """
    wanted = [(name, k) for k in ks for name in _CHANCES]
    if wanted and (least := min(k for _, k in wanted)) < 1:
        raise ValueError(f"k={least}: expected at least 1")
    played, solved = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for episode in episodes:
        if episode.stop is not StopReason.INFRA_ERROR:
            played[episode.env_id, episode.task_id] += 1
            solved[episode.env_id, episode.task_id] += episode.success
    counts = [(n, solved[task]) for task, n in played.items()]
    known = np.array([[float(n >= k) for _, k in wanted] for n, _ in counts])
    chances = np.array(
        [[_CHANCES[name](n, c, k) if n >= k else 0.0 for name, k in wanted] for n, c in counts]
    )
    binary = [all(row[i] in (0.0, 1.0) for row in chances) for i in range(len(wanted))]
    found = measured(chances, known, [True] * len(wanted), binary)
    return {f"{name}{k}": it for (name, k), it in zip(wanted, found, strict=True)}
