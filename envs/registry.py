"""Environments by id: Gymnasium's registry, plus the entry-point group `journeyman.envs`.

A package outside the project adds environments by an entry point that names a module; importing the
module calls `register`. A script needs no entry point: "module:ID" imports the module first, as in
Gymnasium. Ids registered here also work with `gymnasium.make` and `make_vec`.
"""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, cast

import gymnasium

from journeyman.envs.core import ToolEnv
from journeyman.envs.definition import require
from journeyman.envs.errors import InvalidEnvError, UnknownEnvError

ENTRY_POINTS = "journeyman.envs"
_ids: set[str] = set()


def register(env_id: str, entry_point: str | type[ToolEnv], **kwargs: Any) -> None:
    """Register a `ToolEnv` under an id such as "acme/Garden-v0".

    Args:
        env_id: "<namespace>/<Name>-v<N>", or without a namespace.
        entry_point: "package.module:Class", or the class.
        kwargs: Defaults for the constructor.

    Raises:
        ValueError: The id has a colon, which would set it off from a module.
        InvalidEnvError: The entry point is neither "module:Class" nor a subclass of `ToolEnv`.
        gymnasium.error.Error: The id is of another form.
    """
    if ":" in env_id:
        raise ValueError(f"no environment can be called {env_id!r}: an id has no colon")
    if isinstance(entry_point, str):
        valid = re.fullmatch(r"[\w.]+:[\w.]+", entry_point) is not None
    else:
        valid = isinstance(entry_point, type) and issubclass(entry_point, ToolEnv)
    if not valid:
        raise InvalidEnvError(
            f"{env_id!r} cannot be registered as {entry_point!r:.80}: expected 'module:Class' or a "
            f"ToolEnv class"
        )
    # Our own loop steps environments millions of times; `envs check` does Gymnasium's checks.
    gymnasium.register(
        env_id,
        cast(Any, entry_point),
        kwargs=kwargs,
        disable_env_checker=True,
        vector_entry_point=cast(Any, functools.partial(_make_vector, env_id)),
    )
    _ids.add(env_id)


def _make_vector(env_id: str, **kwargs: Any) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    from journeyman.envs.vector import make_vector  # which makes its environments here

    return make_vector(env_id, **kwargs)


@functools.cache
def load_plugins() -> tuple[str, ...]:
    """Import every module of the entry-point group once; returns the names of those that failed.

    A broken plugin must not take the others down: it is reported as a warning.
    """
    failed = []
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:
            failed.append(entry.name)
            warnings.warn(
                f"environment plugin {entry.name!r} ({entry.value}) failed to load: {error!r}",
                stacklevel=2,
            )
    return tuple(failed)


def env_ids() -> list[str]:
    """All registered ids, sorted."""
    load_plugins()
    return sorted(_ids)


def env_class(env_id: str) -> type[ToolEnv]:
    """The class behind an id, or behind "module:ID", whose module is imported first.

    Raises:
        UnknownEnvError: No such id (the message suggests the nearest), or a module that cannot be
            imported or does not register it.
        InvalidEnvError: Something else than a `ToolEnv` is registered under the id, or one that
            cannot work as it is written.
    """
    loaded = written_class(env_id)
    require(loaded)
    return loaded


def written_class(env_id: str) -> type[ToolEnv]:
    """The class behind an id, whether or not it can work as it is written.

    Raises:
        UnknownEnvError: As of `env_class`.
        InvalidEnvError: Something else than a `ToolEnv` is registered under the id.
    """
    plain = _registered(env_id)
    loaded: object = gymnasium.spec(plain).entry_point
    if isinstance(loaded, str):
        loaded = gymnasium.envs.registration.load_env_creator(loaded)
    if not (isinstance(loaded, type) and issubclass(loaded, ToolEnv)):
        raise InvalidEnvError(f"{plain!r} is registered as {loaded!r}: expected a ToolEnv class")
    return loaded


def _registered(env_id: str) -> str:
    """The id as it is registered, once its module is imported if it names one."""
    load_plugins()
    module, colon, plain = str(env_id).rpartition(":")
    if colon:
        _import(module, env_id)
    if plain in _ids:
        return plain
    near = _nearest(plain)
    if near:
        raise UnknownEnvError(f"no environment {env_id!r}; did you mean {module + colon + near!r}?")
    if colon:
        raise UnknownEnvError(
            f"no environment {env_id!r}: module {module!r} does not register {plain!r}; it has to "
            f"call journeyman.envs.register({plain!r}, …) when it is imported"
        )
    raise UnknownEnvError(
        f"no environment {env_id!r}; `journeyman envs list` names all there are; for one in a "
        f"script write module:ID"
    )


def _import(module: str, env_id: str) -> None:
    """Import what registers an id; it may lie in the current folder."""
    if module in sys.modules:
        return
    if not all(part.isidentifier() for part in module.split(".")) or module.endswith(".py"):
        raise UnknownEnvError(
            f"no environment {env_id!r}: {module!r} is no module; write its name as after `import`,"
            f" such as garden for a file garden.py in the current folder"
        )
    if "" not in sys.path:  # a console script has its own folder there, not the current one
        sys.path.append("")
    importlib.invalidate_caches()  # a notebook may have written it a moment ago
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a script may call `sys.exit`
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise UnknownEnvError(
                f"no environment {env_id!r}: there is no module {error.name!r}; go to the folder "
                f"that it lies in, or install its package"
            ) from error
        raise UnknownEnvError(
            f"no environment {env_id!r}: importing {module!r} raised {type(error).__name__}: "
            f"{error}; `python -c 'import {module}'` shows where"
        ) from error


def _nearest(env_id: str) -> str | None:
    """The id that may be meant; its namespace and version may be missing."""
    known: dict[str, str] = {}
    for registered in sorted(_ids):
        name = registered.rpartition("/")[2]
        for form in (registered, name, name.rpartition("-v")[0]):
            known.setdefault(form.casefold(), registered)
    near = difflib.get_close_matches(str(env_id).casefold(), known, n=1)
    return known[near[0]] if near else None


def constructor_arguments(env_id: str) -> tuple[str, ...]:
    """Names of what an environment's constructor takes, what it hands on to its bases included.

    Raises:
        UnknownEnvError: As of `env_class`.
    """
    names: dict[str, None] = {}
    for cls in env_class(env_id).__mro__:
        if "__init__" not in vars(cls):
            continue
        _, *parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names |= {p.name: None for p in parameters if p.kind in by_name}
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return tuple(names)


def make_for_run(env_id: str, kwargs: Mapping[str, Any]) -> ToolEnv:
    """`make` with the arguments of a run over several environments.

    Args:
        env_id: One of them, or "module:ID".
        kwargs: All are given to every environment, but `sandbox` to those only that take it: not
            every environment runs code.
    """
    if "sandbox" in kwargs and "sandbox" not in constructor_arguments(env_id):
        kwargs = {name: value for name, value in kwargs.items() if name != "sandbox"}
    return make(env_id, **kwargs)


def make(env_id: str, **kwargs: Any) -> ToolEnv:
    """A new environment, without Gymnasium's wrappers.

    Args:
        env_id: A registered id; or "module:ID", which imports the module that registers it.
        kwargs: Passed to the constructor.

    Raises:
        UnknownEnvError: As of `env_class`.
    """
    cls = env_class(env_id)
    spec = copy.deepcopy(gymnasium.spec(_registered(env_id)))  # what Gymnasium registered is shared
    spec.kwargs = {**spec.kwargs, **kwargs}
    env = cls(**spec.kwargs)
    env.spec = spec
    return env
