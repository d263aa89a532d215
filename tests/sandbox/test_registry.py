"""Backends by name: the package's own, and those of others."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from journeyman.sandbox import (
    Backend,
    InvalidBackendError,
    Sandbox,
    SandboxError,
    UnknownBackendError,
    backend_names,
    registry,
    resolve_backend,
)

BUILTIN = ["docker", "namespace", "unsafe_local"]


@pytest.mark.parametrize("name", BUILTIN)
def test_the_packages_own_are_found_like_any_other(name: str) -> None:
    assert name in backend_names()
    backend = resolve_backend(name)
    assert isinstance(backend, Backend)
    assert backend.name == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("chroot", "no sandbox backend 'chroot'; there are docker, namespace, unsafe_local"),
        ("dokcer", "no sandbox backend 'dokcer' (did you mean 'docker'?); there are docker, "),
        ("", "no sandbox backend ''; there are docker, namespace, unsafe_local"),
    ],
)
def test_an_unknown_backend_is_named_with_the_known_ones(name: str, says: str) -> None:
    with pytest.raises(UnknownBackendError) as caught:
        Sandbox(name)
    assert str(caught.value).startswith(says)
    assert isinstance(caught.value, SandboxError) and isinstance(caught.value, ValueError)


ACME = """
class Box:
    name = "acme"
    lacks = {}

    def describe(self):
        return {"isolation": "a box"}

    def session(self, limits, packages):
        raise NotImplementedError


class NoSession:
    name = "no_session"
    lacks = {}

    def describe(self):
        return {}


class Asks(Box):
    def __init__(self, size):
        self.size = size


class Nowhere(Box):
    def __init__(self):
        from journeyman.sandbox import IsolationUnavailable

        raise IsolationUnavailable("no box", "buy one")
"""
OFFERS = {
    "acme": "acme_box:Box",
    "no_session": "acme_box:NoSession",
    "asks": "acme_box:Asks",
    "nowhere": "acme_box:Nowhere",
    "module": "acme_box",
    "typo": "acme_box:Bax",
    "gone": "acme_gone:Box",
}


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    """A folder with an installed package that offers backends."""
    (tmp_path / "acme_box.py").write_text(ACME)
    info = tmp_path / "acme_box-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-box\nVersion: 1.0\n")
    lines = [f"{name} = {value}\n" for name, value in OFFERS.items()]
    (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\n{''.join(lines)}")
    return tmp_path


def test_another_package_offers_a_backend(acme: Path) -> None:
    program = "from journeyman.sandbox import Sandbox, backend_names as names\nprint(names())\n"
    for name in OFFERS:
        program += f"try: print(Sandbox({name!r}).backend.describe())\n"
        program += "except Exception as e: print(type(e).__name__, e)\n"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(acme)},
        capture_output=True,
        text=True,
        check=True,
    )
    offers = "InvalidBackendError sandbox backend"
    names, *lines = run.stdout.splitlines()
    assert names == str(sorted([*BUILTIN, *OFFERS]))
    assert lines[:2] == [
        "{'isolation': 'a box'}",
        f"{offers} 'no_session' (acme_box:NoSession) lacks session: see journeyman.sandbox.Backend",
    ]
    for line, start in zip(
        lines[2:],
        [
            f"{offers} 'asks' (acme_box:Asks) cannot be made: TypeError: ",
            "IsolationUnavailable cannot isolate untrusted code: no box. To mend it: buy one.",
            f"{offers} 'module' (acme_box) cannot be made: TypeError: 'module' object is not ",
            f"{offers} 'typo' (acme_box:Bax) cannot be made: AttributeError: ",
            f"{offers} 'gone' (acme_gone:Box) cannot be made: ModuleNotFoundError: No module ",
        ],
        strict=True,
    ):
        assert line.startswith(start)


def test_a_name_is_one_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    group = registry.ENTRY_POINTS
    points = [EntryPoint("namespace", f"{at}:Box", group) for at in ("acme", "journeyman.sandbox")]
    monkeypatch.setattr(registry, "_offers", lambda: points)
    with pytest.raises(InvalidBackendError, match=r"\(acme:Box, journeyman.sandbox:Box\): uninst"):
        resolve_backend("namespace")


def test_without_any_the_package_is_to_be_installed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_offers", list)
    with pytest.raises(UnknownBackendError, match="there are none: install journeyman anew"):
        resolve_backend("namespace")
