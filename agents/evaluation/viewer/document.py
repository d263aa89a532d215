"""The page: what run folders hold as data, and the one HTML file that shows it and loads nothing."""

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
from typing import Any

from journeyman.agents.evaluation.measures import measures
from journeyman.agents.evaluation.printing import one_line
from journeyman.agents.evaluation.records import EpisodeFile, Played, rows_of
from journeyman.agents.evaluation.viewer.overview import curves, row_figures
from journeyman.agents.evaluation.viewer.story import Texts, story

SCRIPTS = ("core.js", "charts.js", "overview.js", "list.js", "episode.js", "pairs.js", "main.js")
"""In the order they are put together."""


def page_data(
    runs: Sequence[Path],
    wanted: Callable[[Mapping[str, Any]], bool] = lambda line: True,
    limit: int = 0,
) -> dict[str, Any]:
    """All that a page shows of some runs.

    Args:
        runs: Their folders.
        wanted: Chooses lines of `episodes.jsonl`.
        limit: Of each row at most so many episodes are shown, 0 for all; figures are of all.

    Raises:
        RunFileError: A file of a run holds something else.
        OSError: One cannot be read.
    """
    names, texts = run_names(runs), Texts()
    rows: list[dict[str, Any]] = []
    episodes: list[dict[str, Any]] = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        numbered = list(EpisodeFile(run).numbered(wanted))
        lines = {id(played): line for line, played in numbered}
        for row, played in rows_of(p for _, p in numbered).items():
            label = row if len(runs) == 1 else f"{name}: {row}"
            rows.append(row_figures(label, name, played))
            for p in islice(played, limit or None):
                episodes.append(story(p, f"{number}.{lines[id(p)]}", len(rows) - 1, texts))
    return {
        "title": one_line(", ".join(names)),
        "rows": rows,
        "measures": [
            {"name": it.name, "title": it.title, "unit": it.unit, "about": it.about}
            for it in measures().values()
        ],
        "curves": [
            {"run": one_line(name), "series": found}
            for run, name in zip(runs, names, strict=True)
            if (found := curves(run))
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
