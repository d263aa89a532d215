"""The lines that are counted are those that coverage.py knows, and the program is the same."""

import builtins
from pathlib import Path
from typing import Any

from coverage.parser import PythonParser

from .lines import MARKS, Counter, MarkedFinder, MarkedLoader

PROGRAM = '''"""What it says of itself."""

from __future__ import annotations

import functools


class Shape:
    """A shape."""

    sides: int = 0
    """How many."""

    @functools.cached_property
    def name(
        self,
    ) -> str:
        """Its name."""
        match self.sides:
            case 3 | 4:
                return "few"
            case _:  # not run
                return "many"  # not run

    def __half(self) -> int:
        try:
            return int(
                str(self.sides / 2)
            )
        except (
            ValueError,
            OSError,
        ):
            return -1
        finally:
            self.asked = True

    def half(self) -> int:
        return self.__half()


async def never() -> None:
    with open("nowhere") as file:  # not run
        async for line in file:  # not run
            print(line)  # not run


def sort(number: int) -> str:
    if number == 1:
        return "one"  # not run
    elif number == 2:
        return [
            "two",
        ][0]
    else:
        while number:  # not run
            number -= 1  # not run
    return "more"  # not run


shape = Shape()
shape.sides = 3
found = (shape.name, shape.half(), sort(2), (lambda: 4)(), [n for n in (1, 2) if n > 1])
'''


def test_lines_are_those_that_ran() -> None:
    counter = Counter()
    known = {**vars(builtins), MARKS: counter.marks}
    module: dict[str, Any] = {"__name__": "program", "__builtins__": known}
    exec(counter.compiled(PROGRAM.encode(), "program.py"), module)
    assert module["found"] == ("few", -1, "two", 4, [2])
    assert module["__doc__"] == "What it says of itself."
    assert module["Shape"].__annotations__ == {"sides": "int"}  # as the future has it

    parser = PythonParser(text=PROGRAM)
    parser.parse_source()
    ran = parser.translate_lines(counter.lines()["program.py"]) & parser.statements
    told = PROGRAM.splitlines()
    missed = {number for number in parser.statements if "# not run" in told[number - 1]}
    assert missed and ran == parser.statements - missed


def test_the_package_is_marked_and_no_other() -> None:
    finder = MarkedFinder(Counter())
    spec = finder.find_spec(
        "journeyman.agents.errors", __import__("journeyman.agents").agents.__path__
    )
    assert spec is not None and isinstance(spec.loader, MarkedLoader)
    assert finder.find_spec("json", None) is None


def test_files_that_nobody_imported_count_too(tmp_path: Path) -> None:
    from coverage import CoverageData

    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "idle.py").write_text("print()")
    Counter().write(tmp_path)
    (file,) = tmp_path.glob(".coverage.*")
    data = CoverageData(str(file))
    data.read()
    assert data.measured_files() == {str(tmp_path / "agents" / "idle.py")}
