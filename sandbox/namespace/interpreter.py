"""Which Python runs inside: the project's own where the sandbox's user can read or be shown it."""

from __future__ import annotations

import os
import stat
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from journeyman.sandbox.errors import IsolationUnavailable
from journeyman.sandbox.namespace import view
from journeyman.sandbox.namespace.view import MountView, outermost

SYSTEM_PYTHON = "/usr/bin/python3"
PACKAGES = "/run/packages"
"""Where packages are inside. Not where the host has them: that may be a place for the code's own
files, /tmp say, and is none of its business."""


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

    The system's comes first where it is of the same version and the project's lies behind a folder
    that its user may not enter (see `view`).

    Args:
        uid: The user it is to run as; None if that is the caller.

    Raises:
        IsolationUnavailable: Neither can be read.
    """
    prefix = Path(sys.base_prefix).resolve()
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    own, system = prefix / "bin" / name, Path(SYSTEM_PYTHON).resolve()
    ours = Interpreter(str(own), _beyond_usr(prefix))
    # A prefix this short would be no prefix but the whole system, secrets included; and below /tmp
    # would be the code's own files.
    parts = (own, Path(os.__file__).resolve())
    apart = len(prefix.parts) > 2 and not prefix.is_relative_to("/tmp")
    fit = apart or prefix == Path("/usr")
    if fit and all(readable(part, uid) for part in parts):
        return ours
    standard = readable(system, uid)
    if standard and system.name == name:
        return Interpreter(SYSTEM_PYTHON)
    if fit and showable(prefix, uid) and all(part.is_relative_to(prefix) for part in parts):
        return ours
    if standard:
        return Interpreter(SYSTEM_PYTHON)
    raise IsolationUnavailable(
        f"no Python for the sandbox: its user can read neither {own} nor {SYSTEM_PYTHON}",
        "apt-get install python3, or install the project's Python where all users can read it",
    )


def package_directories(uid: int | None) -> dict[str, str]:
    """Where the project's packages are, and what each of these directories is called inside.

    Those are left out that the sandbox's user can neither read nor be shown.
    """
    found = [path for path in _package_paths() if showable(Path(path), uid)]
    return {path: f"{PACKAGES}/{number}" for number, path in enumerate(found)}


def unseen_packages(uid: int | None) -> tuple[str, ...]:
    """Where the project has packages that the sandbox's user cannot even be shown."""
    return tuple(path for path in _package_paths() if not showable(Path(path), uid))


def _package_paths() -> dict[str, None]:
    paths = sysconfig.get_paths()
    return dict.fromkeys(str(Path(paths[kind]).resolve()) for kind in ("purelib", "platlib"))


def view_of(paths: tuple[str, ...], uid: int | None) -> MountView | None:
    """The view in which the user can read directories; None if there is nothing in the way."""
    barriers = [barrier(Path(path), uid) for path in paths]
    found = tuple(dict.fromkeys(str(each) for each in barriers if each is not None))
    return MountView(outermost(paths), found) if found else None


def _beyond_usr(path: Path) -> tuple[str, ...]:
    return () if path.is_relative_to("/usr") else (str(path),)


def readable(path: Path, uid: int | None) -> bool:
    """Whether the user, who is in no group, can reach and read `path`."""
    if uid is None:
        return os.access(path, os.R_OK)
    return _open(path, uid) and barrier(path, uid) is None


def showable(path: Path, uid: int | None) -> bool:
    """Whether the user can read a directory, or could if it stood where it can be reached."""
    if readable(path, uid):
        return True
    return uid is not None and _open(path, uid) and view.possible()


def barrier(path: Path, uid: int | None) -> Path | None:
    """The uppermost directory that keeps the user from reaching `path`, if there is one."""
    if uid is None:
        return None
    above = reversed(path.parents)
    return next((each for each in above if not _allowed(each, uid, stat.S_IXOTH)), None)


def _open(path: Path, uid: int) -> bool:
    """Whether the user could read a file, or read and enter a directory, once it was reached."""
    try:
        entered = not path.is_dir() or _allowed(path, uid, stat.S_IXOTH)
        return entered and _allowed(path, uid, stat.S_IROTH)
    except OSError:
        return False


def _allowed(path: Path, uid: int, other_bit: int) -> bool:
    status = path.stat()
    bit = other_bit << 6 if status.st_uid == uid else other_bit
    return bool(status.st_mode & bit)
