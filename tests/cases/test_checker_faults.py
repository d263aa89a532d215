"""`envs check` names each planted fault once, and passes what has none."""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from journeyman.agents.cli import main
from journeyman.envs import ToolEnv, env_class, make, register
from journeyman.envs.checker import CHECKS, CheckResult, check
from journeyman.envs.errors import InvalidEnvError, InvalidTaskError, StateChangedError
from journeyman.envs.task import Task
from journeyman.tools import ToolCall

from .planted import FAULTS, Fault, InPlace, LibraryEnv

pytestmark = pytest.mark.usefixtures("scratch_registry")


def run(cls: type[ToolEnv], **kwargs: Any) -> list[CheckResult]:
    # A class that no module holds: no other process is started to play it.
    register("planted/Env-v0", type(cls.__name__, (cls,), {"__doc__": cls.__doc__}))
    return check("planted/Env-v0", episodes=6, prefixes=8, **kwargs)


def wrong(results: Sequence[CheckResult]) -> list[tuple[str, str]]:
    return [(r.name, r.detail) for r in results if not r.passed]


def test_there_are_enough() -> None:
    assert len(FAULTS) >= 60
    assert {fault.check for fault in FAULTS} | {"processes"} == set(CHECKS)


@pytest.mark.parametrize("seed", range(3))
def test_the_environment_without_a_fault_passes(seed: int) -> None:
    results = run(LibraryEnv, seed=seed)
    assert [r.name for r in results] == list(CHECKS)
    assert not any(r.skipped or not r.passed for r in results), results


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.env.__name__)
def test_a_fault_is_named_once(fault: Fault) -> None:
    results = run(fault.env)
    assert [name for name, _ in wrong(results)] == [fault.check], wrong(results)
    ((_, said),) = wrong(results)
    assert re.search(fault.words, said, re.DOTALL), said
    assert {r.name for r in results} == set(CHECKS)
