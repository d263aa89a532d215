"""A package outside the project adds an environment: one file, one entry point, no edit of ours."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "acme-garden"
version = "1.0"

[project.entry-points."journeyman.envs"]
garden = "acme_garden"

[tool.setuptools]
py-modules = ["acme_garden"]
"""

MODULE = '''
"""Beds that want water."""

from immutables import Map

from journeyman.envs import Task, ToolEnv, register
from journeyman.tools import ToolCall, ToolError, tool

PLANTS = ("roses", "leeks", "beans", "thyme")


@tool
def inspect_bed(state: Map, plant: str) -> tuple[Map, dict]:
    """See how much water a bed has.

    Args:
        plant: What grows there.
    """
    if plant not in state:
        raise ToolError(f"no bed of {plant!r}; there are: {', '.join(sorted(state))}")
    return state, {"plant": plant, "litres": state[plant]}


@tool
def water_bed(state: Map, plant: str, litres: int) -> tuple[Map, dict]:
    """Water a bed.

    Args:
        plant: What grows there.
        litres: How much.
    """
    if plant not in state:
        raise ToolError(f"no bed of {plant!r}; there are: {', '.join(sorted(state))}")
    after = state.set(plant, state[plant] + litres)
    return after, {"plant": plant, "litres": after[plant]}


class GardenEnv(ToolEnv):
    """Water a bed up to a level."""

    toolset = (inspect_bed, water_bed)

    @classmethod
    def generate(cls, rng, split, level):
        """Draw a garden and a wish."""
        state = Map({plant: rng.randint(1, 9) for plant in PLANTS})
        plant, level = rng.choice(PLANTS), rng.randint(10, 20)
        missing = level - state[plant]
        gold = (
            ToolCall("inspect_bed", {"plant": plant}),
            ToolCall("water_bed", {"plant": plant, "litres": missing}),
        )
        prompt = f"Water the {plant} up to {level} litres. How many did you add?"
        return Task("", "water", prompt, state, gold, str(missing))


register("acme/Garden-v0", "acme_garden:GardenEnv")
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed: a folder that only the commands below have on their path."""
    source, site = tmp_path_factory.mktemp("acme-garden"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "acme_garden.py").write_text(MODULE)
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, "--target", str(site), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return site


def run(site: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "journeyman.agents.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=site.parent,
        env=os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_listed(site: Path) -> None:
    assert "acme/Garden-v0" in run(site, "envs", "list")
    assert "water_bed" in run(site, "tools", "list", "acme/Garden-v0")


def test_it_keeps_the_rules(site: Path) -> None:
    run(site, "envs", "check", "acme/Garden-v0")


def test_it_trains(site: Path, tmp_path: Path, other_model: Path) -> None:
    table = run(
        site,
        "train",
        "env=acme/Garden-v0",
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
