"""Which lines of the package the tests run, at next to no cost.

Before Python 3.12 coverage.py is called at every line that runs, those of torch included: a file of
tests in plain Python took 31 s of CPU instead of 9. Here each statement of the package is compiled
with a mark before it, which sets one byte: 12 s. coverage.py reports what they say.
A `case` or an `except` that is asked and declines does not count as run.
"""

import ast
import builtins
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from coverage import CoverageData

PACKAGE = "journeyman"
FOLDERS = ("agents", "envs", "sandbox", "tools")
MARKS = "__marks__"  # ends in underscores: the name is the same inside of a class


class Counter(ast.NodeTransformer):
    """Puts a mark before each statement of a module, and remembers its lines."""

    def __init__(self) -> None:
        self.marks = bytearray()
        self.spans: list[tuple[str, range]] = []
        self.path = ""

    def compiled(self, source: bytes, path: str) -> CodeType:
        self.path = path
        tree = self.visit(ast.parse(source))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list):  # that of a lambda is an expression
                setattr(node, name, self._marked(statements))
        if isinstance(node, ast.ExceptHandler):
            node.body.insert(0, self._mark(node, node.lineno))
        if isinstance(node, ast.match_case):
            node.body.insert(0, self._mark(node.body[0], node.pattern.lineno))
        return node

    def _marked(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        marked: list[ast.stmt] = []
        waiting: list[ast.stmt] = []
        for number, statement in enumerate(statements):
            if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
                waiting.append(self._mark(statement, statement.lineno))  # nothing may precede it
            elif number or not is_text(statement):  # a docstring runs nothing, and must stay first
                decorators = getattr(statement, "decorator_list", [])
                first = min([statement.lineno, *(it.lineno for it in decorators)])
                marked += [*waiting, self._mark(statement, first)]
                waiting.clear()
            marked.append(statement)
        return marked + waiting

    def _mark(self, at: Any, first: int) -> ast.stmt:
        """Sets a byte; `at` is where it stands, whose lines up to a body's begin with `first`."""
        inner = [it.lineno for it in getattr(at, "body", [])]
        inner += [it.pattern.lineno for it in getattr(at, "cases", [])]
        last = max(at.lineno, min(inner) - 1) if inner else at.end_lineno
        mark = f"{MARKS}[{len(self.marks)}] = 1"
        self.marks.append(0)
        self.spans.append((self.path, range(first, last + 1)))
        statement = ast.parse(mark).body[0]
        for node in ast.walk(statement):
            ast.copy_location(node, at)
        return statement

    def lines(self) -> dict[str, set[int]]:
        """Those that ran, by file; files that were never imported have none."""
        seen: dict[str, set[int]] = {path: set() for path, _ in self.spans}
        for mark, (path, span) in zip(self.marks, self.spans, strict=True):
            if mark:
                seen[path].update(span)
        return seen

    def write(self, root: Path) -> None:
        """A file of data in the folder of the project, for `coverage combine`."""
        data = CoverageData(str(root / ".coverage"), suffix=True)
        data.add_lines(self.lines())
        data.touch_files(str(path) for name in FOLDERS for path in (root / name).rglob("*.py"))
        data.write()


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


class MarkedLoader(importlib.machinery.SourceFileLoader):
    """Compiles anew, without the cache: what is there has no marks, and must get none."""

    counter: Counter

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.counter.compiled(self.get_data(path), path)


class MarkedFinder:
    """Finds the package's modules as the others do, and has them marked."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != PACKAGE:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                if type(spec.loader) is importlib.machinery.SourceFileLoader:
                    spec.loader = MarkedLoader(spec.loader.name, spec.loader.path)
                    spec.loader.counter = self.counter
                return spec
        return None


def count() -> Counter:
    """From now on, in this process."""
    assert not any(name.partition(".")[0] == PACKAGE for name in sys.modules)
    counter = Counter()
    setattr(builtins, MARKS, counter.marks)
    sys.meta_path.insert(0, MarkedFinder(counter))
    return counter
