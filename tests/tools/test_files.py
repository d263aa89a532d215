"""The file tree: paths, owners, modes and the quota."""

import json

import pytest
from immutables import Map

from journeyman.tools.apis import files
from journeyman.tools.apis.files import File, FilesState

from .desk import Desk


@pytest.fixture
def desk() -> Desk:
    held = {
        "/a/memo.txt": File("The number is 423.", "Ada Abbott"),
        "/a/old.txt": File("old", "Ben Berger", "read-only"),
        "/top.txt": File("top", "Ben Berger"),
    }
    return Desk(files.TOOLS, FilesState(Map(held), frozenset({"/", "/a", "/b"}), 40, "Ada Abbott"))


def test_looks(desk: Desk) -> None:
    listed = json.loads(desk.ok("list_folder", folder="/"))
    assert listed == {"folders": ["/a", "/b"], "files": ["/top.txt"]}
    listed = json.loads(desk.ok("list_folder", folder="/a"))
    assert listed == {"folders": [], "files": ["/a/memo.txt", "/a/old.txt"]}
    assert desk.refused("list_folder", folder="/c") == "there is no folder /c"
    assert json.loads(desk.ok("search", text="NUMBER")) == ["/a/memo.txt"]
    assert json.loads(desk.ok("search", text="old.txt")) == ["/a/old.txt"]
    assert desk.refused("search", text="moon") == "no file contains 'moon'"
    assert json.loads(desk.ok("read_file", path="/top.txt")) == {"text": "top"}
    assert desk.refused("read_file", path="/a") == "/a is a folder"
    assert desk.refused("read_file", path="/x") == "/x does not exist; try search"
    info = json.loads(desk.ok("get_info", path="/a/old.txt"))
    assert info == {"owner": "Ben Berger", "size": 3, "mode": "read-only"}


def test_writes(desk: Desk) -> None:
    desk.ok("write_file", path="/b/new.txt", text="new")
    assert desk.state.files["/b/new.txt"] == File("new", "Ada Abbott")
    desk.ok("write_file", path="/top.txt", text="other")
    assert desk.state.files["/top.txt"] == File("other", "Ben Berger")
    refusal = desk.refused("write_file", path="/a/old.txt", text="x")
    assert refusal == "/a/old.txt is read-only; set_mode can make it read-write"
    refusal = desk.refused("write_file", path="/c/x.txt", text="x")
    assert refusal == "there is no folder /c; make_folder makes one"
    for path in ("x.txt", "", "/b/"):
        refusal = desk.refused("write_file", path=path, text="x")
        assert refusal == f"{path!r} is no path; write e.g. /folder/name.txt"


def test_the_quota_counts_what_is_added(desk: Desk) -> None:
    refusal = desk.refused("write_file", path="/b/big.txt", text="x" * 17)
    assert refusal == "the quota leaves 16 characters, 17 are needed; delete something"
    desk.ok("write_file", path="/a/memo.txt", text="x" * 34)
    assert "leaves 0 characters, 3 are needed" in desk.refused("copy", path="/top.txt", folder="/b")
    desk.ok("delete", path="/top.txt")
    desk.ok("copy", path="/a/old.txt", folder="/b")
    assert desk.state.files["/b/old.txt"] == File("old", "Ada Abbott")


def test_moves(desk: Desk) -> None:
    assert json.loads(desk.ok("move", path="/a/memo.txt", folder="/")) == {"path": "/memo.txt"}
    assert json.loads(desk.ok("rename", path="/memo.txt", name="m.txt")) == {"path": "/m.txt"}
    assert sorted(desk.state.files) == ["/a/old.txt", "/m.txt", "/top.txt"]
    assert desk.refused("rename", path="/m.txt", name="top.txt") == "/top.txt is already there"
    refusal = desk.refused("rename", path="/m.txt", name="b/m.txt")
    assert refusal == "a name has no slash; move takes a file elsewhere"
    assert "no folder /c" in desk.refused("move", path="/m.txt", folder="/c")
    desk.ok("make_folder", folder="/c")
    assert desk.refused("make_folder", folder="/c") == "/c is already there"
    assert json.loads(desk.ok("move", path="/m.txt", folder="/c")) == {"path": "/c/m.txt"}


def test_modes(desk: Desk) -> None:
    for name, arguments in (
        ("delete", {}),
        ("move", {"folder": "/b"}),
        ("rename", {"name": "n.txt"}),
    ):
        assert "is read-only" in desk.refused(name, path="/a/old.txt", **arguments)
    refusal = desk.refused("set_mode", path="/a/old.txt", mode="read-only")
    assert refusal == "/a/old.txt is already read-only"
    desk.ok("set_mode", path="/a/old.txt", mode="read-write")
    desk.ok("delete", path="/a/old.txt")
    assert desk.refused("delete", path="/a/old.txt") == "/a/old.txt does not exist; try search"
