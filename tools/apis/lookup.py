"""Looking up what the model names, for every domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from journeyman.tools.errors import ToolError

Record = TypeVar("Record")


def look_up(records: Mapping[str, Record], what: str, key: str, hint: str = "") -> Record:
    """The record of that key.

    Args:
        records: By id or name.
        what: What they are, in a word.
        key: What the model wrote: it may be anything, and of any length.
        hint: How the model finds a key that exists.

    Raises:
        ToolError: There is none; the message names the key and the hint.
    """
    try:
        return records[key]
    except KeyError:
        raise ToolError(f"no {what} {key[:40]}" + (f"; {hint}" if hint else "")) from None
