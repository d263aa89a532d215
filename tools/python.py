"""A Python interpreter as a tool: what the model runs goes to a sandbox, its output comes back.

The state of a `Repl` is a value: the tuple of `Cell`s it has run. The session behind it is a cache
of that value, and so are the snapshots of sessions that the repl has come back to: set to another
branch, it takes the longest beginning that it has a snapshot of, and replays the rest. A replay
whose output differs from the recorded one raises `ReplayError`.
"""

from __future__ import annotations

import contextlib
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from journeyman.sandbox import (
    ExecResult,
    KilledReason,
    Sandbox,
    SandboxDied,
    SandboxError,
    SandboxSnapshot,
    Session,
)
from journeyman.tools.errors import ToolError, ToolsError, ToolTimeout
from journeyman.tools.tool import tool

MAX_OUTPUT_CHARS = 4000
"""Longest text a model is shown of one call: its middle is cut."""
MAX_SNAPSHOTS = 32
"""Branch points kept at once, besides the empty one; each is a stopped process and its files."""

_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")


@dataclass(frozen=True, slots=True)
class Cell:
    """One snippet that an interpreter has run."""

    code: str
    output: str | None = None
    """What came of it; None if nobody recorded it, so that a replay cannot be checked."""


class ReplayError(ToolsError, RuntimeError):
    """A snippet did something else when it was run again: its branch cannot be rebuilt."""


class Repl:
    """An interpreter in a sandbox that can be set back.

    A call that fails on a limit changes nothing: the next one finds the interpreter as it was
    before. An exception of the code is like one in any REPL: what was done before it stays done.
    """

    prelude: ClassVar[str] = (
        "import random, sys; random.seed(0); "
        "'numpy.random' in sys.modules and sys.modules['numpy.random'].seed(0); del random, sys"
    )
    """Runs first: programs that draw at random must draw the same when they are replayed."""
    silence: ClassVar[str] = (
        "Nothing was printed. End with an expression, or print(), to see a value."
    )
    """Shown in place of no output."""

    def __init__(self, sandbox: Sandbox | str = "namespace") -> None:
        """Start nothing yet: the first `run` opens the session.

        Args:
            sandbox: Where sessions come from; a string names a backend with its default limits.
        """
        self.cells: tuple[Cell, ...] = ()
        """What the interpreter has run. Assign to go to another branch."""
        self._sandbox = sandbox
        self._session: Session | None = None
        self._done: tuple[Cell, ...] = ()  # what the live session has run
        self._kept: OrderedDict[tuple[Cell, ...], SandboxSnapshot] = (
            OrderedDict()
        )  # latest use last

    def run(self, code: str) -> str:
        """Run a snippet; `cells` grows by it unless it was killed.

        Returns:
            What it printed and the value of its last expression.

        Raises:
            ToolError: The code raised, ended its interpreter or met a limit (`ToolTimeout` for
                one of time); the message says what happened and how the interpreter stands now.
            SandboxError: The sandbox cannot be opened, or died of something else than the code.
            ReplayError: The branch could not be rebuilt.
        """
        session = self._at(self.cells)
        result = self._exec(session, self.source(code))
        if not session.alive:
            raise _killed(result)
        failed = result.exit_status != 0
        output = _show(result) or self.silence
        self.cells = self._done = (*self.cells, Cell(code, output))
        if failed:
            raise ToolError(output)
        return output

    def close(self) -> None:
        """End the session and its snapshots; `run` opens another one."""
        for snapshot in self._kept.values():
            snapshot.close()
        self._kept.clear()
        session, self._session, self._done = self._session, None, ()
        if session is not None:
            session.close()

    def source(self, code: str) -> str:
        """What the sandbox is given to run a snippet."""
        return code

    def _at(self, cells: tuple[Cell, ...]) -> Session:
        """A session that has run just these cells."""
        alive = self._session is not None and self._session.alive
        goes_on = alive and self._done == cells[: len(self._done)]
        nearer = range(len(cells), len(self._done) if goes_on else -1, -1)
        start = next((cells[:n] for n in nearer if cells[:n] in self._kept), None)
        if start is not None:
            goes_on = self._restore(start)
        session = self._session if goes_on else None
        if session is None:
            session = self._open()
        self._replay(session, cells)
        if start is not None and cells not in self._kept:  # once come back to, twice as likely
            self._keep(session, cells)
            if not session.alive:  # its code spoils its own forks
                session = self._open()
                self._replay(session, cells)
        return session

    def _open(self) -> Session:
        self.close()
        if isinstance(self._sandbox, str):
            self._sandbox = Sandbox(self._sandbox)
        self._session = session = self._sandbox.session()
        self._exec(session, self.prelude)
        self._keep(session, ())
        return session

    def _keep(self, session: Session, cells: tuple[Cell, ...]) -> None:
        """Keeps a branch point, if the state allows it; it can be replayed in any case."""
        with contextlib.suppress(SandboxError):
            self._kept[cells] = session.snapshot(exact=True)
        if len(self._kept) > MAX_SNAPSHOTS + 1:
            oldest = next(each for each in self._kept if each)
            self._kept.pop(oldest).close()

    def _restore(self, cells: tuple[Cell, ...]) -> bool:
        """Goes to a branch point; False if it has died (the machine's memory ran out, say)."""
        assert self._session is not None
        self._kept.move_to_end(cells)
        try:
            self._session.restore(self._kept[cells])
        except SandboxError:
            return False
        self._done = cells
        return True

    def _replay(self, session: Session, cells: tuple[Cell, ...]) -> None:
        """Runs what is missing of these cells."""
        for number, cell in enumerate(cells[len(self._done) :], len(self._done)):
            result = self._exec(session, self.source(cell.code))
            which = f"cell {number} of {len(cells)}"
            if not session.alive:
                raise ReplayError(f"{which} was killed when it was replayed")
            output = _show(result) or self.silence
            if cell.output not in (None, output):
                self.close()
                raise ReplayError(
                    f"{which} gave {output[:200]!r} when it was replayed, "
                    f"not {(cell.output or '')[:200]!r}"
                )
            self._done = (*self._done, cell)

    def _exec(self, session: Session, code: str) -> ExecResult:
        try:
            result = session.exec(code)
        except BaseException:
            self.close()
            raise
        if result.killed_reason is KilledReason.INFRA:
            self.close()
            raise SandboxDied("the sandbox died while it ran a snippet")
        return result


@tool(timeout_s=float("inf"))  # its sandbox has limits
def python(state: Repl, code: str) -> tuple[Repl, str]:
    """Run Python code. Variables stay from call to call; the last expression's value is shown.

    Args:
        code: Python source.
    """
    return state, state.run(code)


def _show(result: ExecResult) -> str:
    """What a model sees of a finished call: output, value, errors; the same in every session."""
    parts = [result.stdout, result.value_repr or "", result.stderr]
    if result.exit_status and not result.stderr:
        parts.append(f"The code exited with status {result.exit_status}.")
    text = "\n".join(part.rstrip("\n") for part in parts if part)
    text = _ADDRESS.sub("at 0x…", text)
    if len(text) > MAX_OUTPUT_CHARS:
        half = MAX_OUTPUT_CHARS // 2
        cut = len(text) - 2 * half
        text = f"{text[:half]}\n… {cut} characters cut …\n{text[-half:]}"
    return text


_LIMITS = {
    KilledReason.WALL: "it ran too long",
    KilledReason.CPU: "it used too much processor time",
    KilledReason.MEMORY: "it used too much memory",
    KilledReason.PIDS: "it started too many processes",
    KilledReason.OUTPUT: "it printed too much",
    KilledReason.DISK: "it wrote too much",
}


def _killed(result: ExecResult) -> ToolError:
    """Why the call ended the interpreter, in words a model can act on."""
    if result.killed_reason is not None:
        what = f"The code was stopped: {_LIMITS[result.killed_reason]}."
    elif result.signal is not None:
        what = f"The code crashed the interpreter (signal {result.signal})."
    else:
        what = f"The code ended the interpreter (status {result.exit_status})."
    message = f"{what} Nothing of this call was kept; variables are as before it."
    if result.killed_reason in (KilledReason.WALL, KilledReason.CPU):
        return ToolTimeout(message)
    return ToolError(message)


TOOLS = (python,)
