"""What other packages bring, by entry-point groups."""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any


@functools.cache
def load_group(
    group: str, objection: Callable[[object], str | None] = lambda loaded: None
) -> Mapping[str, Any]:
    """What the entry points of a group name, by their names; loaded once.

    A broken plugin must not take the others down: it is reported as a warning and left out.

    Args:
        group: Such as "journeyman.dialects".
        objection: What is wrong with an object that was loaded, None if nothing is.
    """
    found: dict[str, Any] = {}
    values: dict[str, set[str]] = defaultdict(set)
    for entry in entry_points(group=group):
        values[entry.name].add(entry.value)
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        try:
            if len(values[entry.name]) > 1:
                raise ValueError(f"two packages offer that name: {sorted(values[entry.name])}")
            loaded = entry.load()
            reason = objection(loaded)
        except Exception as error:
            reason = repr(error)
        if reason is None:
            found[entry.name] = loaded
        else:
            warnings.warn(
                f"plugin {entry.name!r} ({entry.value}) of {group} failed to load: {reason}",
                stacklevel=2,
            )
    return MappingProxyType(found)
