"""The rows of a table: players play the evaluation tasks of a run, from where they stopped."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from journeyman.agents.errors import BrokenRolloutError, SettingError
from journeyman.agents.evaluation.measures import chosen
from journeyman.agents.evaluation.metrics import Metrics
from journeyman.agents.evaluation.records import (
    EpisodeFile,
    Place,
    Played,
    digest_of,
    kind_of,
    metrics_of,
)
from journeyman.agents.evaluation.stored import StoredEpisode
from journeyman.agents.rollouts.job import Job
from journeyman.agents.rollouts.rollout import no_room, rollout
from journeyman.agents.rollouts.tasks import TaskRef, deal
from journeyman.agents.rollouts.where import Elsewhere, Rollouts, local
from journeyman.agents.runs.config import RunConfig, make
from journeyman.agents.runs.folder import RunFolder, explaining_full_disk
from journeyman.agents.runs.places import (
    check_environments,
    check_names,
    env_kwargs,
    told_shortages,
)
from journeyman.agents.search.playing import SearchPlayer
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.openai import OpenAIPlayer
from journeyman.agents.students.player import Player
from journeyman.agents.students.scripted import ScriptedPlayer, no_op, oracle
from journeyman.envs import Episode

STRETCH = 4
"""Batches that are played in one go, at most; as many goes are left at least."""


def looked_over(config: RunConfig, job: Job) -> dict[str, Any]:
    """See what a mistake in the settings can be seen by before models load, and tell short lists.

    Returns:
        Arguments for the environments.

    Raises:
        SettingError: Something cannot be played as it is asked.
    """
    attempts(config)
    check_environments(config)
    check_names(config.student)
    if job.first:
        for words in told_shortages(config):
            print(words)
    return env_kwargs(config)


def rollouts_of(config: RunConfig) -> AbstractContextManager[Rollouts]:
    """Where a config has its episodes played, to be opened."""
    if config.rollouts is None:
        return local()
    found: AbstractContextManager[Rollouts] = make(config.rollouts, "rollouts")
    return found


def student_of(config: RunConfig, folder: RunFolder, job: Job) -> Player:
    """Who plays; of a model on a server, after a look at it, with its answers kept in the folder.

    Raises:
        SettingError: Several processes would ask the server.
        StudentServerError: It is refused.
    """
    student: Player = make(config.student, "student")
    if isinstance(student, OpenAIPlayer):
        if job.count > 1:
            raise SettingError("student=openai plays in one process: raise student.concurrency")
        student.check()
        student.keep_in(folder.path)
    return student


def evaluate(
    name: str,
    player: Player,
    config: RunConfig,
    kwargs: dict[str, Any],
    job: Job,
    rollouts: Rollouts = rollout,
) -> Metrics:
    """The figures of one row; see `play`."""
    columns = chosen(config.evaluation.metrics or ())
    return metrics_of(play(name, player, config, kwargs, job, rollouts), columns)


def play(
    name: str,
    player: Player,
    config: RunConfig,
    kwargs: dict[str, Any],
    job: Job,
    rollouts: Rollouts = rollout,
) -> list[Played]:
    """Play the evaluation tasks of a run, under a progress bar; processes share them.

    Episodes go to the run folder batch by batch, of many tasks a few batches at once; from workers
    elsewhere one by one, as they end. What is there already, from a run that was cut short, is not
    played again, unless infrastructure broke it or other weights played it.

    Args:
        name: The player's row in the table.
        player: Who plays.
        config: Of the run.
        kwargs: For the environments.
        job: This process among others.
        rollouts: Where episodes are played.

    Raises:
        SettingError: Every prompt is as long as the player's context.
    """
    run, size = Path(config.run_dir), config.evaluation.batch_size
    file = EpisodeFile(run)
    weights = fingerprint(player)
    known = _of_this_code(name, file.of_row(name, weights), tell=job.first)
    job.share([])  # before anybody writes
    tasks = attempts(config)
    if known and job.first:
        there = f"{len(known)} of {len(tasks)} episodes are in {file.path}"
        print(f"{name}: {there}: delete it to play anew")

    def as_played(episode: Episode, attempt: int) -> Played:
        stored, kind, digest = StoredEpisode.of(episode), kind_of(episode), digest_of(episode)
        return Played(name, stored, kind, attempt, weights=weights, env_digest=digest)

    def write(played: Sequence[Played]) -> None:
        known.update((p.place, p) for p in played)
        if job.first:
            with explaining_full_disk(run):
                file.append(played)

    # The goes are the same however often the run was cut short: rounding depends on them.
    length = size * stretch(len(tasks), size, job.count)
    batches = [tasks[start : start + length] for start in range(0, len(tasks), length)]
    rounds = range(0, len(batches), job.count)
    bar = tqdm(total=len(tasks), desc=name, unit="task", mininterval=1.0, disable=not job.first)
    with bar:
        if isinstance(rollouts, Elsewhere) and job.count == 1:
            left = [it for it in tasks if _place(*it) not in known]
            bar.update(len(tasks) - len(left))

            def ended(place: int, episode: Episode) -> None:
                write([as_played(episode, left[place][1])])
                bar.update()

            rollouts.begin(player, [ref for ref, _ in left], size, kwargs, ended=ended)()
            rounds = range(0)
        for start in rounds:
            mine = start + job.rank
            own = batches[mine] if mine < len(batches) else []
            batch = [it for it in own if _place(*it) not in known]
            bar.update(len(own) - len(batch))
            episodes = rollouts(player, [ref for ref, _ in batch], size, kwargs, bar.update)
            own_part = [as_played(e, n) for e, (_, n) in zip(episodes, batch, strict=True)]
            write(job.share(own_part))
            others = sum(map(len, batches[start : start + job.count])) - len(own)
            bar.update(others)
    played = [known[_place(*it)] for it in tasks]
    _check_room(name, player, played)
    return played


def stretch(tasks: int, size: int, processes: int) -> int:
    """How many batches are played in one go: only at its end do places stay empty.

    A kill costs what was not yet written down, so that there are `STRETCH` goes or more, and more
    than there are processes.

    Args:
        tasks: Of the evaluation.
        size: Of a batch.
        processes: That share them.
    """
    return max(1, min(STRETCH, tasks // (size * max(STRETCH, processes))))


def _of_this_code(name: str, known: dict[Place, Played], tell: bool) -> dict[Place, Played]:
    """Episodes whose environment is the one it was; what another code played is played anew."""
    changed = Counter(
        p.episode.env_id
        for p in known.values()
        if p.env_digest and p.env_digest != digest_of(p.episode)
    )
    for env_id, count in changed.items() if tell else ():
        print(f"{name}: the code of {env_id} has changed: {count} of its episodes are played anew")
    return {place: p for place, p in known.items() if p.episode.env_id not in changed}


def _check_room(name: str, player: Player, played: Sequence[Played]) -> None:
    """Refuse an evaluation in which nobody could say a word.

    Raises:
        SettingError: Every prompt is as long as the context.
    """
    sound = [p.episode for p in played if not p.broken]
    if sound and not any(episode.steps for episode in sound):
        if told := next((episode.error for episode in sound if episode.error), None):
            raise SettingError(
                f"{name}: none of {len(sound)} prompts leaves room for a turn: {told}; lower "
                f"student.max_turn_tokens, or serve the model with a longer context"
            )
        shortest = min(len(episode.tokens) for episode in sound)
        raise SettingError(no_room(name, len(sound), shortest, player.max_context))


def _place(ref: TaskRef, attempt: int) -> tuple[str, str, int]:
    return ref.env_id, ref.task_id, attempt


def attempts(config: RunConfig) -> list[tuple[TaskRef, int]]:
    """What an evaluation plays: every task, as often as the config says, with the attempt's number.

    Environments with few tasks give what they have.

    Raises:
        UnknownTaskError: An environment has no such split.
    """
    options = config.evaluation
    tasks = deal(config.env.ids, options.split, 0, options.tasks, config.seed, short="cap")
    return [
        (task if n == 0 else replace(task, seed=_attempt_seed(task.seed, n)), n)
        for n in range(options.attempts)
        for task in tasks
    ]


def _attempt_seed(seed: int, attempt: int) -> int:
    return int(np.random.SeedSequence((seed, attempt)).generate_state(1, np.uint64)[0])


def fingerprint(player: Player) -> str:
    """Tells who plays from others: weights, dialect, dice, whatever the engine; scripts have none.

    Every weight is read, about a second a gigabyte. Of a player whose model cannot be looked into,
    such as a served one, it says only what is known of it here.
    """
    student = player.player if isinstance(player, SearchPlayer) else player
    if isinstance(student, ScriptedPlayer):
        return ""
    dialect = student.dialect
    sampling = getattr(student, "sampling", None)
    ways = (dialect.name, dialect.render, dialect.template_kwargs, student.max_context, sampling)
    digest = hashlib.sha256(f"{type(student).__qualname__}{ways!r}".encode())
    digest.update(getattr(student, "identity", "").encode())  # of one whose model is elsewhere
    weights = getattr(student, "weights", None) or getattr(student, "model", None)
    if isinstance(weights, torch.nn.Module):
        for parameter in weights.parameters():
            values = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(values.numpy().data)
    elif isinstance(weights, str):
        digest.update(weights.encode())
        for file in sorted(Path(weights).rglob("*.safetensors")):
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]


def tested(player: Player, config: RunConfig) -> Player:
    """A player as it is tested: at the evaluation's temperature, if it has dice of its own."""
    at = getattr(player, "at", None)
    found: Player = player if at is None else at(temperature=config.evaluation.temperature)
    return found


def searching(player: Player, config: RunConfig, kwargs: dict[str, Any]) -> SearchPlayer | None:
    """A player whose turns are chosen by search as the config says; None if it says nothing.

    Raises:
        SettingError: No such search, or a player for whom there is none.
    """
    rule = config.evaluation.search
    if rule is None:
        return None
    if isinstance(player, ScriptedPlayer):
        raise SettingError(
            f"evaluation.search={rule}: student=oracle plays a script, which cannot begin in the "
            f"middle of an episode as a search does; leave evaluation.search out"
        )
    try:
        return SearchPlayer(player, rule, env_kwargs=kwargs)  # type: ignore[arg-type]
    except ValueError as error:
        raise SettingError(f"evaluation.search={rule}: {error}") from error


def bounds(
    dialect: Dialect, config: RunConfig, kwargs: dict[str, Any], job: Job
) -> dict[str, Metrics]:
    """The rows every evaluation prints: doing nothing, and the gold calls.

    Raises:
        BrokenRolloutError: No gold episode came to its end: nothing could be learned or measured.
    """
    scripts = {"no-op": no_op, "oracle": oracle}
    rows = {
        name: evaluate(name, ScriptedPlayer(dialect, script), config, kwargs, job)
        for name, script in scripts.items()
    }
    if rows["oracle"].infra_failures and not rows["oracle"].tasks:
        raise BrokenRolloutError(
            f"every oracle episode broke ({rows['oracle'].first_error}): mend the environment, "
            f"then run again"
        )
    return rows
