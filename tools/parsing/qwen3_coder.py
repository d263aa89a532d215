r"""Qwen3-Coder, Qwen3.5 and Nemotron 3: XML-like calls whose values are plain text.

    <tool_call>
    <function=weather>
    <parameter=city>
    Oslo
    </parameter>
    </function>
    </tool_call>

The models sometimes leave out the opening `<tool_call>`. Nothing is quoted, so `<tool_call>` opens
a call wherever it stands; any other marker may be part of a value. A value ends at the first
`</parameter>` that another parameter or the end of the function follows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from journeyman.tools.parsing.body import Span, failed, unclosed, well_formed
from journeyman.tools.parsing.form import CallFormat
from journeyman.tools.parsing.scanning import marker_end, next_marker, skip_space, value_end
from journeyman.tools.parsing.tags import CLOSE, OPEN, next_attempt, unopened
from journeyman.tools.parsing.values import to_text
from journeyman.tools.parsing.within import CallPlaces, trimmed
from journeyman.tools.types import CallStatus, ToolCall

_FUNCTION, _END_FUNCTION = "<function=", "</function>"
_PARAMETER, _END_PARAMETER = "<parameter=", "</parameter>"
_MARKERS = re.compile(f"{OPEN}|{_FUNCTION}|{CLOSE}")


def _scan(text: str, start: int) -> list[ToolCall]:
    attempt = next_attempt(text, start, _MARKERS)
    if attempt is None:
        return []
    opener, match = attempt
    if match[0] == CLOSE:
        return [unopened((opener, match.end()))]
    bare = match[0] == _FUNCTION
    text = text[: next_marker(text, match.end(), OPEN)[0]]
    named = match.end() if bare else marker_end(text, match.end(), _FUNCTION)
    error = f"After {OPEN} comes {_FUNCTION}name>."
    if named is not None:
        read = _read(text, named)
        if isinstance(read, tuple):
            name, places, end = read
            arguments = {key: _trim(text[slice(*value)]) for key, (_, value) in places.items()}
            closed = marker_end(text, end, CLOSE)
            if closed is not None or bare:
                return [well_formed(name, arguments, (opener, closed or end))]
            error = f"After {_END_FUNCTION} comes {CLOSE}."
        else:
            error = read
    closers = (CLOSE, _END_FUNCTION, _FUNCTION) if bare else (CLOSE,)
    place, mark = next_marker(text, match.end(), *closers)
    if mark in ("", _FUNCTION):
        return [unclosed(CLOSE, (opener, place))]
    return [failed(CallStatus.INVALID_JSON, error, (opener, place + len(mark)))]


def _read(text: str, start: int) -> tuple[str, dict[str, tuple[Span, Span]], int] | str:
    """Name, places of arguments and of their values, the end; or what is wrong with it."""
    named = _tag(text, start)
    if named is None:
        return f"The name in {_FUNCTION}name> is not closed with >."
    name, position = named
    places: dict[str, tuple[Span, Span]] = {}
    while (end := marker_end(text, position, _END_FUNCTION)) is None:
        begin = marker_end(text, position, _PARAMETER)
        if begin is None:
            return f"In a function stands {_PARAMETER}name> or {_END_FUNCTION}."
        tag = _tag(text, begin)
        if tag is None:
            return f"The name in {_PARAMETER}name> is not closed with >."
        key, begin = tag
        closed = value_end(text, begin, _END_PARAMETER, _PARAMETER, _END_FUNCTION)
        if closed is None:
            return f"The value of {key[:80]!r} is not closed with {_END_PARAMETER}."
        start, position = skip_space(text, position), closed + len(_END_PARAMETER)
        places[key] = (start, position), (begin, closed)
    return name, places, end


def _tag(text: str, start: int) -> tuple[str, int] | None:
    """The name up to `>`, and where it ends; None if the line or a tag ends it first."""
    place, mark = next_marker(text, start, ">", "<", "\n")
    return (text[start:place].strip(), place + 1) if mark == ">" else None


def _trim(value: str) -> str:
    """A value without the line breaks that set it off from its tags."""
    return value.removeprefix("\n").removesuffix("\n")


def _write(calls: Sequence[ToolCall]) -> str:
    return "\n".join(map(_write_call, calls))


def _write_call(call: ToolCall) -> str:
    parameters = "".join(
        f"{_PARAMETER}{name}>\n{to_text(value)}\n{_END_PARAMETER}\n"
        for name, value in call.arguments.items()
    )
    return f"{OPEN}\n{_FUNCTION}{call.name}>\n{parameters}{_END_FUNCTION}\n{CLOSE}"


def _within(call: str) -> CallPlaces:
    begin = call.find(_FUNCTION) + len(_FUNCTION)
    read = _read(call, begin) if begin >= len(_FUNCTION) else ""
    if isinstance(read, str):
        return CallPlaces()
    named = trimmed(call, begin, call.index(">", begin))
    return CallPlaces(named, {key: whole for key, (whole, _) in read[1].items()})


QWEN3_CODER = CallFormat("qwen3_coder", _scan, _write, untyped=True, within=_within)
