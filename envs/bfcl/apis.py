"""The mutable objects behind BFCL's functions: called in place, copied once they are shared."""

from __future__ import annotations

import copy
import json
import pickle
import random
from collections.abc import Mapping, Sequence
from typing import Any

from journeyman.envs.bfcl.data import api_class, api_functions
from journeyman.tools import ToolError

Objects = Mapping[str, Any]
"""API objects by class name. Once shared, neither the mapping nor an object may change."""


class Apis:
    """API objects that a snapshot can hold on to.

    Objects are changed in place until `share` hands them out; the next call of one of its methods
    then copies an object first. So play without branches copies nothing, and a branch costs one
    copy of each object that it touches.
    """

    def __init__(self, shared: Objects) -> None:
        """Go on from objects that others may hold."""
        self._objects = dict(shared)
        self._owned: set[str] = set()
        self._owners = {
            function: name for name in self._objects for function in api_functions(name)
        }

    @property
    def objects(self) -> Objects:
        """The objects to look at; the next call may change them."""
        return self._objects

    def share(self) -> Objects:
        """The objects as they are now, for good."""
        self._owned.clear()
        return dict(self._objects)

    def call(self, function: str, arguments: Mapping[str, Any]) -> str:
        """Call a method; returns its result in the benchmark's text form.

        Raises:
            ToolError: The method raised; the message is the benchmark's.
        """
        owner = self._owners[function]
        if owner not in self._owned:
            self._objects[owner] = _copy(self._objects[owner])
            self._owned.add(owner)
        # Methods keep the lists they are given and change them later: never the caller's own.
        own_arguments = {
            name: copy.deepcopy(value) if isinstance(value, (list, dict)) else value
            for name, value in arguments.items()
        }
        try:
            result = getattr(self._objects[owner], function)(**own_arguments)
        except Exception as error:  # the benchmark shows it to the model, whatever it is
            raise ToolError(f"Error during execution: {error}") from error
        return result if isinstance(result, str) else _text(result)


def _text(result: Any) -> str:
    """As `execute_multi_turn_func_call` writes results: the checker compares these texts."""
    if not isinstance(result, dict):
        return str(result)
    try:
        return json.dumps(result)
    except (TypeError, ValueError):
        return str(result)


def initial_objects(
    classes: Sequence[str], config: Mapping[str, Any], long_context: bool
) -> Objects:
    """The objects that a task starts with."""
    objects = {}
    for name in classes:
        api = api_class(name)()
        if hasattr(api, "_load_scenario"):
            api._load_scenario(copy.deepcopy(config.get(name, {})), long_context=long_context)
        # Long scenarios hold records of a module's globals, which a booking would change for all.
        objects[name] = _copy(api)
    return objects


def _copy(api: Any) -> Any:
    """An independent object: a round trip that takes a third of `copy.deepcopy`'s time."""
    return pickle.loads(pickle.dumps(api, pickle.HIGHEST_PROTOCOL))


_UNSEEN = ("_api_description", "_last_modified")
"""Attributes that no call reads: the second is the wall clock's."""


def plain(value: Any) -> Any:
    """API objects as sequences, mappings and scalars that can be hashed."""
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return frozenset(plain(item) for item in value)
    if not hasattr(value, "__dict__"):
        return value
    attributes = dict(vars(value))
    attributes.pop("parent", None)  # of a directory: `contents` tells the way down
    if "_current_dir" in attributes:
        attributes["_current_dir"] = _path(attributes["_current_dir"])
    kept = {name: plain(item) for name, item in attributes.items() if name not in _UNSEEN}
    return [type(value).__name__, kept]


def _path(directory: Any) -> list[str]:
    names = []
    while directory is not None:
        names.append(directory.name)
        directory = directory.parent
    return names
