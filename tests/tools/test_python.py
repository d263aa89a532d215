"""The interpreter as a tool, over a scripted session; tests/envs/test_python.py uses a real one."""

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from journeyman.sandbox import (
    ExecResult,
    IsolationUnavailable,
    KilledReason,
    Limits,
    Sandbox,
    SandboxDied,
    SandboxError,
    Session,
)
from journeyman.sandbox.base import Closing
from journeyman.tools import CallStatus, ToolCall, ToolError, ToolTimeout, execute
from journeyman.tools.python import MAX_OUTPUT_CHARS, TOOLS, Cell, Repl, ReplayError, python

FINE = ExecResult(
    stdout="",
    stderr="",
    value_repr=None,
    exit_status=0,
    signal=None,
    duration_s=0.0,
    cpu_s=0.0,
    truncated=False,
    killed_reason=None,
)
Script = Callable[[str], ExecResult | BaseException]
SILENT = "Nothing was printed. End with an expression, or print(), to see a value."


class FakeSnapshot:
    def __init__(self) -> None:
        self.dead = self.closed = False

    def close(self) -> None:
        self.closed = True


class FakeSession(Closing):
    """Answers from a script; a result with a reason to die, or no status, ends it."""

    def __init__(self, backend: "FakeBackend") -> None:
        self.backend = backend
        self.script = backend.script
        self.runs: list[list[str]] = [[]]  # one more for each return to a snapshot
        self.alive = True

    def snapshot(self, exact: bool = False) -> FakeSnapshot:
        assert self.alive and exact
        if self.runs[-1][-1] == "spoil":
            self.alive = False
        if self.runs[-1][-1] in self.backend.no_copies:
            raise SandboxError("it has threads or open files")
        self.backend.snapshots.append(FakeSnapshot())
        return self.backend.snapshots[-1]

    def restore(self, snapshot: FakeSnapshot) -> None:
        assert not snapshot.closed
        if snapshot.dead:
            raise SandboxError("its interpreter is gone")
        self.alive = True
        self.runs.append([])

    def exec(self, code: str, timeout: float | None = None) -> ExecResult:
        assert self.alive
        self.runs[-1].append(code)
        result = FINE if code.startswith("import random") else self.script(code)
        if isinstance(result, BaseException):
            raise result
        self.alive = result.killed_reason is None and result.signal is None and code != "_exit"
        return result

    def close(self) -> None:
        self.alive = False


class FakeBackend:
    name = "fake"

    def __init__(
        self,
        script: Script = lambda code: replace(FINE, value_repr=code),
        no_copies: Sequence[str] = (),
    ) -> None:
        self.script = script
        self.no_copies = no_copies
        self.sessions: list[FakeSession] = []
        self.snapshots: list[FakeSnapshot] = []

    def session(self, limits: Limits, packages: tuple[str, ...]) -> Session:
        self.sessions.append(FakeSession(self))
        return cast(Session, self.sessions[-1])

    def repl(self) -> Repl:
        return Repl(Sandbox(self))

    def ran(self) -> list[list[str]]:
        """What was run from each start or return on, the prelude aside."""
        runs = [run for s in self.sessions for run in s.runs]
        return [[code for code in run if code != Repl.prelude] for run in runs]


def test_nothing_starts_before_the_first_call() -> None:
    backend = FakeBackend()
    repl = backend.repl()
    repl.cells = (Cell("a"),)
    repl.close()
    assert backend.sessions == []


def test_cells_grow() -> None:
    backend = FakeBackend()
    repl = backend.repl()
    assert [repl.run("a"), repl.run("b")] == ["a", "b"]
    assert repl.cells == (Cell("a", "a"), Cell("b", "b"))
    assert backend.ran() == [["a", "b"]]


def test_going_back_replays_once() -> None:
    backend = FakeBackend()
    repl = backend.repl()
    repl.run("a")
    branch = repl.cells
    repl.run("b")
    repl.cells = branch
    repl.run("c")
    assert repl.cells == (Cell("a", "a"), Cell("c", "c"))
    repl.cells = (*branch, Cell("b", "b"))
    repl.run("d")
    repl.cells = branch
    repl.run("e")
    assert backend.ran() == [["a", "b"], ["a", "c"], ["b", "d"], ["e"]]
    assert len(backend.sessions) == 1
    repl.close()
    assert not backend.sessions[0].alive
    assert len(backend.snapshots) == 3 and all(each.closed for each in backend.snapshots)


@pytest.mark.parametrize("shares", [["a"], [Repl.prelude, "a"]])
def test_what_cannot_be_copied_is_replayed(shares: list[str]) -> None:
    backend = FakeBackend(no_copies=shares)
    repl = backend.repl()
    repl.run("a")
    branch = repl.cells
    for code in ("b", "c"):
        repl.cells = branch
        repl.run("x")
        repl.cells = branch
        repl.run(code)
    assert backend.ran() == [["a", "x"], ["a", "b"], ["a", "x"], ["a", "c"]]
    assert len(backend.sessions) == (1 if shares == ["a"] else 4)


def test_snapshots_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("journeyman.tools.python.MAX_SNAPSHOTS", 2)
    backend = FakeBackend()
    repl = backend.repl()
    for code in ("a", "b", "a", "c"):
        repl.cells = (Cell(code),)
        repl.run("x")
        repl.cells = (Cell("z"),)  # elsewhere, so that the next one is a return
        repl.run("x")
    assert sum(not each.closed for each in backend.snapshots) == 3
    assert not backend.snapshots[0].closed  # of the state that all others begin with
    repl.cells = (Cell("c"),)
    repl.run("y")
    assert backend.ran()[-1] == ["y"]


def test_a_snapshot_that_died_is_replayed() -> None:
    backend = FakeBackend()
    repl = backend.repl()
    repl.run("a")
    backend.snapshots[0].dead = True
    repl.cells = ()
    repl.run("b")
    assert backend.ran() == [["a"], ["b"]]
    assert len(backend.sessions) == 2


def test_code_that_spoils_its_copies() -> None:
    backend = FakeBackend(no_copies=["spoil"])
    repl = backend.repl()
    repl.run("spoil")
    branch = repl.cells
    repl.run("a")
    repl.cells = branch
    assert repl.run("b") == "b"
    assert backend.ran() == [["spoil", "a"], ["spoil"], ["spoil", "b"]]


def test_going_forward_runs_the_rest_only() -> None:
    backend = FakeBackend()
    repl = backend.repl()
    repl.run("a")
    repl.cells = (*repl.cells, Cell("b", "b"), Cell("c"))
    repl.run("d")
    assert backend.ran() == [["a", "b", "c", "d"]]


def test_staying_replays_nothing() -> None:
    backend = FakeBackend()
    repl = backend.repl()
    repl.run("a")
    repl.cells = (Cell("a", "a"),)  # equal, not the same
    repl.run("b")
    assert backend.ran() == [["a", "b"]]


def test_a_replay_that_differs_is_an_infrastructure_failure() -> None:
    count = iter(range(100))
    backend = FakeBackend(lambda code: replace(FINE, value_repr=str(next(count))))
    repl = backend.repl()
    repl.run("a")
    branch = repl.cells
    repl.run("b")
    repl.cells = branch
    with pytest.raises(ReplayError, match=r"cell 0 of 1 gave '2' when .* replayed, not '0'"):
        repl.run("c")
    assert not any(s.alive for s in backend.sessions)
    assert not issubclass(ReplayError, ToolError)


def test_a_replay_that_is_killed_is_an_infrastructure_failure() -> None:
    backend = FakeBackend(lambda code: replace(FINE, signal=9, exit_status=None))
    repl = backend.repl()
    repl.cells = (Cell("a"),)
    with pytest.raises(ReplayError, match="cell 0 of 1 was killed"):
        repl.run("b")
    assert repl.cells == (Cell("a"),)


def test_an_exception_of_the_code_is_a_tool_error_and_a_cell() -> None:
    trace = "Traceback (most recent call last):\nNameError: name 'y' is not defined\n"
    backend = FakeBackend(lambda code: replace(FINE, stdout="hi\n", stderr=trace, exit_status=1))
    repl = backend.repl()
    with pytest.raises(ToolError) as caught:
        repl.run("x = 1; y")
    assert str(caught.value) == f"hi\n{trace.strip()}"
    assert repl.cells == (Cell("x = 1; y", str(caught.value)),)  # x is defined now
    assert backend.sessions[0].alive


@pytest.mark.parametrize("reason", [r for r in KilledReason if r is not KilledReason.INFRA])
def test_a_limit_leaves_all_as_it_was(reason: KilledReason) -> None:
    killed = replace(FINE, exit_status=None, signal=9, killed_reason=reason)
    backend = FakeBackend(lambda code: killed if code == "bomb" else FINE)
    repl = backend.repl()
    repl.run("a")
    before = repl.cells
    timeout = reason in (KilledReason.WALL, KilledReason.CPU)
    with pytest.raises(
        ToolTimeout if timeout else ToolError, match="The code was stopped: it "
    ) as e:
        repl.run("bomb")
    assert isinstance(e.value, ToolTimeout) == timeout
    assert "Nothing of this call was kept; variables are as before it." in str(e.value)
    assert repl.cells == before
    repl.run("b")
    assert backend.ran() == [["a", "bomb"], ["a", "b"]]


@pytest.mark.parametrize(
    ("code", "result", "says"),
    [
        ("_exit", replace(FINE, exit_status=3), r"ended the interpreter \(status 3\)"),
        ("_exit", FINE, r"ended the interpreter \(status 0\)"),
        ("crash", replace(FINE, exit_status=None, signal=11), r"crashed .* \(signal 11\)"),
    ],
)
def test_code_that_ends_its_interpreter(code: str, result: ExecResult, says: str) -> None:
    repl = FakeBackend(lambda _: result).repl()
    with pytest.raises(ToolError, match=says):
        repl.run(code)
    assert repl.cells == ()


def test_a_dead_sandbox_is_an_infrastructure_failure() -> None:
    lost = replace(FINE, exit_status=None, killed_reason=KilledReason.INFRA)
    for answer in (lost, SandboxDied("gone")):
        answers = iter([FINE, answer, FINE, FINE])
        backend = FakeBackend(lambda code, answers=answers: next(answers))  # type: ignore[misc]
        repl = backend.repl()
        repl.run("a")
        with pytest.raises(SandboxDied):
            repl.run("b")
        assert not backend.sessions[0].alive
        repl.run("c")  # a new session is as good as the old one
        assert backend.ran() == [["a", "b"], ["a", "c"]]


def test_no_isolation_is_no_tool_error() -> None:
    class Unavailable(FakeBackend):
        def session(self, limits: Limits, packages: tuple[str, ...]) -> Session:
            raise IsolationUnavailable("bubblewrap", "install it")

    with pytest.raises(IsolationUnavailable):
        Unavailable().repl().run("a")


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (FINE, SILENT),
        (replace(FINE, stdout="a\nb\n"), "a\nb"),
        (replace(FINE, value_repr="[1]"), "[1]"),
        (replace(FINE, stdout="a\n", value_repr="''"), "a\n''"),
        (replace(FINE, stdout="a", stderr="W: b\n"), "a\nW: b"),
        (replace(FINE, value_repr="<f at 0x7fe5cfd17b00>"), "<f at 0x…>"),
        (replace(FINE, value_repr="'0xff'"), "'0xff'"),
    ],
)
def test_what_a_model_is_shown(result: ExecResult, shown: str) -> None:
    assert FakeBackend(lambda _: result).repl().run("a") == shown


def test_exit_with_a_status() -> None:
    repl = FakeBackend(lambda _: replace(FINE, exit_status=4)).repl()
    with pytest.raises(ToolError, match=r"^The code exited with status 4\.$"):
        repl.run("exit(4)")


def test_long_output_loses_its_middle() -> None:
    repl = FakeBackend(lambda _: replace(FINE, stdout="a" * 50_000 + "the end")).repl()
    text = repl.run("a")
    assert len(text) < MAX_OUTPUT_CHARS + 100
    assert text.startswith("aaa")
    assert "\n… 46007 characters cut …\n" in text
    assert text.endswith("the end")


def test_as_a_tool() -> None:
    tools = {t.name: t for t in TOOLS}
    assert python.spec.signature() == "python(code)"
    repl = FakeBackend().repl()
    state, result = execute(ToolCall("python", {"code": "1 + 1"}), tools, repl)
    assert state is repl
    assert (result.call.status, result.content) == (CallStatus.OK, "1 + 1")
    _, result = execute(ToolCall("python", {"code": 7}), tools, repl)
    assert result.call.status is CallStatus.INVALID_ARGUMENTS
    assert len(repl.cells) == 1


def test_a_backend_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()
    monkeypatch.setattr("journeyman.sandbox.base.resolve_backend", {"fake": backend}.__getitem__)
    assert Repl("fake").run("a") == "a"
    assert len(backend.sessions) == 1


def test_all_generators_that_are_loaded_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setitem(sys.modules, "numpy.random", SimpleNamespace(seed=seeds.append))
    namespace: dict[str, object] = {}
    drawn = []
    for _ in range(2):
        exec(Repl.prelude, namespace)
        drawn.append(random.random())
    assert seeds == [0, 0] and drawn[0] == drawn[1]
    assert set(namespace) == {"__builtins__"}
