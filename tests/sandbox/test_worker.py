"""The worker's parts that make sense outside of a sandbox."""

import ast
import importlib
import inspect
import os
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from journeyman.sandbox.worker import MODULES, frames, repl, supervisor

PACKAGE = "journeyman.sandbox.worker"


def run(code: str, namespace: dict[str, Any] | None = None) -> tuple[int, str | None, bool]:
    return repl.run_cell(code, {} if namespace is None else namespace, "<cell 1>")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", (0, None, False)),
        ("x = 1", (0, None, False)),
        ("None", (0, None, False)),
        ("1 + 1", (0, "2", False)),
        ("x = 2; x", (0, "2", False)),
        ("'é'", (0, "'é'", False)),
        ("raise SystemExit", (0, None, False)),
        ("raise SystemExit(300)", (300 & 0xFF, None, False)),
        ("raise SystemExit(-1)", (255, None, False)),
    ],
)
def test_cells(code: str, expected: tuple[int, str | None, bool]) -> None:
    assert run(code) == expected


def test_a_cell_has_no_future_imports_of_the_worker() -> None:
    namespace: dict[str, Any] = {}
    run("def f(x: 1 + 1): pass", namespace)
    assert namespace["f"].__annotations__ == {"x": 2}


def test_a_long_repr_is_cut_by_bytes() -> None:
    status, value, cut = run("'é' * 40_000")
    assert status == 0 and cut and value is not None
    assert len(value.encode()) <= repl.MAX_REPR


def test_an_exit_with_words_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("raise SystemExit('stop')") == (1, None, False)
    assert capsys.readouterr().err == "stop\n"


@pytest.mark.parametrize("code", ["1 / 0", "raise KeyboardInterrupt", "def", "\0", "'\ud800'"])
def test_tracebacks_hide_the_worker(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(code) == (1, None, False)
    seen = capsys.readouterr().err
    assert seen and "repl.py" not in seen and "ast.py" not in seen


def test_chained_exceptions_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    run("try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('b') from e")
    seen = capsys.readouterr().err
    assert "KeyError: 'a'" in seen and "ValueError: b" in seen and "repl.py" not in seen


def test_an_exception_that_cannot_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "class E(Exception):\n"
        "    def __str__(self):\n        raise SystemExit\n"
        "    __repr__ = __str__\n"
        "raise E"
    )
    assert run(code)[0] == 1
    assert "E" in capsys.readouterr().err


def test_warming_up_leaves_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    repl.warm_up()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("value", [None, "", "1", "a b  c", "\n\0", "'\u20ac'", " "])
@pytest.mark.parametrize("cut", [False, True])
def test_an_answer_arrives_as_it_was_meant(value: str | None, cut: bool) -> None:
    cut = cut and value is not None
    assert supervisor.parse_answer(repl.pack_answer("n", 255, value, cut), "n") == {
        "exit_status": 255,
        "value_repr": value,
        "truncated": cut,
    }


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"n",
        b"n 0",
        b"n 0 -",
        b"m 0 - ",
        b" 0 - ",
        b"n 256 - ",
        b"n -9 - ",
        b"n +1 - ",
        b"n 1_0 - ",
        b"n  - ",
        b"n " + b"1" * 5000 + b" - ",
        "n \u0663 - ".encode(),
        b"n 0  1",
        b"n 0 -= 1",
        b"n 0 > 1",
        b"\xff",
        b'{"nonce": "n", "status": 0, "value": "1", "cut": false}',
    ],
)
def test_a_malformed_answer_is_none(raw: bytes) -> None:
    assert supervisor.parse_answer(raw, "n") is None


@given(st.binary(max_size=200))
def test_no_bytes_make_it_raise(raw: bytes) -> None:
    answer = supervisor.parse_answer(b"n 0 = " + raw, "n")
    assert answer is not None and isinstance(answer["value_repr"], str)
    assert supervisor.parse_answer(raw, "nonce") is None


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_frames_survive_the_trip(message: dict[str, object]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(frames.encode(message))
        ours.shutdown(socket.SHUT_WR)
        assert frames.receive(theirs.fileno()) == message
        assert frames.receive(theirs.fileno()) is None


def test_a_cut_frame_is_an_end() -> None:
    reader, writer = os.pipe()
    os.write(writer, frames.encode({"a": 1})[:-1])
    os.close(writer)
    assert frames.receive(reader) is None
    os.close(reader)


class Unlucky(supervisor.Supervisor):
    """Something that nobody has thought of befalls a branch."""

    def __init__(self) -> None:
        self.branches = {0: "fresh", 1: "unlucky"}  # type: ignore[dict-item]
        self.ended: list[object] = []
        self.processes = SimpleNamespace(kill=self.ended.append)  # type: ignore[assignment]

    def _exec(self, request: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("unheard of")

    def _forget(self, branch: Any) -> None:
        self.branches = {n: each for n, each in self.branches.items() if each is not branch}


@pytest.mark.parametrize("more", [{}, {"stopped": True}])
def test_what_goes_wrong_with_a_branch_ends_it_alone(more: dict[str, Any]) -> None:
    unlucky = Unlucky()
    answer = unlucky._answer({"op": "exec", "branch": 1, "code": "1", **more})
    assert answer["ended"] and answer["killed"] is None and answer["signal"] == 9
    assert answer["error"] == (
        "its time was over before its turn came" if more else "ValueError: unheard of"
    )
    assert unlucky.ended == ["unlucky"] and list(unlucky.branches) == [0]


def test_the_program_is_made_of_all_modules() -> None:
    found = {path.stem for path in Path(frames.__file__).parent.glob("*.py")}
    assert found == {"__init__", *MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_older_pythons_can_run_the_source(name: str) -> None:
    source = inspect.getsource(importlib.import_module(f"{PACKAGE}.{name}"))
    known = {f"{PACKAGE}.{earlier}" for earlier in MODULES[: MODULES.index(name)]}
    for node in ast.walk(ast.parse(source, feature_version=(3, 9))):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= sys.stdlib_module_names
        elif isinstance(node, ast.ImportFrom):
            top = (node.module or "").partition(".")[0]
            assert node.module in known or top in sys.stdlib_module_names


def test_a_huge_message_is_refused() -> None:
    with pytest.raises(ValueError, match="the most is"):
        frames.encode({"code": "x" * frames.MAX_FRAME})


def test_the_loop_answers_until_its_requests_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for nonce, code in (("a", "x = 5"), ("b", "x + 1"), ("c", "__name__")):
            request = {"op": "exec", "nonce": nonce, "code": code, "moved": nonce == "b"}
            ours.send(frames.encode(request))
        ours.shutdown(socket.SHUT_WR)
        repl.repl(theirs)
        answers = [supervisor.parse_answer(ours.recv(4096), nonce) for nonce in "abc"]
    assert [answer and answer["value_repr"] for answer in answers] == [None, "6", "'__main__'"]


def test_a_long_request_comes_in_pieces() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = {"code": "x" * 150_000}
    data = frames.encode(request)
    with ours, theirs:
        sender = threading.Thread(
            target=lambda: [ours.send(data[at : at + 65536]) for at in range(0, len(data), 65536)]
        )
        sender.start()
        assert frames.receive_pieces(theirs) == (request, [])
        sender.join()
        ours.close()
        assert frames.receive_pieces(theirs) == (None, [])
