"""A file tree: folders, text files with an owner and a mode, and a quota on all that they hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from immutables import Map

from journeyman.tools.errors import ToolError
from journeyman.tools.tool import tool


@dataclass(frozen=True, slots=True)
class File:
    """One text file."""

    text: str
    owner: str
    mode: str = "read-write"
    """"read-write" or "read-only"."""


@dataclass(frozen=True, slots=True)
class FilesState:
    """The tree. A path is absolute: "/reports/winter-memo.txt"."""

    files: Map[str, File]
    """By path."""
    folders: frozenset[str]
    """Paths of all folders; "/" is one."""
    quota: int
    """Most characters that all files together may hold."""
    user: str
    """Who owns what is written here."""


def _file(state: FilesState, path: str) -> File:
    try:
        return state.files[path]
    except KeyError:
        what = "is a folder" if path in state.folders else "does not exist; try search"
        raise ToolError(f"{path[:80]} {what}") from None


def _writable(state: FilesState, path: str) -> File:
    file = _file(state, path)
    if file.mode == "read-only":
        raise ToolError(f"{path} is read-only; set_mode can make it read-write")
    return file


def _split(path: str) -> tuple[str, str]:
    """Folder and name."""
    folder, _, name = path.rpartition("/")
    return folder or "/", name


def _join(folder: str, name: str) -> str:
    return f"/{name}" if folder == "/" else f"{folder}/{name}"


def _check_new(state: FilesState, path: str) -> None:
    """Refuse a path that is no place for a new file or folder."""
    folder, name = _split(path)
    if not path.startswith("/") or not name:
        raise ToolError(f"{path[:80]!r} is no path; write e.g. /folder/name.txt")
    if folder not in state.folders:
        raise ToolError(f"there is no folder {folder[:80]}; make_folder makes one")
    if path in state.files or path in state.folders:
        raise ToolError(f"{path} is already there")


def _used(state: FilesState) -> int:
    return sum(len(f.text) for f in state.files.values())


def _check_quota(state: FilesState, more: int) -> None:
    left = state.quota - _used(state)
    if more > left:
        raise ToolError(f"the quota leaves {left} characters, {more} are needed; delete something")


@tool
def list_folder(state: FilesState, folder: str) -> tuple[FilesState, dict[str, Any]]:
    """List what is in a folder.

    Args:
        folder: Path, such as /reports.
    """
    if folder not in state.folders:
        raise ToolError(f"there is no folder {folder[:80]}")
    inside = [path for path in state.files if _split(path)[0] == folder]
    below = [path for path in state.folders if path != "/" and _split(path)[0] == folder]
    return state, {"folders": sorted(below), "files": sorted(inside)}


@tool
def search(state: FilesState, text: str) -> tuple[FilesState, list[str]]:
    """Find files whose path or content contains a text.

    Args:
        text: What to look for.
    """
    wanted = text.casefold()
    found = [
        path
        for path, file in state.files.items()
        if wanted in path.casefold() or wanted in file.text.casefold()
    ]
    if not found:
        raise ToolError(f"no file contains {text[:40]!r}")
    return state, sorted(found)


@tool
def read_file(state: FilesState, path: str) -> tuple[FilesState, dict[str, Any]]:
    """Read a file.

    Args:
        path: Path of the file.
    """
    return state, {"text": _file(state, path).text}


@tool
def get_info(state: FilesState, path: str) -> tuple[FilesState, dict[str, Any]]:
    """Tell owner, size and mode of a file.

    Args:
        path: Path of the file.
    """
    file = _file(state, path)
    return state, {"owner": file.owner, "size": len(file.text), "mode": file.mode}


@tool
def write_file(state: FilesState, path: str, text: str) -> tuple[FilesState, dict[str, Any]]:
    """Write a file anew, or replace the text of one that is there.

    Args:
        path: Path of the file; its folder must exist.
        text: All that the file is to hold.
    """
    if path in state.files:
        file = _writable(state, path)
    else:
        _check_new(state, path)
        file = File("", state.user)
    _check_quota(state, len(text) - len(file.text))
    return replace(state, files=state.files.set(path, replace(file, text=text))), {"written": path}


@tool
def make_folder(state: FilesState, folder: str) -> tuple[FilesState, dict[str, Any]]:
    """Make a folder.

    Args:
        folder: Path of the new folder.
    """
    _check_new(state, folder)
    return replace(state, folders=state.folders | {folder}), {"made": folder}


@tool
def move(state: FilesState, path: str, folder: str) -> tuple[FilesState, dict[str, Any]]:
    """Move a file into another folder; it keeps its name.

    Args:
        path: Path of the file.
        folder: Path of the folder.
    """
    file = _writable(state, path)
    target = _join(folder, _split(path)[1])
    _check_new(state, target)
    return replace(state, files=state.files.delete(path).set(target, file)), {"path": target}


@tool
def copy(state: FilesState, path: str, folder: str) -> tuple[FilesState, dict[str, Any]]:
    """Copy a file into another folder; the copy keeps the name and can be written to.

    Args:
        path: Path of the file.
        folder: Path of the folder.
    """
    file = _file(state, path)
    target = _join(folder, _split(path)[1])
    _check_new(state, target)
    _check_quota(state, len(file.text))
    files = state.files.set(target, File(file.text, state.user))
    return replace(state, files=files), {"path": target}


@tool
def rename(state: FilesState, path: str, name: str) -> tuple[FilesState, dict[str, Any]]:
    """Give a file another name in its folder.

    Args:
        path: Path of the file.
        name: The new name, such as memo.txt.
    """
    file = _writable(state, path)
    if "/" in name:
        raise ToolError("a name has no slash; move takes a file elsewhere")
    target = _join(_split(path)[0], name)
    _check_new(state, target)
    return replace(state, files=state.files.delete(path).set(target, file)), {"path": target}


@tool
def delete(state: FilesState, path: str) -> tuple[FilesState, dict[str, Any]]:
    """Delete a file.

    Args:
        path: Path of the file.
    """
    _writable(state, path)
    return replace(state, files=state.files.delete(path)), {"deleted": path}


@tool
def set_mode(
    state: FilesState, path: str, mode: Literal["read-write", "read-only"]
) -> tuple[FilesState, dict[str, Any]]:
    """Protect a file from changes, or allow them.

    Args:
        path: Path of the file.
        mode: read-write or read-only.
    """
    file = _file(state, path)
    if file.mode == mode:
        raise ToolError(f"{path} is already {mode}")
    return replace(state, files=state.files.set(path, replace(file, mode=mode))), {"mode": mode}


TOOLS = (
    list_folder,
    search,
    read_file,
    get_info,
    write_file,
    make_folder,
    move,
    copy,
    rename,
    delete,
    set_mode,
)
