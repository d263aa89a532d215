"""The commands that are Hydra applications: which options there are, and what runs them.

Arguments -> composed config -> what can be seen of it without a library that learns -> the job.
Nothing here imports torch, which takes seconds: whoever asks for help, or mistypes a name, has the
answer before. A job's module is imported when its config has been looked over.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any, cast

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from journeyman.agents.errors import SettingError
from journeyman.agents.evaluation.files import folder_name
from journeyman.agents.runs.config import (
    CollectConfig,
    EvalConfig,
    ProxyConfig,
    TrainConfig,
    read,
)
from journeyman.agents.runs.places import check_names
from journeyman.agents.runs.plan import planned, sibling
from journeyman.envs import env_class, env_ids
from journeyman.tools.doors import load_group

DOORS = {
    "journeyman.students": "student",
    "journeyman.teachers": "teacher",
    "journeyman.losses": "loss",
    "journeyman.credits": "credit",
    "journeyman.estimators": "values",
}
"""Entry-point groups of other packages -> config groups that they add an option to."""
CONF = "journeyman.conf"
CONFIGS = "journeyman.conf"
"""Entry-point group of packages with YAML files of their own."""


@dataclass(frozen=True)
class App:
    """A command: its root config, and the function that is called with it, where that is."""

    kind: type[Any]
    job: str
    """Such as "package.module:function"; imported late."""


APPS = {
    "train": App(TrainConfig, "journeyman.agents.runs.train:train"),
    "eval": App(EvalConfig, "journeyman.agents.runs.evaluate:evaluate_student"),
    "collect": App(CollectConfig, "journeyman.agents.runs.collect:collect"),
    "proxy": App(ProxyConfig, "journeyman.agents.runs.proxy.command:serve_proxy"),
}
"""By the name of the root config in `journeyman.conf`."""
STAGED = "journeyman.agents.runs.stages:train_stages"
"""The job of a config with `stages`, in place of the command's own."""


def run_app(name: str, argv: Sequence[str]) -> None:
    """Run a command as a Hydra application: its job once, or once a run of a sweep.

    Args:
        name: A key of `APPS`.
        argv: Overrides and Hydra's own flags.

    Raises:
        Exception: Whatever the job raises, and Hydra's errors, for the command line to print.
    """
    if "" not in sys.path:
        sys.path.append("")  # a part may lie in the current folder: loss._target_=my_script.Huber
    ConfigStore.instance().__class__ = _SharedStore
    offer_options()
    _check_choices(argv)
    _check_env_choice(argv)
    _check_keys(argv)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise instead of printing and exiting
    Plugins.instance().register(PackageConfigs)
    sys.argv = [f"journeyman {name}", *argv]
    OmegaConf.register_new_resolver("groups", _list_groups, replace=True)
    OmegaConf.register_new_resolver("folder", folder_name, replace=True)
    OmegaConf.register_new_resolver("stage", sibling, replace=True)

    failures: list[Exception] = []

    def run(config: DictConfig) -> None:
        if HydraConfig.get().mode is RunMode.MULTIRUN:  # every run of a sweep has its own folder
            config.run_dir = HydraConfig.get().runtime.output_dir
        try:
            _look_over(config, APPS[name].kind)
            if config.get("stages") is not None:
                stages = planned(config, HydraConfig.get().overrides.task)
                _job(STAGED)(config, stages)
            else:
                _job(APPS[name].job)(config)
        except Exception as error:  # Hydra would print a line of its own before it raises
            failures.append(error)

    before = logging.getLogger().handlers[:]
    try:
        hydra.main(version_base="1.3", config_path="pkg://journeyman.conf", config_name=name)(run)()
    finally:
        # Hydra leaves the log of the run's folder open, for as long as the process lives.
        for handler in logging.getLogger().handlers[:]:
            if isinstance(handler, logging.FileHandler) and handler not in before:
                logging.getLogger().removeHandler(handler)
                handler.close()
    if failures:
        raise failures[0]


class _SharedStore(ConfigStore):
    """Hydra copies all options for each group it lists: two seconds of `--help`, for a look."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedStore:
        return self


def _look_over(config: DictConfig, kind: type[Any]) -> None:
    """Check what needs no job: names of models, and settings, those of parts last.

    Raises:
        ModelNotFoundError: A part is to load a model that is not there.
        SettingError: A setting has another type, or is out of its range.
    """
    check_names(config)
    read(kind, config)


def _job(place: str) -> Callable[..., object]:
    module, _, function = place.partition(":")
    found: Callable[..., object] = getattr(importlib.import_module(module), function)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # transformers' own, one for each file it reads or writes
    return found


def overridden(part: str, node: DictConfig, argv: Sequence[str]) -> DictConfig:
    """A part of a run with overrides of it alone: another option of its group, or settings.

    Args:
        part: Its group, such as "student".
        node: As the run has it.
        argv: Overrides, such as "student=qwen3" or "student.temperature=0.7".

    Raises:
        SettingError: One is of something else.
        Exception: Hydra's, of options and settings that there are not.
    """
    for override in argv:
        if not re.match(rf"\+*{part}[.=]", override):
            raise SettingError(f"{override!r}: expected {part}=… or {part}.…=…")
    if not argv:
        return node
    _check_choices(argv)
    _check_keys(argv)
    if not any(override.startswith(f"{part}=") for override in argv):
        own = OmegaConf.from_dotlist([it.lstrip("+").removeprefix(f"{part}.") for it in argv])
        for name in map(str, own):
            if name not in node:
                there = ", ".join(sorted(map(str, node)))
                raise SettingError(f"no setting {part}.{name}: there are: {there}")
        return cast(DictConfig, OmegaConf.merge(node, own))
    offer_options()
    Plugins.instance().register(PackageConfigs)
    with hydra.initialize_config_module(config_module=CONF, version_base="1.3"):
        return cast(DictConfig, hydra.compose("eval", list(argv))[part])


def offer_options() -> None:
    """Make what is registered an option of its config group."""
    for env_id in env_ids():
        _offer_environment(env_id)
    store = ConfigStore.instance()
    for door, group in DOORS.items():
        own = {path.name.removesuffix(".yaml") for path in (files(CONF) / group).iterdir()}
        for name, target in load_group(door, _objection).items():
            if name in own:
                warnings.warn(
                    f"{group}={name} of {door} is left out: that option is Journeyman's own; "
                    f"give the entry point another name",
                    stacklevel=2,
                )
            else:
                store.store(group=group, name=name, node=_node(target))


def _offer_environment(env_id: str) -> None:
    namespace, _, name = env_id.rpartition("/")
    group = f"env/{namespace}" if namespace else "env"
    ConfigStore.instance().store(group=group, name=name, node={"ids": [env_id], "kwargs": {}})


def _objection(loaded: object) -> str | None:
    """What is wrong with what a package offers as a part of a run."""
    if callable(loaded) and hasattr(loaded, "__qualname__"):
        inspect.signature(loaded)  # raises if it has none
        return None
    return f"expected a class or a function, not {loaded!r}"


def _node(target: Any) -> dict[str, Any]:
    """A part as a config: its arguments with the defaults that YAML can hold.

    What must be given is "???", which is refused by name until it is.
    """
    node: dict[str, Any] = {"_target_": f"{target.__module__}.{target.__qualname__}"}
    for name, parameter in inspect.signature(target).parameters.items():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and parameter.default is parameter.empty:
            node[name] = "???"
        elif named and isinstance(parameter.default, bool | int | float | str | None):
            node[name] = parameter.default
    return node


class PackageConfigs(SearchPathPlugin):
    """Where Hydra finds the YAML files of other packages: after our own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the packages' folders."""
        for entry in sorted(entry_points(group=CONFIGS)):
            search_path.append(provider=entry.name, path=f"pkg://{entry.value}")


def _check_choices(argv: Sequence[str]) -> None:
    """Check that a group's override names an option: what else YAML can say means nothing there.

    Raises:
        SettingError: It is null, a number, or another value that is no name.
    """
    groups = {path.name for path in files(CONF).iterdir() if path.is_dir()}
    for override in argv:
        group, _, value = override.partition("=")
        if group in groups and (value.lower() in ("null", "~", "") or not _NAME.match(value)):
            folder = files(CONF) / group
            own = sorted(path.name.removesuffix(".yaml") for path in folder.iterdir())
            raise SettingError(
                f"{override}: expected the name of an option, such as {', '.join(own)}; groups "
                f"that none need be chosen of (search, sandbox) are left out"
            )


_NAME = re.compile(r"""['"\[]?[A-Za-z_]|\$\{|choice\(""")


def _check_keys(argv: Sequence[str]) -> None:
    """Check that a server's key is given by name: Hydra writes all that is given into the run.

    Raises:
        SettingError: There is no such variable; what was given is not repeated, lest it be the key.
    """
    for override in argv:
        place, _, value = override.lstrip("+").partition("=")
        names = [name.strip("'\" ") for name in value.split(",")]
        if place in ("student.key", "teacher.key", "credit.key", "key") and not all(
            name.lower() in ("null", "") or name in os.environ for name in names
        ):
            raise SettingError(
                f"{place}: no environment variable of that name; it holds the server's key"
            )


def _check_env_choice(argv: Sequence[str]) -> None:
    """Check `env=<id>` before Hydra does, which would list the options of the wrong group.

    One in a module ("module:ID") becomes an option here.

    Raises:
        UnknownEnvError: No environment of that id; the message suggests the nearest.
    """
    for override in argv:
        group, _, choices = override.partition("=")
        for choice in choices.split(",") if group == "env" else ():
            if "/" in choice or ":" in choice:
                env_class(choice)
            if ":" in choice:
                _offer_environment(choice)


def _list_groups(*names: str) -> str:
    """The options of some config groups, for `--help` (all are listed if nobody chooses)."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return hydra.format_config_groups(lambda group: group.partition("/")[0] in names)
