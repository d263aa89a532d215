"""All that is printed of an evaluation: its table, and whatever was asked for beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from journeyman.agents.evaluation.measures import NO_MEASURES, Measure, Unit
from journeyman.agents.evaluation.metrics import Metrics
from journeyman.agents.evaluation.report import breakdown_tables, summary_table
from journeyman.agents.evaluation.tables import ResultTable, bounds, count, figure, rendered

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
    parts = [rendered(all_tables(rows, details, chosen), "text")]
    if said:
        parts.append("\n".join(f"Mind: {words}" for words in said))
    return "\n\n".join(parts)


def all_tables(
    rows: Mapping[str, Metrics], details: bool, chosen: Mapping[str, Measure] = NO_MEASURES
) -> list[ResultTable]:
    """What `in_words` says, for any format; a table that has nothing to say is left out."""
    tables = [summary_table(rows, chosen)]
    if details:
        more = (*_by_group(rows, chosen), _intervals(rows, chosen))
        tables += [*breakdown_tables(rows), *(table for table in more if table.rows)]
    return tables


def _by_group(rows: Mapping[str, Metrics], chosen: Mapping[str, Measure]) -> Iterator[ResultTable]:
    """Success by the tools of gold calls; then each chosen measure by every kind of group."""
    yield _table("tool", "success", "share", rows)
    for measure in chosen.values():
        for by in _TITLES:
            yield _table(by, measure.name, measure.unit, rows, f": {measure.title}")


def _table(
    by: str, name: str, unit: Unit, rows: Mapping[str, Metrics], ending: str = ""
) -> ResultTable:
    """One figure in groups of tasks: a line a group, a column a policy."""
    columns = [metrics.groups.get(by, {}) for metrics in rows.values()]
    groups = {group for column in columns for group in column}
    lines = []
    for group in sorted(groups) if by != "level" or len(groups) > 1 else ():
        values = (column[group][name].value if group in column else None for column in columns)
        lines.append((group, *(figure(value, unit) for value in values)))
    return ResultTable((f"{_TITLES[by]}{ending}", *rows), lines)


def _intervals(rows: Mapping[str, Metrics], chosen: Mapping[str, Measure]) -> ResultTable:
    """What is chosen, and pass^k and pass@k for every k, with intervals: a line a policy."""
    lines = []
    for row, metrics in rows.items():
        units: dict[str, Unit] = {name: "share" for name in metrics.measures if "pass" in name[:4]}
        units |= {measure.name: measure.unit for measure in chosen.values()}
        for name, unit in units.items():
            it = metrics.measures[name]
            cells = (count(it.tasks), figure(it.value, unit), bounds(it.low, it.high, unit))
            lines.append((f"{row}: {name}", *cells))
    return ResultTable(("policy: metric", "tasks", "value", "95% interval"), lines)
