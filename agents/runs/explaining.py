"""`journeyman why`: where the failed episodes of a run were lost, by playing on from inside them.

What is found goes to the run's `searches.jsonl` episode by episode; what is there already, found
with the same settings, is not played again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from journeyman.agents.errors import CommandError, RunDirError
from journeyman.agents.evaluation.files import read_config
from journeyman.agents.evaluation.lost import (
    ORACLE,
    STUDENT,
    Chance,
    Lost,
    SearchFile,
    episode_key,
)
from journeyman.agents.evaluation.printing import complain
from journeyman.agents.evaluation.records import Played
from journeyman.agents.learning.outlines import outline
from journeyman.agents.rollouts.replay import replayed
from journeyman.agents.runs.application import overridden
from journeyman.agents.runs.config import (
    CollectConfig,
    EvalConfig,
    RunConfig,
    TrainConfig,
    make,
    read,
)
from journeyman.agents.runs.folder import explaining_full_disk
from journeyman.agents.runs.measuring import fingerprint, tested
from journeyman.agents.runs.places import check_names, env_kwargs
from journeyman.agents.runs.plan import learned
from journeyman.agents.search.backup import expected_backup
from journeyman.agents.search.deciding import Counts, DecidingSearch, gold_counts
from journeyman.agents.search.language import LanguageWorld
from journeyman.agents.search.searches import run_searches
from journeyman.agents.students.openai import OpenAIPlayer
from journeyman.agents.students.player import Player
from journeyman.envs import Episode
from journeyman.envs.errors import StateChangedError

AFTER = "student after"
"""The row of the model that a training left in its folder."""


@dataclass(frozen=True)
class Question:
    """How it is to be found out."""

    player: str = STUDENT
    """Who plays on: `STUDENT` or `ORACLE`."""
    tries: int = 16
    """Continuations of each place, for the student."""
    temperature: float = 1.0
    """Of the student; at 0 it would do again what it did."""
    bisect: bool = False
    """See `DecidingSearch`."""
    seed: int = 0
    student: tuple[str, ...] = ()
    """Overrides of the run's student."""


def explain(run: Path, chosen: Sequence[Played], question: Question) -> list[Played]:
    """Find out where episodes were lost; each gets what is found among its `lost`.

    One that cannot be played again as it was is left out, and a line says so.

    Args:
        run: Its folder.
        chosen: Episodes of one row that failed.
        question: How.

    Raises:
        CommandError: The student plays a script, or reads other tokens than the one that played.
        StateChangedError: No episode can be played again as it was.
        NoSnapshotError: An environment cannot branch.
    """
    config = _config(run)
    node = _student(run, config, chosen[0].row, question) if chosen else config.student
    asked = _asked(question, node)
    file, found = SearchFile(run), list[Played]()
    latest = file.read()
    known = {
        it.episode: it
        for it in file.all()
        if (it.player, it.asked) == (question.player, asked) and all(c.tries for c in it.chances)
    }
    kwargs = {} if all(episode_key(p.episode) in known for p in chosen) else env_kwargs(config)
    player: Player | None = None
    refused: list[StateChangedError] = []
    with tqdm(total=len(chosen), desc="why", unit="episode", mininterval=1.0) as bar:
        for p in chosen:
            lost = known.get(episode_key(p.episode))
            if lost is None:
                # Before a model is loaded: an environment that cannot branch shows here.
                try:
                    episode = replayed(p.episode, kwargs)
                except StateChangedError as error:
                    refused.append(error)
                    bar.update()
                    continue
                if question.player == STUDENT and player is None:
                    player = _load(run, config, node, question, p)
                size = config.evaluation.batch_size
                lost = _searched(player, episode, p, question, kwargs, asked, size)
            if lost not in latest.get(lost.episode, ()):  # the last one is what is shown
                with explaining_full_disk(run):
                    file.append(lost)
            others = tuple(it for it in p.lost if it.player != lost.player)
            order = (lost, *others) if lost.player == STUDENT else (*others, lost)
            found.append(replace(p, lost=order))
            bar.update()
    if refused and not found:
        raise refused[0]
    for left in refused:
        complain(f"Mind: left out: {left}")
    return found


def _asked(question: Question, node: DictConfig) -> dict[str, Any]:
    """What a search hangs on, beside its episode."""
    if question.player == ORACLE:
        return {}
    text = OmegaConf.to_yaml(node, resolve=True, sort_keys=True)
    return {
        "tries": question.tries,
        "temperature": question.temperature,
        "bisect": question.bisect,
        "seed": question.seed,
        "student": hashlib.sha256(text.encode()).hexdigest()[:16],
        "overrides": list(question.student),
    }


def _searched(
    player: Player | None,
    episode: Episode,
    p: Played,
    question: Question,
    kwargs: dict[str, Any],
    asked: dict[str, Any],
    batch_size: int,
) -> Lost:
    if player is None:
        return Lost(episode_key(p.episode), ORACLE, asked, _chances(gold_counts(episode, kwargs)))
    world = LanguageWorld(player, batch_size, kwargs)
    tree = world.plant([episode])
    (own,) = tree.paths
    seed = _seed(question.seed, p)
    search = DecidingSearch(tree, own, question.tries, question.bisect, seed)
    run_searches(world, [search])
    grown = outline(tree, expected_backup(tree), own)
    return Lost(episode_key(p.episode), STUDENT, asked, _chances(search.counts), grown)


def _chances(counts: Counts) -> tuple[Chance, ...]:
    return tuple(Chance(turn, wins, tries) for turn, (wins, tries) in counts.items())


def _seed(seed: int, p: Played) -> int:
    """Of an episode's search: the same whichever others are searched."""
    place = f"{seed}/{p.row}/{'/'.join(map(str, p.place))}"
    return int.from_bytes(hashlib.blake2b(place.encode(), digest_size=7).digest())


def _config(run: Path) -> RunConfig:
    config = OmegaConf.create(read_config(run))
    kind = TrainConfig if "trainer" in config else CollectConfig if "keep" in config else EvalConfig
    return read(kind, config)


def _student(run: Path, config: RunConfig, row: str, question: Question) -> DictConfig:
    """The student that plays on, as a part: the run's own with what is overridden."""
    node = config.student
    stages = getattr(config, "stages", None) or {}
    left = run / row if row in stages else run if row == AFTER else None
    if left is not None and not any(it.startswith("student=") for it in question.student):
        if question.player == STUDENT and not (left / "model").is_dir():
            raise RunDirError(
                f"{left} has no model/, whose episodes row {row!r} holds: give the one that is to "
                f"play on, student=hf student.model=…, or use --player {ORACLE}"
            )
        node = learned(_config(left).student, left)
    return overridden("student", node, question.student)


def _load(run: Path, config: RunConfig, node: DictConfig, question: Question, p: Played) -> Player:
    check_names(node)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    student: Player = make(node, "student")
    if not hasattr(student, "at"):
        raise CommandError(
            f"{run}: its student plays a script and cannot play on from the middle of an episode: "
            f"use --player {ORACLE}, or give a student=…"
        )
    if isinstance(student, OpenAIPlayer):
        student.check()
        student.keep_in(run)
    for step in p.episode.steps:
        start, end = step.span
        if student.dialect.decode(p.episode.tokens[start : end - 1]) != step.text:
            raise CommandError(
                f"{p.episode.env_id} {p.episode.task_id} was played with another vocabulary than "
                f"this student's: only one with the same can play on"
            )
    if p.weights and fingerprint(tested(student, config)) != p.weights:
        complain("Mind: another student plays on than the one that played these episodes")
    return student.at(temperature=question.temperature)  # type: ignore[no-any-return]
