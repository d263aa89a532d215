"""Files in and out of a session."""

import errno

import pytest

from journeyman.sandbox import KilledReason, Limits, Sandbox, SandboxDied, Session

DATA = bytes(range(256)) * 40_000  # 10 MB: more than one message


@pytest.mark.parametrize("data", [b"", b"\x00\xff", DATA], ids=["empty", "binary", "long"])
def test_what_is_put_can_be_got_and_read(session: Session, data: bytes) -> None:
    session.put("in/deep/file", data)
    assert session.get("in/deep/file") == data
    assert session.exec("len(open('in/deep/file', 'rb').read())").value_repr == str(len(data))
    session.put("in/deep/file", b"shorter")
    assert session.get("in/deep/file") == b"shorter"


def test_what_the_code_writes_can_be_got(session: Session) -> None:
    session.exec("open('out', 'w').write('x' * 5)")
    assert session.get("out") == b"xxxxx"


def test_branches_have_files_of_their_own(session: Session) -> None:
    session.put("f", b"old")
    with session.fork() as branch:
        branch.put("f", b"new")
        assert session.get("f") == b"old"
        assert branch.get("f") == b"new"


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "a\0b", "a/\ud800", None]
)
def test_paths_stay_below_the_working_directory(session: Session, path: str) -> None:
    for act in (lambda: session.get(path), lambda: session.put(path, b"")):
        with pytest.raises(ValueError, match="expected a relative path"):
            act()
    assert session.exec("1 + 1").value_repr == "2"


@pytest.mark.parametrize("kind", ["f", "d/f"])
def test_no_symbolic_link_is_followed(session: Session, kind: str) -> None:
    link = "os.symlink('/etc/hostname', 'f')" if kind == "f" else "os.symlink('/etc', 'd')"
    session.exec(f"import os\n{link}")
    for act in (lambda: session.get(kind), lambda: session.put(kind, b"x")):
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)


@pytest.mark.parametrize("make", ["os.mkdir('x')", "os.mkfifo('x')", "os.mknod('x', 0o140600)"])
def test_only_regular_files_are_opened(session: Session, make: str) -> None:
    assert session.exec(f"import os\n{make}").ok
    for act in (lambda: session.get("x"), lambda: session.put("x", b"x")):
        with pytest.raises(OSError):
            act()
    assert session.exec("1 + 1").value_repr == "2"


def test_errors_are_those_of_open(session: Session) -> None:
    with pytest.raises(FileNotFoundError):
        session.get("nothing")
    session.exec("import os\nopen('f', 'w').close()\nos.chmod('f', 0)")
    with pytest.raises(PermissionError):
        session.get("f")


def test_files_count_against_the_limit(bwrap: str) -> None:
    with Sandbox(limits=Limits(workdir_mb=1)).session() as session:
        with pytest.raises(OSError) as caught:
            session.put("f", bytes(2 << 20))
        assert caught.value.errno == errno.ENOSPC
        assert session.exec("import os\nos.listdir('.')").value_repr == "[]"


def test_a_dead_session_has_no_files(session: Session) -> None:
    session.put("f", b"")
    session.exec("import os; os._exit(0)")
    with pytest.raises(SandboxDied):
        session.get("f")


def test_a_branch_whose_files_cannot_be_kept_says_so(session: Session) -> None:
    with session.fork() as branch:
        session.exec("import os\nfor _ in range(99):\n    os.mkdir('d')\n    os.chdir('d')\n")
        branch.put("f", b"")
        with pytest.raises(SandboxDied, match=str(KilledReason.DISK)):
            session.get("f")
        assert branch.get("f") == b""
