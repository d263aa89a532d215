"""What was played, on disk: `episodes.jsonl` in a run folder, one episode a line."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from journeyman.agents.errors import RunDirError, RunFileError
from journeyman.agents.evaluation.files import fitting, json_lines, mend, misfit
from journeyman.agents.evaluation.lost import Lost, SearchFile, episode_key
from journeyman.agents.evaluation.measures import NO_MEASURES, Measure
from journeyman.agents.evaluation.metrics import Metrics, summarise
from journeyman.agents.evaluation.report import write_atomically
from journeyman.agents.evaluation.scores import SHAPE, Scores
from journeyman.agents.evaluation.stored import StoredEpisode
from journeyman.envs import Episode, StopReason, Task, env_class
from journeyman.envs.origin import env_digest
from journeyman.envs.types import Role
from journeyman.tools import CallStatus

EPISODES = "episodes.jsonl"
FORMAT = 3
"""Of its lines: since 2 they may have scores of teacher and credit; since 3 the environment's
score, gold calls, and what a failed episode lacks. A line that says none is of the first."""
VISITED = "visited"
"""The environment of episodes that another program has played, where it does not say which."""
UNJUDGED = "agent, unjudged"
"""The row of conversations that ended without a verdict, so that nobody knows their success."""
TRAINING = "training"
"""The row of episodes that were played to be learned from."""

Place = tuple[str, str, int]
"""Environment id, task id and attempt: an evaluation plays each of them once a row."""


@dataclass(frozen=True, slots=True)
class Played:
    """An episode and what it was played for."""

    row: str
    """The policy in the table, such as "student after"; or `TRAINING`."""
    episode: Episode
    kind: str = ""
    """The task's."""
    attempt: int = 0
    """Which of the task's episodes in this row, from 0."""
    step: int | None = None
    """The optimiser step that learned from it first; None in an evaluation."""
    weights: str = ""
    """Tells the model that played from others, in an evaluation; empty where nobody looked."""
    scores: Scores | None = None
    """What teacher and credit said of it, in training."""
    env_digest: str = ""
    """Tells the environment's code from others (`env_digest`); empty where nobody looked."""
    lost: tuple[Lost, ...] = ()
    """At which turn it was lost, as far as `journeyman why` looked: a search a player."""

    @property
    def place(self) -> Place:
        """Where in its row it belongs."""
        return self.episode.env_id, self.episode.task_id, self.attempt

    @property
    def broken(self) -> bool:
        """True if infrastructure broke it: it says nothing of the policy."""
        return self.episode.stop is StopReason.INFRA_ERROR

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form: one line of the file."""
        return {
            "row": self.row,
            "step": self.step,
            "attempt": self.attempt,
            "kind": self.kind,
            "format": FORMAT,
            "version": _version(),
            "weights": self.weights,
            **({"env_digest": self.env_digest} if self.env_digest else {}),
            **self.episode.to_dict(),
            **({} if self.scores is None else {"scores": self.scores.to_dict()}),
        }

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> Played:
        """Read what `to_dict` wrote.

        Raises:
            TypeError: As `ValueError`.
            ValueError: A value is none that `to_dict` writes.
        """
        episode, told = StoredEpisode.from_dict(line), line.get("scores")
        return cls(
            line["row"],
            episode,
            line["kind"],
            line["attempt"],
            line["step"],
            line["weights"],
            None
            if told is None
            else Scores.from_dict(told, len(episode.steps), len(episode.tokens)),
            line.get("env_digest", ""),
        )


_SPAN = [int]
_MESSAGE = {"role": frozenset(get_args(Role)), "content": str, "name?": (str, None)}
_CALL = {
    "name": str,
    "arguments": {},
    "status": frozenset(CallStatus),
    "content": str,
    "seconds": float,
    "error?": str,
    "span?": _SPAN,
    "token_span?": _SPAN,
}
_STEP = {
    "span": _SPAN,
    "text": str,
    "calls": [_CALL],
    "parts": {"call?": [_SPAN], "answer?": [_SPAN], "stop?": [_SPAN]},
    "truncated?": bool,
    "reply?": [_MESSAGE],
}
_GOLD = {"name": str, "arguments": {}, "refused?": bool}
_TEXT = (str, None)
_SHORTFALL = {
    "state": [{"path": str, "reached": _TEXT, "wanted": _TEXT}],
    "answers": [{"given": _TEXT, "wanted": _TEXT, "right": bool}],
}
_LINE = {
    "row": str,
    "step": (int, None),
    "attempt": int,
    "kind": str,
    "weights": str,
    "env_id": str,
    "task_id": str,
    "seed": int,
    "success": bool,
    "reward": float,
    "stop": frozenset(StopReason),
    "error": (str, None),
    "opening": [_MESSAGE],
    "steps": [_STEP],
    "first_step": int,
    "state_hash": str,
    "mask": [_SPAN],
    "tokens": str,
    "logprobs": str,
    "scores?": SHAPE,
    "env_digest?": str,
    "score?": float,
    "gold?": [[_GOLD]],
    "shortfall?": _SHORTFALL,
}
"""The shape of what `Played.to_dict` writes, as far as it is looked at."""
_fits = fitting(_LINE)


@functools.cache
def _version() -> str:
    return version("journeyman")


class EpisodeFile:
    """Episodes are appended to it and never changed; a kill costs at most the last line.

    What searches found of them since is in a file beside it, and is read with them.
    """

    def __init__(self, run: Path) -> None:
        """The file of a run folder; it need not exist yet."""
        self.path = run / EPISODES

    def append(self, played: Iterable[Played]) -> None:
        """Write episodes down.

        Raises:
            OSError: They could not be written.
        """
        mend(self.path)
        lines = "".join(_line(p.to_dict()) for p in played)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(lines)

    def read(self, wanted: Callable[[Mapping[str, Any]], bool] = lambda line: True) -> list[Played]:
        """The episodes in the order they were written, without a last line cut short by a kill.

        Args:
            wanted: Chooses lines, before the episode is made of one.

        Raises:
            RunFileError: A line is none that was written here.
        """
        return [played for _, played in self.numbered(wanted)]

    def numbered(
        self, wanted: Callable[[Mapping[str, Any]], bool] = lambda line: True
    ) -> Iterator[tuple[int, Played]]:
        """Like `read`, one by one as they are asked for, each with its line's number from 1."""
        lost = SearchFile(self.path.parent).read()
        for number, line in enumerate(self.lines(), 1):
            if wanted(line):
                played = self._played(number, line)
                if lost:
                    played = replace(played, lost=lost.get(episode_key(played.episode), ()))
                yield number, played

    def _played(self, number: int, line: Mapping[str, Any]) -> Played:
        try:
            return Played.from_dict(line)
        except (TypeError, ValueError) as error:
            raise RunFileError(
                f"{self.path}, line {number} is no episode ({error}): delete the line"
            ) from error

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines as they are on disk, without a last one cut short by a kill.

        Raises:
            RunFileError: A line is none that was written here, or one of a later version.
        """
        for number, line in enumerate(json_lines(self.path, {"format?": int}), 1):
            if not 1 <= line.get("format", 1) <= FORMAT:
                raise RunFileError(
                    f"{self.path}, line {number} has format {line['format']}, and this version of "
                    f"Journeyman reads 1 to {FORMAT}: it was written by version "
                    f"{line.get('version')!r}"
                )
            if not _fits(line) and (problem := misfit(line, _LINE)):
                raise RunFileError(f"{self.path}, line {number}: {problem}: delete the line")
            yield line

    def of_row(self, row: str, weights: str = "") -> dict[Place, Played]:
        """What a row's evaluation has played with these weights and infrastructure has not broken.

        Of two episodes in a place it is the later.
        """
        key = (row, None, weights)
        played = self.read(lambda line: (line["row"], line["step"], line["weights"]) == key)
        return {p.place: p for p in played if not p.broken}

    def forget_after(self, step: int) -> None:
        """Drop training episodes of later optimiser steps: a resumed run plays them again."""
        lines = list(self.lines())
        kept = [line for line in lines if line["step"] is None or line["step"] <= step]
        if len(kept) < len(lines):
            text = "".join(_line(line) for line in kept)
            write_atomically(self.path, text.encode())


def _line(record: Mapping[str, Any]) -> str:
    # Not every argument a model writes is JSON: some call syntaxes have sets.
    return json.dumps(record, separators=(",", ":"), default=str) + "\n"


def digest_of(episode: Episode) -> str:
    """What tells the code of an episode's environment from others; see `env_digest`.

    None of one that is not an environment's.
    """
    if episode.env_id == VISITED:
        return ""
    return env_digest(env_class(episode.env_id))


def kind_of(episode: Episode) -> str:
    """The kind of an episode's task; none of one that is not an environment's."""
    if episode.env_id == VISITED:
        return ""
    return _kind(env_class(episode.env_id).load_task, episode.task_id)


@functools.lru_cache(maxsize=1 << 16)
def _kind(load: Callable[[str], Task], task_id: str) -> str:
    # Every row plays the same tasks, and to make one is a third of playing a script through it.
    return load(task_id).kind


def metrics_of(played: Sequence[Played], chosen: Mapping[str, Measure] = NO_MEASURES) -> Metrics:
    """The figures of one row; `chosen` are broken down by groups of tasks too."""
    kinds = {(p.episode.env_id, p.episode.task_id): p.kind for p in played}
    attempts = len({p.attempt for p in played}) or 1
    return summarise([p.episode for p in played], kinds, attempts, chosen)


def rows_of(played: Iterable[Played]) -> dict[str, list[Played]]:
    """Episodes by row, in the order of the rows' first lines.

    Where an evaluation played one again, because infrastructure had broken it, the last one counts;
    where the model had other weights by then, only what the last ones played.
    """
    rows: dict[str, dict[object, Played]] = {}
    for i, p in enumerate(played):
        row = rows.setdefault(p.row, {})
        if p.step is None and row and next(reversed(row.values())).weights != p.weights:
            row.clear()
        row[p.place if p.step is None else i] = p
    return {row: list(places.values()) for row, places in rows.items()}


def find_run(name: str) -> Path:
    """A run folder by its path, or by its name under `runs/`.

    Raises:
        RunDirError: No such folder, or nothing was played in it; or it holds a sweep's runs.
    """
    runs = find_runs(name)
    if len(runs) > 1:
        raise RunDirError(f"{name} holds several runs: name one, such as {runs[0]}")
    return runs[0]


def find_runs(name: str) -> list[Path]:
    """Like `find_run`, or the runs in the folder of a sweep.

    Raises:
        RunDirError: No such folder, or nothing was played in it.
    """
    folder = next((f for f in (Path(name), Path("runs") / name) if f.is_dir()), None)
    if folder is None:
        raise RunDirError(f"no run folder {name!r}, nor {Path('runs') / name}")
    runs = [folder] if (folder / EPISODES).exists() else []
    runs = runs or sorted(file.parent for file in folder.rglob(EPISODES))
    if not runs:
        raise RunDirError(
            f"{folder} has no {EPISODES}: expected the folder of a run of `journeyman train` or "
            f"`journeyman eval`"
        )
    return runs
