"""Two processes under torchrun are one job: each plays its share, one writes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

TRAIN = (
    *("train", "debug=tiny", "env=journeyman/Bank-v0", "threads=1", "loss=forward_kl"),
    *("evaluation.batch_size=2", "evaluation.every=1", "evaluation.validation_tasks=4"),
    *("log_episodes=2", "+env.kwargs.max_turns=6", "trainer.args.per_device_train_batch_size=2"),
)


def run(folder: Path, processes: int, *arguments: str) -> str:
    launch = (
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(processes), "-m", "journeyman.agents.cli"),
    )
    done = subprocess.run(
        [*launch, *arguments, f"run_dir={folder}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run by one process and by two."""
    places = {n: tmp_path_factory.mktemp(f"by{n}") / "run" for n in (1, 2)}
    for processes, place in places.items():
        printed = run(place, processes, *TRAIN)
        assert printed.count("summary: ") == 1
        assert printed.count("\nmodel: ") == 1
    return places


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_evaluations_are_played_once_and_come_to_the_same(folders: dict[int, Path]) -> None:
    """Before training the weights are the same, and so is each episode, token by token."""
    rows = {}
    for processes, folder in folders.items():
        episodes = lines(folder, "episodes.jsonl")
        for row in ("no-op", "oracle", "student before", "student after", "teacher"):
            places = [
                (e["env_id"], e["task_id"], e["attempt"]) for e in episodes if e["row"] == row
            ]
            assert len(places) == len(set(places)) == 6, row
        rows[processes] = {
            e["task_id"]: (e["tokens"], e["success"])
            for e in episodes
            if e["row"] == "student before"
        }
    assert rows[1] == rows[2]


def test_every_line_is_written_once(folders: dict[int, Path]) -> None:
    for folder in folders.values():
        logged = lines(folder, "metrics.jsonl")
        assert [line["step"] for line in logged if "loss" in line] == [1, 2]
        validated = [line for line in logged if "eval/success" in line]
        assert [(line["step"], line["eval/tasks"]) for line in validated] == [(1, 4), (2, 4)]
        learned = [e["step"] for e in lines(folder, "episodes.jsonl") if e["row"] == "training"]
        assert learned == [1, 1, 2, 2]


SPY = """
import json, os, sys
from journeyman.agents.cli import main
from journeyman.agents.learning.collector import Collector

collect = Collector.collect

def told(self, tasks, *rest):
    batch = collect(self, tasks, *rest)
    seen = {"tasks": [t.task_id for t in tasks], "seeds": [t.seed for t in tasks]}
    with open(os.environ["TOLD"] + os.environ["RANK"], "a") as file:
        file.write(json.dumps(seen | {"figures": batch.figures}) + "\\n")
    return batch

Collector.collect = told
sys.exit(main(sys.argv[1:]))
"""


def test_rows_are_seeded_by_process_and_figures_are_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spy.py").write_text(SPY)
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    launch = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    )
    arguments = (*TRAIN, "evaluation.tasks=0", "evaluation.every=0", f"run_dir={tmp_path / 'run'}")
    subprocess.run([*launch, str(tmp_path / "spy.py"), *arguments], check=True)
    first, second = (lines(tmp_path, f"told{rank}") for rank in (0, 1))
    logged = lines(tmp_path / "run", "metrics.jsonl")
    assert len(first) == len(second) == len(logged) == 2
    for ours, theirs, line in zip(first, second, logged, strict=True):
        assert not set(ours["seeds"]) & set(theirs["seeds"])
        assert not set(ours["tasks"]) & set(theirs["tasks"])
        for name in ("rollout/tokens", "rollout/turns", "rollout/seconds"):
            both = (ours["figures"][name], theirs["figures"][name])
            assert line[name] == pytest.approx(sum(both) / 2)
    assert first[0]["figures"]["rollout/tokens"] != second[0]["figures"]["rollout/tokens"]


ENDING = """
import atexit
import torch.distributed as dist
from journeyman.agents.rollouts.job import Job

atexit.register(lambda: print("left" if not dist.is_initialized() else "still there", flush=True))
Job.join().share([1])
"""


def test_who_ends_has_left_the_others(tmp_path: Path) -> None:
    """What is still there when Python ends may abort it: then the whole job counts as failed."""
    (tmp_path / "ending.py").write_text(ENDING)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    ended = subprocess.run(
        [sys.executable, *launch, str(tmp_path / "ending.py")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert ended.stdout.split("\n").count("left") == 2, ended.stdout
