"""Curves of success against what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


@dataclass(frozen=True)
class Line:
    """One arm: costs, success at each, and its interval."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Pane:
    """One picture of several."""

    title: str
    x: str
    lines: Mapping[str, Line]
    levels: Mapping[str, float] = field(default_factory=dict)
    """Dotted, such as the teacher's success."""


def draw(path: Path, panes: Sequence[Sequence[Pane]], y: str = "held-out success") -> None:
    """Rows of panes, with one legend; an arm has one colour everywhere."""
    width = max(map(len, panes))
    size = (5.5 * width, 4.2 * len(panes) + 0.8)
    figure, axes = pyplot.subplots(
        len(panes), width, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    names = dict.fromkeys(name for row in panes for pane in row for name in pane.lines)
    palette = pyplot.get_cmap("tab20").colors  # type: ignore[attr-defined]
    colours = {name: palette[i % len(palette)] for i, name in enumerate(names)}
    handles = {}
    for row, line_of_axes in zip(panes, axes, strict=True):
        line_of_axes[0].set_ylabel(y)
        for pane, ax in zip(row, line_of_axes, strict=False):
            for name, line in pane.lines.items():
                (handles[name],) = ax.plot(
                    line.x, line.y, marker="o", markersize=3, color=colours[name]
                )
                # No bands: those of a dozen arms hide one another.
                ax.vlines(line.x, line.low, line.high, color=colours[name], alpha=0.5, linewidth=1)
            for name, level in pane.levels.items():
                ax.axhline(level, color="grey", linestyle=":", linewidth=1)
                ax.annotate(name, (0, level), fontsize=7, color="grey", va="bottom")
            ax.set(xlabel=pane.x, ylim=(0, 1.02))
            ax.set_title(pane.title, loc="left")
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
