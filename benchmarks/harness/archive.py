"""What a long study has found so far: a line a finding, in a file that is committed with the code.

A study takes longer than one machine may be had. What ran elsewhere counts as run: findings are
small, models are made again from their recipes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from journeyman.agents.evaluation.report import write_atomically
from journeyman.agents.runs.folder import machine


@dataclass(frozen=True)
class Archive:
    """Findings of a study: files of its folder that tell what a finished piece of it has shown."""

    file: Path
    folder: Path
    """The study's, on this machine."""
    patterns: tuple[str, ...] = (
        "*/*/test*.json",
        "*/*/validation*.json",
        "*/references-*.json",
        "ingredients/*/made.json",
    )
    """Which files of the folder are findings."""

    def unpack(self) -> int:
        """Put down what this folder does not have; returns how many findings that were.

        Raises:
            ValueError: A line of the file is none of an archive's.
        """
        count = 0
        for place, line in self._lines().items():
            if not (target := self.folder / place).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(target, json.dumps(line["found"]).encode())
                count += 1
        return count

    def pack(self) -> int:
        """Add what the folder has and the file has not, or has otherwise; returns how many."""
        lines, count = self._lines(), 0
        for target in self._findings():
            place, found = str(target.relative_to(self.folder)), json.loads(target.read_text())
            if lines.get(place, {}).get("found") != found:
                lines[place] = {"place": place, "found": found, "machine": self._machine}
                count += 1
        if count:
            text = "".join(json.dumps(lines[place]) + "\n" for place in sorted(lines))
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, text.encode())
        return count

    @cached_property
    def _machine(self) -> dict[str, Any]:
        told = machine()
        return {name: told[name] for name in ("date", "system", "cpus", "versions")}

    def _findings(self) -> list[Path]:
        return sorted({it for pattern in self.patterns for it in self.folder.glob(pattern)})

    def _lines(self) -> dict[str, dict[str, Any]]:
        """By place in the folder, as the file has them."""
        if not self.file.exists():
            return {}
        found = {}
        for number, text in enumerate(self.file.read_text().splitlines(), 1):
            try:
                line = json.loads(text)
                found[line["place"]] = line
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.file}:{number}: expected a finding as a line of JSON, not {text[:60]!r}"
                ) from error
        return found
