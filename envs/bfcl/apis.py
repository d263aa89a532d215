"""The mutable objects behind BFCL's functions: called in place, copied once they are shared."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import random
from collections.abc import Mapping, Sequence
from typing import Any

from journeyman.envs.bfcl.data import api_class, api_functions
from journeyman.tools import ToolError

Objects = Mapping[str, Any]
"""API objects by class name, live or `Packed`. Once shared, neither the mapping nor an object may
change."""


class Dice:
    """An object's `random.Random`, copied when it is first used: its state is 625 integers."""

    def __init__(self, start: random.Random) -> None:
        """Go on from where `start` is, which others may hold."""
        self._start, self._own = start, False

    def share(self) -> random.Random:
        """As it is now, for good."""
        self._own = False
        return self._start

    def __getattr__(self, name: str) -> Any:
        if not self._own:
            copied = random.Random(0)
            copied.setstate(self._start.getstate())
            self._start, self._own = copied, True
        return getattr(self._start, name)


_DICE = "_random"
"""The attribute, in every class that has dice."""


class Packed:
    """An object as bytes, for one that many begin with: a live one is then half a copy."""

    def __init__(self, api: Any) -> None:
        """Pack an object; it may change afterwards."""
        attributes = dict(vars(api))
        dice = attributes.pop(_DICE, None)
        self._dice = dice.share() if isinstance(dice, Dice) else dice
        self._class = type(api)
        self._bytes = pickle.dumps(attributes, pickle.HIGHEST_PROTOCOL)

    def unpack(self) -> Any:
        """A live object of one's own."""
        api = object.__new__(self._class)
        vars(api).update(pickle.loads(self._bytes))
        if self._dice is not None:
            setattr(api, _DICE, Dice(self._dice))
        return api

    @functools.cached_property
    def shared(self) -> Any:
        """A live object to look at only."""
        return self.unpack()


def live(objects: Objects) -> dict[str, Any]:
    """The objects to look at; they are others' too."""
    return {name: api.shared if isinstance(api, Packed) else api for name, api in objects.items()}


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
        """The live objects to look at; the next call may change them."""
        return live(self._objects)

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
            api = self._objects[owner]
            # A round trip through bytes takes a third of the time of `copy.deepcopy`.
            self._objects[owner] = (api if isinstance(api, Packed) else Packed(api)).unpack()
            self._owned.add(owner)
        # Methods keep the lists they are given and change them later: never the caller's own.
        own_arguments = {
            name: copy.deepcopy(value) if isinstance(value, (list, dict)) else value
            for name, value in arguments.items()
        }
        _refuse_endless(function, arguments)
        try:
            result = getattr(self._objects[owner], function)(**own_arguments)
            return result if isinstance(result, str) else _text(result)
        except Exception as error:  # the benchmark shows it to the model, whatever it is
            raise ToolError(f"Error during execution: {error}") from error


def _refuse_endless(function: str, arguments: Mapping[str, Any]) -> None:
    """Refuse a power that would take hours: nothing interrupts Python while it multiplies.

    Raises:
        ToolError: Its result would have more digits than can be written.
    """
    base, exponent = arguments.get("base"), arguments.get("exponent")
    if function != "power" or not isinstance(base, int) or not isinstance(exponent, int):
        return
    if abs(base) > 1 and base.bit_length() * exponent > _MAX_BITS:
        raise ToolError("Error during execution: the result has too many digits")


_MAX_BITS = 20_000
"""Of a power; Python writes no integer of more than 4,300 digits, or 14,285 bits."""


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
            own_config = pickle.loads(pickle.dumps(config.get(name, {})))
            api._load_scenario(own_config, long_context=long_context)
        # Long scenarios hold records of a module's globals, which a booking would change for all.
        objects[name] = Packed(api)
    return objects


_UNSEEN = ("_api_description", "_last_modified")
"""Attributes that no call reads: the second is the wall clock's."""


def plain(value: Any) -> Any:
    """API objects as sequences, mappings and scalars that can be hashed."""
    if isinstance(value, Dice):
        return value.share().getstate()
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
