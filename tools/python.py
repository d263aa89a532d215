"""A Python interpreter as a tool: what the model runs goes to a sandbox, its output comes back.

The state of a `Repl` is a value: the `Cells` it has run. After each of them its session is forked,
and the value brings the fork along (see `journeyman.tools.cells`). So whatever a call does to its
interpreter, the next one finds the state before it, clock readings and all; and who comes back to a
state, in this repl or another, goes on from its fork. Where there is none (threads and open files
keep a session from being copied exactly; the oldest forks make room for new ones) the cells are run
again. If that shows what it did before, the model cannot tell the difference; if not, it is told.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import ClassVar

from journeyman.sandbox import (
    ExecResult,
    KilledReason,
    Sandbox,
    SandboxDied,
    SandboxError,
    Session,
)
from journeyman.tools.cells import Cell, Cells, Checkpoint
from journeyman.tools.errors import ToolError, ToolsError, ToolTimeout
from journeyman.tools.tool import tool

MAX_OUTPUT_CHARS = 4000
"""Longest text a model is shown of one call: its middle is cut."""

_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")


class ReplayError(ToolsError, RuntimeError):
    """What a task loads cannot be run, with nothing of the student's before it."""


class _Lost(Exception):
    """What was run cannot be run again: it ends its interpreter, or leaves no room for data."""


class Repl:
    """An interpreter in a sandbox that can be set back.

    A call that fails on a limit changes nothing: the next one finds the interpreter as it was
    before, or its message says that it does not. An exception of the code is like one in any REPL:
    what was done before it stays done.
    """

    prelude: ClassVar[str] = (
        "import random, sys; random.seed(0); "
        "'numpy.random' in sys.modules and sys.modules['numpy.random'].seed(0); del random, sys"
    )
    """Runs first: programs that draw at random draw the same in every episode."""
    silence: ClassVar[str] = (
        "Nothing was printed. End with an expression, or print(), to see a value."
    )
    """Shown in place of no output."""
    noun: ClassVar[str] = "interpreter"
    """What it is to the model."""

    def __init__(self, sandbox: Sandbox | str = "namespace") -> None:
        """Start nothing yet: the first `run` opens the session.

        Args:
            sandbox: Where sessions come from; a string names a backend with its default limits.
        """
        self._cells = Cells()
        self._sandbox = sandbox
        self._session: Session | None = None
        self._done = Cells()  # what the live session has run
        self._start: Checkpoint | None = None  # before any cell

    @property
    def cells(self) -> Cells:
        """What the interpreter has run. Assign to go to another branch.

        Other cells than those that were read here bring no fork along. They are taken for the
        branch that it is on as far as they are equal; the rest will be run.
        """
        return self._cells

    @cells.setter
    def cells(self, cells: Sequence[Cell]) -> None:
        if not isinstance(cells, Cells):
            done = len(self._done)
            on = self._done == tuple(cells[:done])
            cells = (
                Cells((*self._done, *cells[done:]), self._done.checkpoint) if on else Cells(cells)
            )
        self._cells = cells

    def run(self, code: str) -> str:
        """Run a snippet; `cells` grows by it unless it was killed.

        Returns:
            What it printed and the value of its last expression; before that, if it is so, that
            the interpreter is not what earlier calls left.

        Raises:
            ToolError: The code raised, ended its interpreter or met a limit (`ToolTimeout` for
                one of time); the message says what happened and how the interpreter stands now.
            SandboxError: The sandbox cannot be opened, or died of something else than the code.
            ReplayError: What the task loads cannot be run.
        """
        session, note = self._at(self.cells)
        before = self._done
        result = self._exec(session, self.source(code))
        ended = None if session.alive else _why(result)
        if ended is None:
            cell = Cell(code, _show(result) or self.silence)
            checkpoint = self._fork(session, len(before) + 1)
            self._cells = self._done = Cells((*before, cell), checkpoint or before.checkpoint)
            if not session.alive:
                ended = f"The code ended the {self.noun} when its state was to be kept."
        if ended is not None:
            _, lost = self._at(before)
            stands = lost or note or "variables are as before it."
            message = f"{ended} Nothing of this call was kept; {stands}"
            timeout = result.killed_reason in (KilledReason.WALL, KilledReason.CPU)
            raise (ToolTimeout if timeout else ToolError)(message)
        output = f"({note})\n{cell.output}" if note else cell.output or ""
        if result.exit_status != 0:
            raise ToolError(output)
        return output

    def look(self, code: str) -> str:
        """Run a snippet that leaves no trace; returns what it shows, and says nothing else.

        Raises:
            ToolError: The code raised, ended its interpreter or met a limit.
            SandboxError: See `run`.
            ReplayError: See `run`.
        """
        session, _ = self._at(self.cells)
        try:
            result = self._exec(session, self.source(code))
            ended = not session.alive
        finally:
            self._session = None
            session.close()
        if ended or result.exit_status != 0:
            raise ToolError(_why(result) if ended else _show(result))
        return _show(result)

    def close(self) -> None:
        """End the session and its forks, but for those that snapshots hold; `run` opens another."""
        self._cells = Cells(self._cells)
        self._done, self._start = Cells(), None
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def source(self, code: str) -> str:
        """What the sandbox is given to run a snippet."""
        return code

    def _at(self, cells: Cells) -> tuple[Session, str]:
        """Go where just these cells have been run; they are in `_done` and `cells` then.

        Returns:
            A session, and what the model must be told if it is not what they left.
        """
        again = ""
        try:
            session = self._nearest(cells)
            if self._rerun(session, cells[len(self._done) :]):
                again = (
                    f"the {self.noun} was restarted and the earlier calls were run again: what "
                    f"depends on the time or on chance is different now."
                )
        except _Lost:
            again = f"the {self.noun} was restarted: what earlier calls did is gone."
            session = self._open()
            self._rerun(session, [cell for cell in cells if cell.output is None])
        self._cells = self._done
        return session, again

    def _nearest(self, cells: Cells) -> Session:
        """The session that has run most of these cells: the live one, a fork's, or a new one."""
        session = self._session
        if session is not None:
            # Two branches may have run the same code and yet be in different states.
            goes_on = all(map(operator.is_, self._done, cells)) and len(self._done) <= len(cells)
            session = session if session.alive and goes_on else None
        for known in (cells.checkpoint, self._start):
            if known is None or (session is not None and known.count <= len(self._done)):
                continue
            try:
                reached = known.session()
            except SandboxError:  # it was closed, or died with its sandbox
                known.close()
                continue
            if self._session is not None:
                self._session.close()
            self._session = session = reached
            self._done = Cells(cells[: known.count], known)
        return session if session is not None else self._open()

    def _open(self) -> Session:
        self._done, self._start = Cells(), None
        if self._session is not None:
            self._session.close()
        if isinstance(self._sandbox, str):
            self._sandbox = Sandbox(self._sandbox)
        self._session = session = self._sandbox.session()
        self._exec(session, self.prelude)
        self._start = self._fork(session, 0)
        self._done = Cells((), self._start)
        return session

    def _rerun(self, session: Session, cells: Sequence[Cell]) -> bool:
        """Run cells that the session lacks; returns whether one showed something else.

        Raises:
            _Lost: It cannot be done.
            ReplayError: Nor has the student any part in that.
        """
        differs = False
        for cell in cells:
            result = self._exec(session, self.source(cell.code))
            foreign = any(each.output is not None for each in (*self._done, cell))
            if not session.alive and not foreign:
                raise ReplayError(f"what the task loads cannot be run: {_why(result)}")
            if not session.alive or (foreign and cell.output is None and result.exit_status):
                raise _Lost
            if cell.output is not None:
                output = _show(result) or self.silence
                differs = differs or output != cell.output
                cell = cell if output == cell.output else Cell(cell.code, output)
            self._done = self._done.then(cell)
        if any(cell.output is not None for cell in cells):
            checkpoint = self._fork(session, len(self._done))
            if not session.alive:
                raise _Lost
            self._done = Cells(self._done, checkpoint or self._done.checkpoint)
        return differs

    def _fork(self, session: Session, count: int) -> Checkpoint | None:
        """Keeps this state; None if it cannot be copied (that may even have ended the session)."""
        try:
            return Checkpoint(session.snapshot(exact=True), count)
        except SandboxError:
            return None

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


def _why(result: ExecResult) -> str:
    """Why a call ended its interpreter, in words a model can act on."""
    if result.killed_reason is not None:
        return f"The code was stopped: {_LIMITS[result.killed_reason]}."
    if result.signal is not None:
        return f"The code crashed the interpreter (signal {result.signal})."
    return f"The code ended the interpreter (status {result.exit_status})."


TOOLS = (python,)
