"""Settings that differ between runs that are compared, and that change what comes out.

Who plays is what is compared, and how it was trained made it: neither is told. The rest should be
the same, and a reader should know where it is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from journeyman.agents.evaluation.comparison import Entry
from journeyman.agents.evaluation.files import read_config
from journeyman.agents.evaluation.metrics import TaskKey

_PLAYED = ("env", "sandbox", "evaluation", "student")
"""Parts of a config that decide what is played, and how."""
_HARMLESS = frozenset(
    {
        "evaluation.batch_size",  # rounding alone
        "evaluation.breakdown",
        "evaluation.every",
        "evaluation.metrics",
        "evaluation.validation_tasks",
    }
)
_MODEL = frozenset(
    {
        *("_target_", "model", "adapter", "revision", "device", "engine"),
        *("base_url", "key", "seed", "concurrency", "requests_per_minute", "timeout", "patience"),
        *("prices", "budget"),
        "temperature",  # `evaluation.temperature` is what holds
    }
)
"""Keys of a student that say who it is and how it is reached."""
_OWN = ("student.", "sandbox.limits.", "sandbox.packages", "sandbox._target_", "environments.")
"""Of parts that a run may have none of: compared where several have them."""
_ABSENT = "not set"
_LONGEST = 80
"""Characters of a value that are shown."""


def mismatches(entries: Sequence[Entry], over: str) -> list[str]:
    """What differs between the runs of some entries, a line each: the name and every value.

    Args:
        entries: What is compared; entries of one run differ in nothing.
        over: What is done where they have played other tasks, in words.

    Raises:
        RunFileError: A config is none.
    """
    by_run = {entry.run: entry.folders[0] for entry in entries if entry.folders}
    found = {run: dict(_settings(folder)) for run, folder in by_run.items()}
    names = list(dict.fromkeys(name for settings in found.values() for name in settings))
    lines = []
    for name in names:
        values = {run: settings.get(name, _ABSENT) for run, settings in found.items()}
        if name.startswith(_OWN):  # an API has no max_context to be set
            values = {run: value for run, value in values.items() if value != _ABSENT}
        if len(set(values.values())) > 1:
            lines.append(f"{name} differs: {_by_value(values)}")
    tasks: dict[str, set[frozenset[TaskKey]]] = {}
    for entry in entries:
        tasks.setdefault(entry.run, set()).add(frozenset(entry.tasks | entry.broken))
    if len(set.union(*tasks.values())) > 1:
        counts = {
            run: " or ".join(str(len(it)) for it in sorted(sets, key=len))
            for run, sets in tasks.items()
        }
        lines.append(f"tasks that were played differ: {_by_value(counts)}; {over}")
    return lines


def _by_value(values: Mapping[str, str]) -> str:
    """Each value with who has it."""
    holders: dict[str, list[str]] = {}
    for who, value in values.items():
        holders.setdefault(value, []).append(who)
    return ", ".join(f"{value} ({', '.join(whose)})" for value, whose in holders.items())


def _settings(run: Path) -> Iterator[tuple[str, str]]:
    """Names and values of what matters in a run's config, and of what it was played with."""
    config = read_config(run)
    for part in _PLAYED:
        for name, value in _flat(part, config.get(part)):
            first, _, key = name.partition(".")
            who = first == "student" and key.partition(".")[0] in _MODEL
            if name not in _HARMLESS and not who and (value is not None or first == "student"):
                yield name, _shown(value)
    for name, value in _flat("", _machine(run)):
        yield name, _shown(value)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), part)
    else:
        yield name, value


def _machine(run: Path) -> Mapping[str, Any]:
    """What `machine.json` says of versions: its parts that have names of their own.

    An environment is what its code is; commits come and go, and most leave it as it was.
    """
    try:
        told = json.loads((run / "machine.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # an older run's, or a copy without it
        return {}
    parts = told.items() if isinstance(told, dict) else ()
    found = {name: part for name, part in parts if isinstance(part, dict)}
    origins = found.pop("environments", {}).items()
    codes = {
        env_id: it["digest"] for env_id, it in origins if isinstance(it, dict) and it.get("digest")
    }
    return {**found, "environments": codes}


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str).replace('"', "")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
