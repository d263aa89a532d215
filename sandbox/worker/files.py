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

Entry = tuple[str, int, int, Any]
"""Where a file is, its mode, when it was changed (ns), and its content: bytes; None of a directory;
where a link leads, or for a further name of a file the first one."""
ROOT = "."


class Kept:  # pragma: no cover - runs inside the sandbox
    """The files of all branches that rest: what is alike is kept once, all within a bound."""

    ENTRY_BYTES = 512  # that a file takes besides its name and content

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0
        # Each with the number of its holders.
        self._trees: dict[tuple[Entry, ...], list[Any]] = {}
        self._contents: dict[bytes, list[Any]] = {}

    def hold(self, entries: list[Entry]) -> tuple[Entry, ...]:
        """Takes a tree in, until it is dropped as often as it was held.

        Raises:
            OSError: All of them would take more than they may; this one is not held.
        """
        shared = []
        for place, mode, times, data in entries:
            known = self._contents.get(data) if isinstance(data, bytes) else None
            shared.append((place, mode, times, data if known is None else known[0]))
        tree = tuple(shared)
        known_tree = self._trees.get(tree)
        if known_tree is None:
            known_tree = self._trees[tree] = [tree, 0]
            self._count(tree, 1)
        known_tree[1] += 1
        if self.used > self.most:
            self.drop(tree)
            raise OSError(
                errno.EDQUOT,
                f"the files of all branches may take {self.most >> 20} MB, those that are alike "
                f"counted once: close some branches, or raise Limits.branch_files_mb",
            )
        same: tuple[Entry, ...] = known_tree[0]
        return same

    def drop(self, tree: tuple[Entry, ...]) -> None:
        """Gives a tree up."""
        if not tree:
            return
        known = self._trees[tree]
        known[1] -= 1
        if not known[1]:
            del self._trees[tree]
            self._count(tree, -1)

    def _count(self, tree: tuple[Entry, ...], by: int) -> None:
        for place, _, _, data in tree:
            self.used += by * (self.ENTRY_BYTES + len(place))
            if isinstance(data, bytes):
                known = self._contents.setdefault(data, [data, 0])
                if known[1] == (0 if by > 0 else 1):
                    self.used += by * len(data)
                known[1] += by
                if not known[1]:
                    del self._contents[data]


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
        self._upload: str | None = None  # the file that a `put` under way writes to

    def save(self, exact: bool = False) -> list[Entry]:
        """Reads the tree.

        Args:
            exact: It is refused if `restore` would not make it anew just as it is.

        Raises:
            OSError: It is deeper, or longer in all, than a branch's files may be.
        """
        status = os.fstat(self.area)
        mode = stat.S_IMODE(status.st_mode)
        entries: list[Entry] = [(ROOT, status.st_mode, status.st_mtime_ns, None)]
        self._left = self.max_bytes
        self._exact = exact
        self._first: dict[int, str] = {}  # where each inode was met first
        self._refuse_marks(self.area)
        os.fchmod(self.area, 0o700)
        try:
            self._walk(self.area, "", 0, entries)
        finally:
            os.fchmod(self.area, mode)
        return entries

    def _refuse_marks(self, fd: int) -> None:
        if self._exact and own_attributes(fd):
            raise OSError(errno.ENOTSUP, "extended attributes, which have no copy")

    def _walk(self, directory: int, path: str, depth: int, entries: list[Entry]) -> None:
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
                    self._refuse_marks(inner)
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
            elif self._exact:
                raise OSError(errno.ENOTSUP, "a pipe or a socket, which has no copy")

    def _read(self, directory: int, name: str, status: os.stat_result) -> bytes:
        self._left -= status.st_size  # holes count: a copy fills them
        if self._left < 0:
            raise OSError(errno.EFBIG, "files too long to branch")
        os.chmod(name, 0o600, dir_fd=directory)
        with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=directory), "rb") as file:
            os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
            self._refuse_marks(file.fileno())
            return file.read()

    @contextlib.contextmanager
    def _parent(self, path: str, made: list[str] | None = None) -> Iterator[tuple[int, str]]:
        """Opens the directory that a file is in, through no symbolic link; gives its name there.

        Args:
            path: Where the file is.
            made: Missing directories are made, and added here.
        """
        *parents, name = path.split("/")
        directory = os.dup(self.area)
        try:
            for number, parent in enumerate(parents):
                if made is not None:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(parent, 0o700, dir_fd=directory)
                        made.append("/".join(parents[: number + 1]))
                kind = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                inner = os.open(parent, kind, dir_fd=directory)
                os.close(directory)
                directory = inner
            yield directory, name
        finally:
            os.close(directory)

    def read(self, path: str, at: int, count: int) -> bytes:
        """Reads a part of a file."""
        with self._parent(path) as (directory, name):
            fd = _open_regular(name, os.O_RDONLY, directory)
        try:
            return os.pread(fd, count, at)
        finally:
            os.close(fd)

    def write(self, path: str, at: int, data: bytes, last: bool) -> None:
        """Writes a part of a file, which appears under its name with the last one.

        Until then it is another file, which a failure, or any other request, removes. The user's
        code rests meanwhile and never sees it.
        """
        if at == 0:
            self.abandon()
            with contextlib.suppress(FileNotFoundError), self._parent(path) as (directory, name):
                os.close(_open_regular(name, os.O_WRONLY, directory))
            self._upload = f".{os.urandom(8).hex()}"
        if self._upload is None:
            raise OSError(errno.EIO, "the beginning of the file is gone")
        try:
            flags = os.O_WRONLY | (os.O_CREAT | os.O_EXCL if at == 0 else 0)
            with self._writable():
                fd = os.open(self._upload, flags, 0o600, dir_fd=self.area)
            with os.fdopen(fd, "wb", buffering=0):
                os.lseek(fd, at, os.SEEK_SET)
                write_all(fd, data)
            if last:
                self._move_in(self._upload, path)
        except BaseException:
            self.abandon()
            raise

    def _move_in(self, upload: str, path: str) -> None:
        made: list[str] = []
        try:
            with self._parent(path, made) as (directory, name):
                with contextlib.suppress(FileNotFoundError):
                    before = _open_regular(name, os.O_WRONLY, directory)
                    mode = stat.S_IMODE(os.fstat(before).st_mode)
                    os.close(before)
                    os.chmod(upload, mode, dir_fd=self.area)
                with self._writable(unless=directory):
                    os.rename(upload, name, src_dir_fd=self.area, dst_dir_fd=directory)
        except BaseException:
            for folder in reversed(made):
                os.rmdir(folder, dir_fd=self.area)
            raise
        self._upload = None

    def abandon(self) -> None:
        """Removes what was written of a file whose rest did not come."""
        if self._upload is not None:
            with contextlib.suppress(FileNotFoundError), self._writable():
                os.unlink(self._upload, dir_fd=self.area)
            self._upload = None

    @contextlib.contextmanager
    def _writable(self, unless: int | None = None) -> Iterator[None]:
        """Lets the upload come and go where the code has closed its directory to writers."""
        status = os.fstat(self.area)
        if unless is not None and os.fstat(unless).st_ino == status.st_ino:
            yield
            return
        os.fchmod(self.area, 0o700)
        try:
            yield
        finally:
            os.fchmod(self.area, stat.S_IMODE(status.st_mode))

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
        for name in own_attributes(self.area):
            os.removexattr(self.area, name)
        os.fchmod(self.area, 0o700)
        os.utime(self.area)

    def restore(self, entries: tuple[Entry, ...]) -> None:
        """Writes a tree that `save` read."""
        for place, mode, _, data in entries:
            if place == ROOT:
                continue
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
            os.utime(place, ns=(times, times), dir_fd=self.area, follow_symlinks=False)
            if not stat.S_ISLNK(mode):
                os.chmod(place, stat.S_IMODE(mode), dir_fd=self.area)


def own_attributes(fd: int) -> list[str]:  # pragma: no cover - runs inside the sandbox
    """The extended attributes of a file that a program can have set; file systems may have none."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listxattr(fd)
    return [name for name in names if name.startswith(("user.", "system.posix_acl_"))]


def _open_regular(name: str, flags: int, directory: int) -> int:  # pragma: no cover - inside
    # Not blocking: it may be a pipe that nobody else has open.
    fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EISDIR, "no regular file")
    return fd
