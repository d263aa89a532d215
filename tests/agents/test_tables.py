"""One table in four forms."""

import csv
import io
import re

import pytest

from journeyman.agents.evaluation.tables import (
    ResultTable,
    TableCell,
    amount,
    bounds,
    count,
    difference,
    figure,
    percent,
    rendered,
)

NASTY = r"a_b %c &d #e $f {g} ~h ^i \j <k> |l| `m` *n* [o] 名 ü τ²"
TABLE = ResultTable(
    ("policy", "tasks", "success", "95% interval"),
    [
        (NASTY, count(3), percent(1 / 3), bounds(0.1, 0.7)),
        ("none", count(0), percent(None), bounds(None, None)),
    ],
)


def test_cells_by_unit() -> None:
    assert figure(0.5, "share") == "50.0%"
    assert figure(12.345, "count") == "12.3"
    assert figure(0.01234, "money") == "0.0123"
    assert figure(None, "seconds") == "-"
    assert difference(-0.25, "share") == "-25.0"
    assert difference(0.5, "seconds") == "+0.5"
    assert bounds(-0.1, 0.2, "score", signed=True) == "-10.0 .. +20.0"
    assert bounds(1.0, 2.0, "tokens") == "1.0 - 2.0"
    assert bounds(1.0, 2.0, "tokens").raw == (1.0, 2.0)
    assert amount(0.25, ".2g").raw == (0.25,)


def test_csv_has_raw_figures() -> None:
    first, second = csv.DictReader(io.StringIO(rendered([TABLE], "csv")))
    assert first["policy"] == NASTY
    assert float(first["success"]) == 1 / 3
    assert (first["95% interval low"], first["95% interval high"]) == ("0.1", "0.7")
    assert (second["tasks"], second["success"], second["95% interval low"]) == ("0", "", "")


def test_several_tables_are_one_in_csv() -> None:
    other = ResultTable(("kind", "points"), [("x", difference(0.5, "share"))], "b - a")
    lines = list(csv.DictReader(io.StringIO(rendered([TABLE, other], "csv"))))
    assert [line["table"] for line in lines] == ["policy", "policy", "b - a"]
    assert [line["points"] for line in lines] == ["", "", "0.5"]
    assert [line["policy"] for line in lines] == [NASTY, "none", ""]


def cells(line: str) -> list[str]:
    """Cells of a line of a GitHub table: a bar divides them unless a backslash stands before it."""
    assert line.startswith("| ") and line.endswith(" |")
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_as_github_reads_it() -> None:
    header, rule, first, second = rendered([TABLE], "markdown").splitlines()
    assert cells(header) == list(TABLE.headers)
    assert cells(rule) == [":---", "---:", "---:", "---:"]
    shown = cells(first)[0]
    # CommonMark: a backslash before ASCII punctuation makes it a plain character; &amp; is "&".
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", shown).replace("&amp;", "&") == NASTY
    assert not re.search(r"(?<!\\)[*_`<>\[\]|]", shown)
    assert cells(second) == ["none", "0", "-", "-"]
    titled = rendered([ResultTable(("a",), [("x",)], "b_c")], "markdown")
    assert titled.startswith("**b\\_c**\n\n| a |")


def test_latex_by_its_own_rules() -> None:
    text = rendered([TABLE], "latex")
    lines = text.splitlines()
    assert lines[0] == r"\begin{tabular}{lrrr}" and lines[-1] == r"\end{tabular}"
    assert [lines[i] for i in (1, 3, -2)] == [r"\toprule", r"\midrule", r"\bottomrule"]
    rows = [line for line in lines if line.endswith(r" \\")]
    assert len(rows) == 3
    for row in rows:
        body = row.removesuffix(r" \\")
        # Of the ten special characters none stands bare but the dividers; braces are in pairs.
        bare = re.sub(r"\\(?:[A-Za-z]+(?:\d+)?|[{}$&#%_])", "", body)
        assert len(re.findall("&", bare)) == 3
        assert not re.search(r"[#%_~^\\\\]", re.sub(r"\$[^$]*\$", "", bare))
        assert bare.count("$") % 2 == 0 and bare.count("{") == bare.count("}")
        # What pdfLaTeX has no letter for is spelt.
        assert all(ord(letter) < 0x180 for letter in body)
    assert "U+540D ü" in rows[1]
    assert r"$\tau$$^2$" in rows[1]
    assert rendered([ResultTable(("x",), [("[a]",), ("*b",), ("a--b",)])], "latex").splitlines()[
        4:7
    ] == [
        r"{[}a] \\",
        r"{*}b \\",
        r"a-{}-b \\",
    ]


@pytest.mark.parametrize("form", ["text", "markdown", "csv", "latex"])
def test_no_cell_leaves_its_line(form: str) -> None:
    table = ResultTable(
        ("a\nb", "c"), [("x\ny\x1b[2J", TableCell("1", 1)), ("z", count(2))], names=2
    )
    text = rendered([table], form)  # type: ignore[arg-type]
    extra = {"text": 1, "markdown": 1, "csv": 0, "latex": 5}[form]
    assert len(text.splitlines()) == 3 + extra
    assert "\x1b" not in text
