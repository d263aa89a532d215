"""A run's folder: whose it is, what may be written there, and where a figure was measured."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import itertools
import json
import os
import platform
import shutil
import weakref
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from journeyman.agents.errors import DiskFullError, RunDirError
from journeyman.agents.evaluation.files import read_config
from journeyman.agents.evaluation.records import EpisodeFile
from journeyman.agents.evaluation.report import write_atomically
from journeyman.agents.learning.trainers.callbacks import complete, read_metrics
from journeyman.agents.runs.provenance import environments

WORK = ("metrics.jsonl", "summary.json", "table.txt")
"""Files that a run folder is not given to another run for, unless they are empty."""
LEFT = ("episodes.jsonl", "searches.jsonl", "summary.json", "plot.png")
"""Files that would be taken for this run's if one with another config left them."""
COLLECTED = "conversations.jsonl"
"""What `journeyman collect` leaves to learn from."""
PACKAGES = ("journeyman", "torch", "transformers", "trl", "gymnasium", "hydra-core", "numpy")


class RunFolder:
    """One run's files: its config, versions and whatever the job writes."""

    def __init__(
        self,
        config: DictConfig,
        first: bool = True,
        replaces: bool = False,
        keeps: Sequence[str] = (),
    ) -> None:
        """Open or make the folder; set threads and seed.

        Nothing is written yet: a mistake that shows before `claim` leaves the folder free. Other
        processes are kept out for as long as this object lives.

        Args:
            config: The run's, as it was composed.
            first: This process writes; the other processes of a job share its folder.
            replaces: An earlier evaluation makes room for this one, whatever its config: it can be
                had again. What was trained or collected is kept.
            keeps: Further files that the folder is not given to another run for.

        Raises:
            RunDirError: The folder holds a run with another config, or one that is at work.
            RunFileError: It holds this run, and a file of it is damaged.
        """
        self._replaces = replaces
        self._kept = (*WORK, *keeps)
        self.path = Path(config.run_dir)
        self.path.mkdir(parents=True, exist_ok=True)
        self._first = first
        if first:
            self._lock()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self._text = OmegaConf.to_yaml(_decisive(config), resolve=True)
        self._env_ids = tuple(OmegaConf.select(config, "env.ids") or ())
        self._check_config()

    def finished(self) -> bool:
        """True if the run has come to its table, which is then shown."""
        report = self.path / "table.txt"
        if report.exists() and self._first:
            known = report.read_text(errors="replace")
            print(f"{self.path} is finished; delete it to run anew.\n\n{known}")
        return report.exists()

    def claim(self) -> None:
        """Write config and versions: from here on the folder belongs to this run."""
        if not self._first:
            return
        path = self.path / "config.yaml"
        if path.exists() and path.read_bytes() != self._text.encode():
            for name in LEFT:
                (self.path / name).unlink(missing_ok=True)
        write_atomically(path, self._text.encode())
        told = {**machine(), "environments": environments(self._env_ids)}
        write_atomically(self.path / "machine.json", json.dumps(told, indent=2).encode())

    def _lock(self) -> None:
        """Two runs in a folder would delete each other's checkpoints; a killed one's lock is free.

        The processes of one job share their folder: the first of them locks it.
        """
        file = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirError(
                f"{self.path}: another run is at work there; wait for it, or choose name=…"
            ) from error

    def _check_config(self) -> None:
        path = self.path / "config.yaml"
        if not path.exists():
            return
        known, text = path.read_bytes().decode(errors="replace"), self._text
        if known == text:
            self._check_files()
        elif not self._holds_work():
            return
        elif not self._replaces or self._is_kept():
            pairs = itertools.zip_longest(
                known.splitlines(), text.splitlines(), fillvalue="nothing"
            )
            old, new = next((o, n) for o, n in pairs if o != n)
            raise RunDirError(
                f"{self.path} holds a run with another config (there {old.strip()[:80]!r}, now "
                f"{new.strip()[:80]!r}): choose another name=… (or run_dir=…), or delete the folder"
            )

    def _check_files(self) -> None:
        """See that what is there can be gone on with, before anything is loaded.

        Raises:
            RunFileError: A file holds something else than a run wrote.
        """
        read_metrics(self.path / "metrics.jsonl")
        for _ in EpisodeFile(self.path).lines():
            pass

    def _is_kept(self) -> bool:
        """True of what an evaluation does not make room in."""
        return (self.path / COLLECTED).exists() or "trainer" in read_config(self.path)

    def _holds_work(self) -> bool:
        """False if whatever was started here failed before it did anything."""
        files = (self.path / name for name in self._kept)
        return any(file.exists() and file.stat().st_size > 0 for file in files) or bool(
            complete(self.path / "checkpoints")
        )

    def need_space(self, size: int) -> None:
        """Check that the folder can grow to `size` bytes; what it holds already counts.

        Raises:
            DiskFullError: It cannot.
        """
        if not self._first:  # what it holds changes while the first process writes
            return
        held = sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
        room = shutil.disk_usage(self.path).free + held
        if room < size:
            raise DiskFullError(
                f"the disk is full: {self.path} needs about {_megabytes(size)} for checkpoints and "
                f"has room for {_megabytes(room)}: choose another run_dir=… or make room"
            )


def _decisive(config: DictConfig) -> DictConfig:
    """A config without where episodes are played, which changes nothing that comes of them.

    How old the weights may be that play them does.
    """
    found = OmegaConf.masked_copy(config, [str(name) for name in config if name != "rollouts"])
    names = ("_target_", "staleness")
    if OmegaConf.select(config, "rollouts.staleness"):
        found.rollouts = {name: config.rollouts[name] for name in names}
    return found


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MB"


@contextlib.contextmanager
def explaining_full_disk(run: Path) -> Iterator[None]:
    """Say in one line that a write into a run folder failed for want of space.

    Raises:
        DiskFullError: The disk filled up; what was whole before is whole still.
    """
    try:
        yield
    except Exception as error:
        # Each library raises a type of its own. safetensors names the cause and takes its half file
        # away; torch leaves the half file and no cause.
        told = os.strerror(errno.ENOSPC) in str(error)
        if not told and shutil.disk_usage(run).free >= 1 << 20:
            raise
        raise DiskFullError(
            f"{run}: the disk is full; make room and run the same command to go on"
        ) from error


def machine() -> dict[str, Any]:
    """Where and with what a figure was measured."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {name: version(name) for name in PACKAGES},
    }
