"""The files of a branch: saved, put in place, read and written for the host."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from typing import TYPE_CHECKING, Any

from journeyman.sandbox.worker.frames import write_all

if TYPE_CHECKING:
    from collections.abc import Iterator


class Files:  # pragma: no cover - runs inside the sandbox
    """Takes the files of one branch away and puts those of another in their place.

    Nothing of the user's runs meanwhile, so there are no races here, but any tree must be
    expected. Pipes and sockets have no content to keep and are dropped.
    """

    MAX_DEPTH = 64
    MAX_PATH = 4000

    def __init__(self, area: str, max_bytes: int) -> None:
        self.area = os.open(area, os.O_RDONLY | os.O_DIRECTORY)
        self.max_bytes = max_bytes

    def save(self) -> list[Any]:
        """Reads the tree.

        Raises:
            OSError: It is deeper, or longer in all, than a branch's files may be.
        """
        os.fchmod(self.area, 0o700)
        entries: list[Any] = []
        self._left = self.max_bytes
        self._first: dict[int, str] = {}  # where each inode was met first
        self._walk(self.area, "", 0, entries)
        return entries

    def _walk(self, directory: int, path: str, depth: int, entries: list[Any]) -> None:
        if depth > self.MAX_DEPTH or len(os.fsencode(path)) > self.MAX_PATH:
            raise OSError(errno.ENAMETOOLONG, "directories nested too deep to branch")
        for name in os.listdir(directory):
            status = os.lstat(name, dir_fd=directory)
            place, mode, times = path + name, status.st_mode, status.st_mtime_ns
            if stat.S_ISDIR(mode):
                entries.append((place, mode, times, None))
                os.chmod(name, 0o700, dir_fd=directory)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
                os.fchmod(inner, 0o700)
                try:
                    self._walk(inner, place + "/", depth + 1, entries)
                finally:
                    os.fchmod(inner, stat.S_IMODE(mode))
                    os.close(inner)
            elif stat.S_ISLNK(mode):
                entries.append((place, mode, times, os.readlink(name, dir_fd=directory)))
            elif stat.S_ISREG(mode):
                first = self._first.setdefault(status.st_ino, place)
                data = self._read(directory, name, status) if first == place else first
                entries.append((place, mode, times, data))

    def _read(self, directory: int, name: str, status: os.stat_result) -> bytes:
        self._left -= status.st_size  # holes count: a copy fills them
        if self._left < 0:
            raise OSError(errno.EFBIG, "files too long to branch")
        os.chmod(name, 0o600, dir_fd=directory)
        with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=directory), "rb") as file:
            os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
            return file.read()

    @contextlib.contextmanager
    def _opened(self, path: str, flags: int) -> Iterator[int]:
        """Opens a regular file, through no symbolic link; makes its directories if it makes it."""
        *parents, name = path.split("/")
        directory = os.dup(self.area)
        try:
            for parent in parents:
                if flags & os.O_CREAT:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(parent, 0o700, dir_fd=directory)
                kind = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                inner = os.open(parent, kind, dir_fd=directory)
                os.close(directory)
                directory = inner
            # Not blocking: it may be a pipe that nobody else has open.
            flags |= os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(name, flags, 0o600, dir_fd=directory)
        finally:
            os.close(directory)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EISDIR, "no regular file")
            yield fd
        finally:
            os.close(fd)

    def read(self, path: str, at: int, count: int) -> bytes:
        """Reads a part of a file."""
        with self._opened(path, os.O_RDONLY) as fd:
            return os.pread(fd, count, at)

    def write(self, path: str, at: int, data: bytes) -> None:
        """Writes a part of a file, which ends there."""
        with self._opened(path, os.O_WRONLY | os.O_CREAT) as fd:
            os.ftruncate(fd, at)
            os.lseek(fd, at, os.SEEK_SET)
            write_all(fd, data)

    def clear(self) -> bool:
        """Removes all, however deep, and says if there was anything."""
        self._bare()
        prefix, numbers = os.urandom(8).hex(), itertools.count()
        found = False
        while True:
            names = os.listdir(self.area)
            if not names:
                return found
            found = True
            for name in names:
                if not stat.S_ISDIR(os.lstat(name, dir_fd=self.area).st_mode):
                    os.unlink(name, dir_fd=self.area)
                    continue
                os.chmod(name, 0o700, dir_fd=self.area)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.area)
                try:
                    for child in os.listdir(inner):  # moved up: no path grows long
                        if stat.S_ISDIR(os.lstat(child, dir_fd=inner).st_mode):
                            os.chmod(child, 0o700, dir_fd=inner)
                        up = f"{prefix}{next(numbers)}"
                        os.rename(child, up, src_dir_fd=inner, dst_dir_fd=self.area)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=self.area)

    def _bare(self) -> None:
        """Takes from the directory itself all that was attached to it, default rights included."""
        names: list[str] = []
        with contextlib.suppress(OSError):  # file systems may have none
            names = os.listxattr(self.area)
        for name in names:
            if name.startswith(("user.", "system.posix_acl_")):  # no program can have set others
                os.removexattr(self.area, name)
        os.fchmod(self.area, 0o700)
        os.utime(self.area)

    def restore(self, entries: list[Any]) -> None:
        """Writes a tree that `save` read."""
        for place, mode, _, data in entries:
            if data is None:
                os.mkdir(place, 0o700, dir_fd=self.area)
            elif stat.S_ISLNK(mode):
                os.symlink(data, place, dir_fd=self.area)
            elif isinstance(data, str):
                os.link(data, place, src_dir_fd=self.area, dst_dir_fd=self.area)
            else:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                with os.fdopen(os.open(place, flags, 0o600, dir_fd=self.area), "wb") as file:
                    file.write(data)
        for place, mode, times, _ in reversed(entries):  # a directory is closed after its content
            if not stat.S_ISLNK(mode):
                os.utime(place, ns=(times, times), dir_fd=self.area)
                os.chmod(place, stat.S_IMODE(mode), dir_fd=self.area)
