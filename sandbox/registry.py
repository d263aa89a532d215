"""Backends by name: the entry-point group `journeyman.sandboxes`, the package's own among them.

An entry point names a class, "module:Class", which is called without arguments and gives a
`Backend`. It is imported when it is asked for: picking one backend needs nothing of another.
"""

from __future__ import annotations

import difflib
import functools
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, cast

from journeyman.sandbox.errors import InvalidBackendError, SandboxError, UnknownBackendError

if TYPE_CHECKING:
    from journeyman.sandbox.base import Backend

ENTRY_POINTS = "journeyman.sandboxes"
_MEMBERS = ("name", "lacks", "describe", "session")


@functools.cache  # reading all packages' metadata costs as much as ten programs
def _offers() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=ENTRY_POINTS))


def backend_names() -> list[str]:
    """All names that `resolve_backend` knows, sorted."""
    return sorted({entry.name for entry in _offers()})


def resolve_backend(name: str) -> Backend:
    """Makes the backend called `name`, with its defaults.

    Raises:
        UnknownBackendError: No package offers one; the message suggests the nearest.
        InvalidBackendError: What a package offers under the name cannot be used.
        SandboxError: The backend's own, as soon as it is made.
    """
    entry = _find(name)
    offered = f"sandbox backend {name!r} ({entry.value})"
    try:
        backend = entry.load()()
    except SandboxError:
        raise
    except Exception as error:
        raise InvalidBackendError(
            f"{offered} cannot be made: {type(error).__name__}: {error}"
        ) from error
    missing = [member for member in _MEMBERS if not hasattr(backend, member)]
    if missing:
        raise InvalidBackendError(
            f"{offered} lacks {', '.join(missing)}: see journeyman.sandbox.Backend"
        )
    return cast("Backend", backend)


def _find(name: str) -> EntryPoint:
    offers = {entry.value: entry for entry in _offers() if entry.name == name}
    if len(offers) > 1:  # which walls a program meets is not for the order of packages to say
        raise InvalidBackendError(
            f"several packages offer a sandbox backend {name!r} ({', '.join(sorted(offers))}): "
            f"uninstall all but one"
        )
    if not offers:
        names = backend_names()
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        known = ", ".join(names) or "none: install journeyman anew"
        raise UnknownBackendError(f"no sandbox backend {name!r}{hint}; there are {known}")
    return offers.popitem()[1]
