"""`rollouts=ray`: what workers play is what would have been played here, whoever dies.

Those that start Ray share one cluster of this machine (`make test-ray`).
"""

import dataclasses
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from journeyman.agents.cli import main
from journeyman.agents.errors import (
    CommandError,
    CrewError,
    DivergedError,
    MissingExtraError,
    SettingError,
)
from journeyman.agents.evaluation.records import EpisodeFile
from journeyman.agents.learning.trainers.callbacks import read_metrics
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import deal
from journeyman.agents.rollouts.workers import own_cluster, ray_crew
from journeyman.agents.rollouts.workers.errands import Errand, PlayedTask
from journeyman.agents.rollouts.workers.on_ray import OnRay, RayRollouts
from journeyman.agents.students.hf import HFPlayer, load_student
from journeyman.envs import Episode
from tests.agents import several
from tests.agents.test_several import arguments, assert_alike, finish
from tests.agents.tiny import BUILTIN

RAY = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
"""Ray leaves sockets and files to the collector."""


def on_ray(test: Any) -> Any:
    for mark in RAY:
        test = mark(test)
    return test


# --- without a cluster ----------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "journeyman" / "cluster.json"


def test_without_ray_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, state: Path, tmp_path: Path, capsys: Any
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else found(name)
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'journeyman\[ray\]'"):
        OnRay()
    assert main(["cluster", "up", "--local", "2"]) == 2
    assert "pip install 'journeyman[ray]'" in capsys.readouterr().err
    # Before a model is looked for.
    command = ["eval", "rollouts=ray", f"run_dir={tmp_path / 'run'}", "evaluation.tasks=1"]
    monkeypatch.setattr("journeyman.agents.runs.evaluate.student_of", None)
    assert main(command) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"workers": 0}, "workers=0: expected a whole number, 1 or more"),
        ({"staleness": -1}, "staleness=-1: expected a whole number, 0 or more"),
        ({"threads": 0}, "threads=0: expected a whole number, 1 or more"),
        ({"gpus": "all"}, "gpus=all: expected a number"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        OnRay(**settings)


def test_commands_without_a_cluster_say_so(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "status"]) == 1
    assert "cluster up --local 2" in capsys.readouterr().out
    assert main(["cluster", "down"]) == 2
    assert "no cluster is up" in capsys.readouterr().err
    state.parent.mkdir()
    state.write_text("{}")
    with pytest.raises(CommandError, match="holds no cluster"):
        own_cluster.standing()
    for wrong in (["--local", "0"], ["--local", "2", "--port", "80"]):
        assert main(["cluster", "up", *wrong]) == 2


def test_a_cluster_that_died_is_told_from_a_later_process_of_its_pid(state: Path) -> None:
    pid = str(os.getpid())
    gone = own_cluster.ClusterState("127.0.0.1:1", "t", 2, "/nowhere", os.getpid(), {pid: 1})
    state.parent.mkdir()
    state.write_text(json.dumps(dataclasses.asdict(gone)))
    assert not gone.alive
    with pytest.raises(CommandError, match="cluster down clears it away"), OnRay():
        pass
    own_cluster.down()  # and this process lives
    assert not state.exists()


ERRAND = Errand(Any, b"", b"", (), (), 4, False, None, ("gone",))  # type: ignore[arg-type]


class Post:
    """A station of an actor: each errand is a task, which is played while others may be added."""

    def __init__(self, *_: Any) -> None:
        self.between: list[Callable[[], object]] = []
        """What happens as each task is played, and after the last was asked for."""
        self.let_go: list[str] = []

    def play(self, errand: Errand, more: Callable[[], Errand | None]) -> Iterator[PlayedTask]:
        count = 0
        upcoming: Errand | None = errand
        while upcoming is not None:
            yield PlayedTask(count, 1, upcoming.tasks)
            count += 1
            upcoming = more()
            if self.between:
                self.between.pop(0)()

    def release(self, keys: Sequence[str]) -> None:
        self.let_go += keys


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> ray_crew.Actor:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=None))
    monkeypatch.setattr("journeyman.agents.rollouts.workers.station.Station", Post)
    return ray_crew.Actor("worker-1", "cpu", None)


def of(name: bytes) -> Errand:
    return dataclasses.replace(ERRAND, tasks=name)


def test_an_errand_that_comes_as_the_last_ends_is_played_once(actor: Any) -> None:
    taken = [actor.add(1, of(b"early"))]  # before the actor has begun
    actor._station.between = [
        lambda: taken.append(actor.add(1, of(b"beside"))),
        lambda: None,
        lambda: taken.append(actor.add(1, of(b"as it ends"))),  # nothing was left
    ]
    told = list(actor.play(1, of(b"first")))
    taken.append(actor.add(1, of(b"late")))
    assert taken == [True, True, True, False]
    assert [(it.index, it.episode) for it in told] == [
        (0, b"first"),
        (1, b"early"),
        (2, b"beside"),
        (3, b"as it ends"),
    ]
    # What was refused comes by itself, and what is for it does not go to another.
    assert actor.add(3, of(b"of another rollout"))
    assert [it.episode for it in actor.play(2, of(b"late"))] == [b"late"]
    assert [it.episode for it in actor.play(3, of(b"a"))] == [b"a", b"of another rollout"]


def test_what_breaks_leaves_what_was_added(actor: Any) -> None:
    def breaks() -> None:
        raise RuntimeError("the roof fell in")

    actor.add(1, of(b"second"))
    actor.add(1, of(b"third"))
    actor._station.between = [breaks]
    with pytest.raises(RuntimeError, match="roof"):
        list(actor.play(1, of(b"first")))
    assert not actor.add(1, of(b"fourth"))
    assert actor._station.let_go == ["gone"]  # of the third: the second was begun
    assert [it.episode for it in actor.play(2, of(b"fifth"))] == [b"fifth"]


# --- with one -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[own_cluster.ClusterState]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        # Room for the two workers of `workers`, and for those of a command. It ends with this
        # process, however that ends.
        head = own_cluster.LocalCluster(4)
        yield own_cluster.written(head, 4)
        own_cluster.down()
        head.stop()


@pytest.fixture(scope="module")
def student() -> HFPlayer:
    return load_student(
        "embedded-student", render="names", max_turn_tokens=48, max_context=640, temperature=0.0
    )


@pytest.fixture(scope="module")
def workers(standing: own_cluster.ClusterState) -> Iterator[RayRollouts]:
    with OnRay(workers=2) as found:
        yield found


def said(episode: Episode) -> dict[str, Any]:
    """All of an episode that does not hang on how many are played beside it, and on the clock.

    A matrix product of other shape rounds otherwise in the last bit.
    """
    found = episode.to_dict()
    return {key: _timeless(it) for key, it in found.items() if key != "logprobs"}


def _timeless(it: Any) -> Any:
    if isinstance(it, dict):
        return {key: _timeless(inner) for key, inner in it.items() if key != "seconds"}
    return list(map(_timeless, it)) if isinstance(it, list) else it


def same(there: list[Episode], here: list[Episode]) -> bool:
    close = all(
        torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4)
        for a, b in zip(there, here, strict=True)
    )
    return close and list(map(said, there)) == list(map(said, here))


@on_ray
def test_nothing_listens_beyond_this_machine(
    workers: RayRollouts, standing: own_cluster.ClusterState, student: HFPlayer
) -> None:
    workers(student, deal(list(BUILTIN), "test", 0, 2), 2)
    pids = {standing.pid, os.getpid(), *own_cluster.descendants(standing.pid)}
    assert pids.issuperset(workers.pids.values())
    sockets = {
        link.removeprefix("socket:[").removesuffix("]")
        for pid in pids
        for fd in Path(f"/proc/{pid}/fd").iterdir()
        if (link := _link(fd)).startswith("socket:[")
    }
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                listening.append(fields[1].rpartition(":")[0])
    ours = {"0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000"}
    assert len(listening) > 4
    assert set(listening) <= ours
    (pid, *_) = workers.pids.values()
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert "RAY_USAGE_STATS_ENABLED=0" in environment


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:  # closed meanwhile
        return ""


@on_ray
def test_workers_that_are_killed_change_no_episode(workers: RayRollouts, student: HFPlayer) -> None:
    refs = deal(list(BUILTIN), "test", 0, 300)
    here = rollout(student, refs, 64, {"max_turns": 8})
    seed = random.randrange(1 << 30)
    dice = random.Random(seed)
    moments = sorted(dice.sample(range(1, 250), 3))
    told: list[int] = []

    def ended(place: int, episode: Episode) -> None:
        told.append(place)
        if moments and len(told) >= moments[0] and workers.pids:
            moments.pop(0)
            os.kill(dice.choice(sorted(workers.pids.values())), signal.SIGKILL)

    there = workers.begin(student, refs, 64, {"max_turns": 8}, ended=ended)()
    assert not moments, seed
    assert sorted(told) == list(range(300)), seed  # nothing twice, nothing lost
    assert same(there, here), seed


@on_ray
def test_what_is_raised_at_a_worker_is_raised_here(workers: RayRollouts, student: HFPlayer) -> None:
    refs = deal(list(BUILTIN), "test", 0, 4)
    broken = load_student("embedded-student", render="names", max_turn_tokens=48, max_context=640)
    with torch.no_grad():
        next(broken.model.parameters()).fill_(torch.nan)
    with pytest.raises(DivergedError):
        workers(broken, refs, 4)
    assert same(workers(student, refs, 4), rollout(student, refs, 4))  # and they play on


@on_ray
def test_a_worker_that_cannot_start_is_named(
    standing: own_cluster.ClusterState,
    workers: RayRollouts,
    monkeypatch: pytest.MonkeyPatch,
    student: Any,
) -> None:
    class Broken:
        def __init__(self, *_: Any) -> None:
            raise RuntimeError("libgarden.so is not on this node")

        def pid(self) -> int:
            return 0

    monkeypatch.setattr(ray_crew, "Actor", Broken)
    import ray

    rollouts = RayRollouts(ray, ray_crew.Hands(1, cpus=0, restarts=1), 0, 60.0)
    with pytest.raises(CrewError, match=r"cannot start: .*libgarden\.so is not on this node"):
        rollouts(student, deal(list(BUILTIN), "test", 0, 1))
    rollouts.close()


@on_ray
def test_a_cluster_is_up_once_and_ports_are_taken_once(
    standing: own_cluster.ClusterState,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: Any,
    tmp_path: Path,
) -> None:
    assert main(["cluster", "status"]) == 0
    assert standing.address in capsys.readouterr().out
    assert main(["cluster", "up", "--local", "2"]) == 2
    assert "is up already" in capsys.readouterr().err
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["cluster", "up", "--local", "1", "--port", str(port)]) == 2
    assert f"port {port}" in capsys.readouterr().err
    assert not (tmp_path / "journeyman").exists()


@on_ray
def test_a_cluster_that_is_killed_leaves_nothing(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert main(["cluster", "up", "--local", "1"]) == 0
    found = own_cluster.standing()
    assert found is not None and len(found.started) > 3
    assert own_cluster.state_file().stat().st_mode & 0o077 == 0  # the token is its owner's
    os.kill(found.pid, signal.SIGKILL)
    _until(lambda: not found.alive)
    assert main(["cluster", "status"]) == 1
    assert main(["cluster", "down"]) == 0
    assert all(own_cluster._start_of(int(pid)) != at for pid, at in found.started.items())
    assert not Path(found.folder).exists()


OWNER = """
import time
from journeyman.agents.rollouts.workers.own_cluster import LocalCluster
it = LocalCluster(1)
print(it.pid, it.folder, flush=True)
time.sleep(600)
"""


@on_ray
def test_a_driver_that_is_killed_leaves_no_cluster_of_its_own() -> None:
    command = [sys.executable, "-c", OWNER]
    drivers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for driver, number in zip(drivers, (signal.SIGKILL, signal.SIGTERM), strict=True):
        assert driver.stdout is not None
        pid, folder = driver.stdout.readline().split()
        pids = [int(pid), *own_cluster.descendants(int(pid))]
        started = {it: own_cluster._start_of(it) for it in pids}
        assert len(started) > 3
        driver.send_signal(number)
        driver.communicate()
        _until(lambda its=started: not any(own_cluster._start_of(p) == at for p, at in its.items()))
        assert not Path(folder).exists()


def _until(true: Any, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- runs -----------------------------------------------------------------------------------------


class Commands:
    """Command lines in processes of their own: Ray does not survive a fork."""

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "journeyman.agents.cli", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)


@pytest.fixture
def commands(standing: own_cluster.ClusterState) -> Commands:
    return Commands()


EVAL = (
    *("eval", "threads=1", "evaluation.tasks=40", "evaluation.batch_size=8"),
    "env=journeyman/Bank-v0",
)


@on_ray
def test_an_evaluation_on_workers_goes_on_where_its_driver_was_killed(
    commands: Any, tmp_path: Path
) -> None:
    local, run = tmp_path / "local", tmp_path / "run"
    whole = commands(*EVAL, f"run_dir={local}", "rollouts=local")
    assert whole.returncode == 0, whole.stderr
    there = ("rollouts=ray", f"run_dir={run}")
    driver = commands.start(*EVAL, *there)
    played = lambda: sum(p.row == "student" for p in EpisodeFile(run).read())  # noqa: E731
    _until(lambda: (run / "episodes.jsonl").exists() and played() >= 10)
    driver.kill()
    driver.communicate()
    known = played()
    assert 10 <= known < 40
    ended = commands(*EVAL, *there)
    assert ended.returncode == 0, ended.stderr
    assert f"student: {known} of 40 episodes are in" in ended.stdout
    ours, theirs = (
        {(p.row, p.place): p.episode.success for p in EpisodeFile(r).read()} for r in (run, local)
    )
    assert ours == theirs
    assert played() == 40  # nothing twice
    # Where it is played is a means: the same run goes on here.
    again = commands(*EVAL, f"run_dir={run}", "rollouts=local")
    assert again.returncode == 0, again.stderr
    assert "student: 40 of 40 episodes are in" in again.stdout


TRAIN = (
    *("train", "debug=tiny", "steps=4", "threads=1", "evaluation.tasks=0"),
    *("env=journeyman/Bank-v0", "+env.kwargs.max_turns=6"),
)


def trained(commands: Any, folder: Path, *rest: str) -> tuple[bytes, list[dict[str, Any]]]:
    done = commands(*TRAIN, f"run_dir={folder}", *rest)
    assert done.returncode == 0, done.stderr
    weights = (folder / "model" / "model.safetensors").read_bytes()
    return weights, [it for it in read_metrics(folder / "metrics.jsonl") if "loss" in it]


@on_ray
def test_training_on_workers_is_the_local_run_weight_for_weight(
    commands: Any, tmp_path: Path
) -> None:
    here, _ = trained(commands, tmp_path / "here")
    there, figures = trained(commands, tmp_path / "there", "rollouts=ray")
    assert there == here
    assert [it["rollout/version"] for it in figures] == [0, 1, 2, 3]
    assert [it["rollout/staleness"] for it in figures] == [0, 0, 0, 0]
    (first, *_) = (p.episode for p in EpisodeFile(tmp_path / "there").read())
    assert first.version == 0


@on_ray
def test_trees_on_workers_are_the_local_ones(commands: Any, tmp_path: Path) -> None:
    way = ("search=credit", "search.rows=2", "search.trajectories=1")
    here, ours = trained(commands, tmp_path / "here", *way)
    there, theirs = trained(commands, tmp_path / "there", *way, "rollouts=ray")
    assert there == here
    names = ("loss", "grad_norm", "rollout/student_tokens", "search/env_steps", "value/turn_1")
    assert [[it[name] for name in names] for it in ours] == [
        [it[name] for name in names] for it in theirs
    ]
    tokens = [
        [p.episode.tokens for p in EpisodeFile(tmp_path / run).read()] for run in ("here", "there")
    ]
    assert tokens[0] == tokens[1]


@on_ray
def test_a_worker_that_is_killed_changes_no_weight(commands: Any, tmp_path: Path) -> None:
    here, _ = trained(commands, tmp_path / "here")
    run = tmp_path / "run"
    driver = commands.start(*TRAIN, f"run_dir={run}", "rollouts=ray")
    _until(lambda: (run / "checkpoints" / "checkpoint-1" / "COMPLETE").exists())
    held = own_cluster.standing()
    assert held is not None
    # Those of the fixture, if it has any, do nothing meanwhile: the newest are this run's.
    actors = sorted(filter(_plays, own_cluster.descendants(held.pid)), key=own_cluster._start_of)
    os.kill(actors[-1], signal.SIGKILL)
    _, told = driver.communicate()
    assert driver.returncode == 0, told
    assert (run / "model" / "model.safetensors").read_bytes() == here


def _plays(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Actor")
    except OSError:
        return False


@on_ray
def test_rollouts_that_are_played_ahead_are_as_old_as_is_allowed(
    commands: Any, tmp_path: Path
) -> None:
    _, figures = trained(commands, tmp_path, "rollouts=ray", "rollouts.staleness=2", "steps=5")
    assert [it["rollout/staleness"] for it in figures] == [0, 1, 2, 2, 2]
    assert [it["rollout/version"] for it in figures] == [0, 0, 0, 1, 2]
    assert all(0.5 <= it["rollout/visits"] <= 2 for it in figures)
    assert figures[0]["rollout/visits"] == pytest.approx(1, abs=1e-3)


@on_ray
def test_a_training_whose_driver_is_killed_ends_with_the_weights_of_an_unbroken_one(
    commands: Any, tmp_path: Path
) -> None:
    whole, _ = trained(commands, tmp_path / "whole")
    run = tmp_path / "run"
    driver = commands.start(*TRAIN, f"run_dir={run}", "rollouts=ray")
    _until(lambda: (run / "checkpoints" / "checkpoint-2" / "COMPLETE").exists())
    driver.kill()
    driver.communicate()
    again, _ = trained(commands, run, "rollouts=ray")
    assert again == whole


# --- under torchrun -------------------------------------------------------------------------------


@on_ray
def test_each_process_of_a_job_has_workers_of_its_own(tmp_path: Path) -> None:
    one, two = (arguments(tmp_path, "adapter", processes) for processes in (1, 2))
    assert several.run(list(one)) == 0
    finish(tmp_path, 2, [(*two, "rollouts=ray", "rollouts.workers=1")], "on-ray")
    assert_alike(tmp_path / "adapter-1-null", tmp_path / "adapter-2-null")
