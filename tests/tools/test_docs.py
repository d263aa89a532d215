"""The snippets of docs/tools.md run as they stand there."""

import re
from pathlib import Path
from typing import Any

import pytest

from journeyman.tools.parsing import PARSERS

DOCS = Path(__file__).parents[2] / "docs" / "tools.md"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the wheel's tests come without docs")


def test_snippets() -> None:
    schema, reading, _ = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(schema.partition("with McpServer")[0], names)
    assert names["water"].run(None, {"plant": "fern"}) == (None, {"watered": "fern"})
    shown = []
    for line in reading.splitlines():
        statement = line.partition("  #")[0].strip()
        try:
            shown.append(eval(statement, names))
        except SyntaxError:
            exec(statement, names)
    calls, rendered = shown
    assert [call.status for call in calls] == ["parsed", "unclosed"]
    assert rendered == '[TOOL_CALLS]water[ARGS]{"plant": "fern"}'


def test_every_parser_is_in_the_table() -> None:
    assert re.findall(r"^\| `(\w+)` \|", DOCS.read_text(), re.MULTILINE) == list(PARSERS)
