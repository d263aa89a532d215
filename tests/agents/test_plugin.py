"""`journeyman envs new` writes a package that, installed in a venv of its own, works as it is."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from journeyman.agents.cli import main
from journeyman.envs.scaffold import new_package

from .side import install, journeyman, run

GARDEN = "acme/Garden-v0"
DOCS = Path(__file__).parents[2] / "docs" / "new-environment.md"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    assert main(["envs", "new", "acme/Garden", "--path", str(folder)]) == 0
    return folder / "acme-garden"


@pytest.fixture(scope="module")
def python(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a venv with the package."""
    return install(package, tmp_path_factory.mktemp("side"))


def test_its_own_test_passes(python: Path, package: Path) -> None:
    assert "2 passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=package)


def test_it_is_listed(python: Path) -> None:
    listed = journeyman(python, "tools", "list")
    assert GARDEN in listed and "water_bed" in listed


@pytest.mark.slow  # what its own test asks, once more, by the command
def test_it_keeps_the_rules(python: Path) -> None:
    assert "FAIL" not in journeyman(python, "envs", "check", GARDEN)


@pytest.mark.slow
def test_it_trains(python: Path, tmp_path: Path, other_model: Path) -> None:
    table = journeyman(
        python,
        "train",
        f"env={GARDEN}",
        "debug=tiny",
        "steps=2",
        "evaluation.tasks=2",
        "+env.kwargs.max_turns=3",
        f"teacher.model={other_model}",
        f"run_dir={tmp_path / 'run'}",
    )
    assert re.search(r"^oracle +2 +100\.0%", table, re.MULTILINE)
    logged = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [record["step"] for record in logged] == [1, 2]
    assert all(record["grad_norm"] > 0 for record in logged)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.skipif(not DOCS.exists(), reason="the wheel's tests come without docs/")
def test_the_docs_show_the_very_file_that_is_tested_here(package: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert code == (package / "acme_garden.py").read_text()
    assert len(code.splitlines()) <= 80


def test_another_name(tmp_path: Path) -> None:
    package = new_package("my-lab/StockRoom2", tmp_path)
    assert package == tmp_path / "my-lab-stock-room2"
    text = (package / "my_lab_stock_room2.py").read_text()
    assert 'register("my-lab/StockRoom2-v0", "my_lab_stock_room2:StockRoom2Env")' in text
    written = tomllib.loads((package / "pyproject.toml").read_text())
    assert written["project"]["entry-points"]["journeyman.envs"] == {
        "my-lab-stock-room2": "my_lab_stock_room2"
    }
    for file in package.rglob("*.*"):
        assert not re.search("acme|Garden", file.name + file.read_text()), file


def test_a_name_that_holds_the_example_s(tmp_path: Path) -> None:
    package = new_package("acme-garden/GardenEnv", tmp_path)
    assert package == tmp_path / "acme-garden-garden-env"
    text = (package / "acme_garden_garden_env.py").read_text()
    names = '"acme-garden/GardenEnv-v0", "acme_garden_garden_env:GardenEnvEnv"'
    assert f"register({names})" in text
    assert "class GardenEnvEnv(ToolEnv):" in text


@pytest.mark.parametrize("name", ["Garden", "acme/garden", "acme/Garden-v0", "../x/Y", "a/B/C", ""])
def test_a_bad_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "new", name, "--path", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"no environment can be called {name!r}: write <namespace>/<Name>" in error
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (package / "acme_garden.py").read_text()
    assert main(["envs", "new", "acme/Garden", "--path", str(package.parent)]) == 2
    assert "acme-garden is there already: choose another name" in capsys.readouterr().err
    assert (package / "acme_garden.py").read_text() == before
