"""The errors of the floor: one tree, in one file."""

import ast
import inspect
from pathlib import Path

import journeyman.envs
from journeyman.envs import errors


def test_each_refines_a_standard_one_and_is_drawn() -> None:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]
    for cls in classes:
        assert cls.__name__ in str(errors.__doc__)
        if cls not in (errors.EnvError, Warning):
            standard = [base for base in cls.__bases__ if base.__module__ == "builtins"]
            assert len(standard) == 1 and issubclass(cls, (errors.EnvError, Warning))
            assert f"({standard[0].__name__})" in str(errors.__doc__)


def test_none_lives_elsewhere() -> None:
    for file in Path(str(journeyman.envs.__file__)).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                bases = " ".join(ast.unparse(base) for base in node.bases)
                raised = any(word in bases for word in ("Error", "Exception", "Warning"))
                assert not raised or file.name == "errors.py", f"{file.name}: {node.name}"
