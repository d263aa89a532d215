"""`journeyman collect`: a policy plays tasks; what is worth learning from is written down as text.

Episodes go to the run folder as in an evaluation, so that a killed command goes on where it stopped
and `journeyman show` tells what was played. The file of conversations is made of them at the end:
with another `keep` they are sifted anew, and nothing is played twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from omegaconf import DictConfig, OmegaConf

from journeyman.agents.errors import CommandError
from journeyman.agents.evaluation.measures import chosen
from journeyman.agents.evaluation.records import EPISODES, Place, Played, metrics_of
from journeyman.agents.evaluation.report import table, write_atomically, write_summary
from journeyman.agents.learning.conversations import as_record
from journeyman.agents.rollouts.dialogues import UnsayableError, dialogue_of
from journeyman.agents.rollouts.job import Job
from journeyman.agents.runs.config import CollectConfig, Keep, as_mapping, read
from journeyman.agents.runs.folder import COLLECTED, RunFolder, explaining_full_disk, machine
from journeyman.agents.runs.measuring import (
    looked_over,
    play,
    rollouts_of,
    searching,
    student_of,
    tested,
)
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.openai import MEANS, OpenAIPlayer
from journeyman.envs import ToolEnv, make_for_run
from journeyman.tools import CallStatus, ToolSpec

_SERVED = f"{OpenAIPlayer.__module__}.{OpenAIPlayer.__qualname__}"


def collect(composed: DictConfig) -> None:
    """Play what is not played yet, and write down what is to be kept.

    Raises:
        CommandError: Nothing is to be kept.
    """
    config = read(CollectConfig, composed)
    job = Job.join()
    folder = RunFolder(_decisive(composed), job.first, keeps=[EPISODES])
    kwargs = looked_over(config, job)
    with rollouts_of(config) as rollouts:
        student = student_of(config, folder, job)
        player = tested(student, config)
        folder.claim()
        one = searching(player, config, kwargs) or player
        found = play("student", one, config, kwargs, job, rollouts)
    if not job.first:
        return
    sifted = sift(found, config.keep, student.dialect, kwargs)
    rows = {"student": metrics_of(found)}
    file = folder.path / COLLECTED
    with explaining_full_disk(folder.path):
        text = "".join(_line(record) for record in sifted.records)
        write_atomically(file, text.encode())
        counts = {"kept": len(sifted.records), "left_out": dict(sifted.left_out)}
        extra = {"machine": machine(), "config": as_mapping(composed), "collected": counts}
        write_summary(folder.path / "summary.json", rows, extra)
    print(f"\n{table(rows, chosen())}")  # with what a server took, if one played
    print(f"\n{len(found)} episodes were played, {len(sifted.records)} are kept: {file}")
    for reason, count in sifted.left_out.most_common():
        print(f"{count:7} left out: {reason}")
    if not sifted.records:
        raise CommandError(f"{file} is empty: no episode is as keep.… asks for")


def _decisive(composed: DictConfig) -> DictConfig:
    """The settings that say what is played: with others than these a run goes on as it was."""
    found = _without(composed, ["keep"])
    if OmegaConf.select(found, "student._target_") == _SERVED:
        found.student = _without(found.student, MEANS)
    return found


def _without(node: DictConfig, names: Sequence[str]) -> DictConfig:
    return OmegaConf.masked_copy(node, [str(key) for key in node if key not in names])


@dataclass(frozen=True)
class Sifted:
    """What is kept of the episodes that were played."""

    records: list[dict[str, Any]]
    """Lines of the file, in the order of the episodes."""
    left_out: Counter[str]
    """Reasons, and how many episodes were left out for each."""


def sift(
    found: Sequence[Played], keep: Keep, dialect: Dialect, kwargs: dict[str, Any] | None = None
) -> Sifted:
    """Choose episodes to learn from, as lines of the file.

    Args:
        found: What was played.
        keep: What is asked of an episode.
        dialect: Whose student played.
        kwargs: For the environments, which are asked for their tools.
    """
    left_out: Counter[str] = Counter()
    said: dict[Place, dict[str, Any]] = {}
    sound: list[Played] = []
    with _Toolboxes(kwargs or {}) as toolboxes:
        for played in found:
            reason = _objection(played, keep)
            if reason is None:
                try:
                    episode = played.episode
                    tools = toolboxes.of(episode.env_id, episode.task_id)
                    dialogue = dialogue_of(episode, dialect, tools)
                except UnsayableError as error:
                    reason = str(error)
                else:
                    said[played.place] = as_record(dialogue, _origin(played))
                    sound.append(played)
            if reason is not None:
                left_out[reason] += 1
    if keep.shortest:
        best: dict[tuple[str, str], Played] = {}
        for played in sorted(sound, key=_length):
            best.setdefault(played.place[:2], played)
        chosen = [p for p in sound if best[p.place[:2]] is p]
        left_out["another of the task is shorter"] += len(sound) - len(chosen)
        sound = chosen
    records = [said[played.place] for played in sound]
    if keep.dedupe:
        alike: dict[str, dict[str, Any]] = {}
        for record in records:
            alike.setdefault(_line({k: record[k] for k in ("messages", "tools")}), record)
        left_out["another is the same, word for word"] += len(records) - len(alike)
        records = list(alike.values())
    return Sifted(records, +left_out)


def _objection(played: Played, keep: Keep) -> str | None:
    """Why an episode is not kept, whatever others there are."""
    episode = played.episode
    if played.broken:
        return "its environment broke"
    if not episode.steps:
        return "its prompt left no room for a turn"
    if keep.success and not episode.success:
        return "it did not solve its task"
    if keep.stops is not None and episode.stop.value not in keep.stops:
        return f"it ended by {episode.stop.value}"
    errors = sum(result.call.status is not CallStatus.OK for result in episode.calls)
    if keep.max_tool_errors is not None and errors > keep.max_tool_errors:
        return "too many of its calls failed"
    return None


def _length(played: Played) -> tuple[int, int]:
    episode = played.episode
    return len(episode.steps), len(episode.tokens)


def _origin(played: Played) -> dict[str, Any]:
    episode = played.episode
    return {
        "env_id": episode.env_id,
        "task_id": episode.task_id,
        "kind": played.kind,
        "attempt": played.attempt,
        "seed": episode.seed,
        "success": episode.success,
        "reward": episode.reward,
        "stop": episode.stop.value,
        "weights": played.weights,
        "version": version("journeyman"),
    }


def _line(record: dict[str, Any]) -> str:
    # Not every argument a model writes is JSON: some call syntaxes have sets.
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), default=str) + "\n"


class _Toolboxes:
    """The tools of tasks; environments are made once, and closed at the end."""

    def __init__(self, kwargs: dict[str, Any]) -> None:
        self._kwargs = kwargs
        self._envs: dict[str, ToolEnv] = {}

    def __enter__(self) -> _Toolboxes:
        return self

    def __exit__(self, *exc: object) -> None:
        for env in self._envs.values():
            env.close()

    def of(self, env_id: str, task_id: str) -> Sequence[ToolSpec]:
        env = self._envs.get(env_id)
        if env is None:
            env = self._envs[env_id] = make_for_run(env_id, self._kwargs)
        env.reset(options={"task_id": task_id})  # a benchmark's tools are those of a task
        return env.tools
