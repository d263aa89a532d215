"""How a model converses, kept in its folder: one that was trained here plays as it was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from journeyman.agents.errors import DialectError
from journeyman.agents.networks.catalogue import resolve, whole
from journeyman.agents.students.player import Trainable

FILE = "journeyman.json"
NAMES = ("dialect", "render", "template_kwargs", "max_turn_tokens", "max_context")
"""What is kept; the names are those of `load_student`."""


def remember(student: Trainable, folder: Path) -> None:
    """Write a student's ways into the folder of its weights."""
    dialect = student.dialect
    values = (
        dialect.name,
        dialect.render,
        dialect.template_kwargs or None,
        student.sampling.max_tokens,
        student.max_context,
    )
    text = json.dumps(dict(zip(NAMES, values, strict=True)), indent=2)
    (folder / FILE).write_text(f"{text}\n")


def recall(model: str, given: dict[str, Any]) -> dict[str, Any]:
    """What is given, and where that is None what the model's folder says, if it says anything.

    An adapter that says nothing converses as its base.

    Args:
        model: Its name (see `journeyman.agents.networks.catalogue`).
        given: Values by `NAMES`.

    Raises:
        ModelNotFoundError: No such model here.
        DialectError: The file in the folder is not one of ours.
    """
    files = (Path(resolve(name)) / FILE for name in (model, whole(model)))
    file = next((it for it in files if it.is_file()), None)
    if file is None:
        return given
    try:
        kept = dict(json.loads(file.read_text()))
    except (TypeError, ValueError) as error:
        raise DialectError(f"{file} is not what was written there ({error}): delete it") from error
    return {n: kept.get(n) if value is None else value for n, value in given.items()}
