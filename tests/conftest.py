import shutil
import sys

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where many inputs go over lines that other tests cover, they are not counted.

    Counting doubles what it costs to run Python.
    """
    for item in items:
        if "cases" in item.path.parts or hasattr(getattr(item, "function", None), "hypothesis"):
            item.add_marker("no_cover")  # pytest-cov's


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
