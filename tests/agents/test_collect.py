"""`journeyman collect`: what is played, what is kept of it, and what becomes of it in training."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from journeyman.agents.errors import CommandError, RunDirError, SettingError
from journeyman.agents.evaluation.records import EPISODES, Played, kind_of
from journeyman.agents.learning.trainers import sft
from journeyman.agents.rollouts.rollout import played, rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.runs.application import offer_options
from journeyman.agents.runs.collect import Sifted, collect, sift
from journeyman.agents.runs.config import Keep
from journeyman.agents.runs.evaluate import evaluate_student
from journeyman.agents.runs.folder import COLLECTED
from journeyman.agents.students.hf import load_student
from journeyman.agents.students.scripted import Script, ScriptedPlayer, no_op, oracle
from journeyman.envs import Episode, StopReason, ToolEnv
from journeyman.tools import ToolCall

from .conftest import ForkServer
from .test_trainers import changed, make_parts, tuning, weights
from .tiny import BUILTIN, chat

TASK = TaskRef(BUILTIN[0], "train/1", seed=3)


@pytest.fixture(autouse=True, scope="module")
def configs() -> Iterator[None]:
    offer_options()
    with initialize_config_module("journeyman.conf", version_base="1.3"):
        yield


# What is kept


def stumbling(times: int) -> Script:
    def play(env: ToolEnv) -> Iterator[ToolCall | str]:
        for _ in range(times):
            yield ToolCall("no_such_tool")
        yield from oracle(env)

    return play


def garbling(env: ToolEnv) -> Iterator[ToolCall | str]:
    yield "<tool_call>\n{]\n</tool_call>"
    yield from oracle(env)


def plays(*scripts: Script, task: TaskRef = TASK) -> list[Played]:
    """An attempt a script."""
    found = []
    for attempt, script in enumerate(scripts):
        (episode,) = rollout(ScriptedPlayer(chat(), script), [replace(task, seed=attempt)])
        found.append(Played("student", episode, kind_of(episode), attempt))
    return found


def kept(sifted: Sifted) -> list[int]:
    """The attempts that are."""
    return [record["origin"]["attempt"] for record in sifted.records]


@pytest.mark.parametrize(
    ("keep", "attempts", "reasons"),
    [
        (Keep(), [0, 2, 3], {"it did not solve its task": 1, "a call could not be read": 1}),
        (Keep(success=False), [0, 1, 2, 3], {"a call could not be read": 1}),
        (
            Keep(max_tool_errors=1),
            [0, 2],
            {
                "it did not solve its task": 1,
                "too many of its calls failed": 1,
                "a call could not be read": 1,
            },
        ),
        (
            Keep(shortest=True),
            [0],
            {
                "it did not solve its task": 1,
                "another of the task is shorter": 2,
                "a call could not be read": 1,
            },
        ),
        (
            Keep(success=False, stops=["max_turns", "context_full"]),
            [],
            {"it ended by answered": 5},
        ),
    ],
)
def test_what_is_kept_and_why_the_rest_is_not(
    keep: Keep, attempts: list[int], reasons: dict[str, int]
) -> None:
    found = plays(oracle, no_op, stumbling(1), stumbling(2), garbling)
    sifted = sift(found, keep, chat())
    assert kept(sifted) == attempts
    assert sifted.left_out == reasons


def test_of_equal_conversations_the_first_is_kept() -> None:
    found = plays(oracle, stumbling(1), oracle, oracle)
    sifted = sift(found, Keep(), chat())
    assert kept(sifted) == [0, 1]
    assert sifted.left_out == {"another is the same, word for word": 2}
    assert kept(sift(found, Keep(dedupe=False), chat())) == [0, 1, 2, 3]
    other = plays(oracle, task=replace(TASK, task_id="train/4"))
    assert len(sift([*found, *other], Keep(shortest=True), chat()).records) == 2


def test_what_broke_or_was_cut_off_is_not_kept() -> None:
    (whole,) = plays(oracle)
    *others, last = whole.episode.steps
    cut = replace(whole.episode, steps=(*others, replace(last, truncated=True)))
    broke = replace(whole.episode, stop=StopReason.INFRA_ERROR, success=False, error="gone")
    mute = replace(whole.episode, steps=(), stop=StopReason.CONTEXT_FULL, success=False)
    found = [replace(whole, episode=episode) for episode in (cut, broke, mute)]
    sifted = sift(found, Keep(success=False), chat())
    assert sifted.records == []
    assert sifted.left_out == {
        "a turn was cut off": 1,
        "its environment broke": 1,
        "its prompt left no room for a turn": 1,
    }


def test_a_line_says_where_it_comes_from() -> None:
    (record,) = sift(plays(oracle), Keep(), chat()).records
    origin = record["origin"]
    assert origin["env_id"] == TASK.env_id
    assert (origin["task_id"], origin["seed"], origin["attempt"]) == ("train/1", 0, 0)
    assert (origin["success"], origin["reward"], origin["stop"]) == (True, 1.0, "answered")
    assert origin["version"]
    calls = [call for m in record["messages"] for call in m.get("tool_calls", ())]
    told = [m for m in record["messages"] if m["role"] == "tool"]
    assert [c["id"] for c in calls] == [m["tool_call_id"] for m in told]
    assert [c["function"]["name"] for c in calls] == [m["name"] for m in told]
    assert {c["function"]["name"] for c in calls} <= {
        t["function"]["name"] for t in record["tools"]
    }


# The command


def config(run: Path, *overrides: str) -> DictConfig:
    given = ("student=oracle", "evaluation.tasks=7", "evaluation.batch_size=3", f"run_dir={run}")
    return compose("collect", [*given, *overrides])


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / COLLECTED).read_text().splitlines()]


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, most: int = 100) -> Iterator[list[TaskRef]]:
    """Notes what is played; more than `most` episodes are interrupted."""
    seen: list[TaskRef] = []

    def play(player: Any, tasks: Any, *args: Any) -> Iterator[tuple[int, Episode]]:
        if len(seen) + len(tasks) > most:
            raise KeyboardInterrupt
        seen.extend(tasks)
        return played(player, tasks, *args)

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[played.__module__], "played", play)
        yield seen


def test_a_collection_says_what_it_kept_and_is_sifted_anew_without_playing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with counted(monkeypatch) as seen:
        collect(config(tmp_path))
    assert len(seen) == 7
    assert f"7 episodes were played, 7 are kept: {tmp_path / COLLECTED}" in capsys.readouterr().out
    whole = lines(tmp_path)
    ids = [(line["origin"]["env_id"], line["origin"]["task_id"]) for line in whole]
    assert ids == [(ref.env_id, ref.task_id) for ref in seen]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["collected"] == {"kept": 7, "left_out": {}}
    with counted(monkeypatch, most=0) as seen:
        collect(config(tmp_path))
        assert lines(tmp_path) == whole
        with pytest.raises(CommandError, match=r"conversations\.jsonl is empty: no episode is as"):
            collect(config(tmp_path, "keep.stops=[max_turns]"))
    assert seen == []
    assert "7 left out: it ended by answered" in capsys.readouterr().out
    assert lines(tmp_path) == []


def test_an_interrupted_collection_goes_on_and_nothing_is_lost_or_played_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted(monkeypatch, most=5) as before, pytest.raises(KeyboardInterrupt):
        collect(config(tmp_path / "a"))
    assert len(before) == 3  # a batch
    assert not (tmp_path / "a" / COLLECTED).exists()
    with (tmp_path / "a" / EPISODES).open("a") as file:
        file.write('{"row": "stu')  # as a kill leaves it
    with counted(monkeypatch) as after:
        collect(config(tmp_path / "a"))
    assert len(after) == 4
    assert not {*before} & {*after}
    collect(config(tmp_path / "b"))
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_what_was_played_makes_no_room_for_another_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted(monkeypatch, most=5), pytest.raises(KeyboardInterrupt):
        collect(config(tmp_path))
    with pytest.raises(RunDirError, match="holds a run with another config"):
        collect(config(tmp_path, "seed=1"))
    assert (tmp_path / EPISODES).read_text().count("\n") == 3


def test_a_script_is_not_searched(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^evaluation\.search=gumbel: student=oracle plays a"):
        collect(config(tmp_path, "evaluation.search=gumbel"))


def test_ends_have_names(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^keep\.stops=\['done'\]: no end 'done'; there are"):
        collect(config(tmp_path, "keep.stops=[done]"))
    with pytest.raises(SettingError, match=r"^keep\.max_tool_errors=-1: expected a whole number"):
        collect(config(tmp_path, "keep.max_tool_errors=-1"))


def test_the_embedded_student_learns_from_what_the_embedded_teacher_did(tmp_path: Path) -> None:
    """And from the oracle: there and back again."""
    for name, student in (("gold", "student=oracle"), ("teacher", "student=embedded")):
        model = ["student.model=embedded-teacher"] if name == "teacher" else []
        collect(config(tmp_path / name, student, *model))
    files = [str(tmp_path / name / COLLECTED) for name in ("gold", "teacher")]
    assert all(line["origin"]["weights"] for line in lines(tmp_path / "teacher"))
    student = load_student("embedded-student", render="names", max_turn_tokens=48)
    gold = [
        TaskRef(line["origin"]["env_id"], line["origin"]["task_id"])
        for line in lines(tmp_path / "gold")
    ]
    rows = sft.conversation_rows(files, student.dialect)
    expected = sft.demonstration_rows(gold, student.dialect)
    assert rows["input_ids"][: len(gold)] == expected["input_ids"]
    assert len(rows) > len(gold)
    parts = replace(make_parts(student.model), student=student)
    before = weights(student.model)
    trainer = sft.build(parts, tuning(tmp_path / "out", learning_rate=1e-4), data=files)
    trainer.train()
    assert trainer.state.global_step == 2
    assert changed(student.model, before)


def test_an_evaluation_makes_no_room_in_a_collection(tmp_path: Path) -> None:
    collect(config(tmp_path))
    with pytest.raises(RunDirError, match="holds a run with another config"):
        evaluate_student(compose("eval", [f"run_dir={tmp_path}"]))
    assert len(lines(tmp_path)) == 7


def test_from_the_command_line(journeyman: ForkServer, tmp_path: Path) -> None:
    run = tmp_path / "gold"
    few = ("evaluation.tasks=4", "env=journeyman/Bank-v0")
    done = journeyman("collect", "student=oracle", *few, f"run_dir={run}")
    assert (done.status, len(lines(run))) == (0, 4), done.stderr
    assert "4 episodes were played, 4 are kept" in done.stdout
    # An environment without training tasks will do: none is played to learn from.
    learn = ("train", "teacher=none", "trainer=sft", "env=bfcl", "evaluation.tasks=0", "steps=1")
    data = f"trainer.data=[{run / COLLECTED}]"
    trained = journeyman(*learn, data, f"run_dir={tmp_path / 'run'}")
    assert trained.status == 0, trained.stderr
    assert "4 conversations, learned from 4 times each" in trained.stdout
