"""Root configs: what a run is, as dataclasses that check themselves before anything is loaded.

Parts of a run (student, teacher, loss, credit, …) are nodes with a `_target_`; they are checked
against the signature of their target, and check their own ranges when they are made.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from journeyman.agents.errors import SettingError
from journeyman.agents.evaluation.measures import chosen
from journeyman.agents.rollouts.tasks import All
from journeyman.envs import StopReason

T = TypeVar("T")
Node = DictConfig
"""A part of a run: `_target_` and its arguments."""


@dataclass(frozen=True)
class AtLeast:
    """The least that a number may be."""

    least: float


Count = Annotated[int, AtLeast(0)]
Positive = Annotated[int, AtLeast(1)]


@dataclass(frozen=True)
class EnvChoice:
    """`env=`: what is played."""

    ids: list[str]
    """Dealt in turn."""
    kwargs: dict[str, Any]
    """For the constructor of each."""

    def __post_init__(self) -> None:
        """There must be one."""
        if not self.ids:
            raise SettingError("env.ids is empty: expected at least one environment")


@dataclass(frozen=True)
class EvaluationConfig:
    """`evaluation`: what is measured, and how."""

    tasks: Count | All
    """In all, dealt over the environments in turn; "all" is every one that they have."""
    split: str
    attempts: Positive
    """Episodes of each task."""
    temperature: Annotated[float, AtLeast(0)]
    batch_size: Positive
    breakdown: bool = False
    every: Count = 0
    """Optimiser steps between two looks at validation tasks; 0 is never."""
    validation_tasks: Positive = 100
    search: str | None = None
    """How turns are chosen: None samples them, else see `SearchPlayer`."""
    metrics: list[str] | None = None
    """Measures that have a column too."""

    def __post_init__(self) -> None:
        """Several attempts must not be alike, and metrics must have their names."""
        try:
            chosen(self.metrics or ())
        except SettingError as error:
            raise SettingError(f"evaluation.metrics={self.metrics}: {error}") from error
        if self.attempts > 1 and self.temperature == 0:
            raise SettingError(
                f"evaluation.attempts={self.attempts} at evaluation.temperature=0: all attempts of "
                f"a task would be alike; set evaluation.temperature (say 0.7), or attempts=1"
            )


@dataclass(frozen=True)
class RunConfig:
    """What every run has."""

    name: str
    seed: Count
    run_dir: str
    threads: Positive | None
    env: EnvChoice
    student: Node
    sandbox: Node | None
    tracker: Node | None
    """Where figures go beside the run's folder."""
    rollouts: Node | None
    """Where episodes are played; None is here, as runs had it that knew nothing else."""
    evaluation: EvaluationConfig


@dataclass(frozen=True)
class EvalConfig(RunConfig):
    """Root of `journeyman eval`."""

    def __post_init__(self) -> None:
        """There is nothing else to do than to play."""
        if self.evaluation.tasks == 0:
            raise SettingError("evaluation.tasks=0: expected a whole number above zero, or all")


@dataclass(frozen=True)
class Keep:
    """`keep`: which of the episodes that were played are written down to be learned from."""

    success: bool = True
    """Only those that solved their task."""
    stops: list[str] | None = None
    """Only those that ended so; None takes any end."""
    max_tool_errors: Count | None = None
    """Only those with at most so many calls that failed."""
    shortest: bool = False
    """Of a task's episodes only the one with the fewest turns, and of those the fewest tokens."""
    dedupe: bool = True
    """Of conversations that are alike only the first."""

    def __post_init__(self) -> None:
        """Ends must have their names."""
        for stop in self.stops or ():
            if stop not in list(StopReason):
                there = ", ".join(StopReason)
                raise SettingError(f"keep.stops={self.stops}: no end {stop!r}; there are: {there}")


@dataclass(frozen=True)
class CollectConfig(EvalConfig):
    """Root of `journeyman collect`."""

    keep: Keep


@dataclass(frozen=True)
class ProxyConfig:
    """Root of `journeyman serve proxy`."""

    name: str
    seed: Count
    run_dir: str
    threads: Positive | None
    student: Node
    host: str
    port: Positive
    allow: list[str]
    key: str | None
    temperature: Annotated[float, AtLeast(0)] | None
    timeout: float
    idle: float

    def __post_init__(self) -> None:
        """Times must pass, and there are so many ports."""
        for name in ("timeout", "idle"):
            if not getattr(self, name) > 0:
                raise SettingError(f"{name}={getattr(self, name)}: expected seconds, more than 0")
        if self.port >= 1 << 16:
            raise SettingError(f"port={self.port}: expected 1 to {(1 << 16) - 1}")


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Root of `journeyman train`."""

    teacher: Node
    trainer: Node
    loss: Node
    credit: Node
    search: Node | None
    values: Node
    steps: int
    split: str
    first_task: Count
    log_episodes: Count
    train_on_tests: bool = False
    """`split` may name tasks that evaluations play, where there are no others."""
    stages: dict[str, Any] | None = None
    """Runs to be done one after the other instead of this one: name -> experiment, or several."""

    def __post_init__(self) -> None:
        """Training must have somewhere to go, and not on tests."""
        if self.steps < 1:
            raise SettingError(f"steps={self.steps}: expected a whole number above zero")
        if self.split.partition("/")[0] != "train" and not self.train_on_tests:
            raise SettingError(
                f"split={self.split}: expected train or train/<level>; other tasks are for "
                f"evaluation. Where an environment has no others (the benchmarks), "
                f"train_on_tests=true trains on them, and first_task=… keeps the first for "
                f"evaluation"
            )
        if self.evaluation.search is not None:
            raise SettingError(
                f"evaluation.search={self.evaluation.search}: that is for `journeyman eval`; to "
                f"learn from what a search finds, use search=credit"
            )


def read(kind: type[T], config: DictConfig) -> T:
    """A composed config as its dataclass.

    Raises:
        SettingError: A value has another type or is out of its range, or a place is not known;
            the message names it, what was expected and what may be meant.
    """
    return _read(kind, config, "")


def _read(kind: type[T], config: DictConfig, place: str) -> T:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in config:
        if name not in fields:
            raise SettingError(_stranger(f"{place}{name!s}", str(name), tuple(fields)))
    values: dict[str, Any] = {}
    # Parts last: their settings are held against what they make, whose libraries load for seconds.
    for name in sorted(
        fields, key=lambda name: Node in (hints[name], *typing.get_args(hints[name]))
    ):
        spec = fields[name]
        if name not in config:
            if type(None) in typing.get_args(hints[name]):
                values[name] = None  # Hydra leaves out a group that nobody chose
            elif spec.default is dataclasses.MISSING:
                raise SettingError(f"{place}{name} is missing: it has no default")
            continue
        value = config[name]
        values[name] = _value(value, hints[name], f"{place}{name}")
    return kind(**values)


def _stranger(place: str, name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    return f"no setting {place}: {hint}"


def _value(value: Any, hint: Any, place: str) -> Any:
    words: tuple[Any, ...] = ()
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        parts = typing.get_args(hint)
        if value is None and type(None) in parts:
            return None
        literals = [part for part in parts if typing.get_origin(part) is Literal]
        words = tuple(word for part in literals for word in typing.get_args(part))
        if value in words:
            return value
        (hint,) = (part for part in parts if part is not type(None) and part not in literals)
    least = None
    if typing.get_origin(hint) is Annotated:
        hint, bound = typing.get_args(hint)
        least = bound.least
    if hint is Node:
        if not isinstance(value, DictConfig) or "_target_" not in value:
            raise SettingError(f"{place}={value}: expected a part with a _target_")
        check_node(value, place)
        return value
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, DictConfig):
            raise SettingError(f"{place}={value}: expected settings below {place}")
        return _read(typing.cast(Any, hint), value, f"{place}.")
    plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    if hint in (int, float):
        return _number(plain, hint, place, least, words)
    origin = typing.get_origin(hint) or hint
    if origin is str and type(plain) in (int, float):  # a date as a name, say
        return str(plain)
    if not isinstance(plain, origin):
        expected = {bool: "true or false", str: "text", list: "a list", dict: "settings"}[origin]
        raise SettingError(f"{place}={plain}: expected {expected}")
    return plain


def _number(value: Any, kind: type, place: str, least: float | None, words: tuple[Any, ...]) -> Any:
    whole = kind is int
    fits = type(value) is int or (not whole and type(value) is float and math.isfinite(value))
    if not fits or (least is not None and value < least):
        bound = "" if least is None else f", {least:g} or more"
        or_word = "".join(f", or {word}" for word in words)
        raise SettingError(f"{place}={value}: expected a {'whole ' * whole}number{bound}{or_word}")
    return value


def check_node(node: DictConfig, place: str) -> None:
    """Check a part's settings against the signature of what it makes, nested parts too.

    Raises:
        SettingError: A setting is left open, or a number is expected and something else is given.
    """
    for name in map(str, node):
        if OmegaConf.is_missing(node, name):
            raise SettingError(f"{place}.{name} is not set: write {place}.{name}=…")
        if isinstance(node[name], DictConfig) and "_target_" in node[name]:
            check_node(node[name], f"{place}.{name}")
    for name, kinds in _kinds(str(node["_target_"])).items():
        if name in node and not _fits(node[name], kinds):
            raise SettingError(_expected(f"{place}.{name}", node[name], kinds))


def _fits(value: Any, kinds: set[type]) -> bool:
    if type(value) in (int, float) and str in kinds:
        return True  # a name of digits
    return type(value) in kinds or (type(value) is int and float in kinds)


def _expected(place: str, value: Any, kinds: set[type]) -> str:
    wanted = "text" if str in kinds else "true or false" if bool in kinds else "a number"
    if int in kinds and float not in kinds and bool not in kinds:
        wanted = "a whole number"
    return f"{place}={value}: expected {wanted}"


def _kinds(target: str) -> dict[str, set[type]]:
    """Names of a target's parameters that are numbers, texts, or true or false -> their types."""
    try:
        found = get_object(target)
        hints = typing.get_type_hints(vars(found)["__init__"] if isinstance(found, type) else found)
        names = inspect.signature(found).parameters
    except Exception:  # Hydra says it better when it makes the part
        return {}
    told = {}
    for name, parameter in names.items():
        kinds = set(_flat(hints[name])) if name in hints else {type(parameter.default)}
        if parameter.default is None:
            kinds.add(type(None))
        if name not in hints and kinds & {int, float}:
            kinds |= {int, float}
        text = name in hints and kinds <= {str, type(None)}
        if kinds & {int, float, bool, str} and (text or kinds <= {int, float, bool, type(None)}):
            told[name] = kinds
    return told


def _flat(hint: Any) -> list[type]:
    """The types of a hint: those of a union one by one."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return [kind for part in typing.get_args(hint) for kind in _flat(part)]
    if origin is Annotated:
        return _flat(typing.get_args(hint)[0])
    return [hint if isinstance(hint, type) and origin is None else object]


_KEY = re.compile(r"full_key: (\S+)")


def make(node: DictConfig | None, place: str) -> Any:
    """Make a part; None stays None.

    Raises:
        SettingError: One of its settings is out of range; the message says where it stands.
        Exception: Hydra's, or what else the part raises.
    """
    if node is None:
        return None
    try:
        return instantiate(node, _convert_="all")  # libraries write their arguments as JSON
    except InstantiationException as error:
        if isinstance(error.__cause__, SettingError):
            key = _KEY.search(str(error))
            where, told = f"{key[1] if key else place}.", str(error.__cause__)
            raise SettingError(told if told.startswith(where) else where + told) from error
        raise


def as_mapping(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as plain data, resolved."""
    plain = OmegaConf.to_container(typing.cast(DictConfig, config), resolve=True)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}
