"""Where in a call its tool's name and its arguments stand, for whoever scores them one by one.

The forms that write JSON share the walk over its members; the others have theirs in their files,
beside what reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from journeyman.tools.parsing.body import Span
from journeyman.tools.parsing.scanning import DECODER, object_end, skip_space


@dataclass(frozen=True, slots=True)
class CallPlaces:
    """Parts of a call, as half-open ranges of its characters; what cannot be told is left out."""

    name: Span | None = None
    """The tool's name."""
    arguments: Mapping[str, Span] = field(default_factory=dict)
    """Each argument in the order they stand in, its own name included."""


Within = Callable[[str], CallPlaces]
"""The parts of one call's text, which may be malformed."""


def nowhere(call: str) -> CallPlaces:
    """Of a form that does not tell."""
    return CallPlaces()


def in_object(*keys: str, named: str = "name") -> Within:
    """Reads `{"name": …, "arguments": {…}}`.

    Args:
        keys: Names that the arguments go by, the family's own first, as in `read_json`.
        named: What the name goes by.
    """

    def places(call: str) -> CallPlaces:
        found = members(call, max(call.find("{"), 0))
        name = found.get(named)
        key = next((key for key in keys if key in found), None)
        return CallPlaces(
            (name[1] + 1, name[2] - 1) if name and call[name[1]] == '"' else None,
            arguments_at(call, found[key][1]) if key else {},
        )

    return places


def arguments_at(call: str, start: int) -> dict[str, Span]:
    """The members of the JSON object that stands at a place; none if there is no such object."""
    return {key: (begin, end) for key, (begin, _, end) in members(call, start).items()}


def members(text: str, start: int) -> dict[str, tuple[int, int, int]]:
    """Where each member of a JSON object begins, where its value does, and where both end.

    Of members of one name it is the last, as Python reads them; none if the object is malformed.
    """
    found: dict[str, tuple[int, int, int]] = {}
    if object_end(text, start) is None:
        return found
    place = skip_space(text, skip_space(text, start) + 1)
    while text[place] != "}":
        key, after = DECODER.raw_decode(text, place)
        value = skip_space(text, skip_space(text, after) + 1)  # beyond the colon
        _, end = DECODER.raw_decode(text, value)
        found.pop(key, None)
        found[key] = (place, value, end)
        place = skip_space(text, end)
        if text[place] == ",":
            place = skip_space(text, place + 1)
    return found


def trimmed(text: str, start: int, end: int) -> Span:
    """A range without the whitespace at its ends."""
    piece = text[start:end].rstrip()
    return start + len(piece) - len(piece.lstrip()), start + len(piece)
