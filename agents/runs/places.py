"""Where a run plays: its environments with their arguments, and the sandbox they share."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from journeyman.agents.errors import SettingError
from journeyman.agents.networks.catalogue import check
from journeyman.agents.rollouts.tasks import shortage
from journeyman.agents.runs.config import RunConfig, make
from journeyman.envs import constructor_arguments, make_for_run


def env_kwargs(config: RunConfig) -> dict[str, Any]:
    """What a config says to the constructors of its environments; see `make_for_run`."""
    if config.sandbox is None:
        return config.env.kwargs
    return config.env.kwargs | {"sandbox": make(config.sandbox, "sandbox")}


def check_names(*nodes: DictConfig, made: Collection[Path] = ()) -> None:
    """Look for the models of parts of ours by their names, before the first of them is loaded.

    Args:
        nodes: Parts, or what holds parts at any depth, such as the config of a run.
        made: Folders of runs that come before, whose models will be there by then.

    Raises:
        ModelNotFoundError: A part asks for one that is not there.
    """
    for name in dict.fromkeys(name for node in nodes for name in _models(node)):
        if Path(name).parent not in made:
            check(name)


def _models(node: DictConfig) -> Iterator[str]:
    for key in (key for key in node if not OmegaConf.is_missing(node, str(key))):
        if isinstance(node[key], DictConfig):
            yield from _models(node[key])
    name = node.get("model")
    here = str(node.get("_target_")).startswith("journeyman.agents.") and "base_url" not in node
    if isinstance(name, str) and here:
        yield name


def check_environments(config: RunConfig) -> None:
    """Check that each environment can be made as the config says, and that the sandbox opens.

    Raises:
        SettingError: An environment takes no such argument or value, or none takes the sandbox.
        UnknownEnvError: No environment of that id.
        SandboxError: The sandbox cannot be opened on this machine.
    """
    ids, kwargs = config.env.ids, env_kwargs(config)
    for env_id in ids:
        taken = constructor_arguments(env_id)
        for name in kwargs:
            if name not in taken and name != "sandbox":
                raise SettingError(
                    f"env.kwargs.{name}: {env_id} takes no {name!r}; it takes: {', '.join(taken)}"
                )
        try:
            make_for_run(env_id, kwargs).close()
        except (KeyError, TypeError, ValueError) as error:
            raise SettingError(f"env.kwargs: {env_id}: {error}") from error
    if config.sandbox is None:
        return
    if not any("sandbox" in constructor_arguments(env_id) for env_id in ids):
        raise SettingError(
            f"sandbox={config.sandbox.backend}: no environment of this run ({', '.join(ids)}) runs "
            f"code in a sandbox: leave it out"
        )
    kwargs["sandbox"].session().close()  # what is missing shows now, not in every episode


def told_shortages(config: RunConfig) -> list[str]:
    """What is to be known of an evaluation's tasks where environments have fewer than their share.

    Raises:
        UnknownTaskError: An environment has no such split.
    """
    asked, split = config.evaluation.tasks, config.evaluation.split
    if asked == "all":
        return []
    return [
        f"{env_id} has {there} tasks in {split}, fewer than its share of evaluation.tasks={asked}: "
        f"all of them are played, and more of other environments where there are"
        for env_id, there in shortage(config.env.ids, split, 0, asked).items()
    ]
