"""A run of several stages: what each is, and whether all can be run, before the first begins.

An experiment with `stages` names further experiments, in order. Each is a run of its own in a
folder of its own, composed as if it stood on the command line: the user's overrides are every
stage's. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from journeyman.agents.errors import ModelNotFoundError, SettingError
from journeyman.agents.runs.config import TrainConfig, read
from journeyman.agents.runs.places import check_names

TAKEN = ("no-op", "oracle")
"""Rows of the table that are no stage's."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_EXPERIMENT = re.compile(r"[A-Za-z0-9][\w./-]*")
_MODEL = re.compile(r"\+*(student|teacher)\.model=")
_GROUP_OWN = re.compile(r"\+*(experiment|run_dir|name|stages)[.=]|~(experiment|stages)")
"""Overrides that say what the stages are and where they go; all others are each stage's."""


@dataclass(frozen=True)
class Stage:
    """One run of several."""

    name: str
    """Its row in the table, and its folder below the run's."""
    config: DictConfig
    """As `journeyman train` would have composed it."""


def sibling(name: str, *, _root_: DictConfig) -> str:
    """The folder of another stage, for configs: `${stage:NAME}`."""
    return str(Path(str(_root_.run_dir)).parent / name)


def learned(student: DictConfig, run: Path) -> DictConfig:
    """A run's student as the run left it, as a part; an adapter that was begun is in its model."""
    changed = {"model": str(run / "model")} | ({"lora": None} if "lora" in student else {})
    return cast(DictConfig, OmegaConf.merge(student, changed))


def planned(config: DictConfig, overrides: Sequence[str]) -> list[Stage]:
    """The stages of a run, in order, looked over.

    Args:
        config: The run's own: `stages` maps a name to an experiment, or to several that are
            composed one on the other.
        overrides: From the command line; Hydra must be at work.

    Raises:
        SettingError: A stage cannot be: the message names it.
        ModelNotFoundError: It asks for a model that is not there and that no stage before it makes.
    """
    told = OmegaConf.to_container(config.stages, resolve=True)
    if not isinstance(told, dict) or not told:
        raise SettingError(
            f"stages={told}: expected a name and an experiment a stage: stages={{warm: my/warm}}"
        )
    own = [it for it in overrides if not _GROUP_OWN.match(it)]
    folder, stages = Path(config.run_dir), list[Stage]()
    adapters: dict[Path, Any] = {}
    for key, chosen in told.items():
        stage = Stage(name := str(key), _composed(name, chosen, own))
        stage.config.name = f"{config.name}/{name}"
        stage.config.run_dir = str(folder / stage.name)
        # Each student plays once, when its stage is done, and all of them the same tasks.
        stage.config.evaluation.tasks = 0
        _look_over(stage, folder, [it.name for it in stages])
        if (lora := _adapter(stage, adapters)) is not None:
            adapters[folder / name] = lora
        stages.append(stage)
    return stages


def _composed(name: str, chosen: Any, own: Sequence[str]) -> DictConfig:
    place = f"stages.{name}"
    if not _NAME.fullmatch(name) or name in TAKEN:
        raise SettingError(
            f"{place}: expected a name of letters, digits, '-', '_' and '.', and not "
            f"{' or '.join(TAKEN)}: it is a folder, and a row of the table"
        )
    parts = [chosen] if isinstance(chosen, str) else chosen
    sound = isinstance(parts, list) and all(
        isinstance(it, str) and _EXPERIMENT.fullmatch(it) for it in parts
    )
    if not parts or not sound:
        raise SettingError(
            f"{place}={chosen}: expected the name of an experiment, or a list of such names"
        )
    try:
        chosen_last = f"experiment=[{','.join(parts)}]"
        config = hydra.compose("train", [*own, chosen_last])
        if any(_MODEL.match(it) for it in own):
            others = [it for it in own if not _MODEL.match(it)]
            _keep_made(config, hydra.compose("train", [*others, chosen_last]))
    except (HydraException, OmegaConfBaseException) as error:
        words = " ".join(str(error).partition("Config search path:")[0].split())
        raise SettingError(f"{place}: {words}") from error
    if config.get("stages") is not None:
        raise SettingError(f"{place}={chosen} has stages itself: name its stages here instead")
    if "model" not in config.student:
        raise SettingError(
            f"{place}: student {config.student.get('_target_')} takes no model=, as which what it "
            f"has learned could play"
        )
    return config


def _keep_made(config: DictConfig, untold: DictConfig) -> None:
    """A model from the command line is what stages begin with, not what a stage before made.

    Args:
        config: Of a stage, with all that the command line says.
        untold: The same without the models.
    """
    for part in ("student", "teacher"):
        node = OmegaConf.to_container(untold[part], resolve=False) if untold[part] else {}
        made = node.get("model") if isinstance(node, dict) else None
        if isinstance(made, str) and made.startswith("${stage:"):
            config[part].model = made


def _adapter(stage: Stage, made: Mapping[Path, Any]) -> Any:
    """What a stage's adapter was begun with, None if it trains all weights.

    What was begun by a stage before goes on: `student.lora`, said once for all, is said no more.

    Args:
        stage: Its `student.lora` is taken out if its student has an adapter already.
        made: The same of stages before, by their folders.
    """
    student, trainer = stage.config.student, stage.config.trainer
    told = student.get("lora")
    begun = None if told in (None, False) else told
    added = trainer.get("peft_config")
    earlier = made.get(Path(student.model).parent)
    if earlier is None:
        return begun if added is None else added
    if added is not None or begun not in (None, earlier):
        place = "student.lora" if added is None else "trainer.peft_config"
        raise SettingError(
            f"stages.{stage.name}: {place}={begun if added is None else added}: its student "
            f"{student.model} is an adapter of a stage before ({earlier}), and goes on learning as "
            f"it is: leave {place} out"
        )
    if begun is not None:
        student.lora = None
    return earlier


def _look_over(stage: Stage, folder: Path, earlier: Sequence[str]) -> None:
    """See that a stage's settings are sound, and its models there or made by then."""
    try:
        check_names(stage.config, made=[folder / name for name in earlier])
        read(TrainConfig, stage.config)
    except (SettingError, ModelNotFoundError, OmegaConfBaseException) as error:
        before = f" (stages before it: {', '.join(earlier) or 'none'})"
        missing = before if isinstance(error, ModelNotFoundError) else ""
        kind = ModelNotFoundError if isinstance(error, ModelNotFoundError) else SettingError
        raise kind(f"stages.{stage.name}: {' '.join(str(error).split())}{missing}") from error
