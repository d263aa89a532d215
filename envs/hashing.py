"""Hashes of states: equal for equal values, in every process."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def digest(value: Any) -> str:
    """128-bit hex digest of a frozen value, equal in every process."""
    return hashlib.blake2b(canonical(value).encode(), digest_size=16).hexdigest()


def seal(value: Any) -> int | str | None:
    """What stays the same while nobody changes a value in place; None if that cannot be told.

    Python's own hash where there is one, which costs a tenth of a digest: what can be changed in
    place mostly has none, and gets the digest.
    """
    try:
        return hash(value)
    except TypeError:
        pass
    try:
        return digest(value)
    except TypeError:
        return None


_SCALARS: tuple[type, ...] = (str, int, float, bool, bytes, type(None))
_PLAIN = frozenset(_SCALARS)


@functools.cache
def _field_names(kind: type) -> tuple[str, ...] | None:
    """Names of a dataclass's fields; None for another class."""
    return tuple(f.name for f in fields(kind)) if is_dataclass(kind) else None


def canonical(value: Any) -> str:
    """A text form of dataclasses, mappings, sets, sequences and scalars.

    Injective but for one thing: a list and a tuple of equal items are the same sequence.
    """
    kind: Any = type(value)
    if kind in _PLAIN:
        try:
            return repr(value)
        except ValueError:  # an integer of more digits than Python writes
            return hex(value)
    names = _field_names(kind)
    if names is not None:
        # Most values are scalars in records: a call less for each of them halves the time.
        parts = [getattr(value, name) for name in names]
        try:
            inner = ",".join([repr(v) if type(v) in _PLAIN else canonical(v) for v in parts])
        except ValueError:
            inner = ",".join(map(canonical, parts))
        return f"{kind.__name__}({inner})"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([canonical(v) for v in value]) + "]"
    if isinstance(value, Mapping):
        items = sorted([(canonical(k), canonical(v)) for k, v in value.items()])
        return "{" + ",".join([f"{k}:{v}" for k, v in items]) + "}"
    if isinstance(value, (set, frozenset)):
        return "<" + ",".join(sorted([canonical(v) for v in value])) + ">"
    if isinstance(value, _SCALARS):
        return repr(value)
    raise TypeError(
        f"cannot hash a {type(value).__name__}: build states from dataclasses, mappings, sets, "
        f"sequences, str, int, float, bool, bytes and None"
    )
