"""What a driver does with the results that workers send, on a clock; and what is sent, in bytes."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from journeyman.agents.evaluation.records import EpisodeFile, Played, digest_of, kind_of
from journeyman.agents.evaluation.stored import StoredEpisode
from journeyman.agents.networks.adapters import begin
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.rollouts.workers.errands import Errand
from journeyman.agents.rollouts.workers.parcels import Packer
from journeyman.agents.students.hf import HFPlayer, alike, load_student
from journeyman.agents.students.scripted import load_oracle
from journeyman.envs import Episode
from journeyman.sandbox import Sandbox, SandboxError


def resident() -> float:
    """MB of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Book:
    """What an evaluation does with a result, on a clock; and how much memory there is by then."""

    def __init__(self, folder: Path, looks: Sequence[int]) -> None:
        """A new run folder."""
        folder.mkdir()
        self.file = EpisodeFile(folder)
        self.seconds: Counter[str] = Counter()
        self.memory: dict[int, float] = {}
        self._looks = looks
        self._count = 0

    def take(self, place: int, data: bytes) -> tuple[str, int, bool]:
        """Unpickle an episode, and write it down."""
        at = [time.process_time()]

        def lap(name: str) -> None:
            at.append(time.process_time())
            self.seconds[name] += at[-1] - at[-2]

        episode: Episode = pickle.loads(data)
        lap("unpickle")
        stored = StoredEpisode.of(episode)
        lap("pack its tokens")
        kind, digest = kind_of(stored), digest_of(stored)
        lap("make its task, for its kind")
        self.file.append([Played("student", stored, kind, env_digest=digest)])
        lap("write its line")
        self._count += 1
        if self._count in self._looks:
            self.memory[self._count] = resident()
        return episode.task_id, episode.seed, episode.success


def as_sent(templates: Mapping[str, Sequence[bytes]], ref: TaskRef) -> bytes:
    """What a worker sends of a task: a real episode of its environment, under the task's name."""
    found = templates[ref.env_id]
    episode: Episode = pickle.loads(found[ref.seed % len(found)])
    named = replace(episode, task_id=ref.task_id, seed=ref.seed)
    return pickle.dumps(named, pickle.HIGHEST_PROTOCOL)


def lengthened(episode: Episode, tokens: int) -> Episode:
    """An episode with so many tokens, all of them chosen, as unlike each other as tokens are."""
    dice = random.Random(0)
    return replace(
        episode,
        tokens=tuple(dice.randrange(150_000) for _ in range(tokens)),
        logprobs=tuple(-dice.expovariate(2.0) for _ in range(tokens)),
        mask=(True,) * tokens,
    )


def handled(episodes: Sequence[Episode], repeats: int, folder: Path) -> dict[str, float]:
    """Milliseconds and bytes of episodes that a driver takes, on average."""
    sent = [pickle.dumps(it, pickle.HIGHEST_PROTOCOL) for it in episodes]
    book = Book(folder, ())
    for i in range(repeats):
        book.take(i, sent[i % len(sent)])
    return {
        "tokens": sum(len(it.tokens) for it in episodes) / len(episodes),
        "ms": 1000 * book.seconds.total() / repeats,
        "bytes": sum(map(len, sent)) / len(sent),
        "bytes on disk": book.file.path.stat().st_size / repeats,
    }


def pushes() -> dict[str, float]:
    """Bytes: of the weights of the embedded student and of adapters, when all have changed."""
    told = {}
    player = load_student("embedded-student")
    lora = {f"LoRA of rank {r}": {"r": r, "target_modules": "all-linear"} for r in (8, 32)}
    for name, settings in {"all weights": None, **lora}.items():
        model = load_student("embedded-student").model if settings else player.model
        plays: HFPlayer = player if settings is None else alike(player, begin(model, settings))
        packer = Packer()
        packer.pack(plays)
        before = packer.pushed
        for weights in plays.model.parameters():
            if weights.requires_grad or settings is None:
                weights.data += 1
        packer.pack(plays)
        told[name] = packer.pushed - before
    told["parameters"] = sum(it.numel() for it in player.model.parameters())
    return told


def handing(refs: Sequence[TaskRef]) -> dict[str, float]:
    """Bytes of a lease: what each has, and what each task in it adds."""
    parcel = Packer().pack(load_oracle())
    sizes = {n: len(pickle.dumps(Errand.of(parcel, refs[:n]))) for n in (1, len(refs))}
    slope = (sizes[len(refs)] - sizes[1]) / (len(refs) - 1)
    return {"a lease, without its tasks": sizes[1] - slope, "each task of it": slope}


def session_mb(count: int) -> float | None:
    """MB that a live session of the namespace sandbox takes, shared pages in proportion.

    None where there is no such sandbox, or its memory cannot be read: that takes root.
    """
    try:
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(Sandbox().session()) for _ in range(count)]
            for session in sessions:
                session.exec("x = 0")
            roots = [it.container.worker.process.pid for it in sessions]  # type: ignore[attr-defined]
            return sum(map(_proportional_kb, roots)) / count / 1000
    except (SandboxError, PermissionError):
        return None


def _proportional_kb(pid: int) -> int:
    """Memory of a process and of all below it."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    own = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(_proportional_kb(int(child)) for child in children)
