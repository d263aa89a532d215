r"""MiniMax M2: XML-like calls whose values are plain text.

    <minimax:tool_call>
    <invoke name="weather">
    <parameter name="city">Oslo</parameter>
    </invoke>
    </minimax:tool_call>

Several calls stand in one block. Nothing is quoted, so `<minimax:tool_call>` opens an attempt
wherever it stands; any other marker may be part of a value. A value ends at the first
`</parameter>` that another parameter or the end of the call follows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from journeyman.tools.parsing.body import Span, failed, unclosed, well_formed
from journeyman.tools.parsing.form import CallFormat
from journeyman.tools.parsing.scanning import marker_end, next_marker, skip_space, value_end
from journeyman.tools.parsing.values import to_text
from journeyman.tools.parsing.within import CallPlaces, trimmed
from journeyman.tools.types import CallStatus, ToolCall

OPEN, CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
_INVOKE, _END_INVOKE = "<invoke", "</invoke>"
_PARAMETER, _END_PARAMETER = "<parameter", "</parameter>"
_NAMED = re.compile(r"""\s+name=(?:"([^"\n]*)"|'([^'\n]*)'|([^\s"'<>]*))\s*>""")


def _scan(text: str, start: int) -> list[ToolCall]:
    begin, mark = next_marker(text, start, OPEN)
    if not mark:
        return []
    position = begin + len(mark)
    text = text[: next_marker(text, position, OPEN)[0]]
    calls: list[ToolCall] = []
    while (body := marker_end(text, position, _INVOKE)) is not None:
        read = _read(text, body)
        if isinstance(read, str):
            break
        (first, last), places, end = read
        arguments = {key: text[slice(*value)] for key, (_, value) in places.items()}
        closed = marker_end(text, end, CLOSE)
        calls.append(well_formed(text[first:last].strip(), arguments, (begin, closed or end)))
        begin = position = closed or end
        if closed is not None:
            return calls
    else:
        if calls:  # their block was not closed, and no other call begins in it
            return calls
        read = f"In a block stands {_INVOKE} name=…>."
    place, mark = next_marker(text, position, CLOSE)
    if not mark:
        return [*calls, unclosed(CLOSE, (begin, place))]
    return [*calls, failed(CallStatus.INVALID_JSON, read, (begin, place + len(mark)))]


def _read(text: str, body: int) -> tuple[Span, dict[str, tuple[Span, Span]], int] | str:
    """Places of the name, of arguments and of their values, the end; or what is wrong with it."""
    named = _NAMED.match(text, body)
    if named is None:
        return f"After {_INVOKE} comes the tool's name: name=…>."
    places: dict[str, tuple[Span, Span]] = {}
    position = named.end()
    while (end := marker_end(text, position, _END_INVOKE)) is None:
        begin = marker_end(text, position, _PARAMETER)
        key = _NAMED.match(text, begin) if begin is not None else None
        if key is None:
            return f"In a call stands {_PARAMETER} name=…> or {_END_INVOKE}."
        closed = value_end(text, key.end(), _END_PARAMETER, _PARAMETER, _END_INVOKE)
        if closed is None:
            return f"The value of {key[key.lastindex or 1][:80]!r} has no {_END_PARAMETER}."
        start, position = skip_space(text, position), closed + len(_END_PARAMETER)
        places[key[key.lastindex or 1]] = (start, position), (key.end(), closed)
    return named.span(named.lastindex or 1), places, end


def _write(calls: Sequence[ToolCall]) -> str:
    return f"{OPEN}\n{''.join(map(_write_call, calls))}{CLOSE}"


def _write_call(call: ToolCall) -> str:
    parameters = "".join(
        f'{_PARAMETER} name="{name}">{to_text(value)}{_END_PARAMETER}\n'
        for name, value in call.arguments.items()
    )
    return f'{_INVOKE} name="{call.name}">\n{parameters}{_END_INVOKE}\n'


def _within(call: str) -> CallPlaces:
    body = call.find(_INVOKE)
    read = _read(call, body + len(_INVOKE)) if body >= 0 else ""
    if isinstance(read, str):
        return CallPlaces()
    return CallPlaces(trimmed(call, *read[0]), {key: whole for key, (whole, _) in read[1].items()})


MINIMAX_M2 = CallFormat("minimax_m2", _scan, _write, untyped=True, within=_within)
