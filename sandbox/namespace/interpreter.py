"""Which Python runs inside: the project's own where the sandbox's user can read it."""

from __future__ import annotations

import os
import stat
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from journeyman.sandbox.errors import IsolationUnavailable

SYSTEM_PYTHON = "/usr/bin/python3"


@dataclass(frozen=True)
class Interpreter:
    """A Python and what must be mounted, read-only, for it to work.

    Attributes:
        executable: Its path, the same inside and outside.
        mounts: Directories beyond /usr that it needs.
    """

    executable: str
    mounts: tuple[str, ...] = ()


def find_interpreter(uid: int | None) -> Interpreter:
    """Picks the project's Python, or else the system's.

    Args:
        uid: The user it is to run as; None if that is the caller.

    Raises:
        IsolationUnavailable: Neither can be read.
    """
    prefix = Path(sys.base_prefix).resolve()
    major, minor = sys.version_info[:2]
    own = prefix / "bin" / f"python{major}.{minor}"
    # A prefix this short would be no prefix but the whole system, secrets included.
    if len(prefix.parts) > 2 or prefix == Path("/usr"):
        parts = (own, Path(os.__file__).resolve())
        if all(readable(part, uid) for part in parts):
            return Interpreter(str(own), _beyond_usr(prefix))
    if readable(Path(SYSTEM_PYTHON).resolve(), uid):
        return Interpreter(SYSTEM_PYTHON)
    raise IsolationUnavailable(
        f"no Python for the sandbox: its user can read neither {own} nor {SYSTEM_PYTHON}",
        "apt-get install python3, or install the project's Python where all users can read it",
    )


def package_directories(uid: int | None) -> tuple[str, ...]:
    """Where the project's packages are, as far as the sandbox's user can read them."""
    paths = sysconfig.get_paths()
    found = dict.fromkeys(str(Path(paths[kind]).resolve()) for kind in ("purelib", "platlib"))
    return tuple(path for path in found if readable(Path(path), uid))


def _beyond_usr(path: Path) -> tuple[str, ...]:
    return () if path.is_relative_to("/usr") else (str(path),)


def readable(path: Path, uid: int | None) -> bool:
    """Whether the user, who is in no group, can reach and read `path`."""
    if uid is None:
        return os.access(path, os.R_OK)
    try:
        reached = all(_allowed(parent, uid, stat.S_IXOTH) for parent in path.parents)
        return reached and _allowed(path, uid, stat.S_IROTH)
    except OSError:
        return False


def _allowed(path: Path, uid: int, other_bit: int) -> bool:
    status = path.stat()
    bit = other_bit << 6 if status.st_uid == uid else other_bit
    return bool(status.st_mode & bit)
