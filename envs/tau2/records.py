"""Databases of thousands of records that branch without being copied."""

from __future__ import annotations

import copy
import json
from typing import Any


class Records(dict[str, Any]):
    """A table that shares its records with the table it was made from until they are asked for.

    Who asks for a record by its key gets this table's own copy, to change as he likes. Who runs
    through `values()` or `items()` sees shared records and may only read them, which is how the
    benchmark's tools use them. Making a table costs a reference a record.
    """

    def __init__(self, shared: dict[str, Any]) -> None:
        """Share the records of another table, which nobody may change any more."""
        super().__init__(shared)
        self._own: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        """The table's own record."""
        if key not in self._own:
            self[key] = copy.deepcopy(super().__getitem__(key))
        return super().__getitem__(key)

    def __setitem__(self, key: str, record: Any) -> None:
        self._own.add(key)
        super().__setitem__(key, record)

    def get(self, key: str, default: Any = None) -> Any:
        """The table's own record, or the default."""
        return self[key] if key in self else default  # noqa: SIM401 - this is get


def fork(database: Any) -> Any:
    """A database of the same content that can be changed; the given one must not be any more."""
    parts = {
        name: Records(part) if isinstance(part, dict) else copy.deepcopy(part)
        for name, part in vars(database).items()
    }
    return database.model_copy(update=parts)


def difference(database: Any, origin: Any) -> dict[str, Any]:
    """What sets a database apart from the one it stems from, as values that can be hashed.

    Two databases of one origin have equal differences if and only if they are equal in the
    benchmark's eyes, which compares hashes of all they hold (`get_dict_hash`).
    """
    return {
        name: _changed(part, vars(origin)[name]) if isinstance(part, dict) else _text(part)
        for name, part in vars(database).items()
    }


def set_beside(
    reached: dict[str, Any], wanted: dict[str, Any], origin: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two differences from one origin with their records as values.

    A record that one side has not changed is the origin's there, and is left out if there is none.
    """
    sides: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name, part in vars(origin).items():
        pair = reached[name], wanted[name]
        for side, changed in zip(sides, pair, strict=True):
            if not isinstance(part, dict):
                side[name] = json.loads(changed)
                continue
            keys = sorted({*pair[0], *pair[1]})
            texts = {k: changed[k] if k in changed else _text(dict.get(part, k)) for k in keys}
            side[name] = {k: json.loads(text) for k, text in texts.items() if text != "null"}
    return sides


def _changed(table: dict[str, Any], origin: dict[str, Any]) -> dict[str, str]:
    touched = {key: record for key, record in table.items() if record is not origin.get(key)}
    texts = {key: _text(record) for key, record in touched.items()}
    return {key: text for key, text in texts.items() if text != _text(dict.get(origin, key))}


def _text(part: Any) -> str:
    return json.dumps(_plain(part), sort_keys=True, default=str)


def _plain(part: Any) -> Any:
    if isinstance(part, list):
        return [_plain(item) for item in part]
    return part.model_dump() if hasattr(part, "model_dump") else part
