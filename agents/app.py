"""What `train` and `eval` share: the Hydra application, the run folder, evaluation rows."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from journeyman.agents.errors import DiskFullError, RunDirError
from journeyman.agents.evaluation.metrics import Metrics, summarise
from journeyman.agents.evaluation.report import write_atomically
from journeyman.agents.policy import Policy
from journeyman.agents.rollout import TaskRef, rollout
from journeyman.envs import env_class, env_ids

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
    disable_progress_bar()  # transformers' own, one for each file it reads or writes
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise instead of printing and exiting
    sys.argv = [f"journeyman {config_name}", *argv]
    hydra.main(version_base="1.3", config_path="pkg://journeyman.conf", config_name=config_name)(
        job
    )()


def offer_environments() -> None:
    """Make every registered environment an option of the config group `env`, under its id."""
    store = ConfigStore.instance()
    for env_id in env_ids():
        namespace, _, name = env_id.rpartition("/")
        group = f"env/{namespace}" if namespace else "env"
        store.store(group=group, name=name, node={"ids": [env_id], "kwargs": {}})


class RunFolder:
    """One run's files: its config, versions and whatever the job writes."""

    def __init__(self, config: DictConfig) -> None:
        """Open or make the folder; set threads and seed.

        Raises:
            RunDirError: The folder holds a run with another config.
        """
        self.path = Path(config.run_dir)
        self.path.mkdir(parents=True, exist_ok=True)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self._keep_config(OmegaConf.to_yaml(config, resolve=True))
        write_atomically(self.path / "machine.json", json.dumps(machine(), indent=2).encode())

    def _keep_config(self, text: str) -> None:
        path = self.path / "config.yaml"
        if not path.exists():
            write_atomically(path, text.encode())
            return
        pairs = zip(path.read_text().splitlines(), text.splitlines(), strict=False)
        if path.read_text() != text:
            old, new = next(((o, n) for o, n in pairs if o != n), ("more", "fewer lines"))
            raise RunDirError(
                f"{self.path} holds a run with another config (there {old.strip()!r}, now "
                f"{new.strip()!r}): choose another run_dir=… or delete the folder"
            )

    def need_space(self, size: int) -> None:
        """Check that `size` bytes fit.

        Raises:
            DiskFullError: They do not.
        """
        free = shutil.disk_usage(self.path).free
        if free < size:
            raise DiskFullError(
                f"{self.path} needs about {size >> 20} MB for checkpoints and has {free >> 20} MB "
                f"free: choose another run_dir=… or make room"
            )


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
    """
    for env_id in ids:
        env_class(env_id)
    return [
        TaskRef(ids[i % len(ids)], f"{split}/{first + i // len(ids)}", seed + i)
        for i in range(count)
    ]


def evaluate(name: str, policy: Policy, config: DictConfig) -> Metrics:
    """Play the evaluation tasks of a config with a policy, under a progress bar."""
    options = config.evaluation
    tasks = deal(list(config.env.ids), options.split, 0, options.tasks, config.seed)
    kwargs = OmegaConf.to_container(config.env.kwargs)
    assert isinstance(kwargs, dict)
    with tqdm(total=len(tasks), desc=name, unit="task", mininterval=1.0) as bar:
        episodes = rollout(
            policy, tasks, options.batch_size, {str(k): v for k, v in kwargs.items()}, bar.update
        )
    kinds = {(t.env_id, t.task_id): env_class(t.env_id).load_task(t.task_id).kind for t in tasks}
    return summarise(episodes, kinds)
