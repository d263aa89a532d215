"""Who wrote the environments of a run, for `machine.json`: package and version, file and commit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from journeyman.envs import env_class
from journeyman.envs.origin import env_digest
from journeyman.envs.registry import ENTRY_POINTS

_PATIENCE = 10.0
"""Seconds for one answer of git."""


def environments(ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Where environments come from, by id.

    Returns:
        Of each the `digest` of its code; of one that another package brings also `package` and
        `version`, or else its `file`; and `commit` and `dirty` if the file is under git's control.
    """
    return {env_id: _origin(env_class(env_id)) for env_id in ids}


def _origin(cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {"digest": env_digest(cls)}
    home = cls.__module__.partition(".")[0]
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.dist is not None and entry.module.partition(".")[0] == home:
            found |= {"package": entry.dist.name, "version": entry.dist.version}
            break
    else:
        found |= {} if file is None else {"file": file}
    return found if file is None else found | _commit(Path(file))


def _commit(file: Path) -> dict[str, Any]:
    """The commit of a file's work tree, and whether the file's folder differs from it."""
    if _git(file, "ls-files", "--error-unmatch", file.name) is None:
        return {}  # an installed package may lie in somebody's work tree without being a part of it
    commit, changes = _git(file, "rev-parse", "HEAD"), _git(file, "status", "--porcelain", ".")
    return {} if commit is None else {"commit": commit, "dirty": bool(changes)}


def _git(file: Path, *arguments: str) -> str | None:
    """What git says in a file's folder; None if it has nothing to say."""
    try:
        done = subprocess.run(
            ["git", "-C", str(file.parent), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=_PATIENCE,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
