"""What the sandbox's user is shown of a folder that only root may enter."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from journeyman.sandbox import IsolationUnavailable, Sandbox, SandboxError, spawn
from journeyman.sandbox.namespace import backend, interpreter, view

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not view.possible(), reason="only who drops root may lose sight of files"
)
UID = backend.UNUSED_UID


@pytest.fixture
def private() -> Iterator[Path]:
    """A home that only its owner may enter, with a secret and a package in it."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        assert home.stat().st_mode & 0o777 == 0o700
        packages = home / "project" / "site-packages"
        packages.mkdir(parents=True)
        (packages / "onlyhere.py").write_text("import onlyhere_part as part\n")
        (packages / "onlyhere_part.py").write_text("late = 7\n")
        (home / "project" / "secret").write_text("secret")
        for path in (packages, packages.parent, *packages.iterdir()):
            path.chmod(0o755)
        yield home


@pytest.fixture
def packages(private: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = private / "project" / "site-packages"
    monkeypatch.setattr(interpreter, "_package_paths", lambda: {str(path): None})
    return path


def own_version(sandbox: Sandbox) -> None:
    version = str(tuple(sys.version_info[:2]))
    with sandbox.session() as session:
        if session.exec("import sys\ntuple(sys.version_info[:2])").value_repr != version:
            pytest.skip("the sandbox's Python cannot use this Python's packages")


def test_packages_in_a_private_home_are_imported_ahead_and_later(
    bwrap: str, packages: Path
) -> None:
    own_version(Sandbox())
    mounts = Path("/proc/self/mounts").read_text()
    with Sandbox(packages=["onlyhere_part"]) as sandbox:
        for _ in range(2):  # copies too
            got = sandbox.exec(
                "import sys, onlyhere\n'onlyhere_part' in sys.modules, onlyhere.part.late"
            )
            assert got.value_repr == "(True, 7)", got
    assert Path("/proc/self/mounts").read_text() == mounts


def test_nothing_else_of_the_home_is_shown(bwrap: str, private: Path, packages: Path) -> None:
    own_version(Sandbox())
    with Sandbox(packages=["onlyhere"]).session() as session:
        code = f"""
import os
seen = []
for top, folders, files in os.walk("/"):
    folders[:] = [each for each in folders if each not in ("proc", "usr", "lib", "lib64")]
    seen += [name for name in [*folders, *files] if name in ("secret", "project", {private.name!r})]
seen, os.listdir("/tmp"), os.access("/run/packages/0", os.W_OK)
"""
        assert session.exec(code).value_repr == "([], [], False)"


def test_packages_that_cannot_be_shown_are_named(bwrap: str, packages: Path) -> None:
    own_version(Sandbox())
    packages.chmod(0o700)
    with pytest.raises(SandboxError, match=rf"onlyhere.*Uid {UID}.*{packages}.*install") as caught:
        Sandbox(packages=["onlyhere"]).session()
    assert "ModuleNotFoundError" in str(caught.value)
    Sandbox(packages=["decimal"]).session().close()


def test_root_without_the_right_to_mount_goes_without(
    bwrap: str, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "possible", lambda: False)
    assert interpreter.package_directories(UID) == {}
    Sandbox(packages=["decimal"]).session().close()


def test_a_python_in_a_private_home_runs_inside(
    bwrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = Path(sys.base_prefix).resolve()
    if interpreter.barrier(prefix, UID) is None or not interpreter.showable(prefix, UID):
        pytest.skip("this Python is where all users can read it, or none")
    monkeypatch.setattr(interpreter, "SYSTEM_PYTHON", "/usr/bin/no-such-python")
    with Sandbox().session() as session:
        got = session.exec("import sys, decimal, json\nsys.base_prefix, decimal.Decimal(1) + 1")
        assert got.value_repr == f"({str(prefix)!r}, Decimal('2'))", got


def test_barriers_are_the_uppermost_in_the_way(private: Path) -> None:
    deep = private / "a" / "b"
    deep.mkdir(parents=True, mode=0o700)
    assert interpreter.barrier(deep / "c", UID) == private
    private.chmod(0o755)
    (private / "a").chmod(0o755)
    assert interpreter.barrier(deep / "c", UID) == deep
    assert interpreter.barrier(deep / "c", None) is None
    assert interpreter.view_of((str(private),), UID) is None
    assert interpreter.view_of((str(deep / "c"), str(deep / "c" / "d")), UID) == view.MountView(
        (str(deep / "c"),), (str(deep),)
    )


def test_a_view_that_cannot_be_made_is_told_and_not_kept() -> None:
    broken = view.MountView(("/no-such-directory",), ("/no-such",))
    for _ in range(2):
        with pytest.raises(IsolationUnavailable, match=r"may not enter /no-such.*No such file"):
            spawn.popen(["true"], broken)
