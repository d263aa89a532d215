"""What `train` and `eval` share: the Hydra application, the run folder, evaluation rows."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import hashlib
import itertools
import json
import os
import platform
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from journeyman.agents.errors import DiskFullError, RunDirError, UserError
from journeyman.agents.evaluation.metrics import Metrics
from journeyman.agents.evaluation.records import (
    EpisodeFile,
    Played,
    kind_of,
    metrics_of,
)
from journeyman.agents.evaluation.report import write_atomically
from journeyman.agents.learning.trainers.callbacks import complete
from journeyman.agents.rollouts.rollout import TaskRef, rollout
from journeyman.agents.search.playing import SearchPolicy
from journeyman.agents.students.hf import HFPolicy
from journeyman.agents.students.player import Policy
from journeyman.envs import constructor_arguments, env_class, env_ids, make_for_run
from journeyman.envs.errors import UnknownTaskError
from journeyman.envs.types import SPLITS

WHOLE_NUMBERS = {
    "seed": 0,
    "threads": 1,
    "first_task": 0,
    "evaluation.tasks": 0,
    "evaluation.batch_size": 1,
    "student.max_turn_tokens": 1,
    "student.max_context": 1,
    "teacher.batch_size": 1,
    "trainer.rollout_batch": 1,
    "trainer.steps_per_generation": 1,
    "trainer.num_iterations": 1,
    "trainer.args.per_device_train_batch_size": 1,
    "trainer.args.gradient_accumulation_steps": 1,
}
"""Places in a config -> the least number there, if the config has the place."""
OPTIONAL = ("threads", "student.max_context")
"""Those that may be null."""
TEMPERATURES = ("student.temperature", "evaluation.temperature")
WORK = ("metrics.jsonl", "summary.json", "table.txt")
"""Files that a run folder is not given to another run for, unless they are empty."""
LEFT = ("episodes.jsonl", "summary.json", "plot.png")
"""Files that would be taken for this run's if one with another config left them."""
PACKAGES = ("journeyman", "torch", "transformers", "trl", "gymnasium", "hydra-core", "numpy")


def run_app(config_name: str, job: Callable[[DictConfig], object], argv: Sequence[str]) -> None:
    """Run a job as a Hydra application.

    Args:
        config_name: Root config in `journeyman.conf`.
        job: Called with the composed config, once a run of a sweep.
        argv: Overrides and Hydra's own flags.

    Raises:
        Exception: Whatever the job raises, and Hydra's errors, for the command line to print.
    """
    offer_environments()
    _check_env_choice(argv)
    disable_progress_bar()  # transformers' own, one for each file it reads or writes
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise instead of printing and exiting
    sys.argv = [f"journeyman {config_name}", *argv]
    OmegaConf.register_new_resolver("groups", _list_groups, replace=True)

    def run(config: DictConfig) -> object:
        if HydraConfig.get().mode is RunMode.MULTIRUN:  # every run of a sweep has its own folder
            config.run_dir = HydraConfig.get().runtime.output_dir
        return job(config)

    hydra.main(version_base="1.3", config_path="pkg://journeyman.conf", config_name=config_name)(
        run
    )()


def offer_environments() -> None:
    """Make every registered environment an option of the config group `env`, under its id."""
    store = ConfigStore.instance()
    for env_id in env_ids():
        namespace, _, name = env_id.rpartition("/")
        group = f"env/{namespace}" if namespace else "env"
        store.store(group=group, name=name, node={"ids": [env_id], "kwargs": {}})


def _check_env_choice(argv: Sequence[str]) -> None:
    """Check `env=<id>` before Hydra does, which would list the options of the wrong group.

    Raises:
        UnknownEnvError: No environment of that id; the message suggests the nearest.
    """
    for override in argv:
        group, _, choices = override.partition("=")
        for choice in choices.split(",") if group == "env" else ():
            if "/" in choice:
                env_class(choice)


def _list_groups(*names: str) -> str:
    """The options of some config groups, for `--help` (all are listed if nobody chooses)."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return hydra.format_config_groups(lambda group: group.partition("/")[0] in names)


def check(config: DictConfig) -> None:
    """Check what a config says in numbers, before anything is made or loaded.

    Raises:
        UserError: A number is no number, or out of its range.
    """
    for place, least in WHOLE_NUMBERS.items():
        value = OmegaConf.select(config, place, default=least)
        if value is None and place in OPTIONAL:
            continue
        if type(value) is not int or value < least:
            raise UserError(f"{place}={value}: expected a whole number, {least} or more")
    for place in TEMPERATURES:
        value = OmegaConf.select(config, place, default=0)
        if type(value) not in (int, float) or not 0 <= value < float("inf"):
            raise UserError(f"{place}={value}: expected a number, 0 or more")
    if "trainer" not in config:
        return
    for field in dataclasses.fields(get_class(config.trainer.args._target_)):
        value = config.trainer.args.get(field.name)
        if type(field.default) in (int, float) and isinstance(value, str):
            raise UserError(f"trainer.args.{field.name}={value}: expected a number")


def env_kwargs(config: DictConfig) -> dict[str, Any]:
    """What a config says to the constructors of its environments; see `make_for_run`."""
    kwargs = OmegaConf.to_container(config.env.kwargs)
    assert isinstance(kwargs, dict)
    if config.get("sandbox"):
        kwargs["sandbox"] = instantiate(config.sandbox)
    return {str(name): value for name, value in kwargs.items()}


def check_environments(config: DictConfig) -> None:
    """Check that each environment can be made as the config says, and that the sandbox opens.

    Raises:
        UserError: There is no environment, an environment takes no such argument or value, or
            none takes the sandbox.
        UnknownEnvError: No environment of that id.
        SandboxError: The sandbox cannot be opened on this machine.
    """
    ids, kwargs = list(config.env.ids), env_kwargs(config)
    if not ids:
        raise UserError("env.ids is empty: expected at least one environment")
    for env_id in ids:
        taken = constructor_arguments(env_id)
        for name in kwargs:
            if name not in taken and name != "sandbox":
                raise UserError(
                    f"env.kwargs.{name}: {env_id} takes no {name!r}; it takes: {', '.join(taken)}"
                )
        try:
            make_for_run(env_id, kwargs).close()
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"env.kwargs: {env_id}: {error}") from error
    if not config.get("sandbox"):
        return
    if not any("sandbox" in constructor_arguments(env_id) for env_id in ids):
        raise UserError(
            f"sandbox={config.sandbox.backend}: no environment of this run ({', '.join(ids)}) runs "
            f"code in a sandbox: leave it out"
        )
    kwargs["sandbox"].session().close()  # what is missing shows now, not in every episode


class RunFolder:
    """One run's files: its config, versions and whatever the job writes."""

    def __init__(self, config: DictConfig, replaces: bool = False) -> None:
        """Open or make the folder; set threads and seed.

        Nothing is written yet: a mistake that shows before `claim` leaves the folder free. Other
        processes are kept out for as long as this object lives.

        Args:
            config: The run's.
            replaces: An earlier evaluation makes room for this one, whatever its config: it can be
                had again. What was trained is kept.

        Raises:
            RunDirError: The folder holds a run with another config, or one that is at work.
        """
        self._replaces = replaces
        self.path = Path(config.run_dir)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self._text = OmegaConf.to_yaml(config, resolve=True)
        self._check_config()

    def claim(self) -> None:
        """Write config and versions: from here on the folder belongs to this run."""
        path = self.path / "config.yaml"
        if path.exists() and path.read_text() != self._text:
            for name in LEFT:
                (self.path / name).unlink(missing_ok=True)
        write_atomically(path, self._text.encode())
        write_atomically(self.path / "machine.json", json.dumps(machine(), indent=2).encode())

    def _lock(self) -> None:
        """Two runs in a folder would delete each other's checkpoints; a killed one's lock is free.

        The processes of one job share their folder: the first of them locks it.
        """
        if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) > 0:
            return
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
        if not path.exists() or not self._holds_work():
            return
        known, text = path.read_text(), self._text
        if self._replaces and "trainer" not in OmegaConf.create(known):
            return
        if known != text:
            pairs = itertools.zip_longest(
                known.splitlines(), text.splitlines(), fillvalue="nothing"
            )
            old, new = next((o, n) for o, n in pairs if o != n)
            raise RunDirError(
                f"{self.path} holds a run with another config (there {old.strip()!r}, now "
                f"{new.strip()!r}): choose another name=… (or run_dir=…), or delete the folder"
            )

    def _holds_work(self) -> bool:
        """False if whatever was started here failed before it did anything."""
        files = (self.path / name for name in WORK)
        return any(file.exists() and file.stat().st_size > 0 for file in files) or bool(
            complete(self.path / "checkpoints")
        )

    def need_space(self, size: int) -> None:
        """Check that the folder can grow to `size` bytes; what it holds already counts.

        Raises:
            DiskFullError: It cannot.
        """
        held = sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
        room = shutil.disk_usage(self.path).free + held
        if room < size:
            raise DiskFullError(
                f"the disk is full: {self.path} needs about {_megabytes(size)} for checkpoints and "
                f"has room for {_megabytes(room)}: choose another run_dir=… or make room"
            )


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


def deal(ids: Sequence[str], split: str, first: int, count: int, seed: int = 0) -> list[TaskRef]:
    """Tasks dealt over environments in turn: the i-th task of each is "<split>/<first + i>".

    Raises:
        UnknownEnvError: No environment of that id.
        UnknownTaskError: An environment has no such split, or fewer tasks in it.
    """
    for env_id in ids:
        tasks = env_class(env_id).tasks
        if next(tasks(split), None) is None:
            others = ", ".join(s for s in SPLITS if next(tasks(s), None) is not None)
            raise UnknownTaskError(f"{env_id} has no {split} tasks, only {others} tasks")
    refs = [
        TaskRef(ids[i % len(ids)], f"{split}/{first + i // len(ids)}", seed + i)
        for i in range(count)
    ]
    for ref in refs[-len(ids) :]:  # the last of each environment: some have few tasks
        try:
            env_class(ref.env_id).load_task(ref.task_id)
        except UnknownTaskError as error:
            raise UnknownTaskError(f"{ref.env_id} cannot give so many tasks: {error}") from error
    return refs


def evaluate(name: str, policy: Policy, config: DictConfig) -> Metrics:
    """Play the evaluation tasks of a config with a policy, under a progress bar.

    Episodes go to the run folder batch by batch. What is there already, from a run that was cut
    short, is not played again, unless infrastructure broke it or other weights played it.

    Args:
        name: The policy's row in the table.
        policy: What plays.
        config: Of the run.

    Raises:
        UserError: Several attempts are asked for that would be alike.
    """
    options = config.evaluation
    run = Path(config.run_dir)
    file = EpisodeFile(run)
    weights = _fingerprint(policy)
    known = file.of_row(name, weights)
    tasks = attempts(config)
    if known:
        there = f"{len(known)} of {len(tasks)} episodes are in {file.path}"
        print(f"{name}: {there}: delete it to play anew")
    kwargs = env_kwargs(config)
    with tqdm(total=len(tasks), desc=name, unit="task", mininterval=1.0) as bar:
        # The batches are the same however often the run was cut short: rounding depends on them.
        for start in range(0, len(tasks), options.batch_size):
            batch = tasks[start : start + options.batch_size]
            rest = [(ref, n) for ref, n in batch if (ref.env_id, ref.task_id, n) not in known]
            bar.update(len(batch) - len(rest))
            if not rest:
                continue
            refs = [ref for ref, _ in rest]
            episodes = rollout(policy, refs, options.batch_size, kwargs, bar.update)
            played = [
                Played(name, e, kind_of(e), n, weights=weights)
                for e, (_, n) in zip(episodes, rest, strict=True)
            ]
            with explaining_full_disk(run):
                file.append(played)
            known.update((p.place, p) for p in played)
    return metrics_of([known[ref.env_id, ref.task_id, n] for ref, n in tasks])


def attempts(config: DictConfig) -> list[tuple[TaskRef, int]]:
    """What an evaluation plays: every task, as often as the config says, with the attempt's number.

    Raises:
        UserError: No attempts; or several that would be alike, for want of dice.
    """
    options = config.evaluation
    count = options.attempts
    if not isinstance(count, int) or count < 1:
        raise UserError(f"evaluation.attempts={count}: expected a whole number above zero")
    if count > 1 and options.temperature == 0:
        raise UserError(
            f"evaluation.attempts={count} at evaluation.temperature=0: all attempts of a task "
            f"would be alike; set evaluation.temperature (say 0.7), or attempts=1"
        )
    tasks = deal(list(config.env.ids), options.split, 0, options.tasks, config.seed)
    return [
        (task if n == 0 else dataclasses.replace(task, seed=_attempt_seed(task.seed, n)), n)
        for n in range(count)
        for task in tasks
    ]


def _attempt_seed(seed: int, attempt: int) -> int:
    return int(np.random.SeedSequence((seed, attempt)).generate_state(1, np.uint64)[0])


def _fingerprint(policy: Policy) -> str:
    """Tells a policy's weights from others; empty for scripts, and for engines other than ours.

    Of each parameter the first values are looked at: training leaves no model with all of them as
    they were, and to read all would take long.
    """
    student = policy.policy if isinstance(policy, SearchPolicy) else policy
    if not isinstance(student, HFPolicy):
        return ""
    digest = hashlib.sha256()
    for parameter in student.model.parameters():
        digest.update(parameter.detach().reshape(-1)[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
