import shutil
import sys

import pytest


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
