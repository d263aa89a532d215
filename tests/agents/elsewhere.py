"""A station in a process of its own, which shares nothing with this one but a folder."""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.rollouts.workers.errands import Errand, Ledger, restored
from journeyman.agents.rollouts.workers.parcels import Parcel
from journeyman.envs import Episode

CHILD = """
import os, pickle, sys
from journeyman.agents.rollouts.workers.station import Station

out = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # what is printed is no answer

def say(*words):
    pickle.dump(words, out)
    out.flush()

def get(path):
    with open(path, "rb") as file:
        return pickle.load(file)

station = Station(sys.argv[1], get, threads=1)
say("ready")
while True:
    try:
        kind, what = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    try:
        if kind == "play":
            for played in station.play(pickle.loads(what)):
                say("played", played)
        else:
            station.release(what)
        say("end", {
            "received": station.unpacker.received,
            "layers": sorted(station.unpacker.layers),
            "kept": station.kept,
            "pid": os.getpid(),
            "ticks": station.occupancy.ticks,
        })
    except Exception as error:
        say("raised", error)
"""


class Shelf:
    """Files in place of an object store: `put` writes one, and gives its path."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count()

    def put(self, it: Any) -> str:
        path = self._folder / str(next(self._numbers))
        path.write_bytes(pickle.dumps(it))
        return str(path)


@dataclass
class Answer:
    episodes: list[Episode]
    """In the order of the tasks."""
    versions: set[int]
    order: list[int]
    """Indices of tasks as they ended."""
    size: int
    """Bytes that came back."""


class Elsewhere:
    """Starts at once; `ready` waits for it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.facts: dict[str, Any] = {}
        """Of the station, after the last answer."""
        self.ledger = Ledger()
        folder.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,  # modules are found from anywhere
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )

    def ready(self) -> "Elsewhere":
        assert self._heard() == ("ready",)
        return self

    def play(self, parcel: Parcel, tasks: Sequence[TaskRef | Fork], **how: Any) -> Answer:
        """What `rollout` would give."""
        return self.run(Errand.of(parcel, tasks, **how), tasks)

    def run(self, errand: Errand, tasks: Sequence[TaskRef | Fork]) -> Answer:
        self._say("play", pickle.dumps(errand))
        found = []
        while (words := self._heard())[0] == "played":
            found.append(words[1])
        self._end(words)
        episodes = {it.index: restored(tasks[it.index], it, self.ledger) for it in found}
        assert len(episodes) == len(found)
        return Answer(
            [episodes[i] for i in sorted(episodes)],
            {it.version for it in found},
            [it.index for it in found],
            sum(len(it.episode) for it in found),
        )

    def release(self, keys: Sequence[str] | None) -> None:
        self._say("release", keys)
        self._end(self._heard())

    def _end(self, words: tuple[Any, ...]) -> None:
        if words[0] == "raised":
            raise words[1]
        self.facts = words[1]

    def _say(self, *words: Any) -> None:
        assert self._process.stdin is not None
        pickle.dump(words, self._process.stdin)
        self._process.stdin.flush()

    def _heard(self) -> tuple[Any, ...]:
        assert self._process.stdout is not None
        heard: tuple[Any, ...] = pickle.load(self._process.stdout)
        return heard

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.communicate()
