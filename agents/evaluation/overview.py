"""All that is printed of an evaluation: its table, and whatever was asked for beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from journeyman.agents.evaluation.intervals import Measured
from journeyman.agents.evaluation.measures import NO_MEASURES, Measure, Unit
from journeyman.agents.evaluation.metrics import Metrics
from journeyman.agents.evaluation.report import aligned, amount, breakdown, table

_TITLES = {
    "env": "environment",
    "kind": "kind",
    "level": "level",
    "tool": "tool of gold calls",
    "failure": "failure",
}


def in_words(
    rows: Mapping[str, Metrics],
    details: bool,
    said: Sequence[str] = (),
    chosen: Mapping[str, Measure] = NO_MEASURES,
) -> str:
    """The table, its breakdown if asked for, remarks.

    Args:
        rows: Name of a policy -> its metrics.
        details: Break down success and what is chosen, with intervals.
        said: See `remarks`; they go below it.
        chosen: Measures that have a column too.
    """
    parts = [table(rows, chosen)]
    if details:
        parts += filter(None, (breakdown(rows), *_by_group(rows, chosen), _intervals(rows, chosen)))
    if said:
        parts.append("\n".join(f"Mind: {words}" for words in said))
    return "\n\n".join(parts)


def _by_group(rows: Mapping[str, Metrics], chosen: Mapping[str, Measure]) -> Iterator[str]:
    """Success by the tools of gold calls; then each chosen measure by every kind of group."""
    yield _table("tool", "success", "share", rows)
    for measure in chosen.values():
        for by in _TITLES:
            yield _table(by, measure.name, measure.unit, rows, f": {measure.title}")


def _table(by: str, name: str, unit: Unit, rows: Mapping[str, Metrics], ending: str = "") -> str:
    """One figure in groups of tasks: a line a group, a column a policy."""
    columns = [metrics.groups.get(by, {}) for metrics in rows.values()]
    groups = {group for column in columns for group in column}
    if not groups or (by == "level" and len(groups) == 1):
        return ""
    lines = [(f"{_TITLES[by]}{ending}", *rows)]
    for group in sorted(groups):
        figures = (column[group][name].value if group in column else None for column in columns)
        lines.append((group, *(amount(value, unit) for value in figures)))
    return aligned(lines)


def _intervals(rows: Mapping[str, Metrics], chosen: Mapping[str, Measure]) -> str:
    """What is chosen, and pass^k and pass@k for every k, with intervals: a line a policy."""
    lines = [("policy: metric", "tasks", "value", "95% interval")]
    for row, metrics in rows.items():
        units: dict[str, Unit] = {name: "share" for name in metrics.measures if "pass" in name[:4]}
        units |= {measure.name: measure.unit for measure in chosen.values()}
        for name, unit in units.items():
            lines.append((f"{row}: {name}", *_cells(metrics.measures[name], unit)))
    return aligned(lines) if len(lines) > 1 else ""


def _cells(figure: Measured, unit: Unit) -> tuple[str, str, str]:
    bounds = (
        "-"
        if figure.low is None
        else " - ".join(amount(bound, unit) for bound in (figure.low, figure.high))
    )
    return str(figure.tasks), amount(figure.value, unit), bounds
