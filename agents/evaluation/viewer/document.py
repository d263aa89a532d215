"""The page: what run folders hold, as data, and the one HTML file that shows it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from journeyman.agents.evaluation.measures import Measure, measures
from journeyman.agents.evaluation.printing import one_line
from journeyman.agents.evaluation.records import EpisodeFile, Played, rows_of
from journeyman.agents.evaluation.viewer.overview import curves, row_figures
from journeyman.agents.evaluation.viewer.story import Texts, story

SCRIPTS = ("core.js", "charts.js", "overview.js", "list.js", "episode.js", "pairs.js", "main.js")
"""In the order they are put together."""


class RunEpisodes(NamedTuple):
    """What a page shows of one run."""

    name: str
    """What it is called."""
    folder: Path
    """Where its other files are."""
    numbered: Sequence[tuple[int, Played]]
    """Episodes, each with the number of its line in `episodes.jsonl`."""


def read_runs(
    runs: Sequence[Path], wanted: Callable[[Mapping[str, Any]], bool] = lambda line: True
) -> list[RunEpisodes]:
    """What was played in some runs.

    Args:
        runs: Their folders.
        wanted: Chooses lines of `episodes.jsonl`.

    Raises:
        RunFileError: A file of a run holds something else.
        OSError: One cannot be read.
    """
    return [
        RunEpisodes(name, run, list(EpisodeFile(run).numbered(wanted)))
        for run, name in zip(runs, run_names(runs), strict=True)
    ]


_FIRST = ("success", "tool_call_success", "valid_calls", "calls", "turns", "tokens", "cost")
"""What a reader looks for, before the table has to be pushed aside."""


def _column(measure: Measure) -> int:
    return _FIRST.index(measure.name) if measure.name in _FIRST else len(_FIRST)


def page_data(runs: Sequence[RunEpisodes], limit: int = 0) -> dict[str, Any]:
    """All that a page shows of some runs.

    Args:
        runs: What was played.
        limit: Of each row at most so many episodes are shown, 0 for all; figures are of all.

    Raises:
        RunFileError: A run's `metrics.jsonl` holds something else.
        OSError: It cannot be read.
    """
    texts = Texts()
    rows: list[dict[str, Any]] = []
    episodes: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        lines = {id(played): line for line, played in run.numbered}
        for row, played in rows_of(p for _, p in run.numbered).items():
            label = row if len(runs) == 1 else f"{run.name}: {row}"
            rows.append(row_figures(label, run.name, played))
            for p in islice(played, limit or None):
                episodes.append(story(p, f"{number}.{lines[id(p)]}", len(rows) - 1, texts))
    episodes.sort(key=lambda it: bool(rows[it["row"]]["scripted"]))
    return {
        "title": one_line(", ".join(run.name for run in runs)),
        "rows": rows,
        "measures": [
            {"name": it.name, "title": it.title, "unit": it.unit, "about": it.about}
            for it in sorted(measures().values(), key=_column)
        ],
        "curves": [
            {"run": one_line(run.name), "series": found}
            for run in runs
            if (found := curves(run.folder))
        ],
        "texts": texts.listed,
        "episodes": episodes,
    }


def run_names(runs: Sequence[Path]) -> list[str]:
    """What runs are called: their folders' names, or paths where two have the same."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def as_json(value: Any) -> str:
    """JSON that can stand in a page's script element and that every browser can read."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:  # of a token that the teacher calls impossible, say
        return as_json(_finite(value))
    for sign in ("<", "\u2028", "\u2029"):
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def page(data: Mapping[str, Any] | None) -> str:
    """A page of this data; with None one that asks the server it came from, and goes on asking."""
    style, script = _asset("style.css"), "\n".join(map(_asset, SCRIPTS))
    title = "Journeyman" if data is None else f"{data['title']} · Journeyman"
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy(live=data is None)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{style}</style></head><body>",
            _asset("body.html"),
            f'<script type="application/json" id="data">{as_json(data)}</script>',
            f"<script>{script}</script>",
            "</body></html>\n",
        )
    )


def policy(live: bool) -> str:
    """What a browser lets the page do: run its own script and style, known by their hashes.

    Args:
        live: It may ask the server that it came from, too.
    """
    script = "\n".join(map(_asset, SCRIPTS))
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'sha256-{_hash(script)}'",
            f"style-src 'sha256-{_hash(_asset('style.css'))}'",
            *(["connect-src 'self'"] if live else []),
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")
