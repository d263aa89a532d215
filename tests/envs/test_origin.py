"""Whether an environment's code is the one it was."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from journeyman.envs import env_class
from journeyman.envs.origin import env_digest

MODULES = {
    "__init__.py": "",
    "base.py": "from journeyman.envs import ToolEnv\n\nclass Base(ToolEnv):\n    pass\n",
    "words.py": "WORDS = 'rose', 'tulip'\n",
    "deep.py": "DEEP = 1\n",
    "tools.py": (
        "from .deep import DEEP\n"
        "from journeyman.tools import tool\n\n"
        "@tool\ndef plant(state: int) -> int:\n    '''Plant one.'''\n    return DEEP\n"
    ),
    "garden.py": (
        "from {name} import words\n"
        "from {name}.base import Base\n"
        "from {name}.tools import plant\n\n"
        "class Garden(Base):\n    toolset = (plant,)\n"
    ),
    "unused.py": "",
}

Digest = Callable[..., str]


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Digest]:
    """Of an environment in a package that is written anew, with some of its files changed."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "gardens_of_a_test"

    def of(**changed: str) -> str:
        for module in [m for m in sys.modules if m.partition(".")[0] == name]:
            del sys.modules[module]
        (tmp_path / name).mkdir(exist_ok=True)
        for file, text in MODULES.items():
            text = changed.get(file.removesuffix(".py"), text).replace("{name}", name)
            # No time stamp tells two files of one second and one size apart.
            (tmp_path / name / file).write_bytes(text.encode())
        importlib.invalidate_caches()
        found: str = env_digest(importlib.import_module(f"{name}.garden").Garden)
        return found

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield of
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        del sys.modules[module]


@pytest.mark.parametrize("changed", ["base", "words", "deep", "tools", "garden"])
def test_any_module_that_it_is_written_in_tells(changed: str, digest: Digest) -> None:
    known = digest()
    assert len(known) == 16
    assert digest() == known
    assert digest(**{changed: f"{MODULES[f'{changed}.py']}# changed\n"}) != known


def test_what_it_does_not_use_and_line_ends_do_not_tell(digest: Digest) -> None:
    known = digest()
    assert digest(unused="X = 1\n") == known
    assert digest(garden=MODULES["garden.py"].replace("\n", "\r\n")) == known


def test_a_class_without_a_source_has_no_digest() -> None:
    space: dict[str, object] = {"__name__": "typed_into_a_session"}
    exec("from journeyman.envs import ToolEnv\nclass Typed(ToolEnv):\n    toolset = ()\n", space)
    assert env_digest(space["Typed"]) == ""  # type: ignore[arg-type]


def test_environments_of_one_library_differ() -> None:
    ids = [f"journeyman/{name}-v0" for name in ("Bank", "Orders", "Python", "ExactMDP")]
    digests = {env_digest(env_class(env_id)) for env_id in ids}
    assert len(digests) == len(ids)
    assert "" not in digests
