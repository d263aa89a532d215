"""What the first page shows: the figures of every row, and the curves of training."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from journeyman.agents.evaluation.files import json_lines
from journeyman.agents.evaluation.measures import estimates, measures
from journeyman.agents.evaluation.metrics import Rate
from journeyman.agents.evaluation.printing import one_line
from journeyman.agents.evaluation.records import TRAINING, Played, metrics_of
from journeyman.envs.types import LEVELS

METRICS = "metrics.jsonl"
SCRIPTED = ("no-op", "oracle")
"""Rows that every evaluation has, and that nobody is curious about: they are listed last."""
_POINTS = 240
"""Of a curve: a picture is not wider."""
_NOT_DRAWN = frozenset({"step", "epoch", "seconds", "cpu_seconds", "eval/low", "eval/high"})


def row_figures(label: str, run: str, played: Sequence[Played]) -> dict[str, Any]:
    """The figures of one row.

    Args:
        label: What it is called; `run` may be part of it.
        run: Whose row it is.
        played: Its episodes, those that infrastructure broke too.
    """
    metrics = metrics_of(played)
    levels = metrics.by_level
    timed = {name: it for name, it in measures().items() if name not in metrics.measures}
    figures = {**metrics.measures, **estimates(timed, (p.episode for p in played))}
    return {
        "label": one_line(label),
        "run": one_line(run),
        "training": played[0].row == TRAINING,
        "scripted": played[0].row in SCRIPTED,
        "tasks": metrics.tasks,
        "episodes": len(played),
        "infra": metrics.infra_failures,
        "success": _rate(metrics.success),
        "measures": {
            name: [it.value, it.low, it.high]
            for name, it in ((name, figures[name]) for name in measures())
        },
        "tokens": metrics.tokens_per_task,
        "cost": metrics.measures["cost"].value,
        "environment": {one_line(k): _rate(r) for k, r in metrics.by_env.items()},
        "kind": {one_line(k): _rate(r) for k, r in metrics.by_kind.items() if k},
        "level": {k: _rate(r) for k, r in levels.items()} if levels.keys() - {LEVELS[0]} else {},
        "failures": {
            one_line(name): count for name, count in Counter(metrics.by_failure).most_common()
        },
        "tools": {one_line(name): dict(found) for name, found in metrics.by_tool.items()},
    }


def _rate(rate: Rate) -> list[float | None]:
    """Share, lower and upper bound, tasks."""
    return [rate.value, *rate.interval, rate.tasks]


def curves(run: Path) -> dict[str, list[list[float]]]:
    """What training logged, by name: points [step, value], thinned by means to what can be seen.

    "eval/success" has points [step, value, low, high] where its interval was logged.

    Raises:
        RunFileError: `metrics.jsonl` holds something else.
    """
    found: defaultdict[str, list[list[float]]] = defaultdict(list)
    for line in json_lines(run / METRICS, {"step?": float}):
        if "step" not in line:
            continue
        for name, value in line.items():
            if name in _NOT_DRAWN or not _is_figure(value):
                continue
            band = [line.get("eval/low"), line.get("eval/high")] if name == "eval/success" else []
            point = [line["step"], value, *(b for b in band if _is_figure(b))]
            found[one_line(name)].append([float(it) for it in point])
    return {name: _thinned(points) for name, points in found.items()}


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def _thinned(points: Sequence[Sequence[float]]) -> list[list[float]]:
    size = math.ceil(len(points) / _POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size or 1)]
    return [[round(fmean(column), 6) for column in zip(*group, strict=False)] for group in groups]
