"""Files of a run folder as they are read back: what was not written there is named with its line.

A kill may cut the last line of a file short: that line is passed over. All else that does not fit
is damage, or another's: `RunFileError`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from journeyman.agents.errors import RunFileError

LONGEST_LINE = 1 << 26
"""Bytes; an episode of a million tokens has a tenth of it."""

Shape = Any
"""What a value should be: a type (`float` takes whole numbers too, and true and false count as
`bool` alone); a tuple of shapes, any of which will do, None among them; a frozen set of texts; a
list, of the one shape in it; a dictionary of shapes by key, where a key with "?" may be missing."""

_MOST = 1 << 64
"""No number of ours is as large; what is cannot be counted to."""

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def json_lines(
    path: Path, shape: Shape, constant: Callable[[str], Any] | None = None
) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines, without a last line that a kill cut short.

    Args:
        path: The file; it need not exist.
        shape: Of each record.
        constant: Reads NaN and infinities; by default they are floats.

    Raises:
        RunFileError: A line holds something else.
        OSError: The file cannot be read.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(LONGEST_LINE)
            if len(line) == LONGEST_LINE:
                raise RunFileError(
                    f"{path}, line {number} is longer than {LONGEST_LINE >> 20} MiB: delete the "
                    f"line, or the file"
                )
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line.decode(), parse_constant=constant)
            except (ValueError, RecursionError) as error:
                raise RunFileError(
                    f"{path}, line {number} is no JSON ({error}): delete the line"
                ) from error
            if problem := misfit(record, shape):
                raise RunFileError(f"{path}, line {number}: {problem}: delete the line")
            yield record


def mend(path: Path) -> None:
    """Take away a last line that a kill cut short, so that more can be appended.

    Raises:
        OSError: The file cannot be changed.
    """
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, 2)
        if not size:
            return
        file.seek(-1, 2)
        if file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def misfit(value: Any, shape: Shape, place: str = "") -> str | None:
    """What is wrong with a value, in words; None if it has its shape.

    Args:
        value: As JSON gave it.
        shape: What it should be.
        place: Where it stands, such as "steps[0].text".
    """
    if isinstance(shape, dict):
        return _misfit_of_record(value, shape, place)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _expected(place, "a list")
        found = (misfit(item, shape[0], f"{place}[{i}]") for i, item in enumerate(value))
        return next((problem for problem in found if problem), None)
    if isinstance(shape, frozenset):
        fits = isinstance(value, str) and value in shape
        return None if fits else _expected(place, f"one of {', '.join(sorted(shape))}")
    if isinstance(shape, tuple):
        kinds = [one for one in shape if one is not None]
        if (value is None and None in shape) or any(misfit(value, one) is None for one in kinds):
            return None
        words = [*(_WORDS[one] for one in kinds), *(["null"] if None in shape else [])]
        return _expected(place, " or ".join(words))
    fits = type(value) is shape or (shape is float and type(value) is int)
    if fits and type(value) is int:
        fits = abs(value) < _MOST
    return None if fits else _expected(place, _WORDS[shape])


def fitting(shape: Shape) -> Callable[[Any], bool]:
    """A function that is true of values of which `misfit` says nothing, and several times as fast.

    Files have tens of thousands of records, and hardly ever one that does not fit.
    """
    if isinstance(shape, dict):
        parts = [(k.removesuffix("?"), k.endswith("?"), fitting(it)) for k, it in shape.items()]

        def of_record(value: Any) -> bool:
            if not isinstance(value, dict):
                return False
            for key, optional, fits in parts:
                if key in value:
                    if not fits(value[key]):
                        return False
                elif not optional:
                    return False
            return True

        return of_record
    if isinstance(shape, list):
        one = fitting(shape[0])
        return lambda value: isinstance(value, list) and all(map(one, value))
    if isinstance(shape, frozenset):
        return lambda value: isinstance(value, str) and value in shape
    if isinstance(shape, tuple):
        kinds = [fitting(kind) for kind in shape if kind is not None]
        empty = None in shape
        return lambda value: empty if value is None else any(fits(value) for fits in kinds)
    if shape in (int, float):
        others = shape is float
        return lambda value: (
            -_MOST < value < _MOST if type(value) is int else others and type(value) is float
        )
    return lambda value: type(value) is shape


def _misfit_of_record(value: Any, shape: dict[str, Shape], place: str) -> str | None:
    if not isinstance(value, dict):
        return _expected(place, "an object")
    for name, part in shape.items():
        key = name.removesuffix("?")
        where = f"{place}.{key}" if place else key
        if key not in value:
            if key == name:
                return f"{where} is missing"
        elif problem := misfit(value[key], part, where):
            return problem
    return None


def _expected(place: str, what: str) -> str:
    return f"{place or 'it'} is not what was expected: {what}"


def read_config(run: Path) -> dict[str, Any]:
    """The config of a run, as plain data.

    Raises:
        RunFileError: `config.yaml` holds something else.
        OSError: It is missing, or cannot be read.
    """
    path = run / "config.yaml"
    data = path.read_bytes()
    try:
        config = OmegaConf.to_container(OmegaConf.create(data.decode()))
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise _no_config(f"{path}{line}", error.problem or "no YAML") from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise _no_config(str(path), str(error)) from error
    problem = misfit(config, {"seed": int})
    if problem or not isinstance(config, dict):
        raise _no_config(str(path), str(problem))
    return {str(name): value for name, value in config.items()}


def _no_config(place: str, why: str) -> RunFileError:
    return RunFileError(
        f"{place} is no config of a run ({' '.join(why.split())[:200]}): delete the run's folder, "
        f"or choose another"
    )


_LONGEST_NAME = 200
"""Bytes of a folder's name; file systems take 255."""


def folder_name(text: str) -> str:
    """What a run of a sweep overrides, as the name of one folder: no slash makes two of it."""
    name = quote(text, safe="=,+:@[]{}()~' ")
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name


def folder_text(name: str) -> str:
    """What `folder_name` was given, as far as it had room."""
    return unquote(name)
