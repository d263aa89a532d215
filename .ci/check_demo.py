"""Does a demo's run folder show what the demo promises? Usage: check_demo.py RUN_FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROWS = ("no-op", "oracle", "student before", "student after", "teacher")
MIN_RISE = 0.25
MIN_SHARE_OF_TEACHER = 0.9
MINUTES = 10


def failures(run: Path) -> list[str]:
    """What is wrong with the run, one line each."""
    missing = [n for n in ("summary.json", "plot.png", "table.txt") if not (run / n).is_file()]
    if missing:
        return [f"{run} has no {name}" for name in missing]
    summary = json.loads((run / "summary.json").read_text())
    rows: dict[str, Any] = summary["rows"]
    if missing := [name for name in ROWS if name not in rows]:
        return [f"summary.json has no row {name!r}, only {list(rows)}" for name in missing]

    success = {name: row["success"] for name, row in rows.items()}
    before, after = success["student before"], success["student after"]
    for name, rate in success.items():
        print(f"{name:15} {rate['rate']:6.1%}  [{rate['low']:.3f}, {rate['high']:.3f}]")
    rise = after["rate"] - before["rate"]
    share = after["rate"] / success["teacher"]["rate"] if success["teacher"]["rate"] else 0.0
    print(f"rise {100 * rise:.1f} points, {share:.1%} of the teacher's, {summary['seconds']:.0f} s")

    checks = {
        "the oracle solves all": success["oracle"]["rate"] == 1.0,
        f"the student rises by {100 * MIN_RISE:.0f} points": rise >= MIN_RISE,
        "the student's intervals are apart": after["low"] > before["high"],
        f"the student ends at {MIN_SHARE_OF_TEACHER:.0%} of the teacher's": (
            share >= MIN_SHARE_OF_TEACHER
        ),
        "all rows are of the same number of tasks": len({r["tasks"] for r in rows.values()}) == 1,
        "no episode broke": not any(row["infra_failures"] for row in rows.values()),
        f"it took {MINUTES} minutes at most": summary["seconds"] <= 60 * MINUTES,
    }
    return [f"not so: {claim}" for claim, holds in checks.items() if not holds]


if __name__ == "__main__":
    found = failures(Path(sys.argv[1]))
    print("\n".join(found) or "the demo shows what it promises")
    sys.exit(bool(found))
