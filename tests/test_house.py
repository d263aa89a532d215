"""The house rules that no other tool checks: packaging, floors, configuration, licence, privacy.

Checks of the checkout are skipped where there is none: `make wheel-test` runs a copy of tests/
against the installed wheel.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("agents", "conf", "envs", "sandbox", "tools")
IN_CHECKOUT = all((ROOT / folder / "__init__.py").is_file() for folder in FLOORS)
checkout = pytest.mark.skipif(not IN_CHECKOUT, reason="no checkout beside the tests")

MACHINE = re.compile(
    r"""/(?:root|work|home)/            # somebody's machine
      | /opt/(?:wheels|pypi)
      | \b(?:pypi|pythonhosted|npmjs)\.org\b | \b(?:deb|security)\.debian\.org\b""",
    re.VERBOSE,
)
ALLOWED = {
    "tests/test_house.py": "spells the patterns",
    "tests/agents/test_models.py": "an invented home folder, to see what becomes of $HOME",
}


def tracked() -> list[str]:
    """Files of the work tree, by git; empty where this is no clone (a source archive)."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return []
    # core.quotePath would escape names; -z does not.
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    names = (name for name in listed.stdout.decode().split("\0") if name)
    return [name for name in names if (ROOT / name).is_file()]


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def installed_packages() -> list[str]:
    """Every package of journeyman that can be imported, by walking the installed folders."""
    return [name for name, is_package in walk() if is_package]


def walk() -> Iterator[tuple[str, bool]]:
    for floor in FLOORS:
        name = f"journeyman.{floor}"
        yield name, True
        path = importlib.import_module(name).__path__
        for found in pkgutil.walk_packages(path, prefix=f"{name}."):
            yield found.name, found.ispkg


PACKAGES = installed_packages()


@checkout
def test_packages_on_disk_are_the_packages_that_are_built() -> None:
    on_disk = {
        "journeyman." + ".".join(file.parent.relative_to(ROOT).parts)
        for floor in FLOORS
        for file in (ROOT / floor).rglob("__init__.py")
    }
    listed = pyproject()["tool"]["setuptools"]["packages"]
    assert listed == sorted(listed)
    assert set(listed) == on_disk


@checkout
def test_every_tracked_data_file_is_package_data() -> None:
    patterns = dict(pyproject()["tool"]["setuptools"]["package-data"])
    everywhere = patterns.pop("*")
    left_out = []
    for name in tracked():
        path = PurePosixPath(name)
        if path.parts[0] not in FLOORS or path.suffix == ".py":
            continue
        taken = any(path.match(pattern) for pattern in everywhere)
        for package, globs in patterns.items():
            folder = ROOT.joinpath(*package.split(".")[1:])
            taken = taken or any(ROOT / name in folder.glob(pattern) for pattern in globs)
        if not taken:
            left_out.append(name)
    assert not left_out, "in no package-data pattern of pyproject.toml, so missing from the wheel"


@checkout
def test_every_python_file_is_in_a_package() -> None:
    """A folder without an `__init__.py` imports from the checkout and is missing from the wheel."""
    listed = set(pyproject()["tool"]["setuptools"]["packages"])
    for name in tracked():
        path = PurePosixPath(name)
        if path.suffix == ".py" and path.parts[0] in FLOORS:
            assert ".".join(("journeyman", *path.parent.parts)) in listed, name


@pytest.mark.parametrize("name", PACKAGES)
def test_package_has_a_docstring_and_says_what_it_exports(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__doc__ and package.__doc__.strip()
    exports = getattr(package, "__all__", [])
    assert len(set(exports)) == len(exports)
    for export in exports:
        assert hasattr(package, export), f"{name}.__all__ names {export!r}, which does not exist"


@pytest.mark.parametrize("floor", ["agents", "envs", "sandbox", "tools"])
def test_package_is_marked_as_typed(floor: str) -> None:
    folder = Path(next(iter(importlib.import_module(f"journeyman.{floor}").__path__)))
    assert (folder / "py.typed").is_file()


def test_every_config_is_yaml() -> None:
    folder = Path(next(iter(importlib.import_module("journeyman.conf").__path__)))
    files = sorted(folder.rglob("*.yaml"))
    assert files
    for file in files:
        node = yaml.safe_load(file.read_text())
        assert node is None or isinstance(node, dict), f"{file}: expected a mapping"
    assert not list(folder.rglob("*.yml")), "configs are called .yaml; only those are packaged"


def test_builtin_environments_come_by_the_public_entry_point() -> None:
    (builtin,) = importlib.metadata.entry_points(group="journeyman.envs", name="builtin")
    assert builtin.load() is importlib.import_module("journeyman.envs.tasks")


def test_licence_is_apache() -> None:
    metadata = importlib.metadata.metadata("journeyman")
    assert metadata["License-Expression"] == "Apache-2.0"
    files = importlib.metadata.files("journeyman") or []
    packed = [file.locate() for file in files if file.name == "LICENSE"]
    texts = [ROOT / "LICENSE"] if IN_CHECKOUT else packed
    assert texts
    for text in texts:
        lines = Path(str(text)).read_text().splitlines()
        heading = [line.strip() for line in lines if line.strip()][:2]
        assert heading == ["Apache License", "Version 2.0, January 2004"]


@checkout
def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for name in tracked():
        if name in ALLOWED:
            continue
        data = (ROOT / name).read_bytes()
        if b"\0" in data[:8192]:
            continue
        lines = data.decode(errors="replace").splitlines()
        hits = (i for i, line in enumerate(lines) if MACHINE.search(line))
        found += [f"{name}:{i + 1}: {lines[i].strip()}" for i in hits]
    assert not found


@checkout
def test_imports_go_down_the_floors() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    command = [str(lint), "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif("JOURNEYMAN_FROM_WHEEL" not in os.environ, reason="run by `make wheel-test`")
def test_the_wheel_is_what_is_tested() -> None:
    assert not IN_CHECKOUT
    for name in PACKAGES:
        folder = Path(next(iter(importlib.import_module(name).__path__)))
        assert folder.is_relative_to(sys.prefix), name
    for raw in FLOORS:  # a raw folder on the path would be a second copy of every class
        assert importlib.util.find_spec(raw) is None
