"""`journeyman envs new NAME`: a package with one environment, which passes its own test at once.

The environment is the one that docs/new-environment.md walks through, under another name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from journeyman.envs.errors import ScaffoldError

_NAME = re.compile(r"([a-z][a-z0-9-]*)/([A-Z][A-Za-z0-9]*)", re.ASCII)


def new_package(name: str, folder: Path) -> Path:
    """Write a package that adds one environment.

    Args:
        name: "<namespace>/<Name>", such as "acme/Garden" for `acme/Garden-v0`.
        folder: Where the package's own folder goes.

    Returns:
        The package's folder.

    Raises:
        ScaffoldError: Another form of name, or the folder is there already.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ScaffoldError(
            f"no environment can be called {name!r}: write <namespace>/<Name>, such as acme/Garden"
        )
    namespace, title = match.groups()
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", title).lower()
    project = f"{namespace}-{words}"
    module = project.replace("-", "_")
    package = folder / project
    if package.exists():
        raise ScaffoldError(f"{package} is there already: choose another name, or --path")
    names = {
        "acme/Garden": name,
        "acme-garden": project,
        "acme_garden": module,
        "GardenEnv": f"{title}Env",
    }
    for path, text in _FILES.items():
        target = package / _renamed(path, names)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_renamed(text, names), encoding="utf-8")
    return package


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """The text with every name replaced, all at once: a new name may hold an old one."""
    return re.sub("|".join(names), lambda match: names[match[0]], text)


_ENVIRONMENT = '''\
"""acme/Garden-v0: beds that want water. An example to build on."""

from immutables import Map

from journeyman.envs import Task, ToolEnv, register
from journeyman.tools import ToolCall, ToolError, tool

# Splits share no task: each has plants of its own.
PLANTS = {
    "train": ("roses", "leeks", "beans", "thyme"),
    "validation": ("kale", "mint", "peas", "tulips"),
    "test": ("onions", "sage", "lilies", "chard"),
}


def _litres(state, plant):
    if plant not in state:  # the model reads this, and can do better
        raise ToolError(f"no bed of {plant!r}; there are: {', '.join(sorted(state))}")
    return state[plant]


@tool
def inspect_bed(state: Map, plant: str) -> tuple[Map, dict]:
    """See how much water a bed has.

    Args:
        plant: What grows there.
    """
    return state, {"plant": plant, "litres": _litres(state, plant)}


@tool
def water_bed(state: Map, plant: str, litres: int) -> tuple[Map, dict]:
    """Water a bed.

    Args:
        plant: What grows there.
        litres: How much to add, above zero.
    """
    if litres < 1:
        raise ToolError(f"cannot add {litres} litres")
    after = state.set(plant, _litres(state, plant) + litres)  # a new state; the old one stays
    return after, {"plant": plant, "litres": after[plant]}


class GardenEnv(ToolEnv):
    """Look after a garden."""

    toolset = (inspect_bed, water_bed)
    levels = ("easy", "hard")

    @classmethod
    def generate(cls, rng, split, level):
        """Draw a garden and a wish; all randomness comes from `rng`."""
        state = Map({plant: rng.randint(1, 9) for plant in PLANTS[split]})
        beds = rng.sample(PLANTS[split], 1 if level == "easy" else 2)
        wanted = rng.randint(5, 20)
        gold, added = [], 0
        for plant in beds:
            gold.append(ToolCall("inspect_bed", {"plant": plant}))
            missing = wanted - state[plant]
            if missing > 0:  # what is found decides what is done
                gold.append(ToolCall("water_bed", {"plant": plant, "litres": missing}))
                added += missing
        prompt = (
            f"Water the {' and the '.join(beds)} up to {wanted} litres where there is less. "
            f"How many litres did you add in all?"
        )
        return Task("", f"water_{len(beds)}", prompt, state, tuple(gold), str(added))


register("acme/Garden-v0", "acme_garden:GardenEnv")
'''

_TEST = '''\
"""acme/Garden-v0 keeps the rules that training and search rely on."""

from journeyman.envs import make
from journeyman.envs.checker import check


def test_it_keeps_the_rules():
    assert not [result for result in check("acme/Garden-v0") if not result.passed]


def test_an_episode():
    with make("acme/Garden-v0") as env:
        env.reset(options={"task_id": "test/0"})
        for call in env.oracle():
            *_, info = env.step([call])
            assert info["calls"][0].ok, info["calls"][0].content
        *_, info = env.step(f"Answer: {env.task.answer}")
        assert info["success"]
'''

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "acme-garden"
version = "0.1.0"
description = "acme/Garden-v0, an environment for Journeyman."
requires-python = ">=3.11"
dependencies = ["immutables", "journeyman"]

[project.optional-dependencies]
dev = ["pytest"]

# Journeyman imports the module this names; the module registers the environment.
[project.entry-points."journeyman.envs"]
acme-garden = "acme_garden"

[tool.setuptools]
py-modules = ["acme_garden"]
"""

_README = """\
# acme-garden

`acme/Garden-v0`, an environment for Journeyman. It is all in `acme_garden.py`.

```bash
pip install --editable '.[dev]'
pytest                                     # the rules, and an episode
journeyman envs check acme/Garden-v0       # the same rules, one by one
journeyman play acme/Garden-v0             # you are the agent
journeyman train env=acme/Garden-v0
```
"""

_FILES = {
    "pyproject.toml": _PYPROJECT,
    "README.md": _README,
    "acme_garden.py": _ENVIRONMENT,
    "tests/test_acme_garden.py": _TEST,
}
"""The package's files by path; the names in them are replaced."""
