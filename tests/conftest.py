import functools
import gc
import importlib
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from . import lines

# accelerate reads the same files at each trainer, to ask which packages there are.
importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)

counter = lines.count() if "JOURNEYMAN_COUNT_LINES" in os.environ else None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What this process counted goes into a file of its own."""
    if counter is not None:
        counter.write(session.config.rootpath)


@pytest.hookimpl(trylast=True)  # what is not run at all is gone by then
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The second time that the suite is run, from the wheel and as somebody else, less of it is.

    What only combines inputs anew is left out of the tests of `agents`: they hang on no user.
    """
    if "JOURNEYMAN_FROM_WHEEL" in os.environ:
        combined = combinations(items)
        left = [item for item in items if item in combined and "agents" in item.path.parts]
        items[:] = [item for item in items if item not in set(left)]
        config.hook.pytest_deselected(items=left)
    items.sort(key=allowed, reverse=True)  # what takes long begins first: no worker waits for it


def pytest_collection_finish() -> None:
    """What was imported stays, so nobody need look whether it is garbage.

    A trainer has garbage collected at its beginning. Among the objects of torch, transformers and
    all files of tests, that was a third of the time of a training of one step.
    """
    gc.collect()
    gc.freeze()


def allowed(item: pytest.Item) -> float:
    """Seconds that a test may take, if it says so itself."""
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0]) if mark else 0.0


def combinations(items: list[pytest.Item]) -> set[pytest.Item]:
    """Those whose inputs were each given before, beside others, to the same test.

    An input is what one `parametrize` or one fixture gives: with one of them, no test combines.
    Its identity is the same in every process; how a set is written is not.
    """
    met: set[tuple[object, ...]] = set()
    found = set()
    for item in items:
        given: dict[str, object] = getattr(getattr(item, "callspec", None), "params", {})
        named = [mark.args[0] for mark in item.iter_markers("parametrize")]
        groups = [re.findall(r"\w+", it) if isinstance(it, str) else it for it in named]
        alone = [[name] for name in given if not any(name in group for group in groups)]
        inputs = {
            (item.nodeid.split("[")[0], *((name, id(given.get(name))) for name in group))
            for group in (*groups, *alone)
        }
        if len(inputs) > 1 and inputs <= met:
            found.add(item)
        met |= inputs
    return found


@pytest.fixture(scope="session")
def bwrap() -> str:
    if sys.platform != "linux":
        pytest.skip("namespaces are Linux's")
    program = shutil.which("bwrap")
    # A skip would let CI go green with the walls untested.
    assert program is not None, "bubblewrap is missing: apt-get install bubblewrap"
    return program


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    import gymnasium

    from journeyman.envs import registry

    registry.load_plugins()
    monkeypatch.setattr(registry, "_ids", set(registry._ids))
    monkeypatch.setattr(
        gymnasium.envs.registration, "registry", dict(gymnasium.envs.registration.registry)
    )


@pytest.fixture
def load(
    scratch_registry: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script of `benchmarks/`; its modules and what they register are forgotten."""
    before = set(sys.modules)
    folder = Path(__file__).parent.parent / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if folder in Path(getattr(sys.modules[name], "__file__", None) or "").parents:
            del sys.modules[name]
