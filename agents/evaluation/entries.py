"""Run folders as entries of a comparison: the rows of runs, and of sweeps whose seeds are one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from journeyman.agents.errors import RunDirError
from journeyman.agents.evaluation.comparison import SUCCESS, Amounts, Entry, Outcomes
from journeyman.agents.evaluation.counting import Parts
from journeyman.agents.evaluation.files import folder_name, folder_text, read_config
from journeyman.agents.evaluation.measures import Measure
from journeyman.agents.evaluation.metrics import TaskKey
from journeyman.agents.evaluation.records import TRAINING, UNJUDGED, EpisodeFile, Played, find_runs
from journeyman.envs import StopReason

NO_RESULTS = (TRAINING, UNJUDGED)
"""Rows whose success says nothing; they are compared only if they are named."""
UNASKED = ("no-op", "oracle", *NO_RESULTS)
"""Likewise, where all rows of models are asked for."""


def read_entries(
    argument: str,
    wanted: Mapping[str, Measure] | None = None,
    every_row: bool = False,
    known: dict[Path, RunRows] | None = None,
) -> list[Entry]:
    """The rows of a run folder, or of the runs in a sweep's folder.

    Args:
        argument: `RUN` (all rows but `UNASKED`) or `RUN:ROW`. Of a sweep's runs one can be named as
            tables name it: `SWEEP/OVERRIDES`.
        wanted: Measures by name, beside the success.
        every_row: `RUN` has the no-op and the oracle too.
        known: What was read for other arguments, with the same measures; more is added to it.

    Raises:
        RunDirError: No such run or row.
    """
    known = {} if known is None else known
    groups, row = _asked(argument)
    measures = [it for it in (wanted or {}).values() if it.name != SUCCESS]
    left_out = NO_RESULTS if every_row else UNASKED
    entries = []
    for label, runs in groups.items():
        for run in runs.values():
            known[run] = known.get(run) or RunRows(run, measures)
        read = {seed: known[run] for seed, run in sorted(runs.items())}
        rows = list(dict.fromkeys(r for it in read.values() for r in it.rows))
        if row is not None and row not in rows:
            raise RunDirError(f"{label} has no row {row!r}; it has {', '.join(rows)}")
        kinds = {task: kind for it in read.values() for task, kind in it.kinds.items()}
        for r in [r for r in rows if r not in left_out] if row is None else [row]:
            played = {seed: it.rows[r] for seed, it in read.items() if r in it.rows}
            seeds = {seed: outcomes for seed, it in played.items() if (outcomes := it.outcomes())}
            if not seeds:
                continue
            amounts = {
                measure.name: Amounts(
                    {seed: played[seed].sums(i) for seed in seeds},
                    all(played[seed].binary[i] for seed in seeds),
                )
                for i, measure in enumerate(measures)
            }
            folders = tuple(runs[seed] for seed in seeds)
            broken = frozenset().union(*(it.broken for it in played.values()))
            entry = Entry(label, r, seeds, kinds, amounts, folders, broken)
            if not entry.tasks:
                raise RunDirError(
                    f"{entry.label}: its {len(seeds)} seeds have no task in common: name one run"
                )
            entries.append(entry)
    if not entries:
        raise RunDirError(f"{argument}: nothing was evaluated there yet")
    return entries


def _asked(argument: str) -> tuple[dict[str, dict[int, Path]], str | None]:
    """The runs that an argument names, and the row if it names one."""
    whole = argument.rstrip("/")
    name, colon, row = whole.rpartition(":")
    name = name.rstrip("/")
    if _is_folder(whole):
        return _seed_groups(whole), None
    if colon and _is_folder(name):
        return _seed_groups(name), row
    if labelled := _labelled(whole):
        return labelled, None
    if colon and (labelled := _labelled(name)):
        return labelled, row
    return _seed_groups(name if colon else whole), row if colon else None  # says what is missing


def _labelled(name: str) -> dict[str, dict[int, Path]]:
    """Runs of a sweep by the label that tables give them, or by what they override."""
    parts = name.split("/")
    for i in range(1, len(parts)):
        sweep, label = "/".join(parts[:i]), "/".join(parts[i:])
        if "=" not in label or not _is_folder(sweep):
            continue
        if _is_folder(folder := f"{sweep}/{folder_name(label)}"):
            (runs,) = _seed_groups(folder).values()
            return {name: runs}
        groups = _seed_groups(sweep)
        if name in groups:
            return {name: groups[name]}
    return {}


def _is_folder(name: str) -> bool:
    return any(folder.is_dir() for folder in _places(name))


def _places(name: str) -> tuple[Path, Path]:
    return Path(name), Path("runs") / name


def _seed_groups(name: str) -> dict[str, dict[int, Path]]:
    """Runs by label and seed: those whose configs differ by the seed alone are together."""
    groups: defaultdict[str, dict[int, Path]] = defaultdict(dict)
    for run in find_runs(name):
        config = read_config(run)
        groups[repr(_settings(config))][config["seed"]] = run
    if len(groups) == 1:
        return dict(zip([name], groups.values(), strict=True))
    # A sweep's folders are named after what their runs override, such as `credit=trace,seed=1`.
    runs = list(groups.values())
    names = [_overrides(name, next(iter(of_seeds.values()))) for of_seeds in runs]
    shared = set.intersection(*map(set, names))
    labels = [",".join(part for part in parts if part not in shared) for parts in names]
    if len(set(labels)) < len(labels):  # names of the user's own, say
        labels = [",".join(parts) for parts in names]
    return {f"{name}/{label}": of_seeds for label, of_seeds in zip(labels, runs, strict=True)}


def _overrides(sweep: str, run: Path) -> list[str]:
    """What a run of a sweep overrides, beside its seed, by the name of its folder."""
    folder = next(f for f in _places(sweep) if run.is_relative_to(f))
    parts = folder_text(str(run.relative_to(folder))).split(",")
    return [part for part in parts if not part.startswith("seed=")]


def _settings(config: Any) -> Any:
    """A config without what differs between seeds."""
    if isinstance(config, dict):
        varying = ("seed", "run_dir", "output_dir")
        return {k: _settings(v) for k, v in config.items() if k not in varying}
    return config


class _Line(NamedTuple):
    """What is read of an episode."""

    row: str
    weights: str
    task: TaskKey
    attempt: int
    kind: str
    trained: bool
    """Played to be learned from."""
    broken: bool
    """By infrastructure."""
    success: bool
    parts: tuple[Parts | None, ...]


class _Row:
    """What a row's last weights played; of two episodes in a place the last counts."""

    def __init__(self, weights: str, measures: int) -> None:
        self.weights = weights
        self.binary = [True] * measures
        self.broken: set[TaskKey] = set()
        self._played: dict[tuple[TaskKey, int], _Line] = {}

    def add(self, line: _Line) -> None:
        if line.broken:
            self.broken.add(line.task)
            return
        self._played[line.task, line.attempt] = line
        for i, parts in enumerate(line.parts):
            self.binary[i] &= parts is None or (parts[1] == 1 and parts[0] in (0, 1))

    def outcomes(self) -> Outcomes:
        found: defaultdict[TaskKey, list[bool]] = defaultdict(list)
        for line in self._played.values():
            found[line.task].append(line.success)
        return {task: fmean(known) for task, known in found.items()}

    def sums(self, measure: int) -> dict[TaskKey, Parts]:
        found: dict[TaskKey, Parts] = {}
        for line in self._played.values():
            if parts := line.parts[measure]:
                above, below = found.get(line.task, (0.0, 0.0))
                found[line.task] = above + parts[0], below + parts[1]
        return found


class RunRows:
    """The rows of one run folder, by name, and its tasks' kinds."""

    def __init__(self, folder: Path, measures: Sequence[Measure]) -> None:
        """Read them.

        Raises:
            RunFileError: A line is none that was written there.
        """
        self.rows: dict[str, _Row] = {}
        self.kinds: dict[TaskKey, str] = {}
        for line in _lines(EpisodeFile(folder), measures):
            self.kinds[line.task] = line.kind
            if line.trained:
                continue
            known = self.rows.get(line.row)
            if known is None or known.weights != line.weights:
                # Another model's: what the one before solved is not this one's.
                self.rows[line.row] = _Row(line.weights, len(measures))
            self.rows[line.row].add(line)


def _lines(file: EpisodeFile, measures: Sequence[Measure]) -> Iterator[_Line]:
    """A file's episodes; for the success alone none is made of its line."""
    if measures:
        yield from (_of_played(played, measures) for _, played in file.numbered())
        return
    for line in file.lines():
        yield _Line(
            line["row"],
            line["weights"],
            (line["env_id"], line["task_id"]),
            line["attempt"],
            line["kind"],
            line["step"] is not None,
            line["stop"] == StopReason.INFRA_ERROR,
            line["success"],
            (),
        )


def _of_played(played: Played, measures: Sequence[Measure]) -> _Line:
    episode = played.episode
    unseen = played.step is not None or played.broken
    return _Line(
        played.row,
        played.weights,
        (episode.env_id, episode.task_id),
        played.attempt,
        played.kind,
        played.step is not None,
        played.broken,
        episode.success,
        () if unseen else tuple(measure.of(episode) for measure in measures),
    )
