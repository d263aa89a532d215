"""What the sandbox's user is shown of folders that only their owner may enter.

Root leaves its user before bubblewrap starts, and may keep the project in its home, which nobody
else can enter. So what the sandbox is to read there is opened while the caller is still root: one
lasting thread (`spawn`) takes on a mount namespace of its own, where such a folder is covered by an
empty one that holds nothing but the way to what is needed. Bubblewrap is started from there and
finds all under its own name; no mount of the host changes, and the view ends with its thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from journeyman.sandbox.errors import IsolationUnavailable

_CLONE_NEWNS = 0x20000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_SLAVE = 2, 4, 1 << 12, 1 << 14, 1 << 19
_CAP_SYS_ADMIN = 21


@dataclass(frozen=True)
class MountView:
    """A mount namespace in which some directories can be reached by everyone.

    Attributes:
        paths: Directories to reach, none of them within another.
        barriers: Those above them that would be in the way, the uppermost of each path.
    """

    paths: tuple[str, ...]
    barriers: tuple[str, ...]

    def enter(self) -> None:
        """Takes the calling thread, and what it will start, into the view.

        Raises:
            IsolationUnavailable: The kernel refuses it; the thread is of no use then.
        """
        try:
            self._enter()
        except OSError as error:
            raise IsolationUnavailable(
                f"the sandbox's user may not enter {', '.join(self.barriers)}, and what it needs "
                f"from there cannot be shown to it ({error.strerror})",
                "move the project, or its Python, to a folder that all users may enter",
            ) from error

    def _enter(self) -> None:
        _checked("unshare", _CLONE_NEWNS)  # of this thread alone, its umask included
        os.umask(0o022)
        # The host's later mounts arrive here; none of ours goes back.
        _mount(None, "/", None, _MS_REC | _MS_SLAVE)
        with contextlib.ExitStack() as stack:
            opened = {}
            for path in self.paths:
                opened[path] = os.open(path, os.O_PATH | os.O_DIRECTORY)
                stack.callback(os.close, opened[path])
            for barrier in self.barriers:
                _mount("tmpfs", barrier, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=1m")
            for path, fd in opened.items():
                os.makedirs(path, exist_ok=True)  # it exists where nothing was in its way
                _mount(f"/proc/self/fd/{fd}", path, None, _MS_BIND | _MS_REC)


def possible() -> bool:
    """Whether the caller may mount at all: root in a container often may not."""
    with open("/proc/self/status") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return bool(effective >> _CAP_SYS_ADMIN & 1)


def outermost(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Leaves out each path that lies within another."""
    return tuple(
        path
        for path in dict.fromkeys(paths)
        if not any(path != other and Path(path).is_relative_to(other) for other in paths)
    )


def _mount(source: str | None, at: str, kind: str | None, flags: int, data: str = "") -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, at, kind)]
    _checked("mount", *texts, ctypes.c_ulong(flags), os.fsencode(data))


def _checked(name: str, *arguments: object) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
