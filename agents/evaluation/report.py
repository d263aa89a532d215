"""Metrics for people and machines: a table for the terminal, a JSON summary, a picture."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from journeyman.agents.evaluation.measures import NO_MEASURES, Measure
from journeyman.agents.evaluation.metrics import Metrics, Rate
from journeyman.agents.evaluation.printing import printable
from journeyman.agents.evaluation.tables import (
    ResultTable,
    TableCell,
    amount,
    bounds,
    count,
    figure,
    percent,
    rendered,
)
from journeyman.envs import StopReason
from journeyman.envs.types import LEVELS
from journeyman.tools import CallStatus

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

HEADERS = (
    "policy",
    "tasks",
    "success",
    "95% interval",
    "calls ok",
    "valid calls",
    "calls/task",
    "tokens/task",
    "infra",
)

CUT_SHORT = (StopReason.MAX_TURNS, StopReason.CONTEXT_FULL)
"""Ends that have a column, of their episodes, where a row has any; no answer was given there."""

BILL = ("prompt_tokens", "completion_tokens", "cost")
"""What a server took, where a row has any: a column each."""

# Colours of the Okabe-Ito palette, which the colour-blind can tell apart.
_GREY, _SKY, _BLUE, _ORANGE, _INK = "#b3b3b3", "#56b4e9", "#0072b2", "#e69f00", "#333333"
_COLOURS = {
    "no-op": _GREY,
    "oracle": _GREY,
    "student before": _SKY,
    "student after": _BLUE,
    "teacher": _ORANGE,
}


def table(rows: Mapping[str, Metrics], chosen: Mapping[str, Measure] = NO_MEASURES) -> str:
    """Rows as aligned text.

    Args:
        rows: Name of a policy -> its metrics, in the order to show them.
        chosen: Measures that have a column too; those that have one anyway are passed over.

    Returns:
        Lines without a final newline. "-" stands for a figure that does not exist, such as the call
        validity of a policy that made no call.
    """
    return summary_table(rows, chosen).text()


def summary_table(
    rows: Mapping[str, Metrics], chosen: Mapping[str, Measure] = NO_MEASURES
) -> ResultTable:
    """What `table` says, for any format."""
    k = max((metrics.attempts for metrics in rows.values()), default=1)
    passes = (f"pass^{k}", f"pass@{k}") if k > 1 else ()
    extra = tuple(dict.fromkeys(name for metrics in rows.values() for name in metrics.extra))
    stops = [stop for stop in CUT_SHORT if any(m.stops.get(stop) for m in rows.values())]
    bills = [name for name in BILL if any(getattr(m, name) is not None for m in rows.values())]
    more = (name.replace("_", " ") for name in (*stops, *bills))
    added = [measure for measure in chosen.values() if measure.title not in HEADERS]
    headers = (*HEADERS[:4], *passes, *HEADERS[4:], *more, *(it.title for it in added), *extra)
    lines = [
        (
            *_cells(name, m, k),
            *(count(m.stops.get(s, 0)) for s in stops),
            *(_bill(getattr(m, it)) for it in bills),
            *(figure(m.measures[it.name].value, it.unit) for it in added),
            *_extra(m, extra),
        )
        for name, m in rows.items()
    ]
    return ResultTable(headers, lines)


def _extra(metrics: Metrics, names: Sequence[str]) -> list[TableCell]:
    """Cells of other packages' metrics."""
    return [amount(metrics.extra.get(name), ".3g") for name in names]


def breakdown(rows: Mapping[str, Metrics]) -> str:
    """Success by environment, kind and level of task, failures, and calls by tool, as aligned text.

    Args:
        rows: Name of a policy -> its metrics; a column each.

    Returns:
        A table each with an empty line between, without a final newline; one that has nothing to
        say (no kinds known, one level, no failure, no call) is left out.
    """
    return rendered(breakdown_tables(rows), "text")


def breakdown_tables(rows: Mapping[str, Metrics]) -> list[ResultTable]:
    """What `breakdown` says, for any format."""
    levels = {level for metrics in rows.values() for level in metrics.by_level}
    several = rows if len(levels) > 1 else {}
    parts = [
        _rates("environment", {name: metrics.by_env for name, metrics in rows.items()}),
        _rates("kind", {name: metrics.by_kind for name, metrics in rows.items()}),
        _rates("level", {name: metrics.by_level for name, metrics in several.items()}, LEVELS),
        _failures(rows),
        _tools(rows),
    ]
    return [part for part in parts if part.rows]


def _failures(rows: Mapping[str, Metrics]) -> ResultTable:
    """Failed episodes: a line a failure, a column a policy; what most failed by comes first."""
    total = Counter[str]()
    for metrics in rows.values():
        total.update(metrics.by_failure)
    lines = []
    for name, _ in sorted(total.items(), key=lambda it: (-it[1], it[0])):
        lines.append((name, *(count(m.by_failure.get(name, 0)) for m in rows.values())))
    return ResultTable(("failure", *rows), lines)


def _rates(
    title: str, columns: Mapping[str, Mapping[str, Rate]], order: Sequence[str] = ()
) -> ResultTable:
    """Success in groups of tasks: a line a group, a column a policy; in an order, or by name."""
    groups = {group: rate.tasks for rates in columns.values() for group, rate in rates.items()}
    lines = []
    for group in (it for it in order or sorted(groups) if it in groups):
        found = (rates.get(group) for rates in columns.values())
        shares = (percent(rate.value if rate else None) for rate in found)
        lines.append((group, count(groups[group]), *shares))
    return ResultTable((title, "tasks", *columns), lines)


def _tools(rows: Mapping[str, Metrics]) -> ResultTable:
    """Calls of each tool: a line a policy and tool, a column a status."""
    used = {s for m in rows.values() for statuses in m.by_tool.values() for s in statuses}
    shown = [s.value for s in CallStatus if s.value in used]
    lines = []
    for name, metrics in rows.items():
        for tool, statuses in metrics.by_tool.items():
            counts = (count(statuses.get(status, 0)) for status in shown)
            lines.append((f"{name}: {tool}", count(sum(statuses.values())), *counts))
    return ResultTable(("policy: tool", "calls", *shown), lines)


def _cells(name: str, metrics: Metrics, k: int) -> tuple[str, ...]:
    low, high = metrics.success.interval if metrics.tasks else (None, None)
    return (
        name,
        count(metrics.tasks),
        percent(metrics.success.value),
        bounds(low, high),
        *((percent(metrics.pass_hat.get(k)), percent(metrics.pass_at.get(k))) if k > 1 else ()),
        percent(metrics.tool_call_success),
        percent(metrics.call_validity),
        amount(metrics.calls_per_task),
        amount(metrics.tokens_per_task),
        count(metrics.infra_failures),
    )


def _bill(value: float | None) -> TableCell:
    return amount(value, "d" if isinstance(value, int) else ".4f")


def write_summary(
    path: str | os.PathLike[str], rows: Mapping[str, Metrics], extra: Mapping[str, Any]
) -> None:
    """Write `{"rows": {name: metrics}, **extra}` as JSON; readers never see half a file.

    Args:
        path: Where to; missing folders are made.
        rows: Name of a policy -> its metrics.
        extra: Further JSON-able entries, such as the configuration and the run's duration.

    Raises:
        ValueError: `extra` has a key "rows", or holds a NaN or infinity, which JSON cannot.
    """
    if "rows" in extra:
        raise ValueError('extra has a key "rows", which is taken by the metrics')
    summary = {"rows": {name: metrics.to_dict() for name, metrics in rows.items()}, **extra}
    text = printable(json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False))
    write_atomically(path, f"{text}\n".encode())


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that at every moment, a crash included, it holds its old or its new content.

    Args:
        path: Where to; missing folders are made.
        data: The whole content.

    Raises:
        OSError: It could not be written; the old content is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: a rename is atomic only within one file system.
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 would hide a run from its readers
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def plot(
    path: str | os.PathLike[str],
    rows: Mapping[str, Metrics],
    history: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Draw success by policy (left) and the learning curve (right) into a PNG.

    Args:
        path: Where to; missing folders are made.
        rows: Name of a policy -> its metrics, in the order to show them.
        history: One mapping a logged step: "step", and any keys that contain "success" (a share in
            0..1) or "loss", and "eval/low" and "eval/high", which are drawn as a band. A key need
            not be in every mapping. Without any, the left panel is all.
    """
    # Not pyplot: a Figure of one's own needs no display and leaves no global state behind.
    from matplotlib.figure import Figure

    curves = [c for word in ("success", "loss") if (c := _curves(history, word))]
    figure = Figure(figsize=(11, 4.4) if curves else (6, 4.4), dpi=150, layout="constrained")
    panels = figure.add_gridspec(1, 2 if curves else 1, wspace=0.06)
    _draw_bars(figure.add_subplot(panels[0]), rows)
    if curves:
        _draw_history(figure, panels[1], rows, curves, _curves(history, "eval/"))
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomically(path, picture.getvalue())


Curves = dict[str, list[tuple[float, float]]]


def _curves(history: Sequence[Mapping[str, Any]], word: str) -> Curves:
    """Points (step, value) of every key that contains `word`."""
    keys = dict.fromkeys(key for entry in history for key in entry if word in key)
    curves = {
        key: [
            (e["step"], e[key]) for e in history if type(e.get(key)) in (int, float) and "step" in e
        ]
        for key in keys
    }
    return {key: points for key, points in curves.items() if points}


def _draw_bars(axes: Axes, rows: Mapping[str, Metrics]) -> None:
    for place, (name, metrics) in enumerate(rows.items()):
        value = 100 * (metrics.success.value or 0.0)
        low, high = (100 * bound for bound in metrics.success.interval)
        axes.bar(place, value, width=0.66, color=_COLOURS.get(name, _SKY))
        if not metrics.tasks:
            axes.annotate("no tasks", (place, 2), ha="center", color=_INK)
            continue
        spread = [[value - low], [high - value]]
        axes.errorbar(place, value, yerr=spread, color=_INK, capsize=4, linewidth=1.2)
        axes.annotate(
            f"{value:.0f}%",
            (place, high),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            color=_INK,
        )
    axes.set_xticks(range(len(rows)), [name.replace(" ", "\n") for name in rows])
    _percent_axis(axes)
    axes.set_ylabel("tasks solved (%)")
    axes.set_title("Held-out success, 95% intervals", loc="left", fontsize=11)
    _tidy(axes)
    axes.tick_params(axis="x", length=0)


def _draw_history(
    figure: Figure,
    place: SubplotSpec,
    rows: Mapping[str, Metrics],
    curves: Sequence[Curves],
    validation: Curves,
) -> None:
    """One panel for each kind of curve, above each other on one time axis."""
    from matplotlib.ticker import MaxNLocator

    stack = place.subgridspec(len(curves), 1, hspace=0.08)
    panels: list[Axes] = []
    for i, named in enumerate(curves):
        axes = figure.add_subplot(stack[i], sharex=panels[0] if panels else None)
        panels.append(axes)
        is_success = any("success" in key for key in named)
        _draw_curves(axes, named, scale=100 if is_success else 1)
        if is_success:
            _draw_interval(axes, validation)
            _draw_teacher(axes, rows)
            _percent_axis(axes)
            axes.set_ylabel("success (%)")
        else:
            axes.set_ylabel("loss")
        if len(named) > 1:
            axes.legend(frameon=False, fontsize=8)
        axes.tick_params(labelbottom=False)
    panels[0].set_title("Learning curve", loc="left", fontsize=11)
    panels[-1].tick_params(labelbottom=True)
    panels[-1].set_xlabel("optimiser step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_curves(axes: Axes, curves: Curves, scale: float) -> None:
    colours = (_BLUE, _ORANGE, _SKY, _GREY)
    for i, (key, points) in enumerate(curves.items()):
        steps, values = zip(*sorted(points), strict=True)
        # A handful of points is a series of measurements; hundreds are a line.
        marker = "o" if len(points) <= 30 else None
        scaled = [scale * v for v in values]
        colour = colours[i % len(colours)]
        axes.plot(steps, scaled, label=key, color=colour, linewidth=1.6, marker=marker, ms=4)
    _tidy(axes)


def _draw_interval(axes: Axes, validation: Curves) -> None:
    """The 95% interval around the success on validation tasks, if they were played."""
    if "eval/low" in validation:
        steps, lows = zip(*validation["eval/low"], strict=True)
        highs = [100 * high for _, high in validation["eval/high"]]
        axes.fill_between(steps, [100 * low for low in lows], highs, color=_GREY, alpha=0.35, lw=0)


def _draw_teacher(axes: Axes, rows: Mapping[str, Metrics]) -> None:
    value = rows["teacher"].success.value if "teacher" in rows else None
    if value is None:
        return
    axes.axhline(100 * value, color=_ORANGE, linestyle="--", linewidth=1.2)
    axes.annotate(
        "teacher",
        (0, 100 * value),  # at the left, where the student's curve is still far below
        xycoords=axes.get_yaxis_transform(),
        xytext=(4, 3),
        textcoords="offset points",
        fontsize=8,
        color=_INK,
    )


def _percent_axis(axes: Axes) -> None:
    axes.set_ylim(0, 112)  # room for the labels over full bars
    axes.set_yticks(range(0, 101, 20))


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
