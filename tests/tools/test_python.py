"""The interpreter as a tool, over a scripted session; tests/envs/test_python.py uses a real one."""

import copy
import itertools
import pickle
import random
import sys
import weakref
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
from journeyman.tools.cells import Cell
from journeyman.tools.python import MAX_OUTPUT_CHARS, TOOLS, Repl, ReplayError, python

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
    def __init__(self, backend: "FakeBackend", past: list[str]) -> None:
        self.backend, self.past = backend, past
        self.dead = False
        self.opened = 0

    def session(self) -> Session:
        if self.dead:
            raise SandboxError("its interpreter is gone")
        self.opened += 1
        return self.backend.open(self.past)

    def close(self) -> None:
        raise AssertionError("it is dropped: whoever else is in its sandbox need not wait")


class FakeSession(Closing):
    """Answers from a script; a result with a reason to die, or no status, ends it."""

    def __init__(self, backend: "FakeBackend", past: Sequence[str] = ()) -> None:
        self.backend = backend
        self.script = backend.script
        self.past = list(past)  # what it has run, in the fork that it comes from too
        self.runs: list[str] = []
        self.alive = True

    def snapshot(self, exact: bool = False) -> FakeSnapshot:
        assert self.alive and exact
        if self.past[-1] == "spoil":
            self.alive = False
        if not self.backend.no_copies.isdisjoint(self.past):
            raise SandboxError("it has threads or open files")
        self.backend.snapshots.append(FakeSnapshot(self.backend, self.past.copy()))
        return self.backend.snapshots[-1]

    def exec(self, code: str, timeout: float | None = None) -> ExecResult:
        assert self.alive
        self.runs.append(code)
        self.past.append(code)
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
        self.no_copies = frozenset(no_copies)
        self.sessions: list[FakeSession] = []
        self.snapshots: list[FakeSnapshot] = []

    def session(self, limits: Limits, packages: tuple[str, ...]) -> Session:
        return self.open(())

    def open(self, past: Sequence[str]) -> Session:
        self.sessions.append(FakeSession(self, past))
        return cast(Session, self.sessions[-1])

    def repl(self) -> Repl:
        return Repl(Sandbox(self))

    def ran(self) -> list[list[str]]:
        """What was run from each start or return on, the prelude aside."""
        return [[code for code in s.runs if code != Repl.prelude] for s in self.sessions]

    @property
    def live(self) -> int:
        return sum(s.alive for s in self.sessions)


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


def test_going_back_replays_nothing() -> None:
    backend = FakeBackend()
    repl = backend.repl()
    repl.run("a")
    branch = repl.cells
    repl.run("b")
    deeper = repl.cells
    repl.cells = branch
    repl.run("c")
    assert repl.cells == (Cell("a", "a"), Cell("c", "c"))
    repl.cells = deeper
    repl.run("d")
    repl.cells = branch
    repl.run("e")
    assert backend.ran() == [["a", "b"], ["c"], ["d"], ["e"]]
    assert backend.live == 1
    repl.close()
    assert backend.live == 0


def test_another_repl_goes_on_from_the_same_fork() -> None:
    backend = FakeBackend()
    one, other = backend.repl(), backend.repl()
    one.run("a")
    branch = one.cells
    one.run("b")
    one.close()
    other.cells = branch
    assert other.run("c") == "c"
    assert backend.ran() == [["a", "b"], ["c"]]


def test_equal_cells_of_two_branches_are_two_states() -> None:
    """They show the same and may still differ: in a reading of the clock that nobody printed."""
    backend = FakeBackend()
    repl = backend.repl()
    branches = []
    for _ in range(2):
        repl.cells = ()
        repl.run("t = time()")
        branches.append(repl.cells)
    assert branches[0] == branches[1]
    repl.cells = branches[0]
    repl.run("t")
    first, second = backend.snapshots[1], backend.snapshots[2]
    assert (first.past, first.opened, second.opened) == ([Repl.prelude, "t = time()"], 1, 0)


def test_cells_are_a_value_whose_copies_keep_the_fork() -> None:
    repl = FakeBackend().repl()
    repl.run("a")
    cells = repl.cells
    assert cells == (Cell("a", "a"),) and hash(cells) == hash((Cell("a", "a"),))
    assert copy.copy(cells) is copy.deepcopy(cells) is cells
    there = pickle.loads(pickle.dumps(cells))
    assert there == cells and there.checkpoint is None


@pytest.mark.parametrize("shares", [["a"], [Repl.prelude]])
def test_what_cannot_be_copied_is_replayed(shares: list[str]) -> None:
    backend = FakeBackend(no_copies=shares)
    repl = backend.repl()
    repl.run("a")
    branch = repl.cells
    for code in ("b", "c"):
        repl.cells = branch
        assert repl.run("x") == "x"
        repl.cells = branch
        assert repl.run(code) == code
    assert backend.ran() == [["a", "x"], ["a", "b"], ["a", "x"], ["a", "c"]]


def test_forks_live_as_long_as_somebody_can_come_back() -> None:
    backend = FakeBackend()
    repl = backend.repl()
    living = weakref.WeakSet[FakeSnapshot]()
    held = []
    for number in range(6):
        repl.run(f"x{number}")
        living.update(backend.snapshots)
        backend.snapshots.clear()
        if number == 2:
            held.append(repl.cells)
    # Of the start, of what is held, and of the state it is in.
    assert sorted(len(it.past) - 1 for it in living) == [0, 3, 6]
    held.clear()
    repl.close()
    assert not living


def test_forks_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was longest not used makes room; its branch is run again."""
    monkeypatch.setattr("journeyman.tools.cells.MAX_CHECKPOINTS", 4)
    monkeypatch.setattr("journeyman.tools.cells._Kept.order", {})
    backend = FakeBackend()
    repl = backend.repl()
    branches = []
    for code in "abcde":
        repl.cells = ()
        repl.run(code)
        branches.append(repl.cells)
    kept = [it.checkpoint is not None and it.checkpoint.alive for it in branches]
    assert kept == [False, False, True, True, True]
    before = len(backend.sessions)
    for branch in (branches[3], branches[0]):
        repl.cells = branch
        repl.run("y")
    assert backend.ran()[before:] == [["y"], ["a", "y"]]


def test_a_fork_that_died_is_replayed() -> None:
    backend = FakeBackend()
    repl = backend.repl()
    repl.run("a")
    repl.run("b")
    branch = repl.cells
    repl.cells = ()
    repl.run("c")
    for snapshot in backend.snapshots:
        snapshot.dead = True
    repl.cells = branch
    assert repl.run("d") == "d"
    assert backend.ran() == [["a", "b"], ["c"], ["a", "b", "d"]]


def test_code_that_spoils_its_forks_has_ended_its_interpreter() -> None:
    backend = FakeBackend(no_copies=["spoil"])
    repl = backend.repl()
    repl.run("a")
    with pytest.raises(ToolError, match=r"ended the interpreter when .* variables are as before"):
        repl.run("spoil")
    assert repl.run("b") == "b"
    assert repl.cells == (Cell("a", "a"), Cell("b", "b"))
    assert backend.ran() == [["a", "spoil"], ["b"]]


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


AGAIN = (
    "the interpreter was restarted and the earlier calls were run again: what depends on the time "
    "or on chance is different now."
)
GONE = "the interpreter was restarted: what earlier calls did is gone."


def clock() -> Script:
    """Reads the clock in "time", hangs in "hang", and shows any other code."""
    now = itertools.count()

    def script(code: str) -> ExecResult:
        if code == "hang":
            return replace(FINE, exit_status=None, signal=9, killed_reason=KilledReason.WALL)
        return replace(FINE, value_repr=str(next(now)) if code == "time" else code)

    return script


def test_a_state_that_is_forked_survives_what_cannot_be_run_again() -> None:
    backend = FakeBackend(clock())
    repl = backend.repl()
    assert repl.run("time") == "0"
    with pytest.raises(ToolTimeout, match="variables are as before it"):
        repl.run("hang")
    assert repl.run("b") == "b"
    assert backend.ran() == [["time", "hang"], ["b"]]


def test_a_replay_that_differs_is_told() -> None:
    """At once if a call ends its interpreter, else with the next call."""
    repl = FakeBackend(clock(), no_copies=["time"]).repl()
    repl.run("time")
    branch = repl.cells
    with pytest.raises(ToolTimeout) as caught:
        repl.run("hang")
    assert str(caught.value).endswith(f"it ran too long. Nothing of this call was kept; {AGAIN}")
    assert repl.run("b") == "b"
    assert repl.cells == (Cell("time", "1"), Cell("b", "b"))  # what the interpreter is now
    repl.cells = branch
    assert repl.run("c") == f"({AGAIN})\nc"
    assert repl.cells == (Cell("time", "2"), Cell("c", "c"))
    repl.cells = branch
    with pytest.raises(ToolTimeout, match="is different now"):  # also if that call fails
        repl.run("hang")


def test_a_replay_that_is_killed_is_told() -> None:
    """What the task loads is there again; what the student did is not."""
    kills: set[str] = set()

    def script(code: str) -> ExecResult:
        return replace(FINE, exit_status=None, signal=9) if code in kills else FINE

    repl = FakeBackend(script, no_copies=["b"]).repl()
    repl.cells = (Cell("data = 1"),)
    repl.run("b")
    kills.add("b")
    repl.cells = pickle.loads(pickle.dumps(repl.cells))
    assert repl.run("c").startswith(f"({GONE})\n")
    assert [cell.code for cell in repl.cells] == ["data = 1", "c"]


def test_data_that_no_longer_fits_in_is_told() -> None:
    """`rows` is loaded beside what the student has done, who may have left no room."""
    no_room = replace(FINE, stderr="MemoryError\n", exit_status=1)
    full_once = iter([True])
    repl = FakeBackend(
        lambda code: no_room if code == "rows = [1]" and next(full_once, False) else FINE
    ).repl()
    repl.run("fill")
    repl.cells = repl.cells.then(Cell("rows = [1]"))
    assert repl.run("rows").startswith(f"({GONE})\n")
    assert [cell.code for cell in repl.cells] == ["rows = [1]", "rows"]


def test_what_a_task_loads_and_cannot_be_run_is_an_infrastructure_failure() -> None:
    backend = FakeBackend(lambda code: replace(FINE, signal=9, exit_status=None))
    repl = backend.repl()
    repl.cells = (Cell("a"),)
    with pytest.raises(ReplayError, match="what the task loads cannot be run: The code crashed"):
        repl.run("b")
    assert repl.cells == (Cell("a"),)
    assert not issubclass(ReplayError, ToolError)


def test_a_look_leaves_no_trace() -> None:
    failing = replace(FINE, stderr="NameError\n", exit_status=1)
    backend = FakeBackend(
        lambda code: failing if code == "fail" else replace(FINE, value_repr=code)
    )
    repl = backend.repl()
    repl.run("a")
    assert repl.look("b") == "b"
    with pytest.raises(ToolError, match="NameError"):
        repl.look("fail")
    assert repl.run("c") == "c"
    assert repl.cells == (Cell("a", "a"), Cell("c", "c"))
    assert backend.ran() == [["a", "b"], ["fail"], ["c"]]


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
    assert backend.ran() == [["a", "bomb"], ["b"]]


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
