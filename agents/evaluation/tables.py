"""Tables of figures, written for the terminal, for GitHub, for spreadsheets and for papers.

Whoever has figures makes a `ResultTable` of them; `rendered` is the one place that knows formats.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from journeyman.agents.evaluation.printing import one_line

Format = Literal["text", "markdown", "csv", "latex"]
FORMATS: tuple[Format, ...] = get_args(Format)


class TableCell(str):
    """What people read, and the figures that it stands for."""

    raw: tuple[float | None, ...]
    """One, or two of an interval; none where there is no figure."""

    def __new__(cls, text: str, *raw: float | None) -> TableCell:
        """A text with its figures."""
        cell = super().__new__(cls, text)
        cell.raw = raw
        return cell


def percent(share: float | None) -> TableCell:
    """A share in 0..1 as people read it."""
    return TableCell("-") if share is None else TableCell(f"{100 * share:.1f}%", share)


def count(number: int) -> TableCell:
    """A whole number."""
    return TableCell(str(number), number)


def amount(value: float | None, form: str = ".1f") -> TableCell:
    """A figure, such as a mean."""
    return TableCell("-") if value is None else TableCell(f"{value:{form}}", value)


_FORMS = {"count": ".1f", "tokens": ".1f", "seconds": ".3g", "money": ".4f"}
"""Of a measure's units; shares and scores are in per cent."""


def figure(value: float | None, unit: str) -> TableCell:
    """A measure's figure."""
    form = _FORMS.get(unit)
    return percent(value) if form is None else amount(value, form)


def difference(value: float | None, unit: str) -> TableCell:
    """A difference of two figures; of shares, in points."""
    form, scale = _FORMS.get(unit, ".1f"), 1 if unit in _FORMS else 100
    return TableCell("-") if value is None else TableCell(f"{scale * value:+{form}}", value)


def bounds(
    low: float | None, high: float | None, unit: str = "share", signed: bool = False
) -> TableCell:
    """An interval of a figure, or with signs of a difference; of shares, in per cent or points."""
    if low is None or high is None:
        return TableCell("-")
    form, scale = _FORMS.get(unit, ".1f"), 1 if unit in _FORMS else 100
    sign, dash = ("+", "..") if signed else ("", "-")
    ends = (f"{scale * end:{sign}{form}}" for end in (low, high))
    return TableCell(f" {dash} ".join(ends), low, high)


@dataclass(frozen=True)
class ResultTable:
    """Headers and lines of cells; what is no `TableCell` is a name."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    """Stands above it, where there are several."""
    names: int = 1
    """How many columns, the first ones, hold words: they go to the left, figures to the right."""

    def text(self) -> str:
        """For the terminal."""
        table = aligned([self.headers, *self.rows], self.names)
        return f"{one_line(self.title)}\n{table}" if self.title else table

    def markdown(self) -> str:
        """As GitHub draws it."""
        lines = [[_markdown(cell) for cell in line] for line in (self.headers, *self.rows)]
        rule = [":---"] * self.names + ["---:"] * (len(self.headers) - self.names)
        header, *rest = (f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
        title = [f"**{_markdown(self.title)}**", ""] if self.title else []
        return "\n".join((*title, header, *rest))

    def latex(self) -> str:
        """For a paper that loads booktabs; any engine sets it."""
        header, *rest = (
            f"{' & '.join(map(_latex, line))} \\\\" for line in (self.headers, *self.rows)
        )
        columns = "l" * self.names + "r" * (len(self.headers) - self.names)
        return "\n".join(
            (
                *([f"% {_latex(self.title)}"] if self.title else []),
                f"\\begin{{tabular}}{{{columns}}}",
                *("\\toprule", header, "\\midrule", *rest, "\\bottomrule"),
                "\\end{tabular}",
            )
        )

    def records(self) -> Iterator[Mapping[str, object]]:
        """Its lines for programs: figures as they are, an interval as "… low" and "… high"."""
        counts = [
            max((len(cell.raw) for cell in column if isinstance(cell, TableCell)), default=1)
            for column in zip(*self.rows, strict=True)
        ]
        for row in self.rows:
            record: dict[str, object] = {}
            for header, count, cell in zip(self.headers, counts, row, strict=True):
                raw = cell.raw if isinstance(cell, TableCell) else (one_line(cell),)
                ends = (" low", " high") if count == 2 else ("",)
                record |= {
                    f"{one_line(header)}{end}": raw[i] if i < len(raw) else None
                    for i, end in enumerate(ends)
                }
            yield record


def rendered(tables: Sequence[ResultTable], form: Format) -> str:
    """Tables as one text, without a final newline.

    Args:
        tables: In their order. In CSV several are one, of all their columns, and the column
            `table` has their titles, or else first headers.
        form: How.
    """
    if form == "csv":
        return _csv(tables)
    return "\n\n".join(getattr(table, form)() for table in tables)


def aligned(lines: Sequence[Sequence[str]], names: int = 1) -> str:
    """A table: headers, a rule, the rest; the first columns to the left, figures to the right."""
    lines = [tuple(map(one_line, line)) for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    placed = (
        [
            cell.ljust(width) if i < names else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    )
    header, *rest = map("  ".join, placed)
    return "\n".join((header, rule, *rest))


def _csv(tables: Sequence[ResultTable]) -> str:
    records = [
        {"table": one_line(table.title or table.headers[0]), **record}
        if len(tables) > 1
        else record
        for table in tables
        for record in table.records()
    ]
    written = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(written, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return written.getvalue().removesuffix("\n")


_MARKS = re.compile(r"[\\`*_\[\]<>|~$]")


def _markdown(text: str) -> str:
    """A text that Markdown shows as it is."""
    return _MARKS.sub(r"\\\g<0>", one_line(text).replace("&", "&amp;"))


_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega"
)
_LATEX = {
    **{
        letter: f"$\\{name}$"
        for letter, name in zip("αβγδεζηθικλμνξπρστυφχψω", _GREEK.split(), strict=True)
    },
    **{mark: f"\\{mark}" for mark in "{}$&#%_"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"\char34{}",
    "[": "{[}",  # it and the next one would be arguments of the line's end before them
    "*": "{*}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\to$",
    "−": "$-$",
    "–": "--",
    "…": r"\dots{}",
    "²": r"$^2$",
}


def _latex(text: str) -> str:
    """A text that any engine sets as it is; a letter that pdfLaTeX has none of is spelt U+…."""
    parts = one_line(text).split("--")
    return "-{}-".join("".join(map(_letter, part)) for part in parts)


def _letter(letter: str) -> str:
    if letter in _LATEX:
        return _LATEX[letter]
    if letter.isascii() or "\u00a1" <= letter <= "\u017f":  # of which its own tables know
        return letter
    return f"U+{ord(letter):04X}"
