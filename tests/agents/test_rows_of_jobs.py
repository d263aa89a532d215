"""Which rows a step has, on any number of processes; without starting any."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from journeyman.agents.cli import processes
from journeyman.agents.errors import SettingError
from journeyman.agents.learning.rollout_figures import counted
from journeyman.agents.learning.trainers.schedule import Schedule
from journeyman.agents.learning.trainers.several import ROWS, in_shards, keep_rows, shard


def arguments(rows: int, accumulated: int = 1, world: int = 1, **others: Any) -> Any:
    return SimpleNamespace(
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulated,
        world_size=world,
        process_index=0,
        **others,
    )


@pytest.mark.parametrize("processes", (2, 3, 6))
def test_a_step_has_the_same_rows_on_any_number_of_processes(processes: int) -> None:
    steps, rows = 4, 48
    schedule = Schedule(steps)
    alone = schedule.dealt(rows, 0, (7, 20, 1))
    assert sorted(alone) == list(range(rows))
    own = rows // processes
    shares = [
        [rank * own + row for row in schedule.dealt(own, rank * own, (7, 20, 1))]
        for rank in range(processes)
    ]
    for step in range(steps):
        of_all = alone[step * rows // steps : (step + 1) * rows // steps]
        of_each = [it[step * own // steps : (step + 1) * own // steps] for it in shares]
        assert sorted(of_all) == sorted(row for it in of_each for row in it)
        assert {row // steps for row in of_all} == set(range(rows // steps))  # one of each four


def test_rows_are_dealt_anew_each_time() -> None:
    schedule = Schedule(4)
    keys = [(0, 0, 1), (0, 0, 2), (0, 8, 1), (1, 0, 1)]
    assert len({tuple(schedule.dealt(32, 0, key)) for key in keys}) == len(keys)
    assert Schedule(1).dealt(5, 0, (0, 0, 1)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (arguments(4, 1, 2), (4, 1)),  # as it was
        (arguments(4, 1, 1), (4, 2)),
        (arguments(4, 1, 4), (2, 1)),
        (arguments(3, 1, 1), (2, 4)),  # no more at once than is asked for
    ],
)
def test_a_resumed_run_keeps_the_rows_of_a_step(
    given: Any, found: tuple[int, int], tmp_path: Path
) -> None:
    (tmp_path / ROWS).write_text(json.dumps({"rows": 8}))
    keep_rows(given, tmp_path)
    assert (given.per_device_train_batch_size, given.gradient_accumulation_steps) == found


def test_rows_that_cannot_be_shared_evenly_are_refused(tmp_path: Path) -> None:
    (tmp_path / ROWS).write_text(json.dumps({"rows": 8}))
    with pytest.raises(SettingError, match=r"8 rows, which 3 processes .* a number that divides 8"):
        keep_rows(arguments(4, 1, 3), tmp_path)


def test_alone_there_is_nothing_to_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    given = arguments(4, fsdp=True, fsdp_plugin_args={"fsdp_version": 2})
    shard(given, "fsdp2")
    assert given.fsdp is None
    assert not in_shards(given)
    with pytest.raises(SettingError, match=r"sharding=ddp: expected fsdp2, or null, which is DDP"):
        shard(given, "ddp")
    old = arguments(4, world=2, fsdp=True, fsdp_plugin_args={"fsdp_version": 1})
    with pytest.raises(SettingError, match="FSDP version 1: expected 2"):
        shard(old, None)


def test_shards_are_of_one_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate leaves a word for the next in the same process; a launcher's is for all."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    given = arguments(4, world=2, fsdp=None, fsdp_plugin_args=None)
    shard(given, None)
    assert not in_shards(given)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    shard(given, None)
    assert in_shards(given)


def test_counts_are_summed_and_shares_are_not() -> None:
    assert counted("rollout/student_tokens")
    assert counted("search/env_steps")
    assert not counted("rollout/success")
    assert not counted("gate/mean")


def test_only_processes_of_a_job_wait_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(processes.time, "sleep", waited.append)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")
    processes.give_way(ValueError("mine"))
    assert (processes.place(), waited) == (0, [])
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    processes.give_way(ValueError("mine"))
    monkeypatch.setenv("LOCAL_RANK", "0")
    processes.give_way(ValueError("mine"))
    processes.give_way(RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"))
    assert (processes.place(), waited) == (3, [processes.LATE] * 2)


def test_others_print_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(processes.logging, "disable", lambda level: None)
    monkeypatch.setattr(processes.warnings, "simplefilter", lambda action: None)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    processes.hush()
    print("the first process says this")
    sys.stdout.close()
    assert capsys.readouterr().out == ""
