"""Text of models, tools, users and files on its way to a person: it shows, and commands nothing.

The command line writes through `SafeStream` alone, so no command needs to think of it; pages and
table cells ask `printable` and `one_line`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_SEPARATORS = "\u2028\u2029"
_UNSAFE = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_SEPARATORS}{_BIDI}\ud800-\udfff]")
"""Control characters but newline and tab, what turns the direction of text, half characters."""
_BREAKS = re.compile(r"[\t\n]")


def printable(text: str) -> str:
    r"""Text whose control characters are spelt out, such as `\u001b`; lines stay lines.

    The form is JSON's: what was JSON before says the same after.
    """
    return _UNSAFE.sub(_spelt, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """`printable` text that cannot leave its line or column either."""
    return _BREAKS.sub(_spelt, printable(text))


def _spelt(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


class SafeStream:
    """A stream of text that passes on nothing but `printable` text.

    What the stream's encoding has no character for is spelt out too.
    """

    def __init__(self, stream: TextIO, bars: bool = False) -> None:
        r"""Wrap a stream.

        Args:
            stream: Where text goes; all but writing is its own.
            bars: A progress bar may go back to the left: a write may begin with `\r`.
        """
        self._stream = stream
        self._bars = bars
        self.open_line = False
        """True while the last line, a bar's say, has no end yet."""

    def write(self, text: str) -> int:
        """Write text; returns the length of what was given."""
        back = "\r" if self._bars and text.startswith("\r") else ""
        safe = back + printable(text[len(back) :])
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self.open_line = not safe.endswith("\n") if safe else self.open_line
        self._stream.write(safe.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for text in lines:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's own."""
        return getattr(self._stream, name)


def complain(text: str) -> None:
    """Print a line for errors, below a bar that was left where it stood."""
    end = "\n" if getattr(sys.stderr, "open_line", False) else ""
    print(f"{end}{text}", file=sys.stderr)


def guard_streams() -> None:
    """Let this process print through `SafeStream`, tracebacks, warnings and bars included."""
    if not isinstance(sys.stdout, SafeStream):
        sys.stdout = cast(TextIO, SafeStream(sys.stdout))
    if not isinstance(sys.stderr, SafeStream):
        sys.stderr = cast(TextIO, SafeStream(sys.stderr, bars=True))
