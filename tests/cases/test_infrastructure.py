"""What a student does is its own result; what breaks beside it costs one episode, and is closed."""

import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from journeyman.envs.tasks.analyst import AnalystEnv
from journeyman.envs.tasks.interpreter import InterpreterEnv
from journeyman.envs.tasks.python import PythonEnv
from journeyman.sandbox import Limits, Sandbox

from .programs import Player, ShellEnv, opened

ENVS = (PythonEnv, AnalystEnv, ShellEnv)
LIMITS = Limits(wall_s=2.0, cpu_s=2.0)


def sandboxes() -> set[str]:
    """Processes of ours that run bubblewrap."""
    listed = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        if name == "bwrap" and rest.split()[1] == str(os.getpid()):
            listed.add(path.parent.name)
    return listed


@pytest.fixture
def nothing_left(bwrap: str) -> Iterator[None]:
    """No sandbox is left by a test, however it went."""
    before = sandboxes()
    yield
    gc.collect()
    assert sandboxes() == before


def play(kind: type[InterpreterEnv], first: int, episodes: int) -> Counter[str]:
    """Random programs, one after the other in one environment and those that it is forked to."""
    counts: Counter[str] = Counter()
    with opened(lambda: kind(max_turns=60, sandbox=Sandbox(limits=LIMITS))) as (
        make,
        _,
    ):
        env = make()
        for seed in range(first, first + episodes):
            level = env.levels[seed % min(2, len(env.levels))]
            env.reset(options={"task_id": f"train/{level}/{seed}"})
            player = Player(env, make, seed)
            player.play(length=6 + seed % 12)
            counts.update(player.counts)
    return counts


@pytest.mark.parametrize("kind", ENVS)
@pytest.mark.usefixtures("nothing_left")
def test_whatever_a_student_runs_is_no_infrastructure_failure(kind: type[InterpreterEnv]) -> None:
    """An exception out of an environment would be one; the ledger finds what was lost unheard."""
    counts = play(kind, 0, 20)
    assert counts["crash"] > 10 and counts["restore"] > 10


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ENVS)
@pytest.mark.usefixtures("nothing_left")
def test_two_thousand_programs(kind: type[InterpreterEnv]) -> None:
    counts: Counter[str] = Counter()
    for first in range(1000, 1670, 10):
        counts += play(kind, first, 10)
    assert counts["crash"] > 300 and counts["restore"] > 300
