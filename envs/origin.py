"""Whether an environment is the one it was: a hash of the code that it is written in.

`agents/evaluation/records.py` writes it beside each episode, and an evaluation that goes on plays
anew what another code had played.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from collections.abc import Iterator

from journeyman.envs.core import ToolEnv
from journeyman.envs.hashing import digest


def env_digest(cls: type[ToolEnv]) -> str:
    """16 hex digits of an environment's sources, equal wherever these are the same text.

    Its own module, those of its bases below `ToolEnv` and of its tools' functions, and whatever of
    their folders these import, over and over. Data files are not looked at.

    Args:
        cls: The environment.

    Returns:
        The hash; empty where its own source cannot be had, as of a class typed into a session.
    """
    kind: type = cls  # a class is hashable, whatever mypy makes of a ToolEnv's own hash
    return _digest(kind)


@functools.cache
def _digest(cls: type[ToolEnv]) -> str:
    # Python's own modules differ from one patch release to the next.
    homes = {"journeyman", cls.__module__.partition(".")[0]}
    tools = (getattr(tool.function, "__module__", None) for tool in cls.toolset)
    bases = (base.__module__ for base in cls.__mro__ if issubclass(base, ToolEnv))
    names = {name for name in (*tools, *bases) if name and name.partition(".")[0] in homes}
    todo = sorted(names - {ToolEnv.__module__})
    texts: dict[str, str] = {}
    while todo:
        name = todo.pop()
        text = None if name in texts else _source(name)
        if text is not None:
            texts[name] = text
            todo += _neighbours(name, text)
    return digest(texts)[:16] if cls.__module__ in texts else ""


def _source(name: str) -> str | None:
    """The text of a module; None if there is none."""
    try:
        spec = importlib.util.find_spec(name)
        get_source = getattr(spec and spec.loader, "get_source", None)
        text: str | None = get_source(name) if get_source is not None else None
    except (ImportError, AttributeError, ValueError, OSError):
        return None  # no module at all: an attribute, or what was typed into a session
    return text


_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+)?import[ \t(]+(\w[\w.]*(?:,\s*\w[\w.]*)*)", re.M
)
_FRAMEWORK = ("journeyman.envs.", "journeyman.tools.")
"""Folders whose modules are everybody's: the version of Journeyman tells these."""


def _neighbours(name: str, text: str) -> Iterator[str]:
    """What a module may import from the folder it lies in; some are no modules."""
    is_folder = hasattr(sys.modules.get(name), "__path__")
    folder = f"{name if is_folder else name.rpartition('.')[0]}."
    if folder == "." or folder in _FRAMEWORK:
        return
    for module, listed in _IMPORT.findall(text):
        names = re.split(r",\s*", listed)
        if module.startswith("."):
            level = len(module) - len(module.lstrip("."))
            above = folder[:-1].split(".")[: 1 - level or None]
            module = ".".join([*above, module.lstrip(".")]).rstrip(".")
        found = [module, *(f"{module}.{it}" for it in names)] if module else names
        yield from (it for it in found if it.startswith(folder))
