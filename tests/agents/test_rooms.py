"""The top floor's rooms: how many, who imports whom, and what they are called."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AGENTS = ROOT / "agents"
FLOORS = ("agents", "envs", "tools", "sandbox")
pytestmark = pytest.mark.skipif(not AGENTS.is_dir(), reason="no checkout beside the tests")

MOST_ROOMS, MOST_PAIRS, MOST_FLOORS = 14, 45, 9


def rooms() -> set[str]:
    """Files and folders directly in agents/."""
    return {
        path.name.removesuffix(".py")
        for path in AGENTS.iterdir()
        if path.name not in ("__init__.py", "__pycache__")
    }


def imports(file: Path) -> Iterator[str]:
    """Modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def arrows() -> dict[str, set[str]]:
    """Room -> the other rooms that it imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in AGENTS.rglob("*.py"):
        room = file.relative_to(AGENTS).parts[0].removesuffix(".py")
        for module in imports(file):
            match = re.match(r"journeyman\.agents\.(\w+)", module)
            if match and match[1] in rooms() - {room} and room != "__init__":
                found[room].add(match[1])
    return found


def depth(room: str, known: dict[str, set[str]]) -> int:
    """Rooms on the longest way down from one; an endless way is none down."""
    return 1 + max((depth(below, known) for below in known.get(room, ())), default=0)


def test_rooms_and_arrows_are_few() -> None:
    assert len(rooms()) <= MOST_ROOMS, rooms()
    known = arrows()
    assert sum(map(len, known.values())) <= MOST_PAIRS
    assert max(depth(room, known) for room in rooms()) <= MOST_FLOORS


def test_no_two_modules_of_one_name() -> None:
    names = Counter(
        file.stem if file.stem != "__init__" else file.parent.name
        for file in AGENTS.rglob("*.py")
        if file.stem not in ("__main__", "errors")
    )
    assert not [name for name, count in names.items() if count > 1]


def test_no_two_public_classes_of_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for floor in FLOORS:
        for file in (ROOT / floor).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not {name: found for name, found in places.items() if len(found) > 1}


PAGE = ROOT / "docs" / "architecture.md"


def test_every_arrow_that_is_drawn_is_an_import() -> None:
    (drawing,) = re.findall(r"```mermaid\n(.*?)```", PAGE.read_text(), re.DOTALL)
    drawn = [
        (left, right)
        for left, many in re.findall(r"^ *(\w+) --> ([\w &]+)$", drawing, re.MULTILINE)
        for right in many.split(" & ")
    ]
    assert drawn
    known = arrows()
    alone = set(re.findall(r"^ *(\w+)$", drawing, re.MULTILINE))
    assert {room for pair in drawn for room in pair} | alone == rooms() - {"py.typed"}
    for left, right in drawn:
        assert right in known[left], f"{left} does not import {right}"
    # What is left out can be read off: it is below what is drawn.
    below: dict[str, set[str]] = defaultdict(set)
    for room in sorted(rooms(), key=lambda it: depth(it, known)):
        for left, right in drawn:
            if left == room:
                below[room] |= {right, *below[right]}
    for room, imported in known.items():
        assert imported <= below[room], f"{room}: {imported - below[room]} is nowhere below it"


def test_the_walks_name_what_is_there() -> None:
    """`folder/file.py: name`, or a folder or file alone, anywhere in the page."""
    quoted = re.findall(
        r"`((?:agents|envs|tools|sandbox|conf)/[\w./*-]*)(?:: ([\w.]+))?`", PAGE.read_text()
    )
    assert len(quoted) > 20
    for place, name in quoted:
        found = list(ROOT.glob(place.rstrip("/")))
        assert found, place
        if name:
            owner, _, member = name.partition(".")
            text = found[0].read_text()
            assert re.search(rf"^(class|def) {owner}\b|^{owner}\b.*=", text, re.MULTILINE), name
            assert not member or re.search(
                rf"def {member}\b|^    {member}\b", text, re.MULTILINE
            ), name
