"""What came out: tables in Markdown, and curves, of cells that have run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.cells import Cell, Exam, Rows, examine
from harness.costs import written
from harness.design import Comparison
from harness.drawing import Line, Pane
from harness.statistics import Array, Figure, lead, mean
from journeyman.agents.evaluation.report import write_atomically
from journeyman.agents.students.player import Player

AXES: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "tokens, student's and teacher's": written,
    "turns played": lambda row: float(row["turns"]),
    "CPU seconds of training": lambda row: float(row["CPU seconds"]),
}
"""What a curve may stand against."""


@dataclass(frozen=True)
class Results:
    """One arm: the cells that have run, by seed."""

    runs: Mapping[int, Rows]
    cell: Cell
    """One of them, or of those that are to run."""
    asked: Sequence[int]
    """Seeds that there should be."""
    failed: Mapping[int, str] = field(default_factory=dict)

    def outcomes(self, look: int = -1, seeds: Sequence[int] | None = None) -> Array:
        """[seeds, tasks] at a look."""
        chosen = self.runs if seeds is None else {seed: self.runs[seed] for seed in seeds}
        return np.array(
            [[int(c) for c in rows[look]["outcomes"]] for rows in chosen.values()], float
        )

    def spent(self, look: int, cost: Callable[[Mapping[str, Any]], float]) -> float:
        """Mean cost up to a look."""
        return statistics.fmean(cost(rows[look]) for rows in self.runs.values())


def references(file: Path, exam: Exam, players: Mapping[str, Callable[[], Player]]) -> None:
    """Examine who does not learn, and keep what came out in a file."""
    if not file.exists():
        told = {name: examine(player(), exam) for name, player in players.items()}
        text = {name: "".join(str(int(it)) for it in found) for name, found in told.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(text).encode())


def read_references(file: Path) -> dict[str, Array]:
    """Outcomes [1, tasks] by policy; nothing if nobody was examined yet."""
    if not file.exists():
        return {}
    found = json.loads(file.read_text())
    return {name: np.array([[int(c) for c in text]], float) for name, text in found.items()}


def percent(figure: Figure, sign: str = "") -> str:
    """A share with its interval."""
    value, low, high = figure
    return f"{value:{sign}.1%} [{low:{sign}.1%}, {high:{sign}.1%}]"


def table(fixed: Mapping[str, Array], arms: Mapping[str, Results], families: Sequence[bool]) -> str:
    """Success with intervals over seeds and tasks, and mean costs of a run.

    Args:
        fixed: Who does not learn, [1, tasks] each.
        arms: Who learns.
        families: Of each task, whether it is of a family that has columns of its own.
    """
    parts = {"success": np.ones(len(families), bool)}
    if any(families):
        inside = np.array(families)
        parts |= {"family": inside, "elsewhere": ~inside}
    head = ["arm", *parts, "rate", "steps", "seeds", "tokens", "turns", "CPU seconds"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, values in fixed.items():
        cells = [percent(mean(values[:, chosen])) for chosen in parts.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |{' |' * 6}")
    for name, arm in arms.items():
        there = f"{len(arm.runs)}"
        if len(arm.runs) < len(arm.asked):
            there = f"**{len(arm.runs)} of {len(arm.asked)}**"
        if arm.failed:
            there += f", {len(arm.failed)} failed ({next(iter(arm.failed.values()))[:80]})"
        cells = ["" for _ in parts]
        spent = ["", "", ""]
        if arm.runs:
            values = arm.outcomes()
            cells = [percent(mean(values[:, chosen])) for chosen in parts.values()]
            spent = [f"{arm.spent(-1, cost):,.0f}" for cost in AXES.values()]
        how = [f"{arm.cell.rate:g}", f"{arm.cell.steps}", there]
        lines.append("| " + " | ".join([f"`{name}`", *cells, *how, *spent]) + " |")
    return "\n".join(lines)


def panes(title: str, fixed: Mapping[str, Array], arms: Mapping[str, Results]) -> list[Pane]:
    """A pane an axis of cost; the title is over the first, and long."""
    levels = {name: float(it.mean()) for name, it in fixed.items() if name == "teacher"}
    start = float(fixed["student before"].mean())
    shown = {name: arm for name, arm in arms.items() if arm.runs}

    def line(arm: Results, cost: Callable[[Mapping[str, Any]], float]) -> Line:
        looks = range(min(len(rows) for rows in arm.runs.values()))
        figures = [Figure(start, start, start), *(mean(arm.outcomes(i)) for i in looks)]
        value, low, high = zip(*figures, strict=True)
        return Line([0.0, *(arm.spent(i, cost) for i in looks)], value, low, high)

    return [
        Pane("" if i else title, axis, {name: line(it, cost) for name, it in shown.items()}, levels)
        for i, (axis, cost) in enumerate(AXES.items())
    ]


def compared(it: Comparison, arms: Mapping[str, Results]) -> tuple[str, Figure | None]:
    """A comparison in words, and its figure if every arm that it needs has a seed in common."""
    names = (it.ours, *it.rivals)
    common = set.intersection(*(set(arms[n].runs) if n in arms else set() for n in names))
    what = f"`{it.ours}` ahead of the best of {', '.join(f'`{name}`' for name in it.rivals)}"
    if not common:
        return what, None
    seeds = sorted(common)
    outcomes = {name: arms[name].outcomes(seeds=seeds) for name in names}
    ours = outcomes.pop(it.ours)
    return f"{what}, {len(seeds)} seeds", lead(ours, outcomes)


def section(
    title: str,
    it: Comparison,
    later: Comparison | None,
    fixed: Mapping[str, Array],
    arms: Mapping[str, Results],
    families: Sequence[bool],
) -> tuple[str, dict[str, Any]]:
    """A regime's table and its comparisons, in Markdown and as figures."""
    asked = {"primary": it, **({} if later is None else {"later": later})}
    answers = {name: (one, *compared(one, arms)) for name, one in asked.items()}
    text = f"\n### {title}\n\n{table(fixed, arms, families)}"
    for name, (one, what, figure) in answers.items():
        told = "not known yet" if figure is None else percent(figure, "+")
        text += (
            f"\n\n{name.capitalize()} ({one.why}; expected {one.least:+.0%} or more): {what}: "
            f"**{told}**"
        )
    figures = {
        "references": {name: mean(values) for name, values in fixed.items()},
        **{
            name: {"what": what, "figure": figure, "least": one.least}
            for name, (one, what, figure) in answers.items()
        },
        "arms": {
            name: {
                "rate": found.cell.rate,
                "steps": found.cell.steps,
                "success": mean(found.outcomes()) if found.runs else None,
                "seeds": found.runs,
            }
            for name, found in arms.items()
        },
    }
    return text, figures
